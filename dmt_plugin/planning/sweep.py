"""The same estimate over a range: hosts, samples per rank, or the rate of the link between hosts.

One line for each value: the fastest choice of each kind. The model is captured once; it is rewritten anew for each
number of hosts, and not for another link.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dmt_plugin.config.messages import one_of
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.planner.cluster.cluster import Cluster, Figure
from dmt_plugin.planner.time.devices import GIGA
from dmt_plugin.planning.estimate import Planner
from dmt_plugin.planning.outcome import Estimate
from dmt_plugin.planning.rows import Row

KEYS = ("hosts", "batch", "nic")


@dataclass(frozen=True)
class Axis:
    """What is varied.

    Attributes:
        key: ``"hosts"``, ``"batch"`` (samples per rank) or ``"nic"`` (10^9 bytes/s of a rank, one way).
        values: in rising order.
    """

    key: str
    values: tuple[float, ...]

    def at(self, value: float, cluster: Cluster, samples: int) -> tuple[Cluster, int]:
        """Cluster and samples per rank at one value."""
        if self.key == "hosts":
            return cluster.of_hosts(int(value)), samples
        if self.key == "batch":
            return cluster, int(value)
        source, faster = "yours: --sweep nic", value * GIGA / cluster.nic.value
        nic = Figure(value * GIGA, source, measured=cluster.nic.measured)
        everyone, sums = (own and own.times(faster, source) for own in (cluster.everyone, cluster.sums))
        return replace(cluster, nic=nic, everyone=everyone, sums=sums), samples


def axis_of(text: str) -> Axis:
    """``"hosts=2,4,8"``, ``"batch=1024,4096"`` or ``"nic=12.5,25,50"``.

    Raises:
        ConfigError: something else.
    """
    key, equals, rest = text.partition("=")
    if not equals or key not in KEYS:
        raise ConfigError(f"--sweep {text}: {one_of(key, KEYS)} and values, such as hosts=2,4,8.")
    try:
        values = sorted({float(part) for part in rest.split(",")})
    except ValueError:
        values = []
    whole = key == "nic" or all(value.is_integer() for value in values)
    if not values or values[0] <= 0 or values[-1] > 1e9 or not whole:
        raise ConfigError(
            f"--sweep {text}: expected {'rates in GB/s' if key == 'nic' else 'whole numbers'} above 0, such as "
            f"{key}=2,4,8."
        )
    return Axis(key, tuple(values))


def sweep(planner: Planner, axis: Axis, cluster: Cluster, samples: int) -> dict[float, Estimate]:
    """An estimate for each value.

    Args:
        planner: of the model.
        axis: what is varied.
        cluster: machines, accelerators, links.
        samples: per rank.
    """
    return {value: planner.estimate(*axis.at(value, cluster, samples)) for value in axis.values}


def lines(found: Mapping[float, Estimate]) -> list[dict[str, Any]]:
    """By value the fastest row of each way, whatever its wire format: ``{"value": ..., "rows": {name: row}}``."""
    told = []
    for value, estimate in found.items():
        best: dict[str, Row] = {}
        for row in _rising(estimate):
            best.setdefault(row.name, row)
        told.append({"value": value, "rows": best, "fits": estimate.fits})
    return told


def names(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all ways, in the order in which they first come."""
    return list(dict.fromkeys(name for line in told for name in line["rows"]))


def _rising(estimate: Estimate) -> list[Row]:
    return sorted((row for rows in estimate.groups.values() for row in rows), key=lambda row: row.ms)
