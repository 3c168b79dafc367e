"""Tower modules that mix features, beside rows that travel once: simulated ranks against one process.

Those with outputs per feature as well (``c`` and ``p``): the first by distinct rows, the others by sample, of one table
that is updated once. Those that only mix run where the samples are, where that is fewer bytes or asked for.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from dmt_plugin.cli.explain import explained
from dmt_plugin.compiler import transform
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.model.exchange_costs import costs_of
from dmt_plugin.model.memory import memory_need_of
from dmt_plugin.model.placed import place, place_graph
from dmt_plugin.model.row_counts import count_rows
from dmt_plugin.passes.facts import Lookup
from dmt_plugin.passes.placement.at_samples import AtSamples, movable
from dmt_plugin.passes.rank_facts import Placement
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.report.explain.tables import towers_table
from dmt_plugin.report.explain.words import headline
from tests._util.simulated import SimulatedWire, SimulatedWorld
from tests.test_distinct_laws import DCN, ONCE, WHERE, counted, models_of, outputs
from tests.test_placed_laws import loss_of, prepared
from tests.test_placement_laws import FROZEN, MODELS, MODULES, trained

NAMED = {"dedup_features": {"*": "on"}}
"""All features by pattern: tower modules that only mix run where the samples are."""


class BatchNormTower(nn.Module):
    """Sees all samples of a batch."""

    def __init__(self, features: int, width: int, dim: int) -> None:
        super().__init__()
        self.out_features = features * dim
        self.norm = nn.BatchNorm1d(features * width)
        self.project = nn.Linear(features * width, features * dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, F_t, N) -> (B, F_t*D)``."""
        return self.project(self.norm(x.flatten(1)))


def placement_of(towers: dict[str, Any], shares: RowShares | None = None, name: str = "dlrm", **comm: Any) -> Placement:
    torch.manual_seed(0)
    flat, batch = MODELS[name]()
    config = DMTConfig.model_validate({"towers": towers, "comm": comm})
    logical = transform(prepared(flat), batch(5, 0), config, WHERE, row_shares=shares)
    return place_graph(logical, config, WHERE, 0).placement


@pytest.mark.parametrize(
    ("name", "topology", "placement", "rule", "backends", "towers", "comm"),
    [
        ("dlrm", "2x2", "rows", "adagrad", ("torch", "auto"), MODULES, {"micro_blocks": 1}),
        ("dlrm", "3x1", "whole", "rowwise_adagrad", ("torch",), MODULES, {"overlap": False}),
        ("dlrm", "2x2", "rows", "adam", ("torch",), {**MODULES, "count": 4}, {"micro_blocks": 3}),
        ("deepfm", "2x2", "whole", "adagrad", ("torch",), {**MODULES, "c": 2, "p": 3}, {}),
        ("dlrm", "2x2", "rows", "by table", ("torch", "auto"), MODULES, {}),
        ("multi_hot_dlrm", "2x2", "mixed", "adagrad", ("auto",), MODULES, {}),
        ("dlrm", "2x2", "whole", "lamb", ("torch",), {**MODULES, "overrides": {"1": {"p": 0}}}, {}),
        ("dlrm", "2x2", "whole", "adagrad", ("auto",), DCN, NAMED),
        ("deepfm", "2x2", "rows", "adam", ("torch",), {**DCN, "count": 4}, {**NAMED, "micro_blocks": 3}),
        ("multi_hot_dlrm", "3x2", "mixed", "adagrad", ("torch",), {"module": "dlrm", "c": 0, "p": 2, "dim": 4}, NAMED),
        ("sequence", "2x2", "rows", "adagrad", ("torch",), {"module": "preserve"}, NAMED),
    ],
    ids=str,
)  # fmt: skip
def test_models(
    name: str,
    topology: str,
    placement: str,
    rule: str,
    backends: tuple[str, ...],
    towers: dict[str, Any],
    comm: dict[str, Any],
) -> None:
    assert trained(name, topology, placement, rule, backends, towers, **{**ONCE, **comm}) == []


