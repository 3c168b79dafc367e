"""Decides under ``"dedup": "auto"`` whose rows travel once, by the counts of distinct rows that the plan keeps.

1. What goes one way together is decided together: a table, or all tables whose rows go through one tower module.
2. The share is rows that are asked for per row that would be sent by sample: of a feature with one id per sample its
   distinct rows per id, of a bag the distinct rows per pooled row. By host on the hierarchical route, by rank on the
   flat one.
3. On where the share is below :data:`WORTH`. Where ``dmt.comm.link`` says how fast the link is: where the bytes that
   are saved per id take the link longer than :data:`PROCESSING_S`, which is what sorting, merging and summing take.
4. Tower modules that may run where the samples are (:mod:`.at_samples`): the share is that of bytes, of the rows that
   are asked for and of summing the gradients of weights that every rank then has, to those of the modules' outputs.
5. Off where nothing was counted, and where no row leaves its host (the flat route: its rank).

It depends on the plan, the topology and the configuration alone, so that all ranks, and a run that goes on, decide
alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dmt_plugin.comm.formats import row_bytes
from dmt_plugin.config.link import bytes_per_second
from dmt_plugin.config.section import CommConfig
from dmt_plugin.core.sizes import say_rate
from dmt_plugin.passes.facts import Lookup
from dmt_plugin.passes.placement.at_samples import AtSamples
from dmt_plugin.passes.rank_facts import DedupChoice
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.planner.load import ASSUMED_IDS
from dmt_plugin.topology.shape import Topology

WORTH = 0.8
"""The largest share of distinct rows for which it pays, where the speed of the link is not known."""

PROCESSING_S = 0.15e-6
"""Seconds of one core per id (``python -m benchmarks.dedup_cost``)."""

ID_BYTES = 4
_GRADIENT_BYTES = 4


@dataclass
class _Asked:
    """What is asked for in a step, over all tables in question.

    Attributes:
        samples: that ask.
        rows: distinct rows.
        entries: of these rows, as they travel.
        bytes: of these rows and their gradients.
        ids: of the samples.
    """

    samples: int
    rows: float = 0.0
    entries: float = 0.0
    bytes: float = 0.0
    ids: float = 0.0


class DedupRule:
    """The decision for some tables.

    Args:
        comm: the ``"comm"`` section.
        topology: hosts and lanes.
        shares: what was counted, if anything.

    Raises:
        ConfigError: the link's rate cannot be read.
    """

    def __init__(self, comm: CommConfig, topology: Topology, shares: RowShares | None) -> None:
        self.comm, self.topology, self.shares = comm, topology, shares
        self.flat = comm.route == "flat"
        self.link = None if comm.link is None else bytes_per_second(comm.link, topology.by_machine.ranks_per_host)

    def choose(
        self,
        lookups: Sequence[Lookup],
        widths: Mapping[str, int],
        row_width: int = 0,
        mixed: bool = False,
        bound: bool = False,
    ) -> DedupChoice:
        """For tables that go one way, whose rows travel as they are, or as what a tower module makes of each.

        Args:
            lookups: all lookups in them.
            widths: by node of a lookup the entries per sample that would be sent for it.
            row_width: entries that a tower module makes of a row; 0 for rows as they are.
            mixed: whether the module also makes outputs of all its features together: these, and the ids for them,
                travel by sample in any case, and do not count.
            bound: whether the plan has put the tables where only rows that travel once may be.
        """
        asked = {self.comm.dedup_of(x.feature) for x in lookups}
        features = tuple(dict.fromkeys(x.feature for x in lookups))
        tables = tuple(dict.fromkeys(x.table for x in lookups))
        share, worth = self._measured(lookups, widths, row_width, mixed)
        crosses = self.comm.may_travel_once(self.topology.by_machine.hosts, self.topology.world_size)
        on = "on" in asked or bound or (worth and crosses)
        return DedupChoice(features, tables, on, share, "on" if "on" in asked else "auto", mixed)

    def _measured(
        self, lookups: Sequence[Lookup], widths: Mapping[str, int], row_width: int, mixed: bool
    ) -> tuple[float | None, bool]:
        """The share, and whether it pays."""
        asked = self._asked(lookups, row_width)
        if asked is None:
            return None, False
        sent_entries = sent_bytes = 0.0
        for x in lookups:
            width = row_width or widths[x.node.name]
            sent_entries += asked.samples * width
            sent_bytes += asked.samples * self._bytes(width, not x.frozen)
        share = asked.entries / max(sent_entries, 1.0)
        if self.link is None:
            return share, share < WORTH
        saved = sent_bytes - asked.bytes + ID_BYTES * ((0.0 if mixed else asked.ids) - asked.rows)
        return share, self._pays(saved, asked.ids)

    def choose_at_samples(self, lookups: Sequence[Lookup], modules: Sequence[AtSamples]) -> DedupChoice:
        """For tables behind tower modules that may run where the samples are.

        Without counts only if ``dedup_features`` names all of their features: it may be more bytes.

        Args:
            lookups: all lookups in them.
            modules: that read them.
        """
        named = all(self.comm.named_dedup_of(x.feature) == "on" for x in lookups)
        features = tuple(dict.fromkeys(x.feature for x in lookups))
        tables = tuple(dict.fromkeys(x.table for x in lookups))
        share, worth = self._measured_at_samples(lookups, modules)
        return DedupChoice(features, tables, named or worth, share, "on" if named else "auto", at_samples=True)

    def _measured_at_samples(
        self, lookups: Sequence[Lookup], modules: Sequence[AtSamples]
    ) -> tuple[float | None, bool]:
        """The share, in bytes, and whether it pays."""
        asked, world = self._asked(lookups, 0), self.topology.world_size
        hosts = self.topology.by_machine.hosts
        if asked is None or not self.comm.may_travel_once(hosts, world):
            return None, False
        weights = sum(module.weights for module in modules)
        trained = weights > 0 or any(not x.frozen for x in lookups)
        sent = asked.samples * sum(self._bytes(module.outputs, trained) for module in modules)
        # All hosts send: rows H - 1 times what one of them asks for, of a sum of gradients each what goes round a ring.
        sums = 2 * _GRADIENT_BYTES * weights * (world - 1) / world * hosts / (hosts - 1)
        share = (asked.bytes + sums) / max(sent, 1.0)
        if self.link is None:
            return share, share < WORTH
        return share, self._pays(sent - asked.bytes - sums + ID_BYTES * (asked.ids - asked.rows), asked.ids)

    def _asked(self, lookups: Sequence[Lookup], row_width: int) -> _Asked | None:
        """What a host (on the flat route: a rank) asks for in a step; None where it was not counted."""
        shares = self.shares
        rows = {} if shares is None else {x.table: shares.of_table(x.table) for x in lookups}
        if shares is None or None in rows.values():
            return None
        found = _Asked(shares.samples * (1 if self.flat else shares.lanes))
        width_of = {x.table: row_width or x.dim for x in lookups}
        trained = {x.table for x in lookups if not x.frozen}
        for table, counted in rows.items():
            assert counted is not None
            wanted = counted.rank if self.flat else counted.host
            found.rows += wanted
            found.entries += wanted * width_of[table]
            found.bytes += wanted * self._bytes(width_of[table], table in trained)
        for x in lookups:
            feature = shares.of_feature(x.feature)
            found.ids += found.samples * (x.hotness or (ASSUMED_IDS if feature is None else feature.ids))
        return found

    def _pays(self, saved: float, ids: float) -> bool:
        """Whether bytes that are saved take this rank's part of the link longer than the processing."""
        assert self.link is not None
        return saved / (self.link / self.topology.by_machine.ranks_per_host) > PROCESSING_S * ids

    def _bytes(self, width: int, trained: bool) -> int:
        """Of a row that crosses, and of the gradient that goes back."""
        forward, backward = self.comm.formats_of("world" if self.flat else "peers")
        return row_bytes(forward, width) + (row_bytes(backward, width) if trained else 0)


