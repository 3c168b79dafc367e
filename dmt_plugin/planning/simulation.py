"""A run of up to 1,024 ranks and more without processes: every rank's graph, what it sends to whom, when it waits.

1. Up to :data:`EVERY_RANK` ranks each rank's graph is made; beyond that one of each kind of ranks that are alike
   (:mod:`dmt_plugin.planning.alike`).
2. The exchanges of each graph run without data (:mod:`dmt_plugin.planning.rehearsal`).
3. Then three things are checked. What a rank sends to another is what that one waits for, in every exchange and
   direction, pair by pair; all ranks start and wait in one order, or they would wait for each other; and the bytes of
   each rank are those of the formulas that the estimate was timed with (:mod:`dmt_plugin.planner.cost`,
   :mod:`dmt_plugin.planner.distinct_cost`, :mod:`dmt_plugin.planner.gradient_cost`).

The times of the parts of a step are those of the estimate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmt_plugin.config.messages import one_of
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.model.exchange_costs import costs_of, gradient_costs_of
from dmt_plugin.model.placed import PlacedGraph, place_graph
from dmt_plugin.nn.lookup.rounding import TORCH_TYPES
from dmt_plugin.planner.cost import ExchangeCost
from dmt_plugin.planner.distinct_cost import Needs
from dmt_plugin.planner.gradient_cost import GradientSums
from dmt_plugin.planning.alike import kinds_of
from dmt_plugin.planning.candidates import Choice, Priced
from dmt_plugin.planning.outcome import Estimate
from dmt_plugin.planning.rehearsal import SUMS, Bytes, Key, Rehearsal, rehearse, whole_needs
from dmt_plugin.planning.variants import merged
from dmt_plugin.topology.shape import Topology

EVERY_RANK = 64
"""Up to so many ranks each one's graph is made."""

SHOWN = 20
"""Differences that are told; more say nothing new."""


@dataclass(frozen=True)
class SimulatedExchange:
    """One exchange of a step, in one direction.

    Attributes:
        name: as ``dmt explain`` calls it.
        phase: ``"forward"``, ``"backward"`` or ``"step"``.
        group: ``"peers"``, ``"lanes"`` or ``"world"``.
        total: bytes that all ranks send.
        other_hosts: of these, to other hosts.
        busiest: bytes to other hosts, or from them, of the rank that has most to send or to receive.
        pairs: pairs of ranks that send, of the graphs that were made.
    """

    name: str
    phase: str
    group: str
    total: int
    other_hosts: int
    busiest: int
    pairs: int


@dataclass(frozen=True)
class Simulation:
    """What came out.

    Attributes:
        choice: name of what was simulated, with its wire formats.
        topology: hosts and lanes.
        samples: per rank.
        made: ranks whose graph was made.
        kinds: for each of these how many ranks it stands for.
        exchanges: in the order in which the graph starts them, forward, then backward.
        order: starts and waits of a rank.
        tasks: of the step: name, resource, start and end in ms.
        differences: what does not agree; empty if all does.
    """

    choice: str
    topology: Topology
    samples: int
    made: tuple[int, ...]
    kinds: tuple[int, ...]
    exchanges: tuple[SimulatedExchange, ...]
    order: tuple[str, ...]
    tasks: tuple[tuple[str, str, float, float], ...]
    differences: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """As plain data; bytes and ms."""
        return {
            "choice": self.choice,
            "topology": str(self.topology),
            "ranks": self.topology.world_size,
            "made": list(self.made),
            "stands_for": list(self.kinds),
            "exchanges": [vars(own) for own in self.exchanges],
            "order": list(self.order),
            "schedule": [dict(zip(("task", "on", "start_ms", "end_ms"), own, strict=True)) for own in self.tasks],
            "differences": list(self.differences),
        }


