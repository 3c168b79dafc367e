"""Checkpoints that are written behind the steps: the save waits for a snapshot, a thread of each rank does the rest.

1. A save copies what this rank writes into host memory, which is kept for the next save, and taken at the start of a
   run whose saves are all like this. Whether there is room is judged over all ranks that share a machine or a control
   group, before any of them allocates; all find the same.
2. A thread writes the copies and commits as any save does (:mod:`.writing`). The threads of the ranks meet in a group
   of their own (:class:`.SideGroup`), so that theirs and the training's exchanges never mix.
3. One checkpoint is written at a time. Whoever needs the last one (the next save, a load, ``wait_for_checkpoint``,
   ``destroy``) waits for it, and raises the error that it ended with, once: the threads have told each other, so all
   ranks raise. It is logged when it happens. Steps do not raise it: ranks would do so at different steps.
4. A wait ends when the thread is done, or has not got on for as long as the limit of the groups.
5. A process that ends waits for its thread as well, and says what is left unfinished.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from multiprocessing.util import Finalize
from pathlib import Path

from dmt_plugin.checkpoint.unfinished import over, under_way
from dmt_plugin.checkpoint.writes import Snapshot
from dmt_plugin.core.errors import CheckpointError, DMTError, ExchangeError
from dmt_plugin.core.memory import lacking, memory_limits
from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.integrations.deepspeed.checkpoint.writing import Prepared, write
from dmt_plugin.topology.agreement import gather, together
from dmt_plugin.topology.groups import RankGroups
from dmt_plugin.topology.side_group import SideGroup

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
_MARGIN = 1 << 20
"""Bytes beyond the need that was foreseen: small buffers of the model, and what lies between copies."""
_EXIT_PRIORITY = 0
"""Of what ``multiprocessing`` calls when a process ends: in the main one, and in those that it has started."""


class Behind:
    """The checkpoint that one engine writes behind its steps, if any.

    Args:
        groups: this rank's.
        resources: what is given back when the engine is destroyed; the group of the threads is added to it.
    """

    def __init__(self, groups: RankGroups, resources: ExitStack) -> None:
        self._groups, self._resources = groups, resources
        self._side: SideGroup | None = None
        self._snapshot = Snapshot()
        self._writer: _Writer | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written on this rank."""
        return self._writer is not None and self._writer.is_alive()

    @property
    def bytes(self) -> int:
        """Host memory that is kept for snapshots."""
        return self._snapshot.bytes

    def wait(self, doing: str | None = None) -> Path | None:
        """Waits for the checkpoint that is being written, if there is one.

        Args:
            doing: what has to wait, for a line in the log of rank 0 if it does.

        Returns:
            Its folder; None if none was being written since the last wait.

        Raises:
            CheckpointError: it was not committed, and will not be; or its thread does not get on.
        """
        writer = self._writer
        if writer is None:
            return None
        if doing is not None and writer.is_alive() and self._groups.rank == 0:
            logger.warning("%s waits for the checkpoint %s, which is still being written", doing, writer.checkpoint)
        if not writer.ended():
            raise CheckpointError(
                f"the checkpoint {writer.checkpoint} is being written behind the steps and has not got on for "
                f"dmt.comm.timeout_s = {self._groups.timeout_s:g} s on rank {self._groups.rank}: the disk hangs, or is "
                "slower than that (raise dmt.comm.timeout_s); it is not committed"
            )
        self._writer = None
        if writer.error is not None:
            raise CheckpointError(f"the checkpoint {writer.checkpoint}, written behind the steps, {writer.error}")
        return writer.place

    def prepare(self, size: int) -> None:
        """Takes the memory for snapshots of about ``size`` bytes, so that the first save need not."""
        self._snapshot.reserve(size + _MARGIN)
        self._snapshot.touch()

    def begin(self, prepared: Prepared) -> None:
        """Takes the snapshot, and lets the thread write it; all ranks call this, when nothing is being written.

        Raises:
            CheckpointError: there is no room for the snapshot; on every rank.
            ExchangeError: a rank is gone, or the time is up.
        """
        groups = self._groups
        more = self._snapshot.more(prepared.writes.bytes)
        read = gather(groups, (more, memory_limits()), "comparing the memory of the snapshot with what there is")
        found = lacking([need for need, _ in read], [limits for _, limits in read])
        if found is not None:
            limit, ranks = found
            missing = say_bytes(sum(read[rank][0] for rank in ranks))
            raise CheckpointError(
                f"the snapshot of the checkpoint {prepared.name} takes {missing} more on rank(s) "
                f"{', '.join(map(str, ranks))}, and {limit.source} has {say_bytes(limit.available)} left; nothing was "
                "saved. A synchronous save needs no snapshot: save_checkpoint(asynchronous=False), or "
                "dmt.checkpoint.asynchronous = false"
            )
        if self._side is None:
            self._side = SideGroup(groups)
            self._resources.callback(self._give_back, self._side)
        with together(groups, "taking the snapshot"):
            prepared.take(self._snapshot)
        self._writer = _Writer(prepared, groups, self._side)
        self._writer.start()

    def _give_back(self, side: SideGroup) -> None:
        side.release()
        self._side = None
        if not self.busy:
            self._snapshot.release()


class _Writer(threading.Thread):
    """Writes one checkpoint.

    Attributes:
        checkpoint: its name.
        place: its folder, once it is committed.
        error: why it never will be, once that is known.
    """

    def __init__(self, prepared: Prepared, groups: RankGroups, side: SideGroup) -> None:
        # A daemon, as a thread that is not would hold up the end of the process without a limit.
        super().__init__(name="dmt-checkpoint", daemon=True)
        self.checkpoint = prepared.name
        self.place: Path | None = None
        self.error: str | None = None
        self._prepared: Prepared | None = prepared
        self._groups, self._side = groups, side
        self._moved = time.monotonic()

    def start(self) -> None:
        """Begins; from now on the process does not end without it."""
        assert self._prepared is not None
        under_way(self._prepared.temporary)
        self._at_exit = Finalize(None, _finish, (self,), exitpriority=_EXIT_PRIORITY)
        super().start()

    def run(self) -> None:
        """In the thread."""
        prepared, rank = self._prepared, self._groups.rank
        assert prepared is not None
        try:
            self.place = write(prepared, self._groups, self._side.gather, self._get_on)
            if rank == 0:
                logger.info("checkpoint %s is committed", self.place)
        except Exception as error:
            what = str(error) if isinstance(error, DMTError) else f"rank {rank}: {type(error).__name__}: {error}"
            known = "was not committed" if not isinstance(error, ExchangeError) else "may not have been committed"
            self.error = f"{known}; those before are as they were: {what}"
            if rank == 0 or not isinstance(error, DMTError):
                logger.error("the checkpoint %s %s", self.checkpoint, self.error)
        finally:
            over(prepared.temporary)
            self._prepared = None

    def ended(self) -> bool:
        """Waits for the end of the thread; False if it has not got on for too long."""
        while self.is_alive():
            self.join(_LOOK_S)
            if self.is_alive() and time.monotonic() - self._moved > self._groups.timeout_s:
                return False
        self._at_exit.cancel()
        return True

    def _get_on(self) -> None:
        self._moved = time.monotonic()


def _finish(writer: _Writer) -> None:
    """When the process ends."""
    if not writer.ended():
        logger.error("the checkpoint %s is unfinished: its writer does not get on, and the run ends", writer.checkpoint)
