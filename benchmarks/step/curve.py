"""The same ratios in other settings: faster links, other shapes of cluster, wider tables, a larger dense part.

Each setting is a run of its own (cluster, ranks, comparison of losses), and its ratios are within that run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.step.profiles import Run
from benchmarks.step.run import about, run_one
from benchmarks.step.setting import Setting
from benchmarks.step.variants import BASE

VARIANTS = (BASE, "sptt_fp32", "dmt_cr4_fp32", "dmt_cr8_fp32")

_HEADLINE = Setting(4, 2, "100mbit", repeats=5)

CURVE = {
    "by rate": [dataclasses.replace(_HEADLINE, rate=rate) for rate in ("100mbit", "200mbit", "500mbit", "1gbit")],
    "by shape": [dataclasses.replace(_HEADLINE, hosts=hosts, lanes=lanes) for hosts, lanes in ((2, 2), (2, 4), (8, 2))],
    "by width": [dataclasses.replace(_HEADLINE, width=128)],
    "by dense part": [dataclasses.replace(_HEADLINE, top=1024)],
}
"""Settings, in families in which one thing differs from the headline's."""


def measure_curve(
    families: Mapping[str, list[Setting]], repeats: int | None, command: str
) -> Iterator[dict[str, Any]]:
    """Measure every setting.

    Args:
        families: settings to measure.
        repeats: of each variant, instead of the settings' own.
        command: that the figures are reported to come from.

    Yields:
        After each setting all that is measured so far: ``setting`` (where the figures come from) and ``points``:
        ``family``, ``setting`` and ``rows`` of each.

    Raises:
        ClusterError, DifferentTraining: see :func:`benchmarks.step.run.run`.
    """
    points: list[dict[str, Any]] = []
    for family, settings in families.items():
        for setting in settings:
            one = dataclasses.replace(setting, repeats=repeats) if repeats else setting
            rows, _ = run_one(Run(one, VARIANTS))
            points.append({"family": family, "setting": one.to_dict(), "rows": rows})
            yield {"setting": about(command), "points": points}