def chosen(found: Estimate, name: str) -> Priced:
    """The fastest choice of a name.

    Args:
        found: the estimate.
        name: such as ``"SPTT + dedup"``; ``"best"`` for the fastest that leaves the model as it is.

    Raises:
        ConfigError: there is none.
    """
    own = {known: p for known, p in found.fastest.items() if not p.choice.replicated}
    if name == "best":
        exact = [p for p in own.values() if p.choice.group == "exact"]
        if not exact:
            raise ConfigError("--simulate best: no choice that leaves the model as it is, and has exchanges, fits.")
        return min(exact, key=lambda p: p.step.seconds)
    if name not in own:
        raise ConfigError(f"--simulate: {one_of(name, ['best', *own])}.")
    return own[name]


def simulate(found: Estimate, name: str = "best", *, every_rank: int = EVERY_RANK) -> Simulation:
    """Simulates one choice of an estimate.

    Args:
        found: the estimate.
        name: see :func:`chosen`.
        every_rank: up to so many ranks every rank's graph is made.

    Raises:
        ConfigError: no such choice.
    """
    priced = chosen(found, name)
    choice, samples = priced.choice, found.samples
    config, variant = config_of(choice), choice.variant
    topology = variant.topology

    def graph(rank: int) -> PlacedGraph:
        placed = place_graph(variant.placed.logical, config, topology, rank)
        placed.placement.compute_in(TORCH_TYPES[variant.row_type])
        return placed

    first = graph(0)
    needs = whole_needs(first, samples, variant.layout.needs)
    kinds = tuple(range(topology.world_size))
    if topology.world_size > every_rank:
        kinds = kinds_of(first, needs)
    made = tuple({kind: rank for rank, kind in reversed(list(enumerate(kinds)))}.values())[::-1]
    ran: dict[int, Rehearsal] = {}
    differences: list[str] = []
    for rank in made:
        placed = first if rank == 0 else graph(rank)
        ran[rank] = rehearse(placed, samples, needs, priced.sums)
        differences += _unlike_formulas(ran[rank], placed, samples, needs, priced.sums)
    differences += unequal_pairs(ran, kinds, topology) + other_orders(ran)
    tasks = priced.step.timeline
    counts = Counter(kinds)
    return Simulation(
        f"{choice.name}, {choice.wire_text}",
        topology,
        samples,
        made,
        tuple(counts[kinds[rank]] for rank in made),
        _exchanges(ran, kinds, topology),
        ran[0].order,
        tuple((name, tasks.on[name], 1e3 * start, 1e3 * end) for name, (start, end) in tasks.spans.items()),
        tuple(differences[:SHOWN]),
    )


def config_of(choice: Choice) -> DMTConfig:
    """The ``"dmt"`` section of a choice, whole."""
    wire = choice.wire
    comm = {"peer_dtype": wire.peers, "intra_dtype": wire.lanes, "micro_blocks": choice.blocks}
    return merged(choice.variant.config, {"comm": comm})


def unequal_pairs(ran: Mapping[int, Rehearsal], kinds: Sequence[int], topology: Topology) -> list[str]:
    """Where what ranks send to others is not what those wait for.

    Around a ring every rank passes on as much as it gets: there all members are one pair.

    Args:
        ran: by rank what it does; one rank of each kind.
        kinds: of every rank.
        topology: hosts and lanes.
    """
    sent: dict[tuple[Key, Hashable], dict[int, str]] = {}
    expected: dict[tuple[Key, Hashable], dict[int, str]] = {}

    def pair_of(key: Key, moved: Bytes, sender: int, receiver: int) -> tuple[Key, Hashable]:
        if not moved.ring:
            return key, (kinds[sender], kinds[receiver])
        return key, tuple(sorted(kinds[r] for r in topology.lanes_of(sender))) if moved.group == "lanes" else ()

    for rank, own in ran.items():
        for key, moved in own.exchanges.items():
            for other, size in moved.sent.items():
                says = f"rank {rank} sends {size:,} bytes to rank {other}"
                sent.setdefault(pair_of(key, moved, rank, other), {}).setdefault(size, says)
            for other, size in moved.expected.items():
                says = f"rank {rank} waits for {size:,} bytes of rank {other}"
                expected.setdefault(pair_of(key, moved, other, rank), {}).setdefault(size, says)
    found = []
    for pair in dict.fromkeys([*sent, *expected]):
        out, back = sent.get(pair, {}), expected.get(pair, {})
        if out.keys() != back.keys() or len(out) > 1:
            told = [*out.values()] or ["nobody sends"]
            found.append(f"{pair[0].name} {pair[0].phase}: {'; '.join([*told, *back.values()])}")
    return found


