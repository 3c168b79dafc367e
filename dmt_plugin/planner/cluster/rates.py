"""How fast exchanges and computing are on a cluster, and between what each of it may be.

1. What is assumed is what the paper's model assumes (:mod:`dmt_plugin.planner.paper.model`): shares of line rates by
   ranks (Fig. 5) and by size (SimAI), of the memory's rate, of the peak. Where a probe measured an exchange or sums
   between all of its ranks, Fig. 5 only says how that changes with their number.
2. What is not known is a range: of each constant the values that fits of the paper's cells gave (``dmt plan --paper``,
   fitted on five cells and on all), and of each number of the cluster between what it may be.
3. A *world* is one choice of all of them. The expected one is in the middle; the range of a time is that over the
   corners.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from dmt_plugin.planner.cluster.cluster import Cluster, Figure
from dmt_plugin.planner.paper.figures import flat_efficiency, printed, sum_efficiency
from dmt_plugin.planner.paper.model import MANY_RANKS, MEMORY_SHARE, PEAK_SHARE
from dmt_plugin.planner.time.cores import Cores, step_on_cores
from dmt_plugin.planner.time.devices import DEVICES, GIGA, PEER_EFFICIENCY
from dmt_plugin.planner.time.step import Load, Rates, StepTime, step_time
from dmt_plugin.topology.shape import Topology

INTENSITY = Figure(39.2, "fitted on all cells of the paper, and on five of them", low=25.6, high=39.2)
"""FLOPs per byte of memory traffic of the dense part."""

FLAT = Figure(1.39, "fitted on the paper's cells; 1 is Fig. 5 as it is printed", low=1.0, high=1.41)
"""By how much an exchange between 64 ranks and more takes longer than Fig. 5 says."""

EXCHANGE = Figure(2e-4, "one exchange of this package on an H200, whatever its size", low=1e-4, high=4e-4)
"""Seconds of an exchange beside its bytes."""

CODEC = Figure(6e-4, "int8 of one exchange on an H200, whatever its size", low=4e-4, high=9e-4)
"""Seconds of the int8 format, of one exchange."""


WIRE_SHARE = Figure(0.95, "headers of Ethernet, IP and TCP in frames of 1,500 bytes", low=0.9, high=0.97)
"""Share of a link's line rate that exchanges between processors reach, where it was not measured."""


@dataclass(frozen=True)
class World:
    """One choice of all that is not known.

    Attributes:
        cluster: every figure at one value.
        intensity: see :data:`INTENSITY`.
        flat: see :data:`FLAT`.
        exchange: see :data:`EXCHANGE`.
        codec: see :data:`CODEC`.
    """

    cluster: Cluster
    intensity: float = INTENSITY.value
    flat: float = FLAT.value
    exchange: float = EXCHANGE.value
    codec: float = CODEC.value

    def step(self, topology: Topology, load: Load, *, flat: bool, ring: bool, bf16: bool = False) -> StepTime:
        """How long a step takes; arguments as for :meth:`rates`."""
        if self.cluster.processors is None:
            return step_time(load, self.rates(topology, load, flat=flat, ring=ring, bf16=bf16))
        return step_on_cores(load, self.cores(bf16), topology, flat=flat)

    def cores(self, bf16: bool = False) -> Cores:
        """How fast ranks on processor cores are.

        Args:
            bf16: whether the dense part is in bf16.
        """
        cluster, own = self.cluster, self.cluster.processors
        assert own is not None
        reached = 1.0 if cluster.nic.measured else WIRE_SHARE.value
        share = reached if cluster.nic_share is None else cluster.nic_share.value
        return Cores(
            cores=own.cores,
            together=own.together,
            flops=PEAK_SHARE * flops_of(cluster, bf16).value,
            moved=own.moved.value,
            link=cluster.nic.value * cluster.ranks_per_host * share,
            exchange=own.exchange.value,
            row=own.row.value,
            fixed=cluster.fixed.value,
        )

    def rates(self, topology: Topology, load: Load, *, flat: bool, ring: bool, bf16: bool = False) -> Rates:
        """How fast the busiest rank is.

        Args:
            topology: hosts and lanes; a host may be several machines of the cluster.
            load: of the rank; the exchange between peers depends on its size.
            flat: whether rows go from every rank to every other.
            ring: whether gradients are summed around a ring of all ranks.
            bf16: whether the dense part is in bf16.
        """
        cluster, ranks = self.cluster, topology.world_size
        line = cluster.nic.value
        everyone = line * self._flat_share(ranks)
        if (probed := cluster.everyone) is not None:
            everyone = probed.rate.value * self._flat_share(ranks) / self._flat_share(probed.ranks)
        hosts = topology.hosts
        size = load.rows[0] / load.blocks * hosts / max(1, hosts - 1)
        peers = line * (1.0 if cluster.nic.measured else PEER_EFFICIENCY.at(max(1.0, size)))
        share = printed()["fig5"]["alltoall_256MB_bus_GBps"]["8"] * GIGA / DEVICES["A100"].lanes
        if cluster.nic_share is not None:
            everyone = peers = line * cluster.nic_share.value
        peak = flops_of(cluster, bf16).value
        intensity = self.intensity if cluster.intensity is None else cluster.intensity.value
        around = sum_efficiency().at(max(2, ranks)) * line
        if (summed := cluster.sums) is not None:
            around = summed.rate.value * sum_efficiency().at(max(2, ranks)) / sum_efficiency().at(summed.ranks)
        return Rates(
            flops=1 / (1 / (PEAK_SHARE * peak) + 1 / (intensity * cluster.memory_rate.value)),
            memory=MEMORY_SHARE * cluster.memory_rate.value,
            rows=everyone if flat else peers,
            ids=everyone,
            lanes=cluster.lanes.value * (1.0 if cluster.lanes.measured else share),
            sums=around if ring else peers,
            fixed=cluster.fixed.value,
            exchange=self.exchange,
            codec=self.codec,
        )

    def _flat_share(self, ranks: int) -> float:
        """Share of the line rate that an exchange between so many ranks reaches."""
        own = self.cluster.alltoall
        share = (own or flat_efficiency()).at(max(2, ranks))
        return share / self.flat if own is None and ranks >= MANY_RANKS else share


