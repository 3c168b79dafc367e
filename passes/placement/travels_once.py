"""Which tables' rows travel once: one decision, asked for when tables are placed and when a rank's graph is made.

1. ``dmt.comm.dedup`` says it for all features, ``dmt.comm.dedup_features`` for some by name or pattern; what these
   leave open is decided by counts (:mod:`.dedup_choice`). A table follows if all features that read it do, and none
   pools it by maximum: there gradients go to single entries of single rows.
2. On the hierarchical route tower modules run before rows cross hosts. One that works on each feature by itself is a
   function of the row, where a feature has one id per sample: it runs on the distinct rows at their owner, and what
   travels is its output. So either all features of such a tower travel once, or none; they stay on its host. Where the
   module also makes outputs of all its features together, rows are looked up by sample as well, for these.
3. Any other tower module mixes features of a sample. All those of a group of features may run where the samples are
   instead (:mod:`.at_samples`), where counts say that this is fewer bytes, or all their features are named; else their
   tables keep the ordinary way, and so do those that share tables with them. On the flat route towers run where the
   samples are anyway, and nothing stands in the way.
4. Tables that rows by id are read from have no other way: rows are asked for. They travel once, or, where the
   configuration switches that off for all features of a table, for every id.

Tower modules are asked for what they read. While a plan is made there are none yet: :func:`planned_towers` says what
they will read, by the groups of features and by what the configuration makes of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Generic, Protocol, TypeVar

from torch import fx

from dmt_plugin.config.messages import one_of
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.passes.base import PassContext
from dmt_plugin.passes.facts import Lookup, StreamGroup
from dmt_plugin.passes.placement.at_samples import MayMove, movable
from dmt_plugin.passes.placement.dedup_choice import DedupRule
from dmt_plugin.passes.placement.sent_values import width_by_sample
from dmt_plugin.passes.rank_facts import DedupChoice
from dmt_plugin.plan.tower_plan import TowerModuleSpec


class ReadsRows(MayMove, Protocol):
    """A tower module, by what it reads."""

    @property
    def width(self) -> int:
        """Entries that it makes of each row by itself; 0 where it makes none."""

    @property
    def mixed(self) -> int:
        """Entries per sample that it makes of all its features together, beside those."""


Tower = TypeVar("Tower", bound=ReadsRows)


@dataclass(frozen=True)
class PlannedTower:
    """A tower module that is not there yet.

    Attributes:
        lookups: see :class:`ReadsRows`.
        width: see :class:`ReadsRows`.
        mixed: see :class:`ReadsRows`.
    """

    lookups: tuple[fx.Node, ...]
    width: int
    mixed: int = 0

    group = ""
    at_samples = None
    """Its tables are placed as for a tower that runs at them: that is right wherever it runs."""


def one_row(lookup: Lookup) -> bool:
    """Whether a lookup gives, for every sample, one row of its table as it is."""
    return lookup.hotness == 1 and lookup.pooling in ("sum", "mean") and not lookup.weighted


def planned_towers(
    ctx: PassContext,
    towers: Sequence[Collection[str]],
    module_of: Callable[[StreamGroup, int], TowerModuleSpec],
    by_columns: Callable[[str], bool],
) -> list[PlannedTower]:
    """What tower modules will read.

    Args:
        ctx: the model, with the groups of its features.
        towers: features of each tower.
        module_of: the module of a tower in a group of features.
        by_columns: whether a table is going to be divided by columns.
    """
    lookup_of = {lookup.node: lookup for lookup in ctx.facts.lookups}
    regions = {region.stream: region for region in ctx.facts.regions.values()}
    found = []
    for group in (g for g in ctx.facts.groups if g.kind == "tower"):
        for number, features in enumerate(towers):
            module = module_of(group, number)
            streams = [s for x, s in zip(group.lookups, group.streams, strict=True) if x.feature in features]
            if module.kind == "none" or not streams:
                continue
            read = [n for s in streams for n in (regions[s].lookups if s in regions else (s,))]
            own = [lookup_of[s] for s in streams if s in lookup_of]
            by_row = module.kind == "dlrm" and module.c > 0 and group.form != "preserve" and len(own) == len(streams)
            by_row = by_row and all(one_row(x) and x.dim == group.width and not by_columns(x.table) for x in own)
            width, mixed = (module.c * module.dim, module.p * module.dim) if by_row else (0, 0)
            found.append(PlannedTower(tuple(read), width, mixed))
    return found


@dataclass(frozen=True)
class TravelsOnce(Generic[Tower]):
    """What travels once, and why.

    Attributes:
        towers: the tables whose rows are asked for, by name, each with the tower module that its rows go through, if
            any.
        choices: for everything whose rows could travel once, or by sample.
        rule: that made them.
        by_id: of the tables, those that rows by id are read from.
        for_each: of these, those whose rows travel for every id.
        at_samples: the tower modules that run where the samples are, as their tables' rows travel once.
    """

    towers: dict[str, Tower | None]
    choices: tuple[DedupChoice, ...]
    rule: DedupRule
    by_id: frozenset[str] = frozenset()
    for_each: frozenset[str] = frozenset()
    at_samples: tuple[Tower, ...] = ()

    @property
    def alone(self) -> frozenset[str]:
        """The tables whose rows do not travel by sample as well, for what a tower module makes of them together."""
        return frozenset(table for table, tower in self.towers.items() if tower is None or not tower.mixed)


def travelling_once(ctx: PassContext, towers: Sequence[Tower]) -> TravelsOnce[Tower]:
    """Decides which tables' rows travel once.

    Args:
        ctx: the model, what was counted, and the plan, if it is there already.
        towers: its tower modules.

    Raises:
        ConfigError: ``dmt.comm.link`` cannot be read.
    """
    config, by_id = ctx.config, ctx.facts.tables_by_id
    lookups = [x for x in ctx.facts.lookups if x.table not in by_id]
    able = _able(config, lookups, [] if config.comm.route == "flat" else towers)
    shares = ctx.row_shares or (ctx.plan.row_shares if ctx.plan is not None else None)
    rule = DedupRule(config.comm, ctx.topology, shares)
    widths = {lookup.node.name: width_by_sample(ctx, lookup) for lookup in lookups}
    together: dict[str | int, list[str]] = defaultdict(list)
    for table, tower in able.items():
        together[table if tower is None else id(tower)].append(table)
    choices = []
    for tables in together.values():
        tower = able[tables[0]]
        own = [x for x in lookups if x.table in tables]
        bound = ctx.plan is not None and any(map(ctx.plan.only_once, tables))
        width, mixed = (0, 0) if tower is None else (tower.width, tower.mixed)
        choices.append(rule.choose(own, widths, width, bool(mixed), bound))
    on = {table for choice in choices if choice.on for table in choice.tables}
    found = {table: tower for table, tower in able.items() if table in on}
    moved: list[Tower] = []
    for own_towers, reads in [] if config.comm.route == "flat" else movable(config.comm, lookups, towers, found):
        modules = [module for tower in own_towers if (module := tower.at_samples) is not None]
        choice = rule.choose_at_samples(reads, modules)
        others = [other for other in choices if set(other.tables).intersection(choice.tables)]
        if choice.on:
            moved += own_towers
            found.update(dict.fromkeys(choice.tables))
            choices = [other for other in choices if other not in others]
        if choice.on or not others:
            choices.append(choice)
    found.update(dict.fromkeys(sorted(by_id)))
    wanted = {x.table for x in ctx.facts.lookups if x.table in by_id and config.comm.dedup_of(x.feature) != "off"}
    return TravelsOnce(found, tuple(choices), rule, by_id, by_id - wanted, tuple(moved))


def _able(config: DMTConfig, lookups: Sequence[Lookup], towers: Sequence[Tower]) -> dict[str, Tower | None]:
    """The tables whose rows can travel once, and need not keep their way."""
    tower_of = {node: tower for tower in towers for node in tower.lookups}
    by_table: dict[str, list[Lookup]] = defaultdict(list)
    for lookup in lookups:
        by_table[lookup.table].append(lookup)
    able: dict[str, Tower | None] = {}
    for table, own in by_table.items():
        numbers = {id(tower_of.get(lookup.node)): tower_of.get(lookup.node) for lookup in own}
        wanted = all(config.comm.dedup_of(x.feature) != "off" and x.pooling != "max" for x in own)
        if wanted and len(numbers) == 1:
            able[table] = next(iter(numbers.values()))
    _all_or_none(able, lookups, towers)
    return able


def check_asked(config: DMTConfig, lookups: Sequence[Lookup], chosen: Collection[str]) -> None:
    """Refuses ``dmt.comm.dedup_features`` that cannot be followed.

    Args:
        config: the ``"dmt"`` section.
        lookups: all of the model.
        chosen: the tables whose rows travel once.

    Raises:
        ConfigError: a feature is asked for by name, and cannot travel so; or there is no such feature.
    """
    features = list(dict.fromkeys(lookup.feature for lookup in lookups))
    for name in config.comm.dedup_features:
        if not any(name == known or fnmatchcase(known, name) for known in features):
            raise ConfigError(f"dmt.comm.dedup_features[{name!r}]: {one_of(name, features)}.")
    for lookup in lookups:
        if config.comm.dedup_features.get(lookup.feature) == "on" and lookup.table not in chosen:
            raise ConfigError(
                f"dmt.comm.dedup_features[{lookup.feature!r}] is 'on', but this feature's rows cannot travel once: "
                "a tower module reads them by sample, together with other features or pooled, before they cross hosts; "
                "or it shares table or tower with a feature that keeps its way, or is pooled by maximum. Remove the "
                "entry, or set it for all features of its tower; where the module mixes features, for those of all "
                "towers"
            )


def _all_or_none(chosen: dict[str, Tower | None], lookups: Sequence[Lookup], towers: Sequence[Tower]) -> None:
    """Drops what tower modules read that are no functions of the row, or of which not all tables are chosen."""
    for tower in towers:
        nodes = set(tower.lookups)
        tables = {lookup.table for lookup in lookups if lookup.node in nodes}
        if not tower.width or not tables <= chosen.keys():
            for table in tables:
                chosen.pop(table, None)
