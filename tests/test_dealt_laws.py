"""What hosts send where tables are dealt out by distinct rows: as much as the formula says, and all of them the same.

Bytes per host and step are ``(H-1)/H`` times the distinct rows that a host's batches need, times a row, its gradient
and its number on the wire, ``2r + 4``. On ids as those of Criteo Kaggle, and on few heavy tables as those of flights.
"""

from __future__ import annotations

from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import Tensor

from dmt_plugin.capture import ExampleBatch
from dmt_plugin.comm.distinct.requests import RowRequests
from dmt_plugin.comm.input_dist.ids import FeatureIds
from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.placed import place_graph
from dmt_plugin.passes.base import DataToCount
from dmt_plugin.plan.places import place_of
from dmt_plugin.planner.gradient_cost import gradient_sums
from dmt_plugin.report.explain.explanation import describe
from dmt_plugin.report.explain.page import page_of
from dmt_plugin.report.explain.text import show
from dmt_plugin.report.explain.words import feature_with_lanes, notes_on_owners
from dmt_plugin.topology.shape import Topology
from tests._util.real_ids import Lookups, draw, needed, rows_of
from tests._util.simulated import SimulatedWire, SimulatedWorld

DIM = 4
ROW, ID = 4 * DIM, 4
EVEN = 1.03
CONFIG = DMTConfig.model_validate(
    {"towers": {"module": "none"}, "comm": {"dedup": "on", "micro_blocks": 1}, "lookup": {"backend": "torch"}}
)


def dealt(kind: str, where: Topology, samples: int, cap: int = 20_000, steps: int = 8) -> TowerModel:
    """The model with its tables placed by what some steps of other batches count."""
    rows = rows_of(kind, cap)
    whole = draw(kind, cap, steps * where.ranks_per_host * samples, seed=1)
    batches = [ExampleBatch((ids,)) for ids in whole.split(samples)]
    data = DataToCount("a test", lambda: batches, samples, steps)
    return transform(Lookups(rows, DIM), (whole[:4],), CONFIG, where, row_shares=data)


def asked_of_ranks(model: TowerModel, where: Topology, ids: Tensor) -> list[list[int]]:
    """For every host, how many rows of each rank one step's batches need, by the distinct ids."""
    found = [[0] * where.world_size for _ in range(where.hosts)]
    for host, columns in enumerate(needed(ids, where.hosts)):
        for table, wanted in zip(model.plan.tables, columns, strict=True):
            for shard in model.plan.shards_of(table.name):
                past = wanted - shard.first_row
                own = (past >= 0) & (past < shard.rows * shard.step) & (past % shard.step == 0)
                found[host][where.rank_of(shard.host, shard.lane)] += int(own.sum())
    return found


def sent_by_ranks(model: TowerModel, where: Topology, ids: Tensor) -> list[dict[str, int]]:
    """Bytes of one step, in two blocks, that every rank sends to other hosts: rows, numbers of rows and gradients."""
    placement = place_graph(model, CONFIG, where, 0).placement
    slots, (group,) = placement.distinct_slots, placement.groups
    batches = ids.chunk(where.world_size)

    def program(wire: SimulatedWire) -> dict[str, int]:
        requests = RowRequests(slots, placement.groups, where, wire.rank)
        exchange = OutputDist("rows0.peers", "peers", DIM, [DIM] * where.hosts)
        requests.cut_into(2)
        requests.bind(wire)
        exchange.bind(wire)
        own = batches[wire.rank]
        asked = requests(*(FeatureIds(own[:, i], None, 1, len(own)) for i in range(own.shape[1]))).groups[0]
        rows = torch.zeros(len(asked.asked), DIM, requires_grad=True).split(asked.asked_by_block)
        blocks = [exchange(part, block.owners) for part, block in zip(rows, asked.blocks, strict=True)]
        torch.cat([came for block in blocks for came in block]).sum().backward()
        names = {"rows": ("rows0.peers", "forward"), "gradients": ("rows0.peers", "backward")}
        names["ids"] = ("requests.peers.codes", "forward")
        return {what: wire.traffic.totals(*name).other_hosts for what, name in names.items()}

    assert group.width == DIM
    return SimulatedWorld(where).run(program)


def sent_by_formula(asked: list[list[int]], where: Topology) -> list[dict[str, int]]:
    """The same by who needs what of whom."""
    found = []
    for rank in range(where.world_size):
        host, others = where.host_of(rank), [h for h in range(where.hosts) if h != where.host_of(rank)]
        mine = [r for r in where.peers_of(rank) if where.host_of(r) != host]
        out, wanted = sum(asked[h][rank] for h in others), sum(asked[host][r] for r in mine)
        found.append({"rows": ROW * out, "gradients": ROW * wanted, "ids": ID * wanted})
    return found


def by_host(sent: list[dict[str, int]], where: Topology, *what: str) -> list[int]:
    lanes = where.ranks_per_host
    return [sum(own[w] for own in sent[h * lanes : (h + 1) * lanes] for w in what) for h in range(where.hosts)]


