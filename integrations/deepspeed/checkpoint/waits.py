"""One guard around saving, loading and gathering: what a user sees of whatever fails in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from dmt_plugin.core.errors import CheckpointError, DMTError, ExchangeError
from dmt_plugin.integrations.deepspeed.checkpoint.trained import Trained
from dmt_plugin.topology.lost_ranks import of_other_ranks


@contextmanager
def waits(engine: Trained, doing: str) -> Iterator[None]:
    """Whatever fails in the block: a rank that is gone is reported as by the exchanges, the rest as CheckpointError."""
    transport, rank = engine.dmt.transport, engine.dmt.groups.rank
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        cause: BaseException = error
        if isinstance(error, ExchangeError):  # of a gathering, which knows of no step
            cause = error.__cause__ or error
        elif isinstance(error, DMTError):  # of a rank that only heard of another's failure
            raise CheckpointError(str(error)) from error
        elif isinstance(error, CheckpointException):
            rank, (cause, _) = next(iter(error.failures.items()), (0, (error, None)))
        if isinstance(error, ExchangeError) or isinstance(cause, dist.DistError) or of_other_ranks(cause):
            raise transport.failure(doing, "did not finish", cause) from error
        raise CheckpointError(f"rank {rank} failed while {doing}: {type(cause).__name__}: {cause}") from error
