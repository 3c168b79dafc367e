"""What is fitted to recorded runs: of ranks on accelerators three numbers, of ranks on processor cores five.

How fast products of matrices are on a core is not among them: it is the peak that ``cluster.yaml`` says. In runs that
differ in links and batches alone it cannot be told from the fixed cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dmt_plugin.planner.cluster.cluster import Cluster, Figure, Processors
from dmt_plugin.planner.cluster.rates import INTENSITY, WIRE_SHARE
from dmt_plugin.planner.time.devices import GIGA

_ANY_SHARE = Figure(WIRE_SHARE.value, "links that nobody has measured", low=0.4, high=1.0)


@dataclass(frozen=True)
class Constant:
    """One number.

    Attributes:
        key: of ``cluster.yaml``.
        what: for people.
        unit: of the key, in bytes, seconds and FLOPs.
        least: the smallest value that means what the name says.
        most: the largest.
        of: the figure of a cluster that was not measured, where fitting begins.
        put: the cluster with another figure.
        needs: the run that would determine it.
    """

    key: str
    what: str
    unit: float
    least: float
    most: float
    of: Callable[[Cluster], Figure]
    put: Callable[[Cluster, Figure], Cluster]
    needs: str


def _moved(cluster: Cluster) -> Figure:
    assert cluster.processors is not None
    return cluster.processors.moved


def _exchange(cluster: Cluster) -> Figure:
    assert cluster.processors is not None
    return cluster.processors.exchange


def _row(cluster: Cluster) -> Figure:
    assert cluster.processors is not None
    return cluster.processors.row


def _of_cores(name: str) -> Callable[[Cluster, Figure], Cluster]:
    def put(cluster: Cluster, figure: Figure) -> Cluster:
        own = cluster.processors
        assert own is not None
        figures = {"moved": own.moved, "exchange": own.exchange, "row": own.row, name: figure}
        return replace(cluster, processors=Processors(own.cores, own.together, **figures))

    return put


NIC_SHARE = Constant(
    "nic_share", "share of the links' line rate", 1.0, 0.01, 1.0,
    lambda cluster: cluster.nic_share or _ANY_SHARE,
    lambda cluster, figure: replace(cluster, nic_share=figure),
    "one on two hosts or more whose step waits for the link: rows in fp32, without distinct rows, with a small dense "
    "part",
)  # fmt: skip
FIXED_MS = Constant(
    "fixed_ms", "fixed cost of a rank's step", 1e-3, 1e-5, 10.0,
    lambda cluster: cluster.fixed,
    lambda cluster, figure: replace(cluster, fixed=figure),
    "one with a small batch, or with fast links, whose step waits for nothing",
)  # fmt: skip
_INTENSITY = Constant(
    "intensity", "FLOPs per byte of the dense part", 1.0, 0.1, 1e4,
    lambda cluster: cluster.intensity or INTENSITY,
    lambda cluster, figure: replace(cluster, intensity=figure),
    "one with a batch several times as large, or with a larger dense part",
)  # fmt: skip
_MOVED = Constant(
    "moved_GBps", "bytes that a core moves in a second", GIGA, 1e7, 1e12,
    _moved, _of_cores("moved"),
    "one that moves several times as many bytes: wider tables, a larger batch",
)  # fmt: skip
_EXCHANGE = Constant(
    "exchange_ms", "cost of an exchange on a core, beside its bytes", 1e-3, 1e-7, 1e-1,
    _exchange, _of_cores("exchange"),
    "one with another number of micro-blocks, or by another route",
)  # fmt: skip
_ROW = Constant(
    "row_us", "cost of an id or row that travels once, on a core", 1e-6, 1e-9, 1e-4,
    _row, _of_cores("row"),
    'one with distinct rows sent once ("comm": {"dedup": "on"}), beside one without',
)  # fmt: skip


def constants_of(cluster: Cluster) -> tuple[Constant, ...]:
    """What is fitted on such a cluster."""
    if cluster.processors is None:
        return NIC_SHARE, _INTENSITY, FIXED_MS
    return NIC_SHARE, FIXED_MS, _MOVED, _EXCHANGE, _ROW
