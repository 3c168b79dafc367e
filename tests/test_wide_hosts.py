"""Towers over several machines: hosts of two machines each train as one process does, and count what crosses as that.

On four machines with two ranks and with one: outputs, parameters and optimizer states after five steps (tolerance as in
:mod:`tests.test_placement_laws`), by sample and with rows that travel once; counted bytes against the formula. Under
DeepSpeed on four machines with one rank: training, sums of gradients, and checkpoints from and to two hosts of one
machine with two ranks.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import PlanError
from dmt_plugin.model.placed import place, place_graph
from dmt_plugin.model.row_counts import count_rows
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.report.explain.explanation import costs_of, explain
from dmt_plugin.report.explain.words import headline, notes_on_exchanges
from dmt_plugin.topology.shape import Topology
from tests._util.pairs import pairwise
from tests._util.ranks import run_ranks
from tests._util.simulated import SimulatedWire, SimulatedWorld
from tests.integrations.runs import logical, make
from tests.integrations.runs import train as train_engine
from tests.test_distinct_laws import BY_ROW, ONCE
from tests.test_placed_laws import compare, launcher_env, loss_of
from tests.test_placement_laws import MODELS, MODULES, SPTT, trained
from tests.test_traffic import miscounted

FOUR_TO_ONE = {"module": "dlrm", "c": 1, "p": 0, "dim": 2}
"""Of vectors of 8 entries."""


@pytest.mark.parametrize(
    ("name", "topology", "placement", "towers", "comm"),
    [
        ("dlrm", "2x2x2", "rows", FOUR_TO_ONE, {}),
        ("dlrm", "2x2x2", "rows", SPTT, ONCE),
        ("dlrm", "2x2x1", "whole", SPTT, {}),
        ("dlrm", "2x2x1", "whole", FOUR_TO_ONE, ONCE),
    ],
    ids=str,
)
def test_training(name: str, topology: str, placement: str, towers: dict[str, Any], comm: dict[str, Any]) -> None:
    assert trained(name, topology, placement, "adagrad", ("torch",), towers, **comm) == []


TOWERS = {"sptt": SPTT, "dlrm": MODULES, "by row": BY_ROW, "4 to 1": FOUR_TO_ONE}
COMM: dict[str, dict[str, Any]] = {
    "by sample": {},
    "once": ONCE,
    "once in blocks": {**ONCE, "micro_blocks": 3},
    "flat": {"route": "flat"},
    "once, no overlap": {**ONCE, "overlap": False},
}
EVERY = list(itertools.product(("2x2x2", "2x2x1"), ("rows", "whole"), ("sptt", "4 to 1"), ("by sample", "once")))
MANY = pairwise(
    {
        "name": ["dlrm", "deepfm", "multi_hot_dlrm", "joint"],
        "topology": ["2x2x2", "2x2x1", "1x2x2", "2x3x1", "3x2x1"],
        "placement": ["rows", "columns", "whole", "lanes"],
        "rule": ["sgd", "adagrad", "adam"],
        "towers": list(TOWERS),
        "comm": list(COMM),
    }
)


@pytest.mark.campaign
@pytest.mark.parametrize(("topology", "placement", "towers", "comm"), EVERY, ids=str)
def test_every_combination(topology: str, placement: str, towers: str, comm: str) -> None:
    assert trained("dlrm", topology, placement, "adam", ("torch", "auto"), TOWERS[towers], **COMM[comm]) == []


@pytest.mark.campaign
@pytest.mark.parametrize("case", MANY, ids=str)
def test_training_in_many_ways(case: dict[str, str]) -> None:
    given = (case["name"], case["topology"], case["placement"], case["rule"], ("torch",), TOWERS[case["towers"]])
    assert trained(*given, **COMM[case["comm"]]) == []


@pytest.mark.parametrize(
    ("topology", "route", "formats", "placement", "towers"),
    [
        ("2x2x2", "hierarchical", "mixed", "rows", FOUR_TO_ONE),
        ("2x2x1", "hierarchical", "fp32", "whole", SPTT),
        ("2x2x1", "flat", "fp32", "whole", SPTT),
    ],
    ids=str,
)
def test_counted_bytes_are_the_formula(
    topology: str, route: str, formats: str, placement: str, towers: dict[str, Any]
) -> None:
    assert miscounted("dlrm", topology, route, formats, placement, more={"towers": towers}) == []


@pytest.mark.parametrize(("topology", "towers"), [("2x2x2", SPTT), ("2x2x1", BY_ROW)])
def test_a_row_crosses_to_a_machine_once(topology: str, towers: dict[str, Any]) -> None:
    """Bytes between machines and inside them are those of rows that are distinct on a machine, not on a host."""
    where, samples = Topology.parse(topology), 5
    config = DMTConfig.model_validate({"towers": towers, "comm": ONCE, "lookup": {"backend": "torch"}})
    torch.manual_seed(0)
    flat, batch = MODELS["dlrm"]()
    model = transform(flat, batch(5, 0), config, where)
    batches = [batch(samples, rank) for rank in range(where.world_size)]
    needs = count_rows(place_graph(model, config, where, 0), batches, samples, 1).needs
    assert {asker for need in needs for asker, _ in need.host} == set(range(where.by_machine.hosts))

    def program(wire: SimulatedWire) -> list[str]:
        placed = place(model, config, where, wire.rank)
        placed.bind(wire)
        loss_of(placed(*batches[wire.rank]), 0).backward()
        wrong = []
        for cost in costs_of(placed, samples, needs=needs):
            counted = wire.traffic.totals(cost.name, cost.phase)
            if (counted.other_hosts, counted.same_host) != (cost.other_hosts, cost.same_host):
                wrong.append(f"rank {wire.rank} {cost}: counted {counted}")
        return wrong + [name for name in wire.traffic.as_dict() if name.endswith((".lanes", ".peers"))]

    assert [line for lines in SimulatedWorld(where).run(program) for line in lines] == []


def many_features() -> nn.Module:
    """26 features: too few for a tower on each of 32 machines."""

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.EmbeddingBag(50, 4, mode="sum") for _ in range(26))
            self.top = nn.Linear(26 * 4, 1)

        def forward(self, ids: Tensor) -> Tensor:
            columns = [table(ids[:, i : i + 1]) for i, table in enumerate(self.tables)]
            return self.top(torch.cat(columns, 1))

    torch.manual_seed(0)
    return Many()


def ids_of(samples: int, seed: int) -> Tensor:
    return torch.randint(0, 50, (samples, 26), generator=torch.Generator().manual_seed(seed))


def test_more_machines_than_features_are_refused_with_the_numbers_that_work() -> None:
    with pytest.raises(PlanError, match=r"32 towers but only 26 .*machines_per_host = 2, 4, 8, 16 or 32\."):
        transform(many_features(), (ids_of(4, 0),), {"dmt": {}}, "32x1")


def test_more_machines_than_features() -> None:
    """Explained, and run by 32 simulated ranks: outputs are those of one process, bytes those that are explained."""
    where, config = Topology.parse("16x2x1"), DMTConfig.model_validate({"towers": SPTT, "lookup": {"backend": "torch"}})
    told = explain(many_features(), (ids_of(4, 0),), config, where, batch_size=4)
    assert told.refused is None and len(told.towers) == 16
    assert "16 host(s) of 2 machines x 1 rank(s)" in headline(told)
    lanes = next(cost for cost in told.collectives if (cost.name, cost.phase) == ("lanes", "forward"))
    assert lanes.other_hosts > 0 and lanes.same_host == 0, "a tower's exchange is between machines"
    assert any("between" in note or "machines" in note for note in notes_on_exchanges(told))
    model = transform(many_features(), (ids_of(4, 0),), config, where)

    def program(wire: SimulatedWire) -> list[str]:
        placed = place(model, config, where, wire.rank)
        placed.bind(wire)
        out = placed(ids_of(4, wire.rank))
        worst = float((out - model(ids_of(4, wire.rank))).detach().abs().max())
        out.sum().backward()
        wrong = [] if worst <= 2e-6 else [f"rank {wire.rank}: output differs by {worst:.2e}"]
        for cost in costs_of(placed, 4):
            counted = wire.traffic.totals(cost.name, cost.phase)
            if (counted.other_hosts, counted.same_host) != (cost.other_hosts, cost.same_host):
                wrong.append(f"rank {wire.rank} {cost}: counted {counted}")
        return wrong

    assert [line for lines in SimulatedWorld(where).run(program) for line in lines] == []


def test_plans_of_wide_hosts_are_version_3() -> None:
    model = transform(many_features(), (ids_of(4, 0),), {"dmt": {}}, "2x2x2")
    again = TowerPlan.from_dict(model.plan.to_dict())
    assert model.plan.to_dict()["version"] == 3 and again == model.plan and again.fingerprint == model.plan.fingerprint
    plain = transform(many_features(), (ids_of(4, 0),), {"dmt": {}}, "2x4").plan
    assert plain.to_dict()["version"] == 1 and plain.fingerprint != again.fingerprint
    with pytest.raises(PlanError, match=r"made for 2x2x2 .* this run is 2x4\."):
        again.check(model=again.model, topology=Topology(2, 4))


def test_wire_formats_by_where_it_goes() -> None:
    """Rows that travel once have the format between hosts where they cross machines, the one inside hosts elsewhere."""
    comm = {**ONCE, "peer_dtype": "bf16", "intra_dtype": "fp16", "intra_grad_dtype": "bf16"}
    config, where = DMTConfig.model_validate({"towers": SPTT, "comm": comm}), Topology.parse("2x2x2")
    exchanges = place_graph(transform(many_features(), (ids_of(4, 0),), config, where), config, where, 0).placement
    formats = {name.rpartition(".")[2]: own.formats for name, own in exchanges.exchanges.items() if "rows" in name}
    assert formats == {"machine_peers": ("bf16", "bf16"), "machine_lanes": ("fp16", "bf16")}


CASES = [
    ("dlrm", "tower modules", 0, "torch"),
    ("dlrm", "sptt", 1, "fbgemm"),
    ("dlrm", "once", 1, "fbgemm"),
    ("dcn_v2", "tower modules", 2, "torch"),
    ("deepfm", "once and mixed", 1, "torch"),
    ("multi_hot_dlrm", "once in ranges", 2, "torch"),
    ("dlrm", "flat route", 1, "torch"),
]


def on_ranks(rank: int, world: int, topology: str, everything: bool) -> dict[str, Any]:
    """Training against one process, sums of gradients by count and by formula, and checkpoints over shapes."""
    said = {"differs": compare(rank, world, topology, CASES if everything else CASES[:1]), "sums": sums(topology)}
    return {**said, **(moved(rank) if everything and world == 4 else {})}


def sums(topology: str) -> list[str]:
    from dmt_plugin.model.exchange_costs import gradient_costs_of
    from dmt_plugin.planner.gradient_cost import gradient_sums

    engine, batch = make(topology, "dlrm", dense="sgd", warmup=False)
    engine.dmt.traffic.reset()
    train_engine(engine, batch, 1)
    expected = gradient_costs_of(engine.dmt.placed, gradient_sums({}, engine.dmt.config))
    wrong = []
    for cost in expected:
        counted = engine.dmt.traffic.totals(cost.name, cost.phase)
        if (counted.other_hosts, counted.same_host) != (cost.other_hosts, cost.same_host):
            wrong.append(f"{cost}: counted {counted}")
    engine.destroy()
    return wrong if len(expected) == min(2, Topology.parse(topology).hosts) else [str(expected)]


def moved(rank: int) -> dict[str, Any]:
    """From hosts of two machines to hosts of one, and back; and the same steps without."""
    from tempfile import mkdtemp

    import torch.distributed as dist

    folder = [mkdtemp()]
    dist.broadcast_object_list(folder)
    chain = ("2x2x1", "2x2", "2x2x1")
    said: dict[str, Any] = {}
    before: dict[str, Any] = {}
    options: dict[str, Any] = {"stage": 1, "dense": "momentum", "dmt": {"transform": {"faster_dot": False}}}
    for link, topology in enumerate(chain):
        engine, batch = make(topology, "dlrm", seed=link, **options)
        if link:
            engine.load_checkpoint(folder[0])
            found = logical(engine)
            said[f"loaded {link}"] = [k for k, v in found.items() if not torch.equal(v, before[k])]
        train_engine(engine, batch, 2)
        engine.save_checkpoint(folder[0])
        before = logical(engine)
        engine.destroy()
    engine, batch = make(chain[0], "dlrm", seed=0, **options)
    train_engine(engine, batch, 2 * len(chain))
    reference = logical(engine)
    engine.destroy()
    said["further off"] = [k for k, v in reference.items() if not float((before[k] - v).abs().max()) <= 1e-6]
    return said


@pytest.mark.processes
def test_under_deepspeed() -> None:
    for said in run_ranks(4, on_ranks, "2x2x1", False, timeout=240, env=partial(launcher_env, "2x2x1")):
        assert said == {"differs": [], "sums": []}


@pytest.mark.campaign
@pytest.mark.processes
@pytest.mark.parametrize("topology", ["2x2x1", "1x2x2", "2x2x2"])
def test_more_under_deepspeed(topology: str) -> None:
    world = Topology.parse(topology).world_size
    for said in run_ranks(world, on_ranks, topology, True, timeout=800, env=partial(launcher_env, topology)):
        assert said.pop("differs") == said.pop("sums") == []
        assert said == ({"loaded 1": [], "loaded 2": [], "further off": []} if world == 4 else {})
