"""What a rank does in one step of a variant, with given wire formats, micro-blocks and sums of gradients.

Bytes are those of the busiest link (:mod:`dmt_plugin.planner.time.links`), FLOPs and copies those of a mean rank:

* a lookup reads ids x rows, and writes what is sent; of rows that travel once, those that hosts ask for;
* between lanes and tower module every entry of the host's features is read and written once each way; rows that travel
  once are spread over samples there, as wide as they travel;
* a tower module that works on single rows runs on distinct ones.

Where a host is several machines, the part of its lanes' exchange that leaves a machine is that of lanes elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmt_plugin.comm.formats import Format, gradient_format, row_bytes
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.core.update_rule import BYTES_OF
from dmt_plugin.plan.tables import TableSpec
from dmt_plugin.planner.buffers import Entries
from dmt_plugin.planner.cost import ExchangeCost
from dmt_plugin.planner.gradient_cost import GradientSums, gradient_costs, gradient_sums
from dmt_plugin.planner.load import ASSUMED_IDS
from dmt_plugin.planner.time.links import LinkBytes, link_bytes
from dmt_plugin.planner.time.step import Load
from dmt_plugin.planning.variants import Variant

_FP32 = 4


@dataclass(frozen=True)
class Wire:
    """Wire formats, between hosts (on the flat route: all ranks) and inside them."""

    peers: Format
    lanes: Format

    def formats(self, row_type: Format = "fp32") -> dict[str, tuple[Format, Format]]:
        """By group, forward and backward, with gradients as the configuration's ``"auto"`` has them.

        Args:
            row_type: of rows as they are computed: entries of two bytes are not sent in four.
        """

        def both(name: Format) -> tuple[Format, Format]:
            found = name, gradient_format(name, "auto")
            return found if name != "fp32" else (row_type, row_type)

        peers = both(self.peers)
        return {"peers": peers, "world": peers, "lanes": both(self.lanes)}


@dataclass(frozen=True)
class Moved:
    """Bytes and entries of a variant that do not depend on blocks or sums.

    Attributes:
        links: bytes of the busiest link.
        lookup: bytes that lookups read and write.
        shuffle: bytes that are reordered each way.
        rows_share: of the tower modules' rows those that are computed.
        numbered: ids and distinct rows of what travels once.
    """

    links: LinkBytes
    lookup: float
    shuffle: float
    rows_share: float
    numbered: float


def moved(variant: Variant, samples: int, wire: Wire, shared_nic: bool) -> Moved:
    """What travels in a step, and what is read and copied for it.

    Args:
        variant: the model.
        samples: per rank.
        wire: formats.
        shared_nic: whether the ranks of a host share a link.
    """
    links = link_bytes(variant.layout, samples, wire.formats(variant.row_type), shared_nic)
    once, lanes = variant.widths_once, variant.topology.ranks_per_host
    first = wire.formats(variant.row_type)["world" if variant.flat else "lanes"][0]
    lookup = shuffle = asked = could = numbered = 0.0
    for table, ids in _reads(variant):
        entry = BYTES_OF[table.dtype] + row_bytes(first, table.dim) / table.dim
        if table.name in once:
            rows = _asked(variant, table, samples, ids)
            asked, could = asked + rows / lanes, could + samples * ids
            lookup += rows / lanes * table.dim * entry
            shuffle += 2 * _FP32 * samples * once[table.name]
            numbered += samples * ids + _asked_by_rank(variant, table, samples, ids) + rows / lanes
        else:
            lookup += samples * table.dim * (ids * BYTES_OF[table.dtype] + row_bytes(first, table.dim) / table.dim)
            shuffle += 0 if variant.flat else 2 * samples * row_bytes(first, table.dim)
    by_row = bool(variant.placed.placement.row_towers) and not variant.layout.rank_widths
    return Moved(links, lookup, shuffle, asked / could if by_row and could else 1.0, numbered)


def load_of(variant: Variant, samples: int, wire: Wire, moved: Moved, sums: GradientSums, machine: int) -> Load:
    """The load of one step in one block.

    Args:
        variant: the model.
        samples: per rank.
        wire: formats.
        moved: of the same.
        sums: who sums gradients.
        machine: ranks of a machine; a host has as many, or a multiple.
    """
    topology, links = variant.topology, moved.links
    towers = max((entries.trained for entries in variant.sizes.towers.values()), default=0)
    dense = variant.sizes.dense.trained
    if topology.hosts == 1:
        dense, towers = dense + sum(entries.trained for entries in variant.sizes.towers.values()), 0
    costs = gradient_costs(sums, dense, towers, topology)
    ring = sums.by != "hosts" and topology.world_size > machine
    around = sum(c.other_hosts + (c.same_host if ring and c.group == "world" else 0) for c in costs)
    inside = sum(c.same_host for c in costs) - (around - _away(costs))
    lanes = topology.ranks_per_host
    away = (lanes - machine) / (lanes - 1) if lanes > machine else 0.0
    inner, rows = links.lanes, links.rows
    if variant.flat and topology.hosts * lanes > machine:  # one exchange, whatever way rows go
        inner, rows = (0.0, 0.0), (rows[0] + away * inner[0], rows[1] + away * inner[1])
    flops = variant.flops
    return Load(
        ids=links.ids,
        lookup=moved.lookup,
        rows=rows,
        dense=(samples * flops.dense[0], samples * flops.dense[1]),
        sums=around + away * inside,
        lanes=((1 - away) * inner[0], (1 - away) * inner[1]),
        shuffle=moved.shuffle,
        tower=(samples * moved.rows_share * flops.towers[0], samples * moved.rows_share * flops.towers[1]),
        machines=(away * inner[0], away * inner[1]),
        sums_inside=(1 - away) * inside,
        coded=(wire.lanes == "int8", wire.peers == "int8"),
        exchanges=links.exchanges,
        numbered=moved.numbered,
    )


def replicated_load(
    variant: Variant, samples: int, settings: DeepSpeedSettings, sums: GradientSums, machine: int
) -> Load:
    """The load where every rank has all tables, as stock DeepSpeed trains the flat model.

    Gradients of tables are as large as the tables: they are set to zero and added to, summed over ranks, and the
    optimizer goes through all rows, or at ZeRO stages 1 and 2 through a rank's share of them.

    Args:
        variant: the flat route's.
        samples: per rank.
        settings: the DeepSpeed configuration.
        sums: who sums gradients.
        machine: ranks of a machine.
    """
    topology, tables = variant.topology, tables_of(variant)
    costs = gradient_costs(sums, variant.sizes.dense.trained + tables.trained, 0, topology)
    away = _away(costs)
    near = sum(cost.same_host for cost in costs)
    ring = topology.world_size > machine
    share = topology.world_size if settings.zero_stage else 1
    moves = 2 * tables.trained + (3 + 2 * _MOMENTS) * -(-tables.trained // share)
    read = sum(samples * ids * table.dim * BYTES_OF[table.dtype] for table, ids in _reads(variant))
    flops = variant.flops
    return Load(
        ids=0.0,
        lookup=read,
        rows=(0.0, 0.0),
        dense=(samples * flops.dense[0], samples * flops.dense[1]),
        sums=away + near if ring else 0.0,
        sums_inside=0.0 if ring else near,
        update=_FP32 * moves,
    )


_MOMENTS = 1
"""States per entry that a step reads and writes, as Adagrad has them."""


def tables_of(variant: Variant) -> Entries:
    """Entries of all tables."""
    sizes = [(table.rows * table.dim, not table.frozen) for table in variant.placed.plan.tables]
    return Entries(sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained))


def sums_of(ds_config: Mapping[str, Any], variant: Variant, stage: int, *, stock: bool = False) -> GradientSums:
    """Who sums gradients at a ZeRO stage.

    Args:
        ds_config: the DeepSpeed configuration.
        variant: the model.
        stage: in place of the configuration's.
        stock: whether DeepSpeed runs without this package.
    """
    config = variant.config
    if stock:
        config = config.model_copy(update={"comm": config.comm.model_copy(update={"overlap": False})})
    return gradient_sums(at_stage(ds_config, stage), config)


def at_stage(ds_config: Mapping[str, Any], stage: int) -> dict[str, Any]:
    """A DeepSpeed configuration with another ZeRO stage."""
    zero = ds_config.get("zero_optimization")
    return {**ds_config, "zero_optimization": {**(zero if isinstance(zero, Mapping) else {}), "stage": stage}}


def _away(costs: Sequence[ExchangeCost]) -> int:
    return sum(cost.other_hosts for cost in costs)


def _reads(variant: Variant) -> list[tuple[TableSpec, float]]:
    """Every table with the ids per sample that are looked up in it."""
    found: dict[str, float] = {}
    for feature in variant.placed.plan.features:
        for table in feature.tables:
            found[table] = found.get(table, 0.0) + (feature.hotness or ASSUMED_IDS)
    return [(table, found.get(table.name, 1.0)) for table in variant.placed.plan.tables]


def _asked(variant: Variant, table: TableSpec, samples: int, ids: float) -> float:
    """Distinct rows of a table that a host (on the flat route: its ranks, each by itself) needs in a step."""
    lanes = variant.topology.ranks_per_host
    counted = variant.shares.of_table(table.name) if variant.shares is not None else None
    if counted is None:
        return min(samples * lanes * ids, lanes * table.rows)
    return lanes * counted.rank if variant.flat else counted.host


def _asked_by_rank(variant: Variant, table: TableSpec, samples: int, ids: float) -> float:
    """Distinct rows of a table that a rank needs in a step."""
    counted = variant.shares.of_table(table.name) if variant.shares is not None else None
    return min(samples * ids, table.rows) if counted is None else counted.rank
