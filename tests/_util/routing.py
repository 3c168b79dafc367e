"""Cases for input distribution, lookup and output distribution together, with a single-process oracle.

A case says what every rank has (batch sizes) and what the model has (features and where their tables are). Ids,
tables and output gradients follow from it by seeds, so ranks in other processes can make them too. All numbers are
small integers: sums are exact in fp32, whatever their order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmt_plugin.comm.input_dist.ids import FeatureIds, IdSlot
from dmt_plugin.comm.input_dist.input_dist import InputDist
from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.nn.lookup.site import LookupSite
from dmt_plugin.topology.shape import Topology


@dataclass(frozen=True)
class Feature:
    """``tables``: name, lane and dim of each table that is looked up with this feature's ids."""

    name: str
    rows: int
    hotness: int | None
    host: int
    tables: tuple[tuple[str, int, int], ...]
    pooling: str = "sum"
    weighted: bool = False
    by_id: bool = False


@dataclass(frozen=True)
class Case:
    hosts: int
    lanes: int
    batches: tuple[int, ...]
    features: tuple[Feature, ...]

    @property
    def topology(self) -> Topology:
        return Topology(self.hosts, self.lanes)

    @property
    def slots(self) -> list[IdSlot]:
        return [
            IdSlot(f.name, f.rows, f.hotness, f.weighted, f.host, tuple(sorted({t[1] for t in f.tables})), f.by_id)
            for f in self.features
        ]

    def sites_of(self, rank: int) -> list[tuple[int, tuple[str, int, int]]]:
        """(feature, table) of each lookup on a rank, in order."""
        host, lane = self.topology.host_of(rank), self.topology.lane_of(rank)
        return [
            (i, table) for i, f in enumerate(self.features) for table in f.tables if f.host == host and table[1] == lane
        ]

    def width_of(self, rank: int) -> int:
        return sum(table[2] for _, table in self.sites_of(rank))


def random_case(hosts: int, lanes: int, features: int, seed: int, max_batch: int = 5) -> Case:
    """Features of any pooling and hotness, with one table or two each, and any batches; the same for a seed."""
    rng = random.Random(seed)
    batches = tuple(rng.randint(0, max_batch) for _ in range(hosts * lanes))
    made = []
    for i in range(features):
        hotness = rng.choice([1, 1, 2, 3, None, None])
        pooling = rng.choice(["sum", "sum", "mean"])
        weighted = pooling == "sum" and rng.random() < 0.3
        shards = rng.sample(range(lanes), rng.choice([1, 1, min(2, lanes)]))
        tables = tuple((f"t{i}_{lane}", lane, rng.choice([1, 2, 4, 8])) for lane in shards)
        made.append(Feature(f"f{i}", rng.randint(1, 9), hotness, rng.randrange(hosts), tables, pooling, weighted))
    return Case(hosts, lanes, batches, tuple(made))


def make_ids(case: Case, rank: int) -> list[FeatureIds]:
    generator = torch.Generator().manual_seed(1000 + rank)
    batch = case.batches[rank]
    result = []
    for f in case.features:
        if f.hotness is None:
            lengths = torch.randint(0, 4, (batch,), generator=generator)
            count, hotness = int(lengths.sum()), None
        else:
            lengths, hotness, count = None, f.hotness, f.hotness * batch
        values = torch.randint(0, f.rows, (count,), generator=generator)
        weights = torch.randint(1, 4, (count,), generator=generator).float() if f.weighted else None
        result.append(FeatureIds(values, lengths, hotness, batch, weights))
    return result


def make_table(case: Case, name: str) -> Tensor:
    feature, dim = next((f, t[2]) for f in case.features for t in f.tables if t[0] == name)
    generator = torch.Generator().manual_seed(sum(name.encode()) * 7919 + len(name))
    return torch.randint(-8, 9, (feature.rows, dim), generator=generator).float()


