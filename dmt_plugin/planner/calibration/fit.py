"""Fits the constants of a cluster to runs, says how well each is known, and refuses those that the runs do not tell.

1. Two times of each run are fitted, in logarithms: that of a step, and that in which a rank computes. The second counts
   less: neighbours, and the kernel's threads, disturb it more.
2. What was known of a constant before counts as well: its value and its range in the cluster that is given. So two
   constants that the runs cannot tell apart share what is left over, and neither runs away.
3. The error of a constant is its standard error in that fit. Where that is hardly smaller than what was known before,
   the runs do not determine it: it keeps its value, the others are fitted again, and the run that would tell is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.planner.calibration.constants import NIC_SHARE, Constant, constants_of
from dmt_plugin.planner.cluster.cluster import Cluster, Figure
from dmt_plugin.planner.cluster.rates import World
from dmt_plugin.planner.least_squares import Vector, least_squares, slopes_of
from dmt_plugin.planner.time.step import Load, StepTime
from dmt_plugin.topology.shape import Topology

LEAST_GAIN = 0.8
"""A constant whose error the runs leave at more than this part of what it was is not determined by them."""

_OF_STEPS, _OF_COMPUTING = 0.05, 0.15
"""Standard errors of the two times of a run, as the model meets them."""

_LEAST_RANGE = 0.1
"""Least standard error, of the logarithm, with which a constant is known before: a person's number is one, too."""

_STEP = 1e-3
"""Of slopes: the order in which ranks come to share cores may change with a constant, and times are not smooth."""


@dataclass(frozen=True)
class Observed:
    """One run that was recorded.

    Attributes:
        name: for people.
        load: what a rank did in a step.
        topology: hosts and lanes.
        flat: whether rows went from every rank to every other.
        ring: whether gradients were summed around a ring of all ranks.
        bf16: whether the dense part was in bf16.
        nic: line rate of a rank's link in bytes/s as the run knew it; None: that of the cluster.
        seconds: of a step.
        spread: of the steps that were recorded, the quarter and the three-quarter ones.
        busy: seconds of a step in which a rank computed; on processor cores those of a core.
    """

    name: str
    load: Load
    topology: Topology
    flat: bool
    ring: bool
    bf16: bool
    nic: float | None
    seconds: float
    spread: tuple[float, float]
    busy: float


@dataclass(frozen=True)
class Fitted:
    """One constant as the runs determine it.

    Attributes:
        constant: which.
        value: in bytes, seconds and FLOPs.
        error: standard error as a part of it.
    """

    constant: Constant
    value: float
    error: float


@dataclass(frozen=True)
class Calibration:
    """What the runs said.

    Attributes:
        cluster: with the constants that were fitted.
        fitted: those.
        refused: by key of the others why they were left as they were.
        predicted: by name of a run the step as the cluster has it now.
        scatter: root mean square of the errors of steps, of the logarithm.
    """

    cluster: Cluster
    fitted: tuple[Fitted, ...]
    refused: Mapping[str, str]
    predicted: Mapping[str, StepTime]
    scatter: float


def predicted_step(cluster: Cluster, run: Observed) -> StepTime:
    """The step of a run on a cluster."""
    at = cluster.of_hosts(run.topology.hosts)
    if run.nic is not None:
        nic = Figure(run.nic, "the run's comm.link")
        at = replace(at, nic=nic, ranks_per_host=run.topology.ranks_per_host)
    return World(at).step(run.topology, run.load, flat=run.flat, ring=run.ring, bf16=run.bf16)


def calibrate(cluster: Cluster, runs: Sequence[Observed], source: str) -> Calibration:
    """Fits what can be fitted.

    Args:
        cluster: that the runs ran on; what is not fitted stays.
        runs: that were recorded.
        source: what the numbers are called.

    Raises:
        ConfigError: no runs, or none of the constants is determined by them.
    """
    if not runs:
        raise ConfigError("--calibrate: there are no runs to calibrate with.")
    free = list(constants_of(cluster))
    if all(run.topology.hosts == 1 for run in runs):
        free.remove(NIC_SHARE)
    refused = {c.key: f"no run depends on it; {c.needs} would tell" for c in constants_of(cluster) if c not in free}
    while free:
        at, errors, known = _fit(cluster, runs, free)
        worst = int(np.argmax(errors / known))
        if errors[worst] <= LEAST_GAIN * known[worst]:
            break
        left = free.pop(worst)
        refused[left.key] = f"these runs hardly depend on it, or not apart from another; {left.needs} would tell"
    if not free:
        raise ConfigError(
            f"--calibrate: {len(runs)} run(s) determine none of the constants: "
            + "; ".join(f"{key}: {why}" for key, why in refused.items())
        )
    fitted = tuple(Fitted(c, math.exp(x), float(e)) for c, x, e in zip(free, at, errors, strict=True))
    found = cluster
    for one in fitted:
        wide = 1 + 2 * one.error
        most = min(one.value * wide, one.constant.most)
        found = one.constant.put(found, Figure(one.value, source, one.value / wide, most))
    steps = {run.name: predicted_step(found, run) for run in runs}
    scatter = math.sqrt(sum(math.log(steps[run.name].seconds / run.seconds) ** 2 for run in runs) / len(runs))
    return Calibration(found, fitted, refused, steps, scatter)


def _fit(cluster: Cluster, runs: Sequence[Observed], free: Sequence[Constant]) -> tuple[Vector, Vector, Vector]:
    """Logarithms of the constants, their standard errors, and those that they had before."""
    figures = [constant.of(cluster) for constant in free]
    before = np.log(np.array([figure.value for figure in figures]))
    known = np.array([max(math.log(figure.high / figure.low) / 2, _LEAST_RANGE) for figure in figures])

    def errors(logs: Vector) -> Vector:
        at = cluster
        for constant, log in zip(free, logs, strict=True):
            at = constant.put(at, Figure(math.exp(log), "trial"))
        found = []
        for run in runs:
            step = predicted_step(at, run)
            found.append(math.log(step.seconds / run.seconds) / _OF_STEPS)
            found.append(math.log(step.compute / run.busy) / _OF_COMPUTING)
        return np.array([*found, *((logs - before) / known)])

    low, high = (np.log(np.array([getattr(c, end) for c in free])) for end in ("least", "most"))
    at = least_squares(errors, np.clip(before, low, high), low, high, _STEP)
    # A constant at the upper end of its range has no slope beyond: slopes are taken towards smaller values.
    slopes = slopes_of(errors, at, -_STEP)
    return at, np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes))), known
