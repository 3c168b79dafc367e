"""One guard for ranks that are gone or late: around everything that waits for other ranks.

The backend says that a connection was closed, or that time is up, and names neither rank nor place. Inside
:func:`reporting` such an error becomes an :class:`~dmt_plugin.core.errors.ExchangeError` that does; whoever knows the
rank makes it: a transport, or, where there is none yet, a rank's groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch.distributed as dist

from dmt_plugin.core.errors import DMTError, ExchangeError


class Reporter(Protocol):
    """Makes the error of a wait that failed on this rank."""

    def failure(self, place: str, what: str, error: BaseException) -> ExchangeError:
        """Of ``place``, which ``what`` ("did not finish")."""


def of_other_ranks(error: BaseException) -> bool:
    """Whether an error says that another rank is gone or late, rather than that this one failed."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    return isinstance(error, RuntimeError) and "/gloo/" in str(error)


@contextmanager
def reporting(
    reporter: Reporter, place: str, what: str = "did not finish", only: Callable[[BaseException], bool] | None = None
) -> Iterator[None]:
    """Turns what the backend raises in the ``with`` block into an ``ExchangeError``; errors of ours go on as they are.

    Args:
        reporter: makes the error.
        place: what the block waits for.
        what: what became of it.
        only: which errors are the backend's; by default every ``RuntimeError``.

    Raises:
        ExchangeError: a rank is gone, or the time is up.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DMTError) or (only is not None and not only(error)):
            raise
        raise reporter.failure(place, what, error) from error


def first_line(error: BaseException) -> str:
    """What a message quotes of the backend's error."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
