"""The cases of :mod:`tests._util.routing` with rows that are asked for once, and parts of tables anywhere."""

from __future__ import annotations

import itertools
import random
from typing import Any

import torch
from torch import Tensor

from dmt_plugin.comm.distinct.requests import RowRequests
from dmt_plugin.comm.distinct.row_groups import GroupTable, Read, RowGroup, RowPart
from dmt_plugin.comm.input_dist.ids import FeatureIds
from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.nn.distinct_rows import ExpandRows, HandedRows, SpreadRows, asked_rows, block_requests
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.nn.lookup.stacks import Stack
from tests._util.routing import Case, cotangent, make_ids, make_table


def parts_of(case: Case, seed: int) -> dict[str, list[tuple[int, range]]]:
    """By table who owns which rows: whole, in ranges, or by modulo, on any ranks."""
    rng, world = random.Random(seed), case.topology.world_size
    parts: dict[str, list[tuple[int, range]]] = {}
    for feature in case.features:
        for name, _, _ in feature.tables:
            count = min(rng.choice([1, 1, 2, 3]), feature.rows, world)
            owners = rng.sample(range(world), count)
            if rng.random() < 0.5:
                cuts = [0, *sorted(rng.sample(range(1, feature.rows), count - 1)), feature.rows]
                spans = [range(a, b) for a, b in itertools.pairwise(cuts)]
            else:
                spans = [range(i, feature.rows, count) for i in range(count)]
            parts[name] = list(zip(owners, spans, strict=True))
    return parts


def groups_of(case: Case, parts: dict[str, list[tuple[int, range]]], once: bool = True) -> list[RowGroup]:
    """One group per width."""
    groups = []
    for width in sorted({t[2] for f in case.features for t in f.tables}):
        filled = [0] * case.topology.world_size
        tables, reads = [], []
        for slot, feature in enumerate(case.features):
            for name, _, dim in feature.tables:
                if dim != width:
                    continue
                own = []
                for rank, span in parts[name]:
                    own.append(RowPart(rank, span.start, span.step, len(span), filled[rank]))
                    filled[rank] += len(span)
                reads.append(Read(slot, len(tables), feature.pooling, feature.weighted, by_id=feature.by_id))
                tables.append(GroupTable(name, feature.rows, tuple(own)))
        groups.append(RowGroup(f"distinct{width}", width, tuple(tables), tuple(reads), once=once))
    return groups


class DistinctProgram:
    """What one rank does with a case."""

    def __init__(
        self,
        case: Case,
        wire: Any,
        route: str = "hierarchical",
        seed: int = 0,
        formats: Any = ("fp32", "fp32"),
        blocks: int = 1,
        once: bool = True,
        **options: Any,
    ) -> None:
        self.case, self.wire, self.rank, self.route = case, wire, wire.rank, route
        topology = case.topology
        self.parts = parts_of(case, seed)
        self.groups = groups_of(case, self.parts, once)
        self.requests = RowRequests(case.slots, self.groups, topology, self.rank, route)  # type: ignore[arg-type]
        self.requests.cut_into(blocks)
        stacks, weights, self.names = [], {}, {}
        for group in self.groups:
            own = []
            for table in group.tables:
                for rank, span in self.parts[table.name]:
                    if rank == self.rank:
                        key = f"{table.name}[{span}]"
                        weights[key] = make_table(case, table.name)[span.start : span.stop : span.step]
                        own.append((key, len(span)))
                        self.names[key] = (table.name, span)
            stacks.append(Stack(group.name, group.width, tuple(own)))
        self.lookup = ShardedLookup(
            [], weights, stacks=stacks, **{"backend": "torch", "optimizer": "sgd", "lr": 1.0, **options}
        )
        levels = [("peers", topology.hosts), ("lanes", topology.ranks_per_host)]
        if route == "flat":
            levels = [("world", topology.world_size)]
        elif topology.ranks_per_host == 1:
            levels = levels[:1]
        self.exchanges = [
            [OutputDist(f"{g.name}.{name}", name, g.width, [g.width] * n, formats, joined=True) for name, n in levels]  # type: ignore[arg-type]
            for g in self.groups
        ]
        self.requests.bind(wire)
        for own in self.exchanges:
            for exchange in own:
                exchange.bind(wire)

    def columns(self, ids: list[FeatureIds]) -> dict[str, Tensor]:
        """What is looked up in each table."""
        found = self.requests(*ids)
        parts: dict[str, list[Tensor]] = {}
        rows = self.lookup.distinct(found)
        for g, group in enumerate(self.groups):
            spread: HandedRows | None = None
            expanded: HandedRows | None = None
            for block in range(self.requests.blocks):
                own = block_requests(found, g, block)
                came = self.exchanges[g][0](asked_rows(rows, g, block), own.owners)
                if len(self.exchanges[g]) > 1:
                    spread = SpreadRows()(came, own, spread)
                    came = self.exchanges[g][1](spread.rows, own.lanes)
                expanded = ExpandRows()(came, own, expanded)
                for read, column in zip(group.reads, expanded.columns, strict=True):
                    parts.setdefault(group.tables[read.table].name, []).append(column)
        return {name: torch.cat(own) for name, own in parts.items()}

    def forward(self, ids: list[FeatureIds] | None = None) -> Tensor:
        columns = self.columns(make_ids(self.case, self.rank) if ids is None else ids)
        order = [table[0] for rank in range(self.case.topology.world_size) for _, table in self.case.sites_of(rank)]
        empty = torch.zeros(self.case.batches[self.rank], 0)
        return torch.cat([empty, *(columns[name] for name in order)], dim=1)

    def step(
        self, ids: list[FeatureIds] | None = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, tuple[str, range]]]:
        """Forward, backward and table update: output, this rank's parts of tables, and which they are."""
        out = self.forward(ids)
        (out * cotangent(self.case, self.rank)).sum().backward()
        self.lookup.step()
        self.lookup.zero_grad()
        return out.detach(), {n: self.lookup.table_weight(n).clone() for n in self.lookup.tables}, self.names


def whole_tables(results: list[Any]) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Results of all ranks with the tables put together, all of them beside rank 0's output."""
    tables: dict[str, dict[int, Tensor]] = {}
    for _, own, names in results:
        for key, values in own.items():
            name, span = names[key]
            tables.setdefault(name, {}).update(zip(span, values, strict=True))
    joined = {name: torch.stack([rows[i] for i in range(len(rows))]) for name, rows in tables.items()}
    return [(out, joined if rank == 0 else {}) for rank, (out, _, _) in enumerate(results)]
