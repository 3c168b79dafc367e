"""Which tables' rows travel once, however many samples need them, and in which groups.

1. ``dmt.comm.dedup`` says it for all features, ``dmt.comm.dedup_features`` for some by name or pattern.
2. A tower module in front of the exchange between hosts reads its features' rows by sample: their tables keep the
   ordinary way, and so do tables that share a lookup's ids or features with them. On the flat route towers run where
   the samples are, and nothing stands in the way.
3. Neither does a table that is pooled by maximum: its gradients go to single entries of single rows.
4. Tables of one width and one update rule are one group. A table in ranges of columns is as many tables of their
   widths; in ranges of rows it is one, whose rows have several owners.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import fx

from dmt_plugin.comm.distinct.row_groups import GroupTable, Read, RowGroup, RowPart
from dmt_plugin.config.messages import one_of
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.fxtools.names import DISTINCT
from dmt_plugin.nn.lookup.stacks import Stack
from dmt_plugin.passes.base import PassContext
from dmt_plugin.passes.facts import Lookup
from dmt_plugin.plan.tables import TableShard, check_runnable
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.topology.shape import Topology


def distinct_tables(ctx: PassContext, packed: Collection[fx.Node]) -> set[str]:
    """Names of the tables whose rows travel once.

    Args:
        ctx: the model, its plan and the configuration.
        packed: lookups that tower modules read.

    Raises:
        ConfigError: a feature is asked for by name, and a tower module reads it; or there is no such feature.
    """
    config, plan = ctx.config, ctx.plan
    assert plan is not None
    features = [feature.name for feature in plan.features]
    for name in config.comm.dedup_features:
        if not any(name == known or fnmatchcase(known, name) for known in features):
            raise ConfigError(f"dmt.comm.dedup_features[{name!r}]: {one_of(name, features)}.")
    by_table: dict[str, list[Lookup]] = defaultdict(list)
    for lookup in ctx.facts.lookups:
        by_table[lookup.table].append(lookup)
    chosen = set()
    for table, lookups in by_table.items():
        wanted = [config.comm.travels_once(x.feature) for x in lookups]
        in_tower = [x.feature for x in lookups if x.node in packed and config.comm.route == "hierarchical"]
        asked = [name for name in in_tower if config.comm.dedup_features.get(name) == "on"]
        if asked:
            raise ConfigError(
                f"dmt.comm.dedup_features[{asked[0]!r}] is 'on', but a tower module reads the rows of this feature by "
                "sample before they cross hosts; take the feature out of the towers, or remove the entry"
            )
        if all(wanted) and not in_tower and all(x.pooling != "max" for x in lookups):
            chosen.add(table)
    return chosen


Key = tuple[int, Rule]
"""Width and update rule: what the tables of a group have in common."""


@dataclass(frozen=True)
class DistinctRows:
    """What travels once, and how it is asked for.

    Attributes:
        groups: of the tables.
        columns: for each lookup, in the order given, the reads that it is put together from, as (group, read).
        shards: for each rank and group the shards that it holds, in the order of its stack.
    """

    groups: tuple[RowGroup, ...]
    columns: tuple[tuple[tuple[int, int], ...], ...]
    shards: tuple[tuple[tuple[TableShard, ...], ...], ...]

    def stacks(self, rank: int) -> tuple[Stack, ...]:
        """What a rank holds of each group."""
        return tuple(
            Stack(group.name, group.width, tuple((shard.name, shard.rows) for shard in own))
            for group, own in zip(self.groups, self.shards[rank], strict=True)
        )


class DistinctRowsMaker:
    """Deals the tables of some lookups into groups.

    Args:
        plan: where tables are.
        config: the ``"dmt"`` section.
        topology: hosts and lanes.
    """

    def __init__(self, plan: TowerPlan, config: DMTConfig, topology: Topology) -> None:
        self.plan, self.config, self.topology = plan, config, topology
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
            RowGroup(f"{DISTINCT}{i}", key[0], tuple(self._tables[key]), tuple(self._reads[key]), not key[1].frozen)
            for key, i in number.items()
        )
        columns = tuple(tuple((number[key], read) for key, read in own) for own in found)
        ranks = range(self.topology.world_size)
        shards = tuple(tuple(tuple(self._shards[key, rank]) for key in number) for rank in ranks)
        return DistinctRows(groups, columns, shards)

    def _read(self, lookup: Lookup, slot: int) -> list[tuple[Key, int]]:
        """Adds a lookup; gives its reads."""
        if lookup.table not in self._places:
            self._places[lookup.table] = self._add(lookup.table)
        own = []
        for key, table in self._places[lookup.table]:
            self._reads[key].append(Read(slot, table, lookup.pooling, lookup.weighted, lookup.padding))
            own.append((key, len(self._reads[key]) - 1))
        return own

    def _add(self, name: str) -> list[tuple[Key, int]]:
        """Adds a table as one of a group, or as one for each range of its columns."""
        shards = self.plan.shards_of(name)
        check_runnable(shards, self.plan.host_of_table(name))
        by_columns = shards[0].kind == "column_wise"
        places = []
        for parts in [[shard] for shard in shards] if by_columns else [list(shards)]:
            table = parts[0].table
            rule = self.config.lookup.rule_of(table.name, table.parameter, table.dtype, table.frozen)
            key = parts[0].columns, rule
            own = tuple(self._part(key, shard) for shard in parts)
            self._tables[key].append(GroupTable(parts[0].name if by_columns else name, table.rows, own))
            places.append((key, len(self._tables[key]) - 1))
        return places

    def _part(self, key: Key, shard: TableShard) -> RowPart:
        rank = self.topology.rank_of(shard.host, shard.lane)
        base = sum(before.rows for before in self._shards[key, rank])
        self._shards[key, rank].append(shard)
        return RowPart(rank, shard.first_row, shard.step, shard.rows, base)
