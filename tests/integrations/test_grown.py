"""A run goes on with a model that has changed: tables with more rows, features that came and went.

Rows and layers that are stored are those of the checkpoint bit for bit, with their optimizer state; what was added is
as the engine started it. What differs and is not named, or is named and not so, is refused, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests._util.ranks import run_ranks
from tests.checkpoint.test_changes import AFTER, BEFORE, CHANGES, Joint, Net
from tests.integrations import runs
from tests.integrations.test_checkpoints import refused
from tests.test_placed_laws import launcher_env

GLOBAL = runs.GLOBAL


def start(topology: str, rows: dict[str, int] | list[int], seed: int = 0, **options: Any) -> Any:
    """An engine, on this rank."""
    import dmt_plugin

    torch.manual_seed(seed)
    hosts, lanes = map(int, topology.split("x"))
    config = {
        "train_micro_batch_size_per_gpu": GLOBAL // (hosts * lanes),
        "optimizer": {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10, "warmup_max_lr": 0.05}},
        "zero_optimization": {"stage": options.get("stage", 0)},
        "bf16": {"enabled": options.get("bf16", False)},
        "steps_per_print": 100000,
        "dmt": {
            "topology": {"hosts": hosts, "ranks_per_host": lanes},
            "towers": options.get("towers", {"module": "none"}),
            "placement": {"strategy": options.get("placement", "table_wise")},
            "lookup": {"optimizer": "adagrad", "lr": 0.1, "backend": options.get("backend", "torch")},
        },
    }
    model = Net(rows) if isinstance(rows, dict) else Joint(rows)
    batch = torch.randint(0, 5, (4, len(rows)))
    return dmt_plugin.initialize(model=model, config=config, example_batch=(batch,))[0]


def train(engine: Any, steps: int) -> None:
    features = len(engine.dmt.plan.features)

    def batch(samples: int, seed: int) -> Any:
        return (torch.randint(0, 10, (samples, features), generator=torch.Generator().manual_seed(seed)),)

    runs.train(engine, batch, steps)


TOWERS = {"module": "dlrm", "c": 1, "p": 0, "dim": 4, "count": 2}
GREW = {"goods": 60, "users": 50, "ads": 50, "old": 20}
MORE = {**BEFORE, "shop": 30, "brand": 12}

#: A run, the one that goes on from its checkpoint, and what is said of that.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "rows": (
        {"topology": "2x1", "rows": BEFORE, "backend": "fbgemm"},
        {"topology": "1x2", "rows": GREW, "placement": "row_wise", "backend": "fbgemm", "stage": 1},
        {"grow": ["tables.goods"]},
    ),
    "a feature less, one more, rows": (
        {"topology": "1x2", "rows": BEFORE, "placement": "row_wise", "stage": 2},
        {"topology": "2x1", "rows": AFTER},
        {**CHANGES, "new": ["tables.shop", "top.1", "top.2"]},
    ),
    "two features more": (
        {"topology": "1x2", "rows": BEFORE, "stage": 1},
        {"topology": "1x2", "rows": MORE, "placement": "column_wise", "stage": 1, "bf16": True},
        {"new": ["tables.shop", "tables.brand", "top.0.weight"]},
    ),
    "towers": (
        {"topology": "2x1", "rows": BEFORE, "towers": TOWERS},
        {"topology": "2x1", "rows": {**BEFORE, "shop": 30}, "towers": TOWERS, "stage": 1},
        {"new": ["tables.shop", "dmt_towers.group0.tower0", "top.0.weight"]},
    ),
    "fields of one table": (
        {"topology": "1x2", "rows": [10, 20, 30]},
        {"topology": "1x2", "rows": [10, 25, 30, 12], "placement": "row_wise", "stage": 2},
        {"grow": ["table[10:35]"], "new": ["table[65:77]"]},
    ),
}  # fmt: skip


def content(folder: str, tag: str) -> dict[str, Tensor]:
    from dmt_plugin.checkpoint import find_checkpoint
    from dmt_plugin.checkpoint.single import read_tensors

    found = find_checkpoint(folder, tag)
    assert found is not None
    return read_tensors(found, list(found.manifest.tensors))


def went_on(rank: int, world: int, folder: str) -> dict[str, list[str]]:
    """Every case: what is not as it should be, on rank 0."""
    wrong: dict[str, list[str]] = {}
    for number, (name, (before, now, changes)) in enumerate(CASES.items()):
        place = f"{folder}/{number}"
        engine = start(**before)
        train(engine, 4)
        engine.save_checkpoint(place, tag="before")
        again = start(**now, seed=7)
        again.save_checkpoint(place, tag="start", save_latest=False)
        path, _ = again.load_checkpoint(place, changes=changes)
        said = [] if path.endswith("before") and again.global_steps == 4 else [f"{path}, step {again.global_steps}"]
        again.save_checkpoint(place, tag="loaded")
        third = start(**now, seed=8)
        third.load_checkpoint(place)  # what was loaded and saved is a checkpoint like any other
        said += [f"again: {x}" for x in runs.differences(runs.everything(again), runs.everything(third))]
        train(again, 1)
        train(third, 1)
        said += [f"trained: {x}" for x in runs.differences(runs.everything(again), runs.everything(third))]
        if rank == 0:
            fresh = fresh_names(changes, content(place, "loaded"))
            said += compared(content(place, "before"), content(place, "start"), content(place, "loaded"), fresh)
        wrong[name] = said
    return wrong


def fresh_names(changes: Mapping[str, Any], tensors: Mapping[str, Any]) -> set[str]:
    new = tuple(changes.get("new", ()))
    names = {name.removeprefix("model.") for name in tensors if name.startswith("model.")}
    return {name for name in names if any(name == n or name.startswith(f"{n}.") for n in new)}


def compared(
    before: Mapping[str, Tensor], start: Mapping[str, Tensor], loaded: Mapping[str, Tensor], fresh: set[str]
) -> list[str]:
    """What is not of the checkpoint, or of the start where it should be."""
    wrong = []
    kinds = {"grown": 0, "fresh": 0, "same": 0}
    for name, value in loaded.items():
        parameter = name.removeprefix("model.") if name.startswith("model.") else name.split(".", 2)[-1]
        if parameter in fresh:
            expected, kind = start.get(name, torch.zeros_like(value)), "fresh"
        elif parameter == "table.weight":
            parts = [before[name][:30], start[name][30:35], before[name][30:], start[name][65:]]
            expected, kind = torch.cat(parts), "grown"
        elif before[name].shape != value.shape:
            expected, kind = torch.cat([before[name], start[name][len(before[name]) :]]), "grown"
        else:
            expected, kind = before[name], "same"
        kinds[kind] += 1
        if not torch.equal(expected, value):
            wrong.append(f"{name} is not {kind}")
        if kind == "same" and name in start and value.numel() > 20 and torch.equal(start[name], value):
            wrong.append(f"{name} cannot show whether it was loaded")
    due = {name for name in before if not name.endswith("old.weight") and name.split(".", 2)[-1] not in fresh}
    missing = sorted(due - set(loaded))
    return [*wrong, *(f"{name} was lost" for name in missing), *([] if kinds["same"] > 1 else [str(kinds)])]


@pytest.mark.processes
def test_what_is_stored_is_loaded_and_the_rest_is_as_it_started(tmp_path: Path) -> None:
    for rank, wrong in enumerate(run_ranks(2, went_on, str(tmp_path), timeout=240, env=partial(launcher_env, "2x1"))):
        assert not any(wrong.values()), (rank, wrong)


ROWS = {"grew": GREW, "more": MORE, "fewer": {**BEFORE, "goods": 40}}


def not_so(rank: int, world: int, folder: str) -> dict[str, Any]:
    said: dict[str, Any] = {}
    engine = start("2x1", BEFORE)
    train(engine, 1)
    engine.save_checkpoint(folder)
    engines = {name: start("2x1", rows, seed=3) for name, rows in ROWS.items()}
    for name, rows, options, changes in (
        ("rows", "grew", {}, None),
        ("not strict", "grew", {"load_module_strict": False}, None),
        ("module only", "grew", {"load_module_only": True}, None),
        ("a feature", "more", {}, None),
        ("another name", "grew", {}, {"grow": ["tables.users"]}),
        ("not all", "more", {}, {"new": ["tables.shop"]}),
        ("fewer", "fewer", {}, {"grow": ["tables.goods"]}),
        ("ranks differ", "grew", {}, {"grow": ["tables.goods"]} if rank == 0 else None),
        ("no mapping", "grew", {}, "tables.goods" if rank == 1 else None),
    ):
        other = engines[rows]
        state = runs.everything(other)
        said[name] = refused(lambda other=other, o=options, c=changes: other.load_checkpoint(folder, **o, changes=c))
        said[f"changed by {name}"] = runs.differences(state, runs.everything(other))
    other = engines["grew"]
    other.load_checkpoint(folder, load_module_only=True, changes={"grow": ["tables.goods"]})
    said["steps"] = other.global_steps
    return said


@pytest.mark.processes
def test_what_is_not_so_is_refused_by_all_ranks_and_changes_nothing(tmp_path: Path) -> None:
    first, second = run_ranks(2, not_so, str(tmp_path), timeout=240, env=partial(launcher_env, "2x1"))
    for name, parts in {
        "rows": ("table tables.goods has 60 rows here and 50 in it", 'changes={"grow": ["tables.goods"]}'),
        "not strict": ("say with changes= what has",),
        "module only": ("table tables.goods has 60 rows here and 50 in it",),
        "a feature": (
            "table tables.shop, 30 x 8, is not in it", "top.0.weight is [4, 48] here and [4, 32] in it",
            'changes={"new": ["tables.shop", "tables.brand", "top.0.weight"]}',
        ),
        "another name": ("'tables.users' under 'grow' is not so: tables.users, 50 x 8, is the same in the checkpoint",),
        "not all": ("in more than changes= says: table tables.brand, 12 x 8, is not in it", "top.0.weight"),
        "fewer": ("table tables.goods is 40 x 8 here and 50 x 8 in it",),
        "ranks differ": ("changes= is {'grow': ['tables.goods']} on rank 0 and {} on rank 1",),
        "no mapping": ("changes= is a mapping with lists of names",),
    }.items():  # fmt: skip
        for said in (first, second):
            assert all(part in said[name] for part in parts), (name, said[name])
            assert said[name].startswith(("CheckpointError", "DMTError")) and not said[f"changed by {name}"]
        assert name == "no mapping" or first[name] == second[name]
    assert first["steps"] == second["steps"] == 0
