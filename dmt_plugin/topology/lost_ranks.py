"""One guard for ranks that are gone or late: around everything that waits for other ranks.

The backend says that a connection was closed, or that time is up, and names neither rank nor place. Inside
:func:`reporting` such an error becomes an :class:`~dmt_plugin.core.errors.ExchangeError` that does; whoever knows the
rank makes it: a transport, or, where there is none yet, a rank's groups.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
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


class reporting:
    """Turns what the backend raises in the ``with`` block into an ``ExchangeError``; errors of ours go on as they are.

    Args:
        reporter: makes the error.
        place: what the block waits for; ``str`` of it is only asked for by a failure.
        what: what became of it.
        only: which errors are the backend's; by default every ``RuntimeError``.

    Raises:
        ExchangeError: a rank is gone, or the time is up.
    """

    __slots__ = ("_only", "_place", "_reporter", "_what")

    def __init__(
        self,
        reporter: Reporter,
        place: object,
        what: str = "did not finish",
        only: Callable[[BaseException], bool] | None = None,
    ) -> None:
        self._reporter, self._place, self._what, self._only = reporter, place, what, only

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, RuntimeError) or isinstance(error, DMTError):
            return
        if self._only is None or self._only(error):
            raise self._reporter.failure(str(self._place), self._what, error) from error


def first_line(error: BaseException) -> str:
    """What a message quotes of the backend's error."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