def cotangent(case: Case, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(5000 + rank)
    width = sum(case.width_of(r) for r in range(case.topology.world_size))
    return torch.randint(-3, 4, (case.batches[rank], width), generator=generator).float()


def oracle(case: Case, lr: float = 1.0) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Output of every rank, columns by owner rank, and every table after one SGD step on the sum of all losses."""
    world = case.topology.world_size
    names = {t[0] for f in case.features for t in f.tables}
    tables = {name: make_table(case, name).requires_grad_() for name in sorted(names)}
    outputs = []
    for rank in range(world):
        ids = make_ids(case, rank)
        columns = [torch.zeros(case.batches[rank], 0)]
        for owner in range(world):
            for i, (name, _, _) in case.sites_of(owner):
                columns.append(pool(ids[i], tables[name], case.features[i].pooling))
        outputs.append(torch.cat(columns, dim=1))
    loss = sum((out * cotangent(case, rank)).sum() for rank, out in enumerate(outputs))
    if isinstance(loss, Tensor) and loss.requires_grad:
        loss.backward()
    with torch.no_grad():
        updated = {n: t - lr * (t.grad if t.grad is not None else 0.0) for n, t in tables.items()}
    return [out.detach() for out in outputs], updated


def pool(ids: FeatureIds, table: Tensor, pooling: str) -> Tensor:
    if ids.lengths is None:
        lengths = torch.full((ids.batch_size,), ids.hotness or 0)
    else:
        lengths = ids.lengths
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return F.embedding_bag(
        ids.values, table, offsets, mode=pooling, per_sample_weights=ids.weights, include_last_offset=True
    )


class RankProgram:
    """What one rank does with a case."""

    def __init__(
        self,
        case: Case,
        wire: Any,
        route: str = "hierarchical",
        formats: tuple[Any, Any] = ("fp32", "fp32"),
        **lookup: Any,
    ) -> None:
        self.case, self.wire, self.rank, self.route = case, wire, wire.rank, route
        topology = case.topology
        self.index = InputDist(case.slots, topology, self.rank, route)  # type: ignore[arg-type]
        owned = {slot: position for position, slot in enumerate(self.index.owned)}
        sites = []
        for n, (i, (name, _, dim)) in enumerate(case.sites_of(self.rank)):
            f = case.features[i]
            sites.append(LookupSite(f"site{n}", name, owned[i], f.rows, dim, f.pooling, f.weighted))
        weights = {site.table: make_table(case, site.table) for site in sites}
        options = {"backend": "torch", "optimizer": "sgd", "lr": 1.0, **lookup}
        self.lookup = ShardedLookup(sites, weights, **options)
        width = case.width_of
        if route == "hierarchical":
            host = topology.host_of(self.rank)
            of_lanes = [width(topology.rank_of(host, j)) for j in range(case.lanes)]
            of_hosts = [sum(width(topology.rank_of(h, j)) for j in range(case.lanes)) for h in range(case.hosts)]
            self.exchanges = [
                OutputDist("intra", "lanes", width(self.rank), of_lanes, formats),
                OutputDist("peer", "peers", sum(of_lanes), of_hosts, formats),
            ]
        else:
            everyone = [width(r) for r in range(topology.world_size)]
            self.exchanges = [OutputDist("rows", "world", width(self.rank), everyone, formats)]
        self.index.bind(wire)
        for exchange in self.exchanges:
            exchange.bind(wire)

    def forward(self, ids: list[FeatureIds] | None = None) -> Tensor:
        routed = self.index(*(make_ids(self.case, self.rank) if ids is None else ids))
        rows = self.lookup(routed)
        for exchange in self.exchanges:
            rows = torch.cat(exchange(rows, routed.layout), dim=1)
        return rows

    def step(self, ids: list[FeatureIds] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward, backward and table update: output and this rank's tables."""
        out = self.forward(ids)
        (out * cotangent(self.case, self.rank)).sum().backward()
        self.lookup.step()
        self.lookup.zero_grad()
        return out.detach(), {name: self.lookup.table_weight(name).clone() for name in self.lookup.tables}


def assert_matches(case: Case, results: list[tuple[Tensor, dict[str, Tensor]]]) -> None:
    outputs, tables = oracle(case)
    found: dict[str, Tensor] = {}
    for rank, (out, own) in enumerate(results):
        close(f"rank {rank}", out, outputs[rank], 1e-5)
        found.update(own)
    assert found.keys() == tables.keys()
    for name, table in tables.items():
        close(f"table {name}", found[name], table, 1e-4)


def close(what: str, found: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=atol, msg=lambda text: f"{what}: {text}")
