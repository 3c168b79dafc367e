"""States of the flat model out of an engine and into it, rows of tables, and what nobody may take for a whole model.

A run whose model was let go must train on as if nobody had asked for anything.
"""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.tables.released import is_released
from tests._util.ranks import run_ranks
from tests.integrations import runs

BF16 = {"bf16": {"enabled": True}}
#: topology, model, ZeRO stage, placement, more of the configuration
CASES: dict[str, dict[str, Any]] = {
    "towers of two hosts": {"topology": "2x1", "model": "dlrm", "stage": 1, "ds": BF16, "placement": "table_wise"},
    "rows": {"topology": "1x2", "model": "dcn_v2", "stage": 0, "placement": "row_wise"},
    "columns": {"topology": "1x2", "model": "deepfm", "stage": 2, "placement": "column_wise"},
}
CALLS = ("dmt_plugin.to_flat", "engine.gather_state", "engine.save_checkpoint", "engine.load_flat_state")


def engine_of(case: dict[str, Any], kept: list[nn.Module]) -> Any:
    module = "dlrm" if case["topology"] == "2x1" else "none"
    return runs.make(
        case["topology"], case["model"], stage=case["stage"], ds=case.get("ds"), prepare=kept.append,
        tables={"optimizer": "adagrad"},
        dmt={
            "towers": {"module": module, **({"c": 1, "p": 1, "dim": 4} if module == "dlrm" else {})},
            "placement": {"strategy": case["placement"]},
        },
    )  # fmt: skip