def flops_of(cluster: Cluster, bf16: bool) -> Figure:
    """The peak of matrix products: of bf16, or of fp32 tensors, for which TF32 is taken where there is TF32."""
    kinds = ("bf16", "tf32", "fp32") if bf16 else ("tf32", "fp32", "bf16")
    return next(cluster.flops[kind] for kind in kinds if kind in cluster.flops)


def corners(cluster: Cluster) -> Iterator[World]:
    """The worlds at the ends of what is not known; links and memory, which are bounds alike, go together."""
    ends = ("low", "high")
    figures = (cluster.nic, cluster.lanes, cluster.memory_rate, *cluster.flops.values())
    costs = [cluster.fixed]
    if (own := cluster.processors) is not None:
        figures = (*figures, own.moved)
        costs += [own.exchange, own.row]
    fixed = ends if any(f.low < f.high for f in costs) else ("low",)
    shares = [figure for figure in (cluster.nic_share, cluster.intensity) if figure is not None]
    shares += [probed.rate for probed in (cluster.everyone, cluster.sums) if probed is not None]
    links = ends if any(f.low < f.high for f in (*figures, *shares)) else ("low",)
    constants = (INTENSITY, FLAT) if own is None else ()
    for program, links_end, *of_paper in product(fixed, links, *[ends for _ in constants]):
        at_end = replace(
            cluster,
            fixed=cluster.fixed.at(program),
            nic=cluster.nic.at(links_end),
            lanes=cluster.lanes.at(links_end),
            memory_rate=cluster.memory_rate.at(links_end),
            flops={kind: figure.at(links_end) for kind, figure in cluster.flops.items()},
            everyone=cluster.everyone and cluster.everyone.at(links_end),
            sums=cluster.sums and cluster.sums.at(links_end),
            nic_share=None if cluster.nic_share is None else cluster.nic_share.at(links_end),
            intensity=None if cluster.intensity is None else cluster.intensity.at(links_end),
            processors=own
            and replace(
                own, moved=own.moved.at(links_end), exchange=own.exchange.at(program), row=own.row.at(program)
            ),
        )
        found = [constant.at(end).value for constant, end in zip(constants, of_paper, strict=True)]
        intensity, flat = found or (INTENSITY.value, FLAT.value)
        yield World(at_end, intensity, flat, EXCHANGE.at(program).value, CODEC.at(program).value)
