"""Where tables start from: their rules on meta, rank 0's values, files; the same rows whatever ranks there are."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env

ROWS = (50, 61, 40, 33)


class Net(nn.Module):
    """Four tables with an initialisation of their own, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, 8, padding_idx=0 if rows == 40 else None) for rows in ROWS)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)
        nn.init.uniform_(self.tables[1].weight, -0.5, 0.25)
        self.tables[2].weight.data[0].zero_()
        self.top = nn.Linear(32, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(torch.cat([t(ids[:, i]) for i, t in enumerate(self.tables)], 1)).squeeze(1)


def ids(samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, rows, (samples,), generator=generator) for rows in ROWS], 1)


def on_meta(seed: int = 0) -> Net:
    import dmt_plugin

    torch.manual_seed(seed)
    with dmt_plugin.tables_on_meta():
        return Net()


def whole_on_meta() -> Net:
    with torch.device("meta"):
        return Net()


def start(model: nn.Module, topology: str, *, placement: Any = None, lookup: Any = None, **options: Any) -> Any:
    """An engine of this model on these ranks."""
    import dmt_plugin

    hosts, lanes = map(int, topology.split("x"))
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "Adagrad", "params": {"lr": 0.05}},
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 100000,
        "dmt": {
            "topology": {"hosts": hosts, "ranks_per_host": lanes},
            "towers": {"module": "none"},
            "lookup": {"optimizer": "sgd", "lr": 0.5, **(lookup or {})},
            **({"placement": placement} if placement else {}),
        },
    }
    engine, *_ = dmt_plugin.initialize(model=model, config=config, example_batch=(ids(4),), **options)
    return engine


def held(engine: Any) -> dict[str, tuple[str, tuple[slice, slice], Tensor]]:
    """By shard its parameter, its place there, and its values on this rank."""
    found = {}
    for name in engine.dmt.lookup.tables:
        shard = engine.dmt.plan.shard(name)
        rows, columns = shard.parameter_rows, shard.parameter_columns
        place = slice(rows.start, rows.stop, rows.step), slice(columns.start, columns.stop)
        found[name] = shard.table.parameter, place, engine.dmt.lookup.table_weight(name).clone()
    return found


def as_in(engine: Any, whole: dict[str, Tensor]) -> list[str]:
    """Shards of this rank that are not, bit for bit, what the whole tables have there."""
    return [
        shard for shard, (name, place, values) in held(engine).items() if not torch.equal(values, whole[name][place])
    ]


def refusal(call: Any) -> str:
    from dmt_plugin.core.errors import DMTError

    with contextlib.suppress(RuntimeError):
        try:
            call()
        except DMTError as error:
            return f"{type(error).__name__}: {error}"
    return "no error"


def rules(rank: int, world: int) -> dict[str, Any]:
    """Tables by their rules: two topologies and three placements of 2 ranks."""
    import dmt_plugin

    whole = dmt_plugin.materialize(on_meta(), seed=7).state_dict()
    mean, std = whole["tables.1.weight"].mean(), whole["tables.0.weight"].std()
    found: dict[str, Any] = {"mean": float(mean), "std": float(std)}
    for topology, placement in (
        ("2x1", None),
        ("1x2", {"strategy": "row_wise"}),
        ("1x2", {"strategy": "column_wise"}),
    ):
        engine = start(on_meta(), topology, placement=placement, lookup={"seed": 7})
        found[f"{topology} {placement}"] = as_in(engine, whole), len(held(engine))
        engine.destroy()
    torch.manual_seed(11 + rank)  # rank 0's is what holds
    engine = start(on_meta(11 + rank), "2x1")
    by_torch = dmt_plugin.materialize(on_meta(), seed=11).state_dict()
    found["torch's seed"] = as_in(engine, by_torch), 1
    out = engine(ids(4, rank))
    engine.backward(out.sum())
    engine.step()
    found["untrained"] = [shard for shard in held(engine) if shard not in as_in(engine, by_torch)]
    engine.destroy()
    return found


