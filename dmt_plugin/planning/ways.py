"""The ways of a model on one cluster: flat, hierarchical, with tower modules; tables whole or by columns; dedup.

1. Every host has a tower of its own. Where there are more machines than features, as few machines as possible are one
   host, for the flat route as well: its tables are dealt out by the same plan.
2. A way that the model does not take is left out, and it is said why; without the flat route there is nothing to plan.
3. Each way comes with tables placed as the configuration says, and divided by columns, which spreads few tables over
   many ranks evenly; where a rule of the tables computes with whole rows, only the first.
4. Where a rank cannot hold the largest tables whole, a way is rewritten once more with a limit that divides them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from pydantic import ValidationError

from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError, PlanError, TransformError
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.planner.cluster.cluster import Cluster
from dmt_plugin.planning import findings
from dmt_plugin.planning.candidates import Pricer, choices_of
from dmt_plugin.planning.distinct import SharesOf, Stated
from dmt_plugin.planning.variants import Rewriter, Variant, Way
from dmt_plugin.topology.shape import Topology

FLAT, SPTT = "flat", "SPTT"
COLUMNS = "columns"
"""Every table divided by columns over the lanes of its host."""


class Ways:
    """The ways of one model.

    Args:
        rewriter: of the model.
        config: the ``"dmt"`` section that every way begins with.
        shares: how many rows are distinct, counted or stated; None: nobody knows.
        ratios: compression ratios of tower modules.
        towers: kinds of tower modules.
    """

    def __init__(
        self,
        rewriter: Rewriter,
        config: DMTConfig,
        shares: SharesOf | Stated | None,
        ratios: Sequence[int],
        towers: Sequence[str],
    ) -> None:
        self._rewriter, self._config, self._shares = rewriter, config, shares
        self._ratios, self._towers = tuple(ratios), tuple(towers)
        self._counts: SharesOf | None = None if isinstance(shares, Stated) else shares
        self._known: dict[tuple[int, ...], tuple[list[Variant], list[str]]] = {}

    def on(self, cluster: Cluster, samples: int, pricer: Pricer) -> tuple[list[Variant], list[str]]:
        """Every way that the model takes, the flat one first; and why it does not take the others.

        Args:
            cluster: machines and accelerators.
            samples: per rank.
            pricer: says what memory a way needs.

        Raises:
            TransformError: the flat route does not take the model.
            ConfigError: there is no way to deal its tables out.
        """
        key = (cluster.hosts, cluster.ranks_per_host, samples, pricer.limit)
        if key not in self._known:
            self._known[key] = self._made(cluster, samples, pricer)
        return self._known[key]

    def _made(self, cluster: Cluster, samples: int, pricer: Pricer) -> tuple[list[Variant], list[str]]:
        said: list[str] = []
        plain = self._plain(cluster, samples, pricer)
        topology, plan = plain.topology, plain.placed.plan
        if isinstance(self._shares, Stated):
            self._counts = self._shares.of(plan.tables, plan.features)
        if topology.hosts < cluster.hosts:
            said.append(findings.more_hosts_than_features(len(plan.features), cluster, topology))
        found = [plain]
        ways = [_by_route(FLAT)]
        if topology.hosts > 1:
            ways.append(_by_route(SPTT))
            width = max((group.width for group in plan.groups), default=0)
            for kind in self._towers:
                for ratio in self._ratios:
                    name = f"{kind} CR {ratio}" if len(self._towers) > 1 else f"DMT CR {ratio}"
                    ways.append(_by_towers(name, kind, ratio, width))
        dedup = (False, True) if self._counts is not None else (False,)
        placed_as = ("", COLUMNS) if self._by_columns(plain, said) else ("",)
        refused: set[str] = set()
        for kind, once, base in product(placed_as, dedup, ways):
            way = _with(base, kind, once)
            if way.name == plain.way.name or {base.name, kind} & refused:
                continue
            try:
                made = self._variant(way, topology, samples, pricer, said)
            except (TransformError, ConfigError, PlanError, ValidationError) as error:
                refused.add(kind or base.name)
                said.append(f"{way.name} is not possible here: {' '.join(str(error).split())}")
            else:
                found += [] if made is None else [made]
        return found, said

    def _by_columns(self, plain: Variant, said: list[str]) -> bool:
        """Whether tables may be divided by columns as well."""
        if self._config.placement.strategy != "auto" or plain.topology.ranks_per_host == 1:
            return False
        lookup = self._config.lookup
        rules = (lookup.rule_of(t.name, t.parameter, t.dtype, t.frozen) for t in plain.placed.plan.tables)
        why = next((rule.mixes_columns for rule in rules if rule.mixes_columns), "")
        if why:
            said.append(findings.no_columns(why))
        return not why

    def _plain(self, cluster: Cluster, samples: int, pricer: Pricer) -> Variant:
        """The flat route, on the first topology with a tower for each host."""
        for topology in _topologies(cluster):
            try:
                made = self._rewriter.variant(_by_route(FLAT), topology, samples)
            except PlanError as error:
                refused = error
                continue
            return self._fitted(made, made.way, samples, None, pricer)
        raise ConfigError(f"the tables cannot be dealt out over {cluster.hosts} hosts: {refused}") from refused

    def _variant(self, way: Way, topology: Topology, samples: int, pricer: Pricer, said: list[str]) -> Variant | None:
        shares = None
        if way.dedup and self._counts is not None:
            shares = self._counts(samples, topology.ranks_per_host)
            if shares is None:
                if findings.COUNTED_OTHERWISE not in said:
                    said.append(findings.COUNTED_OTHERWISE)
                return None
        made = self._rewriter.variant(way, topology, samples, shares)
        if way.dedup and not made.layout.groups:
            return None  # tower modules read all rows by sample: the same as without
        return self._fitted(made, way, samples, shares, pricer)

    def _fitted(self, made: Variant, way: Way, samples: int, shares: RowShares | None, pricer: Pricer) -> Variant:
        """The same with tables divided by rows, where a rank cannot hold the largest whole."""
        cheapest = next(c for c in choices_of(made) if c.stage == 1)
        given = self._config.placement.memory_per_rank != "auto" or "placement" in way.section
        if given or pricer.memory(cheapest) <= pricer.limit:
            return made
        room = pricer.limit - (pricer.memory(cheapest) - pricer.tables(cheapest))
        if room <= 0:
            return made
        limited = Way(way.name, {**way.section, "placement": {"memory_per_rank": room}}, way.ratio, way.dedup)
        try:
            return self._rewriter.variant(limited, made.topology, samples, shares)
        except ConfigError:
            return made  # its memory says by how much it does not fit


def _topologies(cluster: Cluster) -> Iterator[Topology]:
    """One machine per host, then as few together as go into their number."""
    for machines in range(1, cluster.hosts + 1):
        if cluster.hosts % machines == 0:
            yield Topology(cluster.hosts // machines, cluster.ranks_per_host * machines)


def _by_route(name: str) -> Way:
    route = "flat" if name == FLAT else "hierarchical"
    return Way(name, {"comm": {"route": route, "dedup": "off"}, "towers": {"module": "none"}})


def _by_towers(name: str, kind: str, ratio: int, width: int) -> Way:
    """Tower modules of one kind and compression ratio."""
    section: dict[str, dict[str, Any]] = {
        "comm": {"route": "hierarchical", "dedup": "off"},
        "towers": {"module": kind, "dim": max(1, width // ratio)},
    }
    return Way(name, section, ratio)


def _with(way: Way, placed_as: str, once: bool) -> Way:
    """The way with tables placed so, and with rows that travel once or by sample."""
    name, section = way.name, dict(way.section)
    if placed_as:
        name, section = f"{name} ({placed_as})", {**section, "placement": {"strategy": "column_wise"}}
    if once:
        name, section = f"{name} + dedup", {**section, "comm": {**section["comm"], "dedup": "on"}}
    return Way(name, section, way.ratio, once)
