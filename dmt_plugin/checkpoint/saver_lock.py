"""One run saves into a folder: the first that does holds it, another one is refused and told who that is.

1. The lock is a file in the folder, ``.dmt_saver``, made at the first save: who holds it (run, host, process), and
   since when. Only saving takes it; loads and other folders' saves do not look at it.
2. While its process lives, a thread touches the file: a sign of life for those who cannot see the process.
3. It is taken over at once if its process is one of this machine that has ended; if another machine's process held it
   for a run of the same name, which has been started again; and in any case if the last sign of life is too long ago.
   Ages are differences between two times of the file system's own clock.
4. It is given back when the engine is destroyed, or when the process ends by itself.

Needs no torch. Rank 0 of a run does this, and nobody else.
"""

from __future__ import annotations

import atexit
import errno
import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dmt_plugin.checkpoint.unfinished import machine, runs
from dmt_plugin.core.errors import CheckpointError

logger = logging.getLogger(__name__)

LOCK = ".dmt_saver"
_MOVING_S = 10.0
"""Nobody needs as long to move a lock away."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)


@dataclass(frozen=True)
class Holder:
    """Who holds a folder.

    Attributes:
        run: name of the run, which it keeps when it is started again; empty: none.
        host: name of the machine, for people.
        machine: of :func:`dmt_plugin.checkpoint.unfinished.machine`.
        process: its number there.
        begun: when the process began, as the machine counts it: numbers of processes come again.
        since: when it took the lock, UTC.
    """

    run: str
    host: str
    machine: str
    process: int
    begun: str
    since: str

    @property
    def ended(self) -> bool:
        """Whether its process is known to have ended."""
        return self.machine == machine() and not (runs(self.process) and _begun(self.process) == self.begun)


class SaverLock:
    """Of one folder, for the engines of this process that save into it.

    Args:
        root: the folder.
        stale_s: seconds without a sign of life after which another run may have it.
    """

    def __init__(self, root: Path, stale_s: float) -> None:
        self.path = root / LOCK
        self.stale_s = stale_s
        self.holder: Holder | None = None
        self.users: set[int] = set()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, run: str) -> None:
        """Holds the folder from now on; does nothing if this process holds it already.

        Args:
            run: name of this run, which it has again when it is started again; may be empty.

        Raises:
            CheckpointError: another run holds it.
            OSError: nothing can be written there.
        """
        if self.holder is not None and _read(self.path) == self.holder:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = Holder(
            run, socket.gethostname(), machine(), os.getpid(), _begun(os.getpid()),
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )  # fmt: skip
        draft = self.path.with_name(f"{LOCK}.{mine.machine}-{mine.process}")
        draft.write_text(json.dumps(asdict(mine)))
        try:
            for _ in range(400):
                if _made(draft, self.path):
                    break
                self._make_room(mine, draft)
            else:
                raise CheckpointError(f"{self.path} is taken by one run after the other; try again")
        finally:
            draft.unlink(missing_ok=True)
        self.holder = mine
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="dmt-saver-lock", daemon=True)
            self._thread.start()

    def give_back(self) -> None:
        """Another run may save into the folder."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        if self.holder is not None and _read(self.path) == self.holder:
            with suppress(OSError):
                self.path.unlink()
        self.holder = None

    def _make_room(self, mine: Holder, draft: Path) -> None:
        """Moves a lock away whose holder is gone.

        Raises:
            CheckpointError: it is there.
        """
        holder = _read(self.path)
        try:
            os.utime(draft)
            age = draft.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return  # given back meanwhile
        restarted = holder is not None and holder.run == mine.run != "" and holder.machine != mine.machine
        if not (age > self.stale_s or restarted or (holder is not None and holder.ended)):
            raise CheckpointError(self._refusal(holder, age))
        moving = self.path.with_name(f"{LOCK}.moving")
        try:
            moving.mkdir()
        except FileExistsError:  # another run does the same, or died in the middle of it
            with suppress(OSError):
                if draft.stat().st_mtime - moving.stat().st_mtime > _MOVING_S:
                    moving.rmdir()
            time.sleep(0.05)
            return
        try:
            if _read(self.path) == holder:  # and not another's, who was faster
                self.path.unlink(missing_ok=True)
                logger.warning("%s was held by %s, which is gone: taken over", self.path.parent, _named(holder))
        finally:
            moving.rmdir()

    def _refusal(self, holder: Holder | None, age: float) -> str:
        return (
            f"{self.path.parent} is the folder of another run's checkpoints: {_named(holder)} saves into it, and gave "
            f"its last sign of life {max(0.0, age):.0f} s ago. Two runs in one folder would take each other's places: "
            "give this one a folder of its own, or end the other. If that one is gone for good: its lock holds for "
            f"{self.stale_s:g} s behind its last sign of life (dmt.checkpoint.lock_stale_s), and not at all for a run "
            f"of the same dmt.checkpoint.run_id on another machine; or delete {self.path}"
        )

    def _live(self) -> None:
        while not self._end.wait(self.stale_s / 4):
            with suppress(OSError):
                if _read(self.path) == self.holder:
                    os.utime(self.path)


_LOCKS: dict[str, SaverLock] = {}
_GUARD = threading.Lock()


def hold(root: str | Path, user: Any, run: str, stale_s: float) -> None:
    """Holds a folder for an engine of this process, until :func:`let_go`.

    Args:
        root: the folder that checkpoints are saved into.
        user: the engine.
        run: name of the run, which it has again when it is started again; may be empty.
        stale_s: seconds without a sign of life after which another run may have the folder.

    Raises:
        CheckpointError: another run holds it.
    """
    key = os.path.abspath(root)
    with _GUARD:
        lock = _LOCKS.get(key)
        if lock is None:
            lock = SaverLock(Path(key), stale_s)
        lock.take(run)
        lock.users.add(id(user))
        _LOCKS[key] = lock


def let_go(user: Any) -> None:
    """Gives back what only this engine of the process saved into."""
    with _GUARD:
        for key, lock in list(_LOCKS.items()):
            lock.users.discard(id(user))
            if not lock.users:
                del _LOCKS[key]
                lock.give_back()


@atexit.register
def _at_the_end() -> None:
    with _GUARD:
        for lock in _LOCKS.values():
            lock.give_back()
        _LOCKS.clear()


def _made(draft: Path, path: Path) -> bool:
    """Gives a file a second name, or a copy, unless that is taken."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            with path.open("x") as stream:
                stream.write(draft.read_text())
        except FileExistsError:
            return False
    return True


def _read(path: Path) -> Holder | None:
    """Who holds a lock; None if there is none, or it says nothing that can be read."""
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _named(holder: Holder | None) -> str:
    if holder is None:
        return "an unknown process (its lock cannot be read)"
    run = f" of the run {holder.run!r}" if holder.run else ""
    return f"process {holder.process} on {holder.host}{run} (since {holder.since})"


def _begun(process: int) -> str:
    """When a process of this machine began, in its clock's ticks; empty where that cannot be told."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
