"""Tables in bf16 and fp16 are the same tables on any ranks: simulated ranks against one process, after five steps.

The single process keeps the flat model's tables in fp32 and makes of each updated row what the type has, with the
random bits of its place in the whole table. Ranks add gradients up in another order, so that of some entries, which lie
that close to a number drawn, the other neighbour may be drawn: at most 1 % of all, by a step of the type or two. With
bits that depend on the shard instead, or another rounding, far more of them would be others.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import PlanError
from dmt_plugin.core.update_rule import RULES, Rule, WeightType
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.placed import place
from dmt_plugin.nn.lookup import plain_torch, rounding
from dmt_plugin.nn.lookup.rounding import TORCH_TYPES, Place, written
from dmt_plugin.nn.lookup.updates import updated
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWire, SimulatedWorld
from tests.test_placed_laws import loss_of, prepared
from tests.test_placement_laws import (
    DENSE_LR,
    EPS,
    MODELS,
    MODULES,
    PLACEMENTS,
    STEPS,
    TABLE_LR,
    OneTable,
    State,
    batch_size,
    many_ranks,
)

SHORT: tuple[WeightType, ...] = ("bf16", "fp16")
LANES = {**PLACEMENTS, "rows and whole": {"strategy": "row_wise", "overrides": {"bags.field_2": "table_wise"}}}


class OneShortTable(OneTable):
    """An fp32 parameter whose values are always numbers of the table's type."""

    def __init__(self, rule: Any, weight: Any, name: str) -> None:
        super().__init__(rule, weight)
        self.place = Place(name, 0, 1, range(weight.shape[1]), weight.shape[1])
        with torch.no_grad():
            weight.copy_(weight.to(TORCH_TYPES[rule.dtype]))

    @torch.no_grad()
    def step(self) -> None:
        gradient = self.weight.grad
        assert gradient is not None
        self.steps += 1
        seen = (gradient.abs().sum(1) > 0).nonzero()[:, 0]
        kept = {key: state[seen] for key, state in self.states.items()}
        rows = updated(self.rule, self.rule.lr, self.steps, self.weight[seen], gradient[seen], kept)
        self.weight[seen] = written(self.rule, rows, seen, self.place, 0, self.steps).float()
        for key, state in self.states.items():
            state[seen] = kept[key]


def one_process(logical: TowerModel, config: DMTConfig, batches: list[list[Any]]) -> State:
    model = copy.deepcopy(logical).train()
    named = dict(model.named_parameters())
    tables = {
        t.parameter: OneShortTable(config.lookup.rule_of(t.name, t.parameter), named[t.parameter], t.parameter)
        for t in model.plan.tables
    }
    dense = torch.optim.SGD([p for n, p in named.items() if n not in tables], lr=DENSE_LR)
    outputs: list[Tensor] = []
    for of_ranks in batches:
        model.zero_grad()
        found = [model(*batch) for batch in of_ranks]
        sum(loss_of(out, 7) for out in found).div(len(of_ranks)).backward()
        dense.step()
        for table in tables.values():
            table.step()
        outputs += [out.detach().reshape(-1) for out in found]
    states = {f"{key} {n}": state for n, table in tables.items() for key, state in table.states.items()}
    return outputs, {n: p.detach() for n, p in named.items()}, states


def trained(
    placement: str, backend: str = "torch", dedup: str = "off", name: str = "multi_hot_dlrm", **lookup: Any
) -> tuple[State, State, list[str], DMTConfig]:
    """What ranks have, what one process has, and the tables' names."""
    torch.manual_seed(0)
    where = Topology.parse("2x2")
    flat, batch = MODELS[name]()
    eps = {} if lookup["optimizer"] == "sgd" else {"eps": EPS}
    config = DMTConfig.model_validate(
        {
            "lookup": {"backend": backend, "lr": TABLE_LR, **eps, **lookup},
            "placement": LANES[placement],
            "towers": MODULES if dedup == "off" or name == "dlrm" else {"module": "none"},
            "comm": {"dedup": dedup},
        }
    )
    logical = transform(prepared(flat), batch(5, 0), config, where)
    batches = [[batch(batch_size(k, r), 100 * k + r) for r in range(where.world_size)] for k in range(STEPS)]
    expected = one_process(logical, config, batches)
    names = [table.parameter for table in logical.plan.tables]
    start = dict(logical.named_parameters())
    assert any(not torch.equal(expected[1][n], start[n].to(TORCH_TYPES[lookup["dtype"]]).float()) for n in names)
    return many_ranks(logical, config, where, batches), expected, names, config


