"""What ranks leave for each other: who failed, who is silent, and never a long wait."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest
import torch.distributed as dist

from dmt_plugin.comm.wire import failure_notes
from dmt_plugin.comm.wire.failure_notes import FailureNotes


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_notes, "PATIENCE_S", 0.4)


def ranks(number: int, store: Any = None) -> list[FailureNotes]:
    store = store or dist.HashStore()
    return [FailureNotes(store, "7", rank, number) for rank in range(number)]


def test_the_rank_that_failed_is_named() -> None:
    zero, one, two = ranks(3)
    one.failed(5, ValueError("no such column"))
    one.failed(6, KeyError("later"))  # the first one is the cause
    began = time.monotonic()
    assert zero.waited(5, "exchange 'peers'") == "Rank 1 failed, step 5: ValueError: no such column. "
    assert zero.waited(9, "another") == "Rank 1 failed, step 5: ValueError: no such column. ", "asked once"
    two.failed(5, ValueError("as well"))
    assert two.waited(5, "x").startswith("Rank 1 failed")
    assert time.monotonic() - began < 1.5


def test_a_silent_rank_is_named() -> None:
    zero, one, *_ = ranks(4)
    other = threading.Thread(target=lambda: one.waited(3, "x"))
    other.start()
    assert zero.waited(3, "x") == "Nothing was heard of ranks 2, 3: dead, hanging, or far behind. "
    other.join()


def test_all_wait() -> None:
    zero, one = ranks(2)
    other = threading.Thread(target=lambda: one.waited(3, "x"))
    other.start()
    assert zero.waited(3, "x") == "All other ranks wait as well. "
    other.join()


def test_two_trainings_of_a_process_do_not_mix() -> None:
    store = dist.HashStore()
    FailureNotes(store, "7", 1, 2).failed(1, ValueError("old"))
    assert FailureNotes(store, "8", 0, 2).waited(1, "x").startswith("Nothing was heard of rank 1")


class Gone:
    """A store whose process is gone, or whose link is cut."""

    def __init__(self, hangs: bool) -> None:
        self.hangs = hangs

    def check(self, *_: Any) -> bool:
        if self.hangs:
            time.sleep(5)
        raise dist.DistNetworkError("connection lost")

    set = get = check


@pytest.mark.parametrize("hangs", [False, True])
def test_a_store_that_is_gone_holds_nobody_up(hangs: bool) -> None:
    zero, _ = ranks(2, Gone(hangs))
    began = time.monotonic()
    assert zero.waited(3, "x").startswith("The other ranks could not be asked")
    assert time.monotonic() - began < 2.5


def test_one_rank_or_no_store_says_nothing() -> None:
    assert FailureNotes(None, "", 0, 4).waited(1, "x") == ""
    assert ranks(1)[0].waited(1, "x") == ""
    FailureNotes(None, "", 0, 4).failed(1, ValueError())


def test_an_exception_that_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: seen.append(args))
    zero, one = ranks(2)
    one.at_exit(lambda: 12)
    error = ZeroDivisionError("in the loss")
    sys.excepthook(type(error), error, None)
    assert seen == [(ZeroDivisionError, error, None)], "what was there before goes on"
    assert zero.waited(12, "x") == "Rank 1 failed, step 12: ZeroDivisionError: in the loss. "


def test_hooks_of_trainings_that_are_over_go(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    stock = seen.append
    monkeypatch.setattr(sys, "excepthook", lambda *args: stock(args))
    before = sys.excepthook
    for end in (FailureNotes.close, lambda notes: None):  # destroyed, or only dropped
        for _ in range(3):
            notes = ranks(2)[1]
            notes.at_exit(lambda: 1)
            end(notes)
            del notes
        zero, one = ranks(2)
        one.at_exit(lambda: 2)
        assert sys.excepthook.args[1] is before, "no more than one"  # type: ignore[attr-defined]
        somebody = sys.excepthook
        monkeypatch.setattr(sys, "excepthook", lambda *args, somebody=somebody: somebody(*args))
        one.close()
        sys.excepthook(ValueError, ValueError("later"), None)
        assert seen.pop()[0] is ValueError and zero.waited(2, "x").startswith("Nothing was heard of rank 1")
        monkeypatch.setattr(sys, "excepthook", before)