def other_orders(ran: Mapping[int, Rehearsal]) -> list[str]:
    """Ranks that start and wait in another order than the first."""
    first, *others = ran
    return [
        f"rank {rank} starts and waits in another order than rank {first}: {', '.join(ran[rank].order)}"
        for rank in others
        if ran[rank].order != ran[first].order
    ]


def _unlike_formulas(
    ran: Rehearsal, placed: PlacedGraph, samples: int, needs: Sequence[Needs], sums: GradientSums
) -> list[str]:
    """Where the bytes of a rank are not those of the formulas."""
    costs = {Key(c.name, c.phase): c for c in costs_of(placed, samples, needs=needs or None)}
    costs |= {Key(SUMS + c.name, c.phase): c for c in gradient_costs_of(placed, sums)}
    found = []
    sent: dict[Key, tuple[int, int]] = {}
    for key in ran.exchanges:
        name = Key(key.name.partition(",")[0], key.phase)  # sums inside hosts and between them are one cost
        away, near = _away_and_near(ran, key, placed.topology)
        sent[name] = (sent.get(name, (0, 0))[0] + away, sent.get(name, (0, 0))[1] + near)
    for key in {**sent, **costs}:
        away, near = sent.get(key, (0, 0))
        cost = costs.get(key) or ExchangeCost(key.name, "", key.phase, "", 0, 0)
        told = cost.other_hosts, cost.same_host
        # Around a ring one rank of a host sends to the next; by formula each has its share of the host's.
        ring = key.name.startswith(SUMS) and sums.by != "hosts"
        if (away + near != sum(told)) if ring else ((away, near) != told):
            found.append(
                f"rank {ran.rank}, {key.name} {key.phase}: {away:,} bytes to other hosts and {near:,} inside; by "
                f"formula {told[0]:,} and {told[1]:,}"
            )
    return found


def _away_and_near(ran: Rehearsal, key: Key, topology: Topology, *, received: bool = False) -> tuple[int, int]:
    moved = ran.exchanges.get(key) or Bytes("")
    sent = moved.expected if received else moved.sent
    host = topology.host_of(ran.rank)
    away = sum(size for other, size in sent.items() if topology.host_of(other) != host)
    return away, sum(sent.values()) - away


def _exchanges(ran: Mapping[int, Rehearsal], kinds: Sequence[int], topology: Topology) -> tuple[SimulatedExchange, ...]:
    counts = Counter(kinds)
    keys = dict.fromkeys(key for own in ran.values() for key in own.exchanges)
    found = []
    for key in keys:
        sizes = {rank: _away_and_near(own, key, topology) for rank, own in ran.items()}
        found.append(
            SimulatedExchange(
                key.name,
                key.phase,
                next(own.exchanges[key].group for own in ran.values() if key in own.exchanges),
                sum(counts[kinds[rank]] * sum(both) for rank, both in sizes.items()),
                sum(counts[kinds[rank]] * both[0] for rank, both in sizes.items()),
                max(
                    _away_and_near(own, key, topology, received=way)[0] for own in ran.values() for way in (False, True)
                ),
                sum(len(own.exchanges[key].sent) for own in ran.values() if key in own.exchanges),
            )
        )
    return tuple(found)