def strays(found: State, expected: State, names: list[str], dtype: WeightType) -> tuple[float, float]:
    """Share of the tables' entries that differ, and the largest difference in steps of the type at 1."""
    off = [(found[1][name].float() - expected[1][name]).abs().flatten() for name in names]
    assert all(found[1][name].dtype == TORCH_TYPES[dtype] for name in names)
    every = torch.cat(off)
    return float((every > 0).float().mean()), float(every.max()) / torch.finfo(TORCH_TYPES[dtype]).eps


BY_ROW = ("rowwise_adagrad", "partial_rowwise_adam", "lamb")


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("name", RULES)
def test_rows_columns_and_whole_tables_under_every_rule(name: str, dtype: WeightType) -> None:
    placement = "rows and whole" if name in BY_ROW else "mixed"  # columns go with rules that know no rows only
    found, expected, names, _ = trained(placement, optimizer=name, dtype=dtype)
    share, steps = strays(found, expected, names, dtype)
    assert share <= 0.01 and steps <= 2
    close = {"rtol": 0.0, "atol": 2e-2 * (1 if dtype == "bf16" else 0.125)}
    assert all(torch.allclose(a, b, **close) for a, b in zip(found[0], expected[0], strict=True))
    assert all(torch.allclose(found[2][key], state, rtol=1e-2, atol=1e-4) for key, state in expected[2].items())


@pytest.mark.parametrize("dtype", SHORT)
def test_rows_that_travel_once(dtype: WeightType) -> None:
    found, expected, names, _ = trained("rows and whole", dedup="on", optimizer="adam", dtype=dtype)
    share, steps = strays(found, expected, names, dtype)
    assert share <= 0.01 and steps <= 2


@pytest.mark.parametrize(("dtype", "backend"), [("bf16", "torch"), ("fp16", "auto")])
def test_rows_that_travel_once_and_by_sample(dtype: WeightType, backend: str) -> None:
    """Of one table, for the outputs that a tower makes of each feature and of all."""
    options = {"optimizer": "sgd", "dtype": dtype, "stochastic_rounding": backend == "torch"}
    found, expected, names, config = trained("rows", backend, dedup="on", name="dlrm", **options)
    assert config.towers.p and strays(found, expected, names, dtype)[0] <= (0.01 if backend == "torch" else 0.15)
    assert strays(found, expected, names, dtype)[1] <= 2


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
def test_fp16_on_fbgemm(name: str) -> None:
    placement = "rows and whole" if name in BY_ROW else "mixed"
    options = {"optimizer": name, "dtype": "fp16", "stochastic_rounding": False}
    found, expected, names, _ = trained(placement, "fbgemm", **options)
    share, steps = strays(found, expected, names, "fp16")
    assert share <= 0.15 and steps <= 2  # its Adagrad divides otherwise, so that more of them fall the other way


def test_bits_of_the_shard_instead_of_the_table_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_shard(shard: Any) -> Place:
        return Place(shard.table.parameter, 0, 1, range(shard.columns), shard.columns)

    monkeypatch.setattr(rounding.Place, "of", by_shard)
    found, expected, names, _ = trained("mixed", optimizer="adagrad", dtype="bf16")
    assert strays(found, expected, names, "bf16")[0] > 0.05


def test_rounding_to_nearest_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def to_nearest(rule: Rule, rows: Tensor, *given: Any) -> Tensor:
        return written(replace(rule, stochastic_rounding=False), rows, *given)

    monkeypatch.setattr(plain_torch, "written", to_nearest)
    found, expected, names, _ = trained("rows", optimizer="sgd", dtype="bf16")
    assert strays(found, expected, names, "bf16")[0] > 0.05


class Net(nn.Module):
    """Four tables of types of their own before an fp32 layer, as a script with 16-bit tables has it."""

    def __init__(self, *types: torch.dtype) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(9, 4, dtype=dtype) for dtype in types)
        self.top = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], 1).float()).squeeze(1)