@pytest.mark.parametrize(("shape", "samples"), [("8x8", 32), ("4x2", 256)])
def test_bytes_are_those_of_the_formula(shape: str, samples: int) -> None:
    """Of every rank, to the byte."""
    where = Topology.parse(shape)
    model = dealt("flights", where, samples)
    assert where.world_size in {s.step for t in model.plan.tables for s in model.plan.shards_of(t.name)}
    ids = draw("flights", 0, where.world_size * samples, seed=2)
    assert sent_by_ranks(model, where, ids) == sent_by_formula(asked_of_ranks(model, where, ids), where)


def evenness(kind: str, where: Topology, samples: int, steps: int, real: bool) -> tuple[list[float], list[float]]:
    """Over some steps, by host: bytes sent to what the formula says, and rows sent to their mean."""
    model = dealt(kind, where, samples)
    total, rows, formula = [0] * where.hosts, [0] * where.hosts, 0.0
    for step in range(steps):
        ids = draw(kind, 20_000, where.world_size * samples, seed=100 + step)
        asked = asked_of_ranks(model, where, ids)
        sent = sent_by_formula(asked, where)
        if real:
            assert sent_by_ranks(model, where, ids) == sent
        total = [a + b for a, b in zip(total, by_host(sent, where, "rows", "gradients", "ids"), strict=True)]
        rows = [a + b for a, b in zip(rows, by_host(sent, where, "rows"), strict=True)]
        distinct = sum(map(sum, asked)) / where.hosts
        formula += (where.hosts - 1) / where.hosts * distinct * (2 * ROW + ID)
    return [own / formula for own in total], [own * where.hosts / sum(rows) for own in rows]


@pytest.mark.parametrize(("kind", "samples"), [("kaggle", 128), ("flights", 256)])
def test_hosts_send_the_same(kind: str, samples: int) -> None:
    """Over 20 batches: within 3 % of the formula, and the largest host at most 1.03 of the mean."""
    to_formula, to_mean = evenness(kind, Topology(4, 2), samples, 20, real=False)
    assert all(0.97 <= own <= 1.03 for own in to_formula), to_formula
    assert max(to_mean) <= EVEN, to_mean


@pytest.mark.campaign
@pytest.mark.parametrize("shape", ["4x2", "2x2", "3x2", "8x2"])
@pytest.mark.parametrize("samples", [512, 2048])
@pytest.mark.parametrize("kind", ["kaggle", "flights"])
def test_hosts_send_the_same_in_larger_batches(kind: str, samples: int, shape: str) -> None:
    """What ranks really send is compared with what is counted in every step."""
    to_formula, to_mean = evenness(kind, Topology.parse(shape), samples, 20, real=True)
    assert all(0.97 <= own <= 1.03 for own in to_formula), to_formula
    assert max(to_mean) <= EVEN, to_mean


@pytest.mark.parametrize(("kind", "most"), [("kaggle", 3), ("flights", 2)])
def test_few_tables_are_divided(kind: str, most: int) -> None:
    """Those that would not let hosts be even; the owner of row 0 is another rank for each."""
    where = Topology(4, 2)
    plan = dealt(kind, where, 256).plan
    divided = [plan.shards_of(name) for name in plan.table_splits]
    assert len(divided) <= most, list(plan.table_splits)
    first = [next((s.host, s.lane) for s in own if s.first_row == 0) for own in divided]
    assert len(set(first)) == len(first)


def test_explain_says_what_owners_send() -> None:
    """By host the rows of the batches that were counted, and how even that is; text and page show it."""
    where, samples = Topology(4, 2), 256
    model = dealt("flights", where, samples)
    found = describe(place_graph(model, CONFIG, where, 0), samples, gradient_sums({}, CONFIG), CONFIG)
    counted = model.plan.row_shares
    assert counted is not None and len(found.owners) == 4
    assert sum(host.rows for host in found.owners) == pytest.approx(sum(table.host for table in counted.tables))
    each = [host.bytes / (3 * host.rows * (2 * ROW + ID)) for host in found.owners]
    assert each == pytest.approx([1.0] * 4)
    assert max(host.to_mean for host in found.owners) <= EVEN
    assert sum(host.whole for host in found.owners) == len(model.plan.tables) - len(model.plan.table_splits)
    note = notes_on_owners(found)[0]
    assert "times the mean; 2 of 21 table(s) are in rows by modulo" in note and "8 step(s) of a test" in note
    with StringIO() as out:
        show(found, Console(file=out, width=200))
        assert "owners of the rows that travel once" in out.getvalue() and note in out.getvalue()
    assert "Owners of the rows that travel once" in page_of(found, "m", None).render()
    split = next(iter(model.plan.table_splits))
    assert "modulo" in feature_with_lanes(model.plan, split) and "on 8 ranks of hosts" in place_of(model.plan, split)
