"""A checkpoint from elsewhere: its files say what they hold, and nothing of it is run."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests._util.ranks import run_ranks
from tests.integrations.runs import differences, everything, make, refused, train
from tests.test_placed_laws import launcher_env

NAMED = {"checkpoint": {"classes": [f"{__name__}:Best"]}}


@dataclass
class Best:
    """A class of the user's."""

    score: float


class Runs:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def replace_in(checkpoint: Path, file: str, key: str | None, value: Any) -> None:
    """Another content of a file, with a manifest that fits it."""
    from dmt_plugin.checkpoint.folder import MANIFEST, entry_of
    from dmt_plugin.checkpoint.manifest import Manifest

    content = torch.load(checkpoint / file, weights_only=False)
    torch.save(value if key is None else {**content, key: value}, checkpoint / file)
    path = checkpoint / MANIFEST
    manifest = Manifest.from_json(path.read_bytes(), str(path))
    files = {**manifest.files, file: entry_of(checkpoint / file)}
    path.write_text(dataclasses.replace(manifest, files=files).to_json())


def behaviour(rank: int, world: int, folder: str) -> dict[str, Any]:
    """On two ranks; every case begins with the checkpoint of one run."""
    from dmt_plugin.checkpoint.folder import COMMON, rank_file

    said: dict[str, Any] = {}
    engine, batch = make("2x1", stage=1)
    train(engine, batch, 1)
    before = everything(engine)
    mark = f"{folder}/ran"
    cases: dict[str, tuple[str, str | None, Any]] = {
        "client_state": (rank_file(1), "client_state", {"a": Runs(mark)}),
        "registered": (rank_file(0), "registered", {"data": [Runs(mark)]}),
        "random": (rank_file(0), "random", {"python": Runs(mark)}),
        "buffers": (rank_file(1), "buffers", {"b": Runs(mark)}),
        "whole file": (rank_file(1), None, Runs(mark)),
        "scheduler": (COMMON, "scheduler", {"lr": Runs(mark)}),
        "optimizer": (COMMON, "optimizer", Runs(mark)),
        "random states that are none": (rank_file(1), "random", {"python": (1,), "numpy": 2, "torch": 3}),
        "buffers that are none": (rank_file(1), "buffers", {"b": [1]}),
        "no options": (COMMON, "optimizer", {"scalars": {}}),
        "nothing": (COMMON, None, {}),
        "a list": (rank_file(0), None, [1]),
    }
    for number, (name, (file, key, value)) in enumerate(cases.items()):
        place = f"{folder}/{number}"
        engine.save_checkpoint(place, tag="t")
        torch.distributed.barrier()
        if rank == 0:
            replace_in(Path(place) / "t", file, key, value)
        torch.distributed.barrier()
        said[name] = refused(partial(engine.load_checkpoint, place, "t"))
        said[f"{name} changed"] = differences(before, everything(engine))
        torch.distributed.barrier()
    said["ran"] = os.path.exists(mark)
    said["saved"] = refused(lambda: engine.save_checkpoint(f"{folder}/own", client_state={"n": 1, "best": Best(0.5)}))
    said["committed"] = sorted(os.listdir(f"{folder}/own")) if os.path.exists(f"{folder}/own") else []

    named, _ = make("2x1", stage=1, dmt=NAMED)
    named.save_checkpoint(f"{folder}/own", client_state={"best": Best(0.5 + rank)})
    said["named"] = named.load_checkpoint(f"{folder}/own")[1] == {"best": Best(0.5 + rank)}
    said["loaded"] = refused(lambda: engine.load_checkpoint(f"{folder}/own"))
    gone = {"checkpoint": {"classes": ["no_such_package:Best"]}}
    said["not there"] = refused(lambda: make("2x1", stage=1, dmt=gone))
    return said


@pytest.mark.processes
def test_nothing_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    for rank, said in enumerate(run_ranks(2, behaviour, str(tmp_path), env=partial(launcher_env, "2x1"))):
        for name in ("client_state", "registered", "random", "buffers", "whole file", "scheduler", "optimizer"):
            assert "posix.mkdir, which are not taken from a checkpoint; nothing of it was run" in said[name], said[name]
        for name, why in (
            ("random states that are none", "no random states"), ("buffers that are none", "no tensors"),
            ("no options", "no options"), ("nothing", "lacks optimizer"), ("a list", "lacks random"),
        ):  # fmt: skip
            assert why in said[name] and "load another checkpoint" in said[name], said[name]
        assert not any(changed for name, changed in said.items() if name.endswith("changed"))
        assert not said["ran"]
        assert said["saved"].count("client_state['best'] holds objects of") == 1, said["saved"]
        assert "nothing is saved" in said["saved"] and f'"classes": ["{__name__}:Best"]' in said["saved"]
        assert said["committed"] == []
        assert said["named"]
        assert f'"classes": ["{__name__}:Best"]' in said["loaded"], (rank, said["loaded"])
        assert "dmt.checkpoint.classes" in said["not there"] and "no_such_package" in said["not there"]