def error_of(call: Callable[[], Any]) -> str:
    """Type and text of what a call raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def same(one: dict[str, Tensor] | None, other: dict[str, Tensor]) -> bool:
    return one is not None and list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def use(rank: int, world: int, case: dict[str, Any], folder: str) -> dict[str, Any]:
    import dmt_plugin
    from dmt_plugin.checkpoint import streams

    kept: list[nn.Module] = []
    engine, batch = engine_of(case, kept)
    (flat,) = kept
    said: dict[str, Any] = {}
    start = engine.gather_state(ranks="all")
    runs.train(engine, batch, 2)

    # -- half a model --------------------------------------------------------------------
    given = {
        name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in engine.module.logical.flat_entries.items()
    }
    before = runs.everything(engine)
    uses = {
        "model.state_dict": flat.state_dict,
        "model.load_state_dict": lambda: flat.load_state_dict(given),
        "model.forward": lambda: flat(*batch(4, 0)),
        "engine.module.state_dict": engine.module.state_dict,
        "engine.module.load_state_dict": lambda: engine.module.load_state_dict(given),
        "deepcopy": lambda: copy.deepcopy(engine.module),
        "average": lambda: torch.optim.swa_utils.AveragedModel(engine.module),
        "average of the model": lambda: torch.optim.swa_utils.AveragedModel(flat),
        "engine.state_dict": engine.state_dict,
        "engine.module_state_dict": engine.module_state_dict,
    }
    said["refused"] = {name: error_of(call) for name, call in uses.items()}
    again = {"train_micro_batch_size_per_gpu": 4, "dmt": {}}
    said["initialize again"] = error_of(lambda: dmt_plugin.initialize(model=flat, config=again))
    said["unchanged"] = runs.differences(before, runs.everything(engine))

    # -- out -----------------------------------------------------------------------------
    whole = engine.gather_state(ranks="all")
    with mock.patch.multiple(streams, BLOCK_BYTES=100, MEET_BYTES=1000):
        only = engine.gather_state()
        said["one rank"] = same(only, whole) if rank == 0 else only is None
        said["the other"] = (engine.gather_state(ranks=[1]) is None) == (rank == 0)
        model = dmt_plugin.to_flat(engine, ranks="all")
        state = model.state_dict()
        said["to_flat"] = all(torch.equal(state[name].to(whole[name].dtype), whole[name]) for name in whole)
        parts = engine.gather_state(f"{folder}/parts", max_file_bytes=2000)
    one = engine.gather_state(f"{folder}/one.safetensors")
    torch_file = engine.gather_state(f"{folder}/state.pt")
    engine.save_16bit_model(f"{folder}/sixteen")
    said["paths"] = [str(path.relative_to(folder)) for path in (parts, one, torch_file)]
    if rank == 0:
        from safetensors.torch import load_file

        files = sorted(Path(folder, "parts").glob("*.safetensors"))
        joined = {name: value for file in files for name, value in load_file(file).items()}
        said["files"] = len(files) > 1 and same({name: joined[name] for name in whole}, whole)
        said["one file"] = same({name: load_file(one)[name] for name in whole}, whole)
        said["torch"] = same(torch.load(torch_file), whole) and same(
            torch.load(f"{folder}/sixteen/pytorch_model.bin"), whole
        )
    Path(folder, "a file").touch()
    said["no place"] = error_of(lambda: engine.gather_state(f"{folder}/a file"))
    said["no rank"] = error_of(lambda: engine.gather_state(ranks=[world]))
    said["two writers"] = error_of(lambda: engine.gather_state(f"{folder}/x", ranks="all"))

    # -- rows ----------------------------------------------------------------------------
    tables = [table for table in engine.dmt.plan.tables if table.rows > 6]
    rows_right, written = True, True
    for table in tables[:3]:
        ids = [5, 0, rank, 5]
        found = engine.table_rows(table.name, ids)
        rows_right &= torch.equal(found, whole[table.parameter][table.first_row :][ids])
        rows_right &= torch.equal(found, engine.table_rows(table.parameter, [table.first_row + i for i in ids]))
        values = torch.arange(2.0 * table.dim).view(2, table.dim) - 3
        engine.set_table_rows(table.name, [4, 1] if rank == 0 else (), values if rank == 0 else None)
        written &= torch.equal(engine.table_rows(table.name, [1, 4]).flip(0), values)
    said["rows"], said["written"] = rows_right, written
    name = tables[0].name
    said["bad rows"] = [
        error_of(lambda: engine.table_rows(name, [0, 10_000])),
        error_of(lambda: engine.table_rows("tables.nine", [0])),
        error_of(lambda: engine.table_rows(name, [0.5])),
        error_of(lambda: engine.set_table_rows(name, [1, 1], torch.zeros(2, tables[0].dim))),
        error_of(lambda: engine.set_table_rows(name, [1], torch.zeros(2, tables[0].dim))),
    ]

    # -- in ------------------------------------------------------------------------------
    names = engine.module.logical.state_map.same
    loads = {}
    for number, given in enumerate((start if rank == 0 else None, f"{folder}/parts", f"{folder}/state.pt")):
        done = engine.load_flat_state(given)
        expected = start if number == 0 else whole
        now = engine.gather_state(ranks="all")
        loads[number] = done.loaded == names and all(torch.equal(now[n], expected[n]) for n in names)
        masters = {key: value for key, value in runs.everything(engine).items() if " model." in key}
        runs.train(engine, batch, 1)
        loads[f"{number} trained on"] = any(
            not torch.equal(value, masters[key]) for key, value in runs.everything(engine).items() if key in masters
        )
    said["loads"] = loads
    precise = {n: v.float() + 1e-4 * torch.ones_like(v, dtype=torch.float32) for n, v in whole.items() if n in names}
    engine.load_flat_state(precise)
    said["masters"] = masters_differ(engine, precise)
    before = runs.everything(engine)
    said["bad states"] = [
        error_of(lambda: engine.load_flat_state({n: v for n, v in precise.items() if n != names[0]})),
        error_of(lambda: engine.load_flat_state({**precise, names[-1]: torch.zeros(3, 1, 4)})),
        error_of(lambda: engine.load_flat_state(f"{folder}/nowhere")),
        error_of(lambda: engine.load_flat_state(3)),
    ]
    said["nothing loaded"] = runs.differences(before, runs.everything(engine))
    engine.destroy()
    return said


def masters_differ(engine: Any, state: dict[str, Tensor]) -> list[str]:
    """Names of what the optimizer holds in higher precision that is not what was loaded, to the last bit."""
    from dmt_plugin.checkpoint.state import parameter_names
    from dmt_plugin.integrations.deepspeed.checkpoint.optimizer_state import OptimizerState

    names = parameter_names(engine.module)
    return [
        names[key]
        for key, parts in OptimizerState(engine.optimizer, names).masters().items()
        for part in parts
        if names[key] in state
        and not torch.equal(part.values, state[names[key]].reshape(-1)[part.start : part.start + part.values.numel()])
    ]


def all_cases(rank: int, world: int, folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """One case after the other, in the same processes."""
    return {name: use(rank, world, case, f"{folder}/{name}") for name, case in CASES.items()}, kept_memory(folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("states")
    for name in CASES:
        (folder / name).mkdir()
    return run_ranks(2, all_cases, str(folder), timeout=400, env=lambda rank: {"LOCAL_RANK": str(rank)})


@pytest.mark.processes
@pytest.mark.parametrize("name", CASES)
def test_states_go_out_and_come_in(name: str, found: list[Any]) -> None:
    reports = [cases[name] for cases, _ in found]
    for rank, said in enumerate(reports):
        for call, text in said["refused"].items():
            assert text.startswith("TablesReleasedError"), (rank, call, text)
            assert all(wanted in text for wanted in CALLS), (call, text)
        assert not said["unchanged"] and said["one rank"] and said["the other"] and said["to_flat"], said
        assert said["paths"] == ["parts", "one.safetensors", "state.pt"]
        assert said["initialize again"].startswith("ConfigError: the tables of this"), said["initialize again"]
        assert "is there already and is a file" in said["no place"], said["no place"]
        assert "expected 'all', or some of the ranks 0 to 1" in said["no rank"]
        assert "one rank writes" in said["two writers"]
        assert said["rows"] and said["written"]
        of_rows = ("has the rows 0 to", "no table 'tables.nine'", "whole numbers", "more than once", "shape [1, ")
        for text, wanted in zip(said["bad rows"], of_rows, strict=True):
            assert wanted in text, text
        assert all(said["loads"].values()), said["loads"]
        assert not said["masters"]
        for text, wanted in zip(
            said["bad states"], ("missing", "of another shape", "does not exist", "found a int"), strict=True
        ):
            assert wanted in text and text.startswith("CheckpointError"), text
        assert not said["nothing loaded"]
    assert reports[0]["files"] and reports[0]["one file"] and reports[0]["torch"]


class Large(nn.Module):
    """Four tables of 1 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(1 << 14, 16) for _ in range(4))
        self.top = nn.Linear(64, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)).squeeze(1)