def test_rows_by_modulo() -> None:
    """A heavy table over the lanes of its tower, read in both ways."""
    backends = ("torch", "auto")
    assert trained("dlrm", "2x2", "lanes", "adagrad", backends, MODULES, counted=counted("dlrm"), **ONCE) == []


@pytest.mark.parametrize("frozen", ["some", "all"])
def test_frozen_tables(frozen: str) -> None:
    """Their rows go both ways, and nothing comes back for those by sample."""
    names = [name.replace("bags.field_", "tables.") for name in FROZEN[frozen]]
    assert trained("dlrm", "2x2", "whole", "adagrad", ("torch", "auto"), MODULES, names, **ONCE) == []


def test_the_ways_of_rows() -> None:
    ordinary, once = {"index", "lanes", "peers"}, {"requests", "rows0.peers", "rows0.lanes"}
    both = placement_of(MODULES, **ONCE)
    assert set(both.exchanges) == ordinary | once
    features = len(both.distinct_slots)
    assert both.once.endswith("those of 6 of them by sample as well, for what towers make of all together")
    assert [c.width for own in both.host_columns for c in own] == [4, 4], "p * D of each tower"
    assert all(group.width == 4 for group in both.groups) and len(both.slots) == features
    assert len(both.tower_paths) == 1 and both.at_samples == () and both.shards == placement_of(MODULES).shards
    by_sample = placement_of(MODULES).loads
    assert [load.bytes for load in both.loads] == [load.bytes for load in by_sample], "a table is there once"
    assert [load.lookups for load in both.loads] == [2 * load.lookups for load in by_sample], "and is read in two ways"
    moved = placement_of(DCN, **ONCE, **NAMED)
    assert set(moved.exchanges) == once and moved.tower_paths == () and len(moved.at_samples) == 2
    assert moved.once.endswith("the tower modules of 6 of them run where the samples are")
    assert set(placement_of(DCN, **ONCE).exchanges) == ordinary, "nobody has counted"
    own = {"module": f"{__name__}:BatchNormTower", "dim": 4}
    assert set(placement_of(own, **ONCE, **NAMED).exchanges) == ordinary, "it may mix samples"
    assert placement_of(own).once == "comm.dedup auto: off: tower modules read all rows by sample"
    with pytest.raises(ConfigError, match="where the module mixes features, for those of all towers"):
        placement_of(DCN, **ONCE, dedup_features={both.distinct_slots[0].name: "on"})


def test_what_counts_decide() -> None:
    """Few rows: fewer bytes than outputs by sample, unless the sums of the modules' gradients make up for it."""
    few = replace(counted("dlrm"), samples=50_000)
    assert placement_of(DCN, few).at_samples and not placement_of(DCN, counted("dlrm")).at_samples
    assert placement_of(DCN, few).once.startswith(
        "comm.dedup auto: rows of 6 of 6 feature(s) travel once per host, the"
    )
    off = placement_of(DCN, few, dedup_features={"*1": "off"})
    assert off.at_samples == () and not off.groups, "of all towers, or of none"
    mixed = placement_of(MODULES, few)
    assert mixed.groups and mixed.slots and not mixed.at_samples, "outputs per feature are narrower than rows"


def test_beside_rows_by_sample() -> None:
    """Tables of one feature go two ways: what its tower reads once, what is of width 1 by sample."""
    tables = [replace(own, host=1e-3 if own.table.startswith("vectors") else 1e3) for own in counted("deepfm").tables]
    shares, comm = replace(counted("deepfm"), samples=500, tables=tuple(tables)), {"micro_blocks": 2, "link": 1e3}
    models = models_of("deepfm", comm, rows=shares, towers=DCN)
    placed = models[0].placement
    assert len(placed.at_samples) == 2 and placed.slots and models[0].tower_paths == ()
    assert not any(column.tower for own in placed.host_columns for column in own)
    expected = outputs(models_of("deepfm", {"dedup": "off"}, towers=DCN), "deepfm", True, 2)
    found = outputs(models, "deepfm", True, 2)
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(found, expected, strict=True))


