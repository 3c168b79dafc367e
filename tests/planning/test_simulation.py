"""Runs of many ranks without processes: what each sends is what the others wait for, and what the formulas say."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.model.placed import place_graph
from dmt_plugin.planner.cluster.files import cluster_of
from dmt_plugin.planner.gradient_cost import GradientSums
from dmt_plugin.planning import simulation
from dmt_plugin.planning.alike import kinds_of
from dmt_plugin.planning.distinct import stated
from dmt_plugin.planning.estimate import Planner
from dmt_plugin.planning.outcome import Estimate
from dmt_plugin.planning.rehearsal import SUMS, Rehearsal, rehearse, whole_needs
from dmt_plugin.planning.simulation import chosen, config_of, simulate, unequal_pairs
from dmt_plugin.planning.variants import Rewriter, Way
from dmt_plugin.topology.shape import Topology
from tests._util.programs import run_program
from tests.planning.models import batch, dots, narrow

ADAGRAD = DMTConfig.model_validate({"lookup": {"optimizer": "adagrad"}})
EXACT = {"towers": {"module": "none"}}


@pytest.fixture(scope="module")
def of_16() -> Estimate:
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch)
        planner = Planner(dots(6, 16, 100_000), batch(6), ADAGRAD, shares=stated("0.4,0.2"), ratios=(2,))
        return planner.estimate(cluster_of("h100-dgx:2"), 256)


def names(found: Estimate) -> list[str]:
    return [name for name, own in found.fastest.items() if not own.choice.replicated]


def test_every_choice_that_is_shown_on_16_ranks(of_16: Estimate) -> None:
    shown = names(of_16)
    assert {"flat", "flat + dedup", "SPTT (columns)", "SPTT + dedup"} <= set(shown)
    for name in shown:
        ran = simulate(of_16, name)
        assert ran.differences == () and ran.made == tuple(range(16)) and set(ran.kinds) == {1}, name
        assert "update" in {own["task"] for own in json.loads(json.dumps(ran.as_dict()))["schedule"]}


def test_the_same_twice(of_16: Estimate) -> None:
    assert simulate(of_16, "SPTT + dedup").as_dict() == simulate(of_16, "SPTT + dedup").as_dict()


def test_the_busiest_rank_is_that_of_the_estimate(of_16: Estimate) -> None:
    for name in ("flat (columns)", "SPTT (columns)"):
        priced = chosen(of_16, name)
        rows = [x for x in simulate(of_16, name).exchanges if x.name in ("world", "peers")]
        assert [x.busiest for x in rows] == [round(size) for size in priced.load.rows]


class Bags(nn.Module):
    """Bags of any length with weights, a frozen table, and ids in fixed numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.jagged = nn.ModuleList(nn.EmbeddingBag(500, 8, mode="sum") for _ in range(3))
        self.fixed = nn.ModuleList(nn.EmbeddingBag(300, 8, mode="sum") for _ in range(3))
        self.fixed[1].weight.requires_grad_(False)
        self.top = nn.Linear(48, 1)

    def forward(self, ids: list[Tensor], offsets: Tensor, weights: Tensor, fixed: Tensor) -> Tensor:
        own = [table(own, offsets, per_sample_weights=weights) for table, own in zip(self.jagged, ids, strict=True)]
        own += [table(fixed[:, 2 * i : 2 * i + 2]) for i, table in enumerate(self.fixed)]
        return self.top(torch.cat(own, dim=1))


BAGS = ([torch.arange(8) + i for i in range(3)], torch.arange(0, 8, 2), torch.ones(8), torch.arange(24).view(4, 6))
ALL = GradientSums("hosts", "fp32", "")
WAYS: list[dict[str, Any]] = [
    {"comm": {"dedup": "off", "peer_dtype": "int8", "micro_blocks": 3}},
    {"comm": {"dedup": "off", "route": "flat", "peer_dtype": "bf16"}},
    {"comm": {"dedup": "on", "intra_dtype": "int8", "micro_blocks": 2}},
    {"comm": {"dedup": "on", "route": "flat"}},
    {"comm": {"dedup": "off"}, "towers": {"module": "dlrm", "c": 1, "p": 1, "dim": 4}},
]


@pytest.mark.parametrize("section", WAYS, ids=str)
@pytest.mark.parametrize("topology", ["2x2", "3x1", "1x3"])
def test_bags_weights_frozen_tables_and_blocks(section: dict[str, Any], topology: str) -> None:
    where = Topology.parse(topology)
    once = section["comm"]["dedup"] == "on"
    ran = rehearsed(Bags(), BAGS, {**EXACT, **section}, where, once)
    assert unequal_pairs(ran[0], range(where.world_size), where) == []
    assert ran[1] == []


def rehearsed(
    model: nn.Module, call: Any, section: dict[str, Any], where: Topology, once: bool, samples: int = 5
) -> tuple[dict[int, Rehearsal], list[str]]:
    """By rank what it does, and where that is not what the formulas say."""
    made = Rewriter(model, call, DMTConfig(), {}).variant(Way("w", section, dedup=once), where, samples)
    found, unlike = {}, []
    for rank in range(where.world_size):
        placed = place_graph(made.placed.logical, made.config, where, rank)
        needs = whole_needs(placed, samples, None)
        found[rank] = rehearse(placed, samples, needs, ALL)
        unlike += simulation._unlike_formulas(found[rank], placed, samples, needs, ALL)
    return found, unlike