def towers_in_words(choices: Sequence[DedupChoice]) -> str:
    """What tower modules have to do with rows that travel once; empty where nothing."""
    on = [choice for choice in choices if choice.on]
    moved = len({name for choice in on if choice.at_samples for name in choice.features})
    mixed = len({name for choice in on if choice.mixed for name in choice.features})
    said = f", those of {mixed} of them by sample as well, for what towers make of all together" if mixed else ""
    return said + (f", the tower modules of {moved} of them run where the samples are" if moved else "")


def choices_in_words(choices: Sequence[DedupChoice], rule: DedupRule) -> str:
    """One line: what was decided, and by what.

    Args:
        choices: for everything whose rows could travel once.
        rule: that decided.
    """
    by, shares = "rank" if rule.flat else "host", rule.shares
    on = list(dict.fromkeys(name for choice in choices if choice.on for name in choice.features))
    off = [(name, choice.share) for choice in choices if not choice.on for name in choice.features if name not in on]
    said = f"rows of {len(on)} of {len(on) + len(off)} feature(s) travel once per {by}" if on else "off"
    said += towers_in_words(choices)
    if all(choice.by != "auto" for choice in choices):
        return said
    if shares is None:
        return (
            f"comm.dedup auto: {said}: nobody counted distinct rows; training_data or shares_from= of initialize, "
            "dmt.comm.dedup_shares, or a plan with counts would say them"
        )
    shown = [f"{name} ({share:.2f})" for name, share in off[:8] if share is not None]
    rest = f"; by sample those of {', '.join(shown)}" + (", ..." if len(off) > 8 else "") if shown else ""
    limit = f"below {WORTH}" if rule.link is None else f"that pay where a host sends {say_rate(rule.link)}"
    counted = f"{shares.steps} step(s) of {shares.source}, {shares.lanes} x {shares.samples} samples"
    return f"comm.dedup auto: {said}{rest} (shares of distinct rows {limit}, by {counted})"