@pytest.mark.processes
def test_rows_by_rule_are_the_same_on_all_ranks_and_in_one_process() -> None:
    for found in run_ranks(2, rules, timeout=120, env=partial(launcher_env, "2x1")):
        assert found.pop("std") == pytest.approx(0.02, rel=0.15)
        assert found.pop("mean") == pytest.approx(-0.125, abs=0.05)
        assert found.pop("untrained") == []
        for case, (wrong, tables) in found.items():
            assert tables and wrong == [], case


def given(rank: int, world: int, folder: str) -> dict[str, Any]:
    """Values of rank 0, of files and of a function; and what is refused."""
    from safetensors.torch import save_file

    import dmt_plugin

    torch.manual_seed(rank)
    real = Net()
    torch.manual_seed(0)
    first = {name: value.clone() for name, value in Net().state_dict().items()}
    found: dict[str, Any] = {}

    engine = start(real, "2x1")  # ranks that built different values
    found["rank 0's values"] = as_in(engine, first)
    engine.destroy()

    torch.manual_seed(0)
    engine = start(Net() if rank == 0 else on_meta(), "2x1")
    found["values on rank 0 alone"] = as_in(engine, first)
    engine.destroy()

    torch.manual_seed(3)
    other = {name: torch.randn_like(value) for name, value in first.items()}
    other["tables.2.weight"][0] = 0
    safe, pickled = f"{folder}/weights{rank}.safetensors", f"{folder}/tables.pt"
    if rank == 0:
        for r in range(world):
            save_file(other, f"{folder}/weights{r}.safetensors")
        torch.save({name: value + 1 for name, value in other.items()}, pickled)
    torch.distributed.barrier()
    engine = start(on_meta(), "1x2", placement={"strategy": "row_wise"}, weights=f"{folder}/weights0.safetensors")
    found["a file"] = as_in(engine, other)
    engine.destroy()
    engine = start(on_meta(), "2x1", lookup={"seed": 5, "weights": {"tables.2": pickled}})
    mixed = dict(dmt_plugin.materialize(on_meta(), seed=5).state_dict())
    mixed["tables.2.weight"] = other["tables.2.weight"] + 1
    found["one table of a file"] = as_in(engine, mixed)
    engine.destroy()
    engine = start(on_meta(), "2x1", weights=other if rank == 0 else first)
    found["a state dict of rank 0"] = as_in(engine, other)
    engine.destroy()

    def made(name: str, first_row: int, shape: tuple[int, int], generator: Any) -> Tensor:
        numbers = torch.arange(first_row, first_row + shape[0]).float()
        return numbers.unsqueeze(1).expand(shape) + len(name)

    engine = start(on_meta(), "1x2", placement={"strategy": "row_wise"}, table_init=made)
    counted = {name: made(name, 0, tuple(v.shape), None) for name, v in first.items() if v.dim() == 2}
    found["a function"] = as_in(engine, counted)
    engine.destroy()

    found["refused"] = {
        "strict": refusal(lambda: start(whole_on_meta(), "2x1", lookup={"table_init": "strict"})),
        "no such table": refusal(lambda: start(on_meta(), "2x1", lookup={"weights": {"tables.9": pickled}})),
        "not there": refusal(lambda: start(on_meta(), "2x1", weights=f"{folder}/nothing.pt")),
        "different files": refusal(lambda: start(on_meta(), "2x1", weights=safe)),
        "a wrong shape": refusal(lambda: start(on_meta(), "2x1", table_init=lambda n, r, s, g: torch.zeros(s[0], 3))),
    }
    return found


@pytest.mark.processes
def test_values_files_and_functions(tmp_path: Path) -> None:
    for found in run_ranks(2, given, str(tmp_path), timeout=150, env=partial(launcher_env, "2x1")):
        refused = found.pop("refused")
        for case, wrong in found.items():
            assert wrong == [], case
        assert "tables.0" in refused["strict"] and "rule" in refused["strict"]
        assert "'tables." in refused["no such table"] and "ConfigError" in refused["no such table"]
        assert "nothing.pt" in refused["not there"]
        assert "same dmt.lookup.weights" in refused["different files"]
        assert "shape" in refused["a wrong shape"] and "tables." in refused["a wrong shape"]