def test_a_rank_that_expects_something_else_is_found(of_16: Estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    bind = OutputDist.bind

    def narrower(exchange: OutputDist, wire: Any) -> None:
        if wire.rank == 5 and exchange.name == "peers":
            widths = list(exchange.recv_widths)
            widths[1 - wire.topology.host_of(wire.rank)] -= 1
            exchange._core.recv_widths = exchange._core.gradient_widths = tuple(widths)
        bind(exchange, wire)

    monkeypatch.setattr(OutputDist, "bind", narrower)
    ran = simulate(of_16, "SPTT")
    assert not ran.agrees
    told = [own for own in ran.differences if own.startswith("peers forward")]
    assert len(told) == 1 and "rank 13 sends" in told[0] and "rank 5 waits for" in told[0]


def test_bytes_that_are_not_the_formulas_are_found(of_16: Estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = simulation.costs_of

    def more(*args: Any, **kwargs: Any) -> list[Any]:
        found = costs(*args, **kwargs)
        return [dataclasses.replace(own, other_hosts=own.other_hosts + 1) for own in found]

    monkeypatch.setattr(simulation, "costs_of", more)
    assert "by formula" in simulate(of_16, "SPTT").differences[0]


def test_ranks_in_another_order_are_found() -> None:
    first, second = Rehearsal(0, ("start a", "wait a")), Rehearsal(1, ("wait a", "start a"))
    assert simulation.other_orders({0: first, 1: first}) == []
    (told,) = simulation.other_orders({0: first, 1: second})
    assert told.startswith("rank 1 starts and waits in another order than rank 0")


@pytest.mark.parametrize("name", ["SPTT", "SPTT (columns)", "flat", "SPTT + dedup"])
def test_one_rank_of_each_kind_says_what_all_do(of_16: Estimate, name: str) -> None:
    every, few = simulate(of_16, name), simulate(of_16, name, every_rank=8)
    assert len(few.made) < 16 and sum(few.kinds) == 16 and few.agrees
    told = [{**vars(own), "pairs": 0} for own in every.exchanges]
    assert [{**vars(own), "pairs": 0} for own in few.exchanges] == told


def test_kinds_fall_apart_by_what_is_beside_them() -> None:
    made = Rewriter(dots(5, 16), batch(5), DMTConfig(), {}).variant(
        Way("w", {"comm": {"dedup": "off"}, **EXACT}), Topology(4, 2), 8
    )
    kinds = kinds_of(made.placed, ())
    by_host = [kinds[i : i + 2] for i in range(0, 8, 2)]
    # One host has two tables, the others one each: lanes with a table, and without.
    assert by_host.count(by_host[1]) == 3 and len(set(kinds)) == 4 and kinds[0] not in kinds[1:]


def test_a_name_that_is_not_there(of_16: Estimate) -> None:
    with pytest.raises(ConfigError, match=r'did you mean "SPTT"'):
        simulate(of_16, "SPT")
    assert chosen(of_16, "best").choice.group == "exact"


def test_a_choice_is_simulated_as_it_would_be_configured(of_16: Estimate) -> None:
    for name in names(of_16):
        choice = of_16.fastest[name].choice
        comm = config_of(choice).comm
        assert (comm.peer_dtype, comm.micro_blocks) == (choice.wire.peers, choice.blocks)
    assert any(own.name.startswith(SUMS) for own in simulate(of_16, "SPTT").exchanges)


@pytest.mark.campaign
def test_all_of_64_ranks() -> None:
    planner = Planner(dots(26, 128, 1_000_000), batch(26), ADAGRAD, shares=stated("0.4,0.2"))
    found = planner.estimate(cluster_of("h100-dgx:8"), 16384)
    for name in names(found):
        ran = simulate(found, name)
        assert ran.differences == () and len(ran.made) == 64, name


LARGE = """
import json, resource, sys, time
from dmt_plugin.planner.cluster.files import cluster_of
from dmt_plugin.planning.distinct import stated
from dmt_plugin.planning.estimate import Planner
from dmt_plugin.planning.simulation import simulate
from tests.planning.test_simulation import ADAGRAD, names
from tests.planning.models import batch, dots
start = time.process_time()
planner = Planner(dots(26, 128, 1_000_000), batch(26), ADAGRAD, shares=stated("0.4,0.2"))
found = planner.estimate(cluster_of("h100-dgx:128"), 4096)
ran = [simulate(found, name) for name in names(found)]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
distributed = sorted(name for name in sys.modules if name.startswith("deepspeed"))
print(json.dumps({"seconds": time.process_time() - start, "MiB": peak, "deepspeed": distributed,
    "agree": [own.agrees for own in ran], "ranks": [sum(own.kinds) for own in ran]}))
"""


@pytest.mark.campaign
def test_1024_ranks_in_a_minute_and_two_gibibytes() -> None:
    started = time.monotonic()
    done = run_program("-c", LARGE, cwd=Path(__file__).parents[2], timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["seconds"] < 60 and told["MiB"] < 2048 and time.monotonic() - started < 300, told
    assert set(told["ranks"]) == {1024} and all(told["agree"]) and told["deepspeed"] == []
