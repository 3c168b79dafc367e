"""The paper's settings: where tables and towers are, and what a rank does in a step.

1. 26 features of width 128, 16,384 samples per rank, 8 ranks per host, rows in 16 bits both ways.
2. Baseline: every table in as many column shards as it takes for every rank to have one, a power of two, dealt out to
   the ranks in turn, neighbours to different hosts.
3. Towers: one per host up to 16 hosts, as even as 26 features go; a table lies in columns on the lanes of its host.
   How the paper puts 26 towers on 32 and 64 hosts is not said: columns and outputs are spread evenly here.
4. Links are those of the busiest rank. FLOPs and copies are the mean of all ranks: had the others to wait for the
   largest tower, Fig. 13's exposed exchange of DMT would be a quarter longer than it is.
5. Ids go to all shards in one exchange between all ranks, as the baseline's do, with towers as well (the paper's step
   a). They are TorchRec's, 8 bytes and a length of 4; this package's are 4 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from dmt_plugin.comm.formats import Format, row_bytes
from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.planner.gradient_cost import GradientSums, gradient_costs
from dmt_plugin.planner.time.links import Layout, LinkBytes, everywhere, link_bytes
from dmt_plugin.planner.time.step import Load
from dmt_plugin.topology.shape import Topology

FEATURES, WIDTH, BATCH, LANES = 26, 128, 16_384, 8
WIRE: Format = "bf16"
ID_BYTES = 12 / 8
"""An id with its length: TorchRec's bytes to this package's."""

_FP32 = 4
_SUMS = GradientSums("all-reduce", "fp32", "")
_ROWS = 1_000_000
_LOOKUP = BATCH * FEATURES * WIDTH * (_FP32 + row_bytes(WIRE, 1))


@dataclass(frozen=True)
class ModelSize:
    """What a step of one model computes, per sample, and what it sends.

    Attributes:
        name: as in the paper's tables, e.g. ``"DMT 8T-DLRM"``.
        dense: FLOPs of the dense part, forward and backward.
        parameters: entries of the dense part.
        towers: FLOPs of each tower module, forward and backward; empty for a model without.
        outputs: entries that each tower sends a sample.
    """

    name: str
    dense: tuple[float, float]
    parameters: int
    towers: tuple[tuple[float, float], ...] = ()
    outputs: tuple[int, ...] = ()

    @property
    def mflops(self) -> float:
        """Forward and backward, of a sample, in 10^6 FLOPs."""
        return (sum(self.dense) + sum(map(sum, self.towers))) / 1e6


def tower_features(towers: int) -> tuple[int, ...]:
    """Features of each tower, as even as they go."""
    return tuple(FEATURES // towers + (tower < FEATURES % towers) for tower in range(towers))


def flat_load(size: ModelSize, ranks: int) -> Load:
    """The baseline's step.

    Args:
        size: a model without towers.
        ranks: accelerators.
    """
    topology = Topology(ranks // LANES, LANES)
    moved = _flat(topology)
    return Load(ID_BYTES * moved.ids, _LOOKUP, moved.rows, _dense(size), _sums(size, topology))


def tower_load(size: ModelSize, ranks: int) -> Load:
    """A step with towers, or, of a model without, by their route alone (SPTT).

    Args:
        size: a model with a tower per host, one with a tower per feature, or one without.
        ranks: accelerators.
    """
    topology = Topology(ranks // LANES, LANES)
    hosts = topology.hosts
    sent = size.outputs or _columns(hosts)
    moved = _towers(topology, sent if len(sent) == hosts else _evenly(sum(sent), hosts))
    tower = tuple(BATCH * sum(own[way] for own in size.towers) for way in (0, 1))
    return Load(
        ID_BYTES * _flat(topology).ids, _LOOKUP, moved.rows, _dense(size), _sums(size, topology), moved.lanes,
        shuffle=2 * BATCH * row_bytes(WIRE, FEATURES * WIDTH), tower=(tower[0], tower[1]),
    )  # fmt: skip


def _dense(size: ModelSize) -> tuple[float, float]:
    return BATCH * size.dense[0], BATCH * size.dense[1]


def _sums(size: ModelSize, topology: Topology) -> int:
    """All that a rank sends: bus bandwidth does not ask where to."""
    return sum(cost.other_hosts + cost.same_host for cost in gradient_costs(_SUMS, size.parameters, 0, topology))


@cache
def _flat(topology: Topology) -> LinkBytes:
    ranks, shards = topology.world_size, 1
    while FEATURES * shards < ranks:
        shards *= 2
    widths, slots = [0] * ranks, []
    for place in range(FEATURES * shards):
        host, lane = place % topology.hosts, place // topology.hosts % LANES
        widths[topology.rank_of(host, lane)] += WIDTH // shards
        slots.append(IdSlot(f"feature{place // shards}", _ROWS, None, False, host, (lane,)))
    layout = Layout(topology, "flat", tuple(slots), tuple(widths))
    return link_bytes(layout, BATCH, everywhere(WIRE, WIRE))


@cache
def _towers(topology: Topology, sent: tuple[int, ...]) -> LinkBytes:
    columns = _columns(topology.hosts)
    widths = tuple(width for own in columns for width in _evenly(own, LANES))
    layout = Layout(topology, "hierarchical", (), widths, sent)
    return link_bytes(layout, BATCH, everywhere(WIRE, WIRE))


def _columns(hosts: int) -> tuple[int, ...]:
    """Columns of tables on each host."""
    if hosts > FEATURES:
        return _evenly(FEATURES * WIDTH, hosts)
    return tuple(WIDTH * features for features in tower_features(hosts))


def _evenly(total: int, parts: int) -> tuple[int, ...]:
    return tuple(total // parts + (part < total % parts) for part in range(parts))
