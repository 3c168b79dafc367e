"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dmt_plugin.core.files import whole_file
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.topology.shape import Topology
from tests.test_plan import plan_for


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    place = tmp_path / "new" / "file"
    with whole_file(place) as stream:
        stream.write(b"old")
    with pytest.raises(KeyError), whole_file(place) as stream:
        stream.write(b"half")
        raise KeyError
    assert place.read_bytes() == b"old" and len(list(place.parent.iterdir())) == 1


def test_a_plan_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full, or the process is killed, in the middle of ``plan.json``."""
    place = tmp_path / "plan.json"
    plan = plan_for(4, Topology(2, 2), 2)
    plan.save(place)

    def full(*_: Any) -> Any:
        raise OSError("no space left on device")

    def half(self: Path, text: str) -> None:
        self.write_bytes(text.encode()[: len(text) // 2])
        full()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="no space"):
            plan.save(place)
    assert TowerPlan.load(place) == plan
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