B, H, F = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize("dedup", ["off", "on"])
@pytest.mark.parametrize(
    "towers", [{"module": "none"}, *({"module": "dlrm", "c": 1, "p": p, "dim": 4} for p in (0, 1))]
)
@pytest.mark.parametrize(
    ("types", "rows"), [((B, B, B, B), B), ((H, H, H, H), H), ((B, F, B, H), F), ((F, F, F, F), F)], ids=str
)
def test_tables_have_the_types_of_the_model(
    types: tuple[torch.dtype, ...], rows: torch.dtype, towers: dict[str, Any], dedup: str
) -> None:
    """On every rank the outputs are the flat model's: rows are not rounded on the way."""
    torch.manual_seed(0)
    where, ids = Topology.parse("2x2"), [torch.randint(0, 9, (3, 4)) for _ in range(4)]
    config = DMTConfig.model_validate({"towers": towers, "lookup": {"optimizer": "sgd"}, "comm": {"dedup": dedup}})
    flat = Net(*types)
    logical = transform(flat, (ids[0],), config, where)
    assert [TORCH_TYPES[table.dtype] for table in logical.plan.tables] == list(types)
    assert all(p.dtype == F for name, p in logical.named_parameters() if not name.startswith("tables"))
    models = [place(copy.deepcopy(logical), config, where, rank) for rank in range(4)]
    assert {model.lookup.row_dtype for model in models} == {rows}

    def program(wire: SimulatedWire) -> Tensor:
        models[wire.rank].bind(wire)
        out: Tensor = models[wire.rank](ids[wire.rank])
        out.sum().backward()
        models[wire.rank].lookup.step()
        return out.detach()

    outputs = SimulatedWorld(where).run(program)
    with torch.no_grad():
        whole = flat if towers["module"] == "none" else logical
        assert all(torch.allclose(out, whole(own), atol=1e-6) for out, own in zip(outputs, ids, strict=True))
    for model in models:
        for table in model.lookup.tables:
            spec = logical.plan.table(table)
            now, before = model.lookup.table_weight(table), spec.of(logical)
            assert now.dtype == before.dtype and not torch.equal(now, before)


def test_what_travels_has_the_rows_type_where_its_format_leaves_it_alone() -> None:
    config = DMTConfig.model_validate({"towers": {"module": "none"}, "comm": {"intra_dtype": "int8"}})
    flat = Net(B, B, B, B)
    model = place(transform(flat, (torch.zeros(3, 4, dtype=torch.int64),), config, "2x2"), config, Topology(2, 2), 0)
    exchanges = {e.group: e.formats for e in model.exchanges if hasattr(e, "formats")}
    assert exchanges == {"lanes": ("int8", "int8"), "peers": ("bf16", "bf16")}
    model.compute_in(F)
    assert [e.formats for e in model.exchanges if getattr(e, "group", "") == "peers"] == [("fp32", "fp32")]


def test_a_plan_of_another_type_is_used_for_the_model_s(tmp_path: Any) -> None:
    """A saved plan says where tables are; their type is this model's, and says so in JSON only where it is no fp32."""
    ids, file = (torch.zeros(3, 4, dtype=torch.int64),), tmp_path / "plan.json"
    plain = transform(Net(F, F, F, F), ids, DMTConfig.model_validate({"towers": {"module": "none"}}), "2x2").plan
    assert "dtype" not in plain.to_dict()["tables"][0]
    plain.save(file)
    config = {"towers": {"module": "none"}, "partition": {"strategy": "file", "file": str(file)}}
    plan = transform(Net(B, B, F, B), ids, DMTConfig.model_validate(config), "2x2").plan
    assert [table.dtype for table in plan.tables] == ["bf16", "bf16", "fp32", "bf16"]
    assert TowerPlan.from_dict(plan.to_dict()) == plan and plan.fingerprint != plain.fingerprint


def test_a_table_of_another_type_is_refused() -> None:
    config = DMTConfig.model_validate({"towers": {"module": "none"}})
    logical = transform(Net(F, F, torch.float64, F), (torch.zeros(3, 4, dtype=torch.int64),), config, "2x1")
    with pytest.raises(PlanError, match=r"float16 to be sharded; found .*tables\.2"):
        place(logical, config, Topology(2, 1), 0)