def test_tables_that_stay_keep_their_towers() -> None:
    """A group of towers moves if all of its tables can, and none is read by what stays."""
    graph = fx.Graph()
    nodes = {name: graph.create_node("placeholder", name, name=name) for name in "abc"}

    def moved(comm: dict[str, Any], of_c: str = "t2", pooling: str = "sum", may: bool = True, rows: Any = ()) -> int:
        module = AtSamples(8, 100)
        tower_of = {"a": ("g0", module), "b": ("g0", module if may else None), "c": ("g1", None)}
        towers = [SimpleNamespace(lookups=(nodes[x],), group=g, at_samples=m) for x, (g, m) in tower_of.items()]
        lookups = [
            Lookup(nodes[x], table, 9, 4, pooling, x, x, ("", (), {}), 1, False)
            for x, table in {"a": "t0", "b": "t1", "c": of_c}.items()
        ]
        config = DMTConfig.model_validate({"comm": comm})
        return len(movable(config.comm, lookups, towers, rows))

    assert moved({}) == 1 and moved({"dedup_features": {"c": "off"}}) == 1
    assert moved({}, of_c="t1") == 0, "another tower reads the table"
    assert moved({}, pooling="max") == moved({}, may=False) == moved({}, rows={"t0"}) == 0
    assert moved({"dedup_features": {"b": "off"}}) == 0


