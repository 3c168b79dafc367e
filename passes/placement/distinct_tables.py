"""The groups of the tables whose rows travel once, however many samples need them.

1. Which tables these are is decided in :mod:`dmt_plugin.passes.placement.travels_once`; here is what it needs to know
   of the tower modules in a graph.
2. Tables of one width and one update rule are one group; behind tower modules also of one output width, and of one
   tower per host. A table in ranges of columns is as many tables of their widths; in ranges of rows it is one, whose
   rows have several owners.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from dmt_plugin.comm.distinct.row_groups import GroupTable, Read, RowGroup, RowPart
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.fxtools.names import DISTINCT, calls_tower, tower_part
from dmt_plugin.nn.lookup.stacks import Stack
from dmt_plugin.nn.towers import DLRMTower
from dmt_plugin.passes.base import PassContext
from dmt_plugin.passes.facts import Lookup
from dmt_plugin.passes.placement.at_samples import AtSamples, at_samples_of
from dmt_plugin.passes.placement.dedup_choice import choices_in_words, towers_in_words
from dmt_plugin.passes.placement.travels_once import TravelsOnce, one_row
from dmt_plugin.plan.tables import TableShard, check_on_host
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.topology.shape import Topology


@dataclass(frozen=True)
class TowerReads:
    """What one tower module reads.

    Attributes:
        output: the node that calls it.
        path: of the module.
        host: where it runs.
        place: its number among the towers of its host.
        lookups: what it reads, and what its regions read.
        width: entries that it makes of each row by itself; 0 where it makes none.
        mixed: entries per sample that it makes of all its features together, beside those.
        group: the group of features of which it is one tower.
        at_samples: what it takes to run it where the samples are; None where it may not.
    """

    output: fx.Node
    path: str
    host: int
    place: int
    lookups: tuple[fx.Node, ...]
    width: int
    mixed: int = 0
    group: str = ""
    at_samples: AtSamples | None = None


def tower_reads(ctx: PassContext) -> list[TowerReads]:
    """The tower modules of the logical graph, in its order."""
    assert ctx.plan is not None
    region_of = {region.stream: region for region in ctx.facts.regions.values()}
    lookups = {lookup.node: lookup for lookup in ctx.facts.lookups}
    found: list[TowerReads] = []
    for output in (n for n in ctx.gm.graph.nodes if calls_tower(n)):
        path = str(output.target)
        pack = output.args[0]
        assert isinstance(pack, fx.Node)
        streams: Any = pack.args[0]
        read = [n for s in streams for n in (region_of[s].lookups if s in region_of else (s,))]
        part = tower_part(path)
        assert part is not None
        host = ctx.plan.tower_hosts[part.number]
        module, width, mixed = ctx.gm.get_submodule(path), 0, 0
        if type(module) is DLRMTower and isinstance(module.per_feature, nn.Linear):
            by_row = all(
                s in lookups and len(s.users) == 1 and one_row(lookups[s]) and lookups[s].dim == module.width
                for s in streams
            )
            whole = all(ctx.plan.kind_of(lookups[s].table) != "column_wise" for s in streams if s in lookups)
            width = module.per_feature.out_features if by_row and whole else 0
            mixed = module.per_tower.out_features if width and module.per_tower is not None else 0
        place, moved = sum(x.host == host for x in found), at_samples_of(module, int(output.meta["val"].shape[1]))
        found.append(TowerReads(output, path, host, place, tuple(read), width, mixed, part.group, moved))
    return found


def once_in_words(ctx: PassContext, once: TravelsOnce[TowerReads]) -> str:
    """Which rows travel once, and why; empty where nobody asked for it, or none would cross."""
    return "; ".join(part for part in (_choices_in_words(ctx, once), _by_id_in_words(ctx, once)) if part)


def _by_id_in_words(ctx: PassContext, once: TravelsOnce[TowerReads]) -> str:
    """Which rows are asked for by id; empty where there are none."""
    by = "rank" if ctx.config.comm.route == "flat" else "host"
    parts = [(f"once per {by}", once.by_id - once.for_each), ("for every id", once.for_each)]
    said = [f"{', '.join(sorted(tables))} {how}" for how, tables in parts if tables]
    return f"rows by id: {'; '.join(said)}" if said else ""


def _choices_in_words(ctx: PassContext, once: TravelsOnce[TowerReads]) -> str:
    """Which of the rows that could go by sample travel once, and why."""
    comm, plan = ctx.config.comm, ctx.plan
    assert plan is not None
    by_sample = [feature for feature in plan.features if not once.by_id.intersection(feature.tables)]
    asked = {comm.dedup_of(feature.name) for feature in by_sample}
    if "auto" in asked and comm.may_travel_once(ctx.topology.by_machine.hosts, ctx.topology.world_size):
        if not once.choices:
            return "comm.dedup auto: off: tower modules read all rows by sample"
        return choices_in_words(once.choices, once.rule)
    if "on" not in asked:
        return ""
    chosen = set(once.towers) - once.by_id
    if not chosen:
        return "dmt.comm.dedup is on, but no table's rows can travel once: tower modules read them by sample"
    rest = sorted({table.name for table in plan.tables} - set(once.towers))
    shown = ", ".join(rest[:4]) + (", ..." if len(rest) > 4 else "")
    by = "rank" if comm.route == "flat" else "host"
    others = f"; by sample those of {shown}" if rest else ""
    return f"rows of {len(chosen)} table(s) travel once per {by}{towers_in_words(once.choices)}{others}"


@dataclass(frozen=True)
class Key:
    """What the tables of a group have in common.

    Attributes:
        dim: entries of a row.
        rule: how rows are updated.
        width: entries that travel for a row.
        tower: which tower of each host makes these of a row; -1 for none.
        once: whether a row travels once, however many ids need it.
    """

    dim: int
    rule: Rule
    width: int
    tower: int = -1
    once: bool = True


@dataclass(frozen=True)
class DistinctRows:
    """The rows that are asked for, and how.

    Attributes:
        groups: of the tables.
        columns: for each lookup, in the order given, the reads that it is put together from, as (group, read).
        shards: for each rank and group the shards that it holds, in the order of its stack.
        keys: of the groups.
    """

    groups: tuple[RowGroup, ...]
    columns: tuple[tuple[tuple[int, int], ...], ...]
    shards: tuple[tuple[tuple[TableShard, ...], ...], ...]
    keys: tuple[Key, ...]

    def stacks(self, rank: int) -> tuple[Stack, ...]:
        """What a rank holds of each group."""
        return tuple(
            Stack(group.name, key.dim, tuple((shard.name, shard.rows) for shard in own))
            for group, key, own in zip(self.groups, self.keys, self.shards[rank], strict=True)
        )


class DistinctRowsMaker:
    """Deals the tables of some lookups into groups.

    Args:
        plan: where tables are.
        config: the ``"dmt"`` section.
        topology: hosts and lanes.
        towers: by table the tower module that its rows go through, if any.
        for_each: the tables whose rows travel for every id.
    """

    def __init__(
        self,
        plan: TowerPlan,
        config: DMTConfig,
        topology: Topology,
        towers: Mapping[str, TowerReads | None],
        for_each: Collection[str] = (),
    ) -> None:
        self.plan, self.config, self.topology, self.towers = plan, config, topology, towers
        self.for_each = for_each
        self._tables: dict[Key, list[GroupTable]] = defaultdict(list)
        self._reads: dict[Key, list[Read]] = defaultdict(list)
        self._shards: dict[tuple[Key, int], list[TableShard]] = defaultdict(list)
        self._places: dict[str, list[tuple[Key, int]]] = {}

    def of(self, lookups: Sequence[Lookup], slot_of: Mapping[str, int]) -> DistinctRows:
        """The groups.

        Args:
            lookups: all lookups in the tables.
            slot_of: number of an id stream by its key.
        """
        found = [self._read(lookup, slot_of[lookup.key]) for lookup in lookups]
        number = {key: i for i, key in enumerate(self._tables)}
        groups = tuple(
            RowGroup(
                f"{DISTINCT}{i}",
                key.width,
                tuple(self._tables[key]),
                tuple(self._reads[key]),
                trained=not key.rule.frozen or key.tower >= 0,
                once=key.once,
            )
            for key, i in number.items()
        )
        columns = tuple(tuple((number[key], read) for key, read in own) for own in found)
        ranks = range(self.topology.world_size)
        shards = tuple(tuple(tuple(self._shards[key, rank]) for key in number) for rank in ranks)
        return DistinctRows(groups, columns, shards, tuple(number))

    def _read(self, lookup: Lookup, slot: int) -> list[tuple[Key, int]]:
        """Adds a lookup; gives its reads."""
        if lookup.table not in self._places:
            self._places[lookup.table] = self._add(lookup.table)
        own = []
        for key, table in self._places[lookup.table]:
            read = Read(slot, table, lookup.pooling, lookup.weighted, lookup.padding, lookup.by_id)
            self._reads[key].append(read)
            own.append((key, len(self._reads[key]) - 1))
        return own

    def _add(self, name: str) -> list[tuple[Key, int]]:
        """Adds a table as one of a group, or as one for each range of its columns."""
        shards = self.plan.shards_of(name)
        if self.towers[name] is not None:
            check_on_host(shards, self.plan.host_of_table(name))
        by_columns = shards[0].kind == "column_wise"
        places = []
        for parts in [[shard] for shard in shards] if by_columns else [list(shards)]:
            table = parts[0].table
            rule = self.config.lookup.rule_of(table.name, table.parameter, table.dtype, table.frozen)
            tower, dim, once = self.towers[name], parts[0].columns, name not in self.for_each
            key = Key(dim, rule, dim, once=once) if tower is None else Key(dim, rule, tower.width, tower.place)
            own = tuple(self._part(key, shard) for shard in parts)
            self._tables[key].append(GroupTable(parts[0].name if by_columns else name, table.rows, own))
            places.append((key, len(self._tables[key]) - 1))
        return places

    def _part(self, key: Key, shard: TableShard) -> RowPart:
        rank = self.topology.rank_of(shard.host, shard.lane)
        base = sum(before.rows for before in self._shards[key, rank])
        self._shards[key, rank].append(shard)
        return RowPart(rank, shard.first_row, shard.step, shard.rows, base)
