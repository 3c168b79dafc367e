"""From what the ranks found to rows that a person or a script can read.

1. A step takes as long as its slowest rank. A ratio is the median of the ratios within each repeat: what disturbs the
   machine for a while disturbs neighbours alike.
2. Next to each row: bytes of one host's link in one step (counted), the time the link alone would need for them, and
   the time the machine's cores would need for the CPU time of all ranks.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cluster.shape import parse_rate
from benchmarks.step.measure import Found
from benchmarks.step.setting import WIRE_SHARE, Setting
from benchmarks.step.variants import BASE, VARIANTS

Ranks = Sequence[Mapping[str, Found]]


CHANGES = 1e-5
"""How far the change of a table may be from another's, relative to its norm: rounding of its rows in fp32."""


def differing(ranks: Ranks) -> list[str]:
    """Variants that do not train as they must; a line each."""
    return _differing_losses(ranks) + _differing_tables(ranks)


def _differing_tables(ranks: Ranks) -> list[str]:
    wrong = []
    changes = {name: {t: c for rank in ranks for t, c in rank[name].changes.items()} for name in ranks[0]}
    for name, own in changes.items():
        other = changes.get(VARIANTS[name].equals or "")
        if other is None or VARIANTS[name].tolerance > 1e-5:
            continue
        for table in sorted(own.keys() | other.keys()):
            mine, expected = own.get(table), other.get(table)
            near = mine is not None and expected is not None and expected[0] > 0
            if near:
                near = abs(mine[0] / expected[0] - 1) <= CHANGES and abs(mine[1] - expected[1]) <= CHANGES
            if not near:
                text = f"table {table} changed by {mine} (norm, direction), in {VARIANTS[name].equals} by {expected}"
                wrong.append(f"{name}: {text}")
                break
    return wrong


def _differing_losses(ranks: Ranks) -> list[str]:
    wrong = []
    for name in ranks[0]:
        entry = VARIANTS[name]
        for rank, found in enumerate(ranks):
            own = found[name].losses
            if not all(loss == loss and abs(loss) < 1e6 for loss in own):
                wrong.append(f"{name}: losses of rank {rank} are not numbers: {own}")
            if entry.equals not in found:
                continue
            other = found[entry.equals].losses
            worst = max(abs(a - b) / abs(b) for a, b in zip(own, other, strict=True))
            if not worst <= entry.tolerance:
                wrong.append(
                    f"{name}: losses of rank {rank} differ from those of {entry.equals} by {worst:.2e} (relative), "
                    f"allowed {entry.tolerance:.0e}"
                )
                break
    return wrong


def rows_of(setting: Setting, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """One row per variant."""
    steps = {name: _slowest([rank[name].seconds for rank in ranks]) for name in ranks[0]}
    return {name: _row(setting, ranks, name, steps) for name in steps}


def _row(setting: Setting, ranks: Ranks, name: str, steps: Mapping[str, list[float]]) -> dict[str, Any]:
    seconds = steps[name]
    median = statistics.median(seconds)
    base = steps.get(BASE, [])
    ratios = [b / own for b, own in zip(base, seconds, strict=True)] if base else []
    hosts = [ranks[host * setting.lanes][name] for host in range(setting.hosts)]
    link = max(statistics.median(host.link_bytes) for host in hosts)
    limit = 8 * link / (WIRE_SHARE * parse_rate(setting.rate))
    cpu = statistics.median(sum(rank[name].cpu_seconds[i] for rank in ranks) for i in range(setting.repeats))
    by_host = [
        sum(ranks[host * setting.lanes + lane][name].formula_bytes for lane in range(setting.lanes))
        for host in range(setting.hosts)
    ]
    return {
        "text": VARIANTS[name].text,
        "step_ms": [1e3 * s for s in seconds],
        "median_ms": 1e3 * median,
        "min_ms": 1e3 * min(seconds),
        "max_ms": 1e3 * max(seconds),
        "samples_per_s": setting.batch * setting.world_size / median,
        "ratio": statistics.median(ratios) if ratios else None,
        "ratios": ratios,
        "nic_bytes_per_host": round(link),
        "exchange_bytes_per_host_by_formula": max(by_host) or None,
        "nic_limit_ms": 1e3 * limit,
        "nic_share": limit / median,
        "cpu_ms": 1e3 * cpu,
        "cpu_floor_ms": 1e3 * cpu / (os.cpu_count() or 1),
        "first_losses": ranks[0][name].losses[: setting.checked],
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows as text."""
    heads = [f"{'ms (min-max)':>24}", f"{'samples/s':>11}", f"{'ratio':>8}", f"{'NIC MB':>9}", f"{'NIC ms':>9}"]
    lines = ["".join([f"{'variant':24}", *heads, f"{'NIC/step':>10}", f"{'CPU ms':>9}"])]
    for name, row in rows.items():
        spread = f"{row['median_ms']:.1f} ({row['min_ms']:.0f}-{row['max_ms']:.0f})"
        ratio = f"{row['ratio']:.2f}x" if row["ratio"] else "-"
        lines.append(
            f"{name:24}{spread:>24}{row['samples_per_s']:11.0f}{ratio:>8}{row['nic_bytes_per_host'] / 1e6:9.2f}"
            f"{row['nic_limit_ms']:9.1f}{row['nic_share']:10.2f}{row['cpu_floor_ms']:9.1f}"
        )
    return "\n".join(lines)


def _slowest(by_rank: Sequence[Sequence[float]]) -> list[float]:
    return [max(repeat) for repeat in zip(*by_rank, strict=True)]