def test_evaluation_and_formats() -> None:
    """The outputs of rows by sample, to rounding; the same bits in the same steps."""
    for towers, more in ((MODULES, {}), (DCN, NAMED)):
        expected = outputs(models_of("dlrm", {"micro_blocks": 1}, towers=towers), "dlrm", False)
        found = outputs(models_of("dlrm", {**ONCE, **more}, towers=towers), "dlrm", False)
        assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in zip(found, expected, strict=True))
        eight = {**ONCE, **more, "peer_dtype": "int8", "intra_dtype": "fp16"}
        first, second = (outputs(models_of("dlrm", eight, towers=towers), "dlrm", True, 2) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert all(torch.allclose(a, b, atol=0.05) for a, b in zip(first[: len(found)], found, strict=True))


@pytest.mark.parametrize(("towers", "more"), [(MODULES, {}), (DCN, NAMED)], ids=str)
def test_bytes_are_those_expected(towers: dict[str, Any], more: dict[str, Any]) -> None:
    comm, samples = {**ONCE, **more}, 5
    models, (_, batch) = models_of("dlrm", comm, towers=towers), MODELS["dlrm"]()
    batches = [batch(samples, k) for k in range(WHERE.world_size)]
    sent: dict[tuple[int, str], int] = {}

    def program(wire: SimulatedWire) -> None:
        model = models[wire.rank].train()
        model.bind(wire)
        loss_of(model(*batches[wire.rank]), 0).backward()
        for phase in ("forward", "backward"):
            totals = wire.traffic.totals(phase=phase)
            sent[wire.rank, phase] = totals.other_hosts + totals.same_host

    SimulatedWorld(WHERE).run(program)
    config = DMTConfig.model_validate({"towers": towers, "comm": comm})
    rows = count_rows(place_graph(models[0].logical, config, WHERE, 0), batches, samples, 1)
    for (rank, phase), found in sent.items():
        costs = [cost for cost in costs_of(models[rank], samples, needs=rows.needs) if cost.phase == phase]
        expected = sum(cost.other_hosts + cost.same_host for cost in costs)
        assert found == pytest.approx(expected, abs=len(costs)), (rank, phase)  # each is rounded to a byte


def test_explain_counts_what_summing_the_weights_takes(tmp_path: Path) -> None:
    module, config = tmp_path / "model.py", tmp_path / "ds.json"
    module.write_text(
        "import torch\nfrom tests.zoo.models import ZOO\n"
        "def build():\n    model, batch = ZOO['dlrm']()\n    return model, batch(5, 0)\n"
        "def data():\n    _, batch = ZOO['dlrm']()\n    return [batch(8, k) for k in range(9)]\n"
    )
    found = []
    for comm in (NAMED, {"dedup": "off"}):
        config.write_text(json.dumps({"dmt": {"towers": DCN, "comm": comm}}))
        options = {"hosts": 2, "ranks_per_host": 2, "batch_size": 4, "data_steps": 3}
        found.append(explained(f"{module}:build", str(config), data=f"{module}:data", **options))
    moved, stays = (sum(cost.other_hosts for cost in own.collectives) for own in found)
    rows = found[0].distinct_rows
    assert rows is not None and rows.once[0] - rows.by_sample[0] == moved - stays
    assert found[0].compression is None and found[1].compression == 2.0
    assert {feature.way for feature in rows.features} == {"once"}
    assert [[module.host for module in own.tower_modules] for own in found] == [[None, None], [0, 1]]
    assert headline(found[0]).endswith("tower modules on every rank, for its own samples")
    assert [row["module"].endswith(", on every rank") for own in found for row in towers_table(own).rows] == [
        True, True, False, False,
    ]  # fmt: skip


def test_memory() -> None:
    """Gradients wait for both lookups of a table; modules that have moved are on every rank."""
    torch.manual_seed(0)
    flat, batch = MODELS["dlrm"]()
    found = []
    for towers, comm in ((MODULES, {}), (MODULES, ONCE), (DCN, {}), (DCN, NAMED)):
        config = DMTConfig.model_validate({"towers": towers, "comm": comm})
        graph = place_graph(transform(prepared(flat), batch(5, 0), config, WHERE), config, WHERE, 0)
        found.append(memory_need_of(graph, config, DeepSpeedSettings({}), 64).ranks[0])
    assert found[0].buffers.held == 0 < found[1].buffers.held and found[0].towers == found[1].towers > 0
    assert found[2].towers > 0 == found[3].towers and found[3].dense > found[2].dense


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_several_batches_make_one_update(backend: str) -> None:
    """Gradients of both ways, over two batches, against those of the batches joined."""
    torch.manual_seed(0)
    flat, batch = MODELS["dlrm"]()
    lookup = {"optimizer": "adagrad", "lr": 0.1, "backend": backend}
    config = DMTConfig.model_validate({"towers": MODULES, "comm": {**ONCE, "micro_blocks": 1}, "lookup": lookup})
    logical = transform(prepared(flat), batch(5, 0), config, WHERE)
    parts = [[batch(3, 10 * k + rank) for k in range(2)] for rank in range(WHERE.world_size)]
    joined = [[tuple(torch.cat(own) for own in zip(*of_rank, strict=True))] for of_rank in parts]
    tables = []
    for of_ranks in (parts, joined):
        models = [place(logical, config, WHERE, rank) for rank in range(WHERE.world_size)]

        def program(wire: SimulatedWire, models: Any = models, of_ranks: Any = of_ranks) -> None:
            model, own = models[wire.rank], of_ranks[wire.rank]
            model.bind(wire)
            for i, inputs in enumerate(own):
                model.lookup.hold_gradients(i + 1 < len(own) or model.lookup.holds)
                model(*inputs).sum().backward()
            model.lookup.step()
            model.lookup.zero_grad()

        SimulatedWorld(WHERE).run(program)
        tables.append([m.lookup.table_weight(table).clone() for m in models for table in m.lookup.tables])
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(*tables, strict=True))
    start = [
        m.lookup.table_weight(t) for r in range(4) for m in [place(logical, config, WHERE, r)] for t in m.lookup.tables
    ]
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(tables[0], start, strict=True)), "it is not trained"