def memory_of_tables() -> int:
    """Bytes of all storages of at least half a table."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
    storages = [
        x.untyped_storage() for x in found if not is_released(x) and x.layout is torch.strided and not x.is_meta
    ]
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.nbytes() >= 1 << 19}.values())


def kept_memory(folder: str) -> dict[str, Any]:
    """What a rank keeps of real tables, and of tables on meta; whoever holds on to the model."""
    import dmt_plugin

    config = {
        "train_micro_batch_size_per_gpu": 8,
        "optimizer": {"type": "SGD", "params": {"lr": 0.05}},
        "dmt": {
            "topology": {"hosts": 2, "ranks_per_host": 1},
            "towers": {"module": "none"},
            "lookup": {"optimizer": "sgd", "seed": 3},
        },
    }
    said: dict[str, Any] = {}
    ids = (torch.randint(0, 500, (8, 4)),)
    for kind in ("real", "meta"):
        with dmt_plugin.tables_on_meta() if kind == "meta" else nullcontext():
            model = Large()
        view, whole = model.tables[0].weight[3:5], memory_of_tables()
        engine, *_ = dmt_plugin.initialize(model=model, config=config, example_batch=ids)
        engine.backward(engine(*ids).mean())
        engine.step()
        gone = is_released(model.tables[0].weight) and (view.is_meta or is_released(view))
        said[kind] = (whole, memory_of_tables(), gone)
        engine.save_checkpoint(folder, tag=kind)
        engine.load_checkpoint(folder, tag=kind)
        said[f"{kind} after a load"] = memory_of_tables()
        engine.destroy()
        del engine, model, view
    return said


@pytest.mark.processes
def test_a_rank_keeps_its_own_rows_and_nothing_else(found: list[Any]) -> None:
    for _, said in found:
        assert said["real"] == (4 << 20, 2 << 20, True) and said["meta"] == (0, 2 << 20, True), said
        assert said["real after a load"] == said["meta after a load"] == 2 << 20, said
