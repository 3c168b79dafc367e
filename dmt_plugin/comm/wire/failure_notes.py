"""What ranks leave for each other when something ends them, so that the message of the others can name who it was.

A wait that fails says that some rank is gone, not which. So:

1. a rank that fails by itself (in the model, the loss, the loader, the optimizer) leaves its error in the store at
   which the ranks met; one whose wait failed leaves what it waited for;
2. a rank whose wait failed then looks, for a short while, for what the others left. An error of theirs is the cause;
   one that left nothing has died, hangs, or is far behind;
3. the store may be gone as well, or cut off: it is asked by a thread that nobody waits for longer than that while.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

PATIENCE_S = 3.0
"""How long the notes of others are waited for, once, by a rank that has failed."""

_WAITED, _FAILED = "waited: ", "failed: "
_LONGEST = 400


class Store(Protocol):
    """What is needed of a ``torch.distributed.Store``."""

    def set(self, key: str, value: str, /) -> None:
        """Keep a value."""

    def get(self, key: str, /) -> bytes:
        """A value that is there."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys have values."""


class FailureNotes:
    """Of one rank.

    Args:
        store: where the ranks met; None: nothing is left, and nobody is asked.
        name: of this training among those of the process; the same on every rank.
        rank: this rank.
        world_size: number of ranks.
    """

    def __init__(self, store: Store | None, name: str, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world = store, rank, world_size
        self._key = f"dmt_failure_notes/{name}/"
        self._step: Callable[[], int] | None = None
        self._said = False
        self._heard: str | None = None

    def failed(self, step: int, error: BaseException) -> None:
        """This rank has failed by itself; the first call counts."""
        self._leave(f"{_FAILED}step {step}: {type(error).__name__}: {error}")

    def waited(self, step: int, where: str) -> str:
        """This rank's wait has failed.

        Returns:
            A sentence about the others, with a space behind it; empty if nothing is known.
        """
        if self._heard is None:
            self._leave(f"{_WAITED}step {step}: {where}")
            self._heard = self._of_others()
        return self._heard

    def at_exit(self, step: Callable[[], int]) -> None:
        """Also tell of an exception that ends the process, if this training is still there by then."""
        if self._store is not None and self._world > 1:
            self._step = step
            _drop_idle_hooks()
            # Weakly: what the training holds must not live on to the end of the process.
            sys.excepthook = functools.partial(_note_and_go_on, weakref.ref(self), sys.excepthook)

    def close(self) -> None:
        """This training is over: what ends the process later is not its failure."""
        self._step = None
        _drop_idle_hooks()

    def _leave(self, text: str) -> None:
        store = self._store
        if not self._said and store is not None:
            self._said = True
            _within(PATIENCE_S, lambda: store.set(f"{self._key}{self._rank}", text[:_LONGEST]))

    def _of_others(self) -> str:
        store = self._store
        if store is None or self._world == 1:
            return ""
        notes: dict[int, str] = {}
        silent = set(range(self._world)) - {self._rank}
        deadline = time.monotonic() + PATIENCE_S

        def ask() -> None:
            while silent and time.monotonic() < deadline:
                for rank in sorted(silent):
                    if store.check([f"{self._key}{rank}"]):
                        notes[rank] = store.get(f"{self._key}{rank}").decode(errors="replace")
                        silent.discard(rank)
                time.sleep(0.05)

        asked = _within(PATIENCE_S + 0.5, ask)
        failed = {rank: text.removeprefix(_FAILED) for rank, text in sorted(notes.items()) if text.startswith(_FAILED)}
        if failed:
            rank, text = next(iter(failed.items()))
            more = f" (and {len(failed) - 1} more rank(s))" if len(failed) > 1 else ""
            return f"Rank {rank}{more} failed, {text}. "
        if not asked:
            return "The other ranks could not be asked: the process that keeps their store, often rank 0, is gone. "
        if not silent:
            return "All other ranks wait as well. "
        shown = ", ".join(map(str, sorted(silent)[:8])) + (", ..." if len(silent) > 8 else "")
        return f"Nothing was heard of rank{'s' * (len(silent) > 1)} {shown}: dead, hanging, or far behind. "


def _note_and_go_on(
    own: Callable[[], FailureNotes | None], before: Callable[..., Any], kind: Any, error: Any, trace: Any
) -> None:
    """In the place of ``sys.excepthook``: notes the exception, then does what was done before."""
    notes = own()
    if notes is not None and notes._step is not None:
        notes.failed(notes._step(), error)
    before(kind, error, trace)


def _drop_idle_hooks() -> None:
    """Hooks of trainings that are over go, as long as nobody else's is on top of them."""
    while isinstance(hook := sys.excepthook, functools.partial) and hook.func is _note_and_go_on:
        notes = hook.args[0]()
        if notes is not None and notes._step is not None:
            break
        sys.excepthook = hook.args[1]


def _within(seconds: float, action: Callable[[], None]) -> bool:
    """Whether an action came to its end in time; its errors are a no."""
    done = threading.Event()

    def run() -> None:
        try:
            action()
        except Exception:  # the store is gone
            return
        done.set()

    thread = threading.Thread(target=run, name="dmt-failure-notes", daemon=True)
    thread.start()
    thread.join(seconds)
    return done.is_set()
