"""Clusters that one can rent or buy, by name: numbers of data sheets, which are upper bounds.

What the DMT paper's Table 1 says of V100, A100 and H100 is checked against its figures (``dmt plan --paper``). Links of
which nobody has seen here that they are reached may be half as fast: EFA, RoCE and Ethernet miss their data sheets by
two times and more.
"""

from __future__ import annotations

from collections.abc import Mapping

from dmt_plugin.config.messages import one_of
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.planner.cluster.cluster import UNVERIFIED, Cluster, Figure
from dmt_plugin.planner.time.devices import DEVICES, GIGA, TERA

LEAST_SHARE = 0.5
"""Of a line rate that nobody has seen reached."""

FIXED = Figure(
    5e-3,
    "between NVIDIA's DLRM on 8 A100 (about 2 ms) and the DMT paper's program (11.6 ms, dmt plan --paper)",
    low=2e-3,
    high=12e-3,
)
"""Of a program that nobody has measured."""

_ON_CORES = "make plan-check on 2 cores of an AMD EPYC; other processors and programs differ"
FIXED_ON_CORES = Figure(15e-3, _ON_CORES, low=5e-3, high=40e-3)
"""The same of a rank on processor cores."""

MOVED = Figure(10 * GIGA, _ON_CORES, low=3 * GIGA, high=15 * GIGA)
"""Bytes/s of a core, see :class:`~dmt_plugin.planner.cluster.cluster.Processors`."""

EXCHANGE_ON_CORES = Figure(4e-4, _ON_CORES, low=2e-4, high=8e-4)
"""Seconds of a core for an exchange, beside its bytes."""

ROW = Figure(3e-7, _ON_CORES, low=1e-7, high=6e-7)
"""Seconds of a core for an id, or a distinct row, of rows that travel once."""

_SHEETS = {
    "V100": ({"fp32": 15.7}, 32, "NVIDIA's data sheet of the V100 SXM2 32 GB"),
    "A100": ({"fp32": 19.5, "tf32": 156.0, "bf16": 312.0}, 40, "NVIDIA's data sheet of the A100 SXM 40 GB"),
    "H100": ({"fp32": 66.9, "tf32": 494.7, "bf16": 989.4}, 80, "NVIDIA's data sheet of the H100 SXM 80 GB"),
}
_BLACKWELL = (
    f"{UNVERIFIED}: verda.com/blog/gb300-nvl72-architecture, a provider's table of GB200; no data sheet was read"
)
_P5 = "AWS's p5.48xlarge: 3,200 Gbit/s of EFA for 8 H100 (Hugging Face's guide to AWS instances says 400 GB/s)"
_P4D = "AWS's p4d.24xlarge: 400 Gbit/s of EFA for 8 A100"


def _unreached(value: float, source: str) -> Figure:
    """A line rate that nobody has seen reached."""
    return Figure(value, f"{UNVERIFIED}: {source}", low=LEAST_SHARE * value)


def _machines(name: str, device: str, nic: Figure | None = None, shared_nic: bool = False) -> Cluster:
    """Hosts of eight accelerators."""
    own = DEVICES[device]
    flops, memory, sheet = _SHEETS[device]
    return Cluster(
        name,
        hosts=0,
        ranks_per_host=8,
        nic=nic or Figure(own.nic, own.source),
        lanes=Figure(own.lanes, own.source),
        memory_rate=Figure(own.memory, sheet),
        flops={kind: Figure(value * TERA, sheet) for kind, value in flops.items()},
        memory=Figure(memory * GIGA, sheet),
        fixed=FIXED,
        shared_nic=shared_nic,
    )


def _rack() -> Cluster:
    """72 accelerators of one NVLink domain: that is the host, not a tray of 4."""

    def own(value: float) -> Figure:
        return _unreached(value, _BLACKWELL.removeprefix(f"{UNVERIFIED}: "))

    return Cluster(
        "gb200-nvl72",
        hosts=0,
        ranks_per_host=72,
        nic=_unreached(50 * GIGA, "400 Gbit/s of ConnectX-7 per accelerator, as such racks are sold"),
        lanes=own(900 * GIGA),
        memory_rate=own(7.7 * TERA),
        flops={"fp32": own(75 * TERA), "tf32": own(1100 * TERA), "bf16": own(2250 * TERA)},
        memory=Figure(180 * GIGA, _BLACKWELL),
        fixed=FIXED,
    )


def _ethernet(gigabits: int) -> Figure:
    per_rank = gigabits / 8 / 8 * GIGA
    return _unreached(per_rank, f"the line rate of {gigabits} Gbit/s, shared by 8 ranks")


PRESETS: Mapping[str, Cluster] = {
    cluster.name: cluster
    for cluster in (
        _machines("v100-hgx", "V100"),
        _machines("a100-dgx", "A100"),
        _machines("h100-dgx", "H100"),
        _rack(),
        _machines("aws-p4d", "A100", _unreached(400 / 8 / 8 * GIGA, _P4D)),
        _machines("aws-p5", "H100", _unreached(3200 / 8 / 8 * GIGA, _P5)),
        _machines("ethernet-25g", "A100", _ethernet(25), shared_nic=True),
        _machines("ethernet-100g", "A100", _ethernet(100), shared_nic=True),
    )
}
"""By name. The number of hosts is 0: it has to be given."""


def preset(name: str, hosts: int | None) -> Cluster:
    """A preset.

    Args:
        name: of :data:`PRESETS`.
        hosts: how many.

    Raises:
        ConfigError: no such preset, or no number of hosts.
    """
    if name not in PRESETS:
        raise ConfigError(f"--cluster: {one_of(name, PRESETS)}; or a file such as cluster.yaml.")
    if hosts is None:
        raise ConfigError(f'--cluster {name}: how many hosts? Write "{name}:8" for eight.')
    return PRESETS[name].of_hosts(hosts)
