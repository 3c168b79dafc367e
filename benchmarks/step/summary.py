"""From what the ranks found to rows that a person or a script can read.

1. A step takes as long as its slowest rank. A ratio is the median of the ratios within each repeat: what disturbs the
   machine for a while disturbs neighbours alike.
2. A ratio is to somebody of the same wire precision: see :func:`opponents`.
3. Next to each row: bytes of one host's link in one step (counted: payload of frames, and whole frames), the time the
   link alone would need for the frames, and the time the machine's cores would need for the CPU time of all ranks.
4. The payload is held against the formula, which knows of no headers.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.cluster.shape import parse_rate
from benchmarks.step.measure import Found
from benchmarks.step.parts import added, distance
from benchmarks.step.setting import Setting
from benchmarks.step.variants import VARIANTS, Entry, base_of

Ranks = Sequence[Mapping[str, Found]]
RATIOS = ("ratio", "ratio_to_best", "ratio_to_tower", "ratio_to_vbe", "ratio_to_without")
"""Of a row; see :func:`opponents`."""


_FIRST = 3
"""Steps whose losses are compared by a variant's own bound, where that is narrower than everyone's."""


def differing(ranks: Ranks, least: float = 0.0) -> list[str]:
    """Variants that do not train as they must; a line each.

    Args:
        ranks: what they found.
        least: how far a table may be in any case, see :attr:`benchmarks.step.setting.Setting.tables_apart`.
    """
    wrong = []
    for name, reference in references(ranks[0]).items():
        wrong += _not_numbers(ranks, name)
        if reference is not None:
            wrong += _differing_losses(ranks, name, reference) + _differing_tables(ranks, name, reference, least)
    return wrong


def references(names: Iterable[str]) -> dict[str, str | None]:
    """For each variant the one that it is compared with: the first in the catalogue of the same model."""
    named, first = set(names), dict[str, str]()
    for name in VARIANTS:
        if name in named:
            first.setdefault(VARIANTS[name].model, name)
    return {name: None if first[VARIANTS[name].model] == name else first[VARIANTS[name].model] for name in names}


def _not_numbers(ranks: Ranks, name: str) -> list[str]:
    for rank, found in enumerate(ranks):
        own = found[name].losses
        if not all(loss == loss and abs(loss) < 1e6 for loss in own):
            return [f"{name}: losses of rank {rank} are not numbers: {own}"]
    return []


def _differing_losses(ranks: Ranks, name: str, reference: str) -> list[str]:
    # Of the first steps as exactly as the variant has it; later ones also carry what rounding made of earlier tables.
    for steps, allowed in ((_FIRST, VARIANTS[name].losses), (None, max(VARIANTS[name].losses, Entry.losses))):
        own = [(found[name].losses[:steps], found[reference].losses[:steps]) for found in ranks]
        far, rank = max((apart(*losses), rank) for rank, losses in enumerate(own))
        if far > allowed:
            break
    else:
        return []
    text = f"differ from those of {reference} by {far:.2e} (relative), allowed {allowed:.0e}"
    return [f"{name}: losses of rank {rank} {text}"]


def apart(own: Sequence[float], other: Sequence[float]) -> float:
    """The largest relative distance between losses of the same steps."""
    return max(abs(a - b) / abs(b) for a, b in zip(own, other, strict=False))


def _differing_tables(ranks: Ranks, name: str, reference: str, least: float) -> list[str]:
    allowed = max(VARIANTS[name].tables, least)
    for table, far in tables_apart(ranks, name, reference).items():
        if not far <= allowed:
            text = f"its change is {far:.2e} of its norm away, allowed {allowed:.0e}"
            return [f"{name}: table {table} is not trained as in {reference}: {text}"]
    return []


def tables_apart(ranks: Ranks, name: str, reference: str) -> dict[int, float]:
    """For each table, how far its change is from the reference's; see :func:`benchmarks.step.parts.distance`."""
    own, expected = (added(rank[which].changes for rank in ranks) for which in (name, reference))
    return {
        table: distance(own.get(table), expected[table]) if table in expected else float("inf")
        for table in sorted(own.keys() | expected.keys())
    }


def rows_of(setting: Setting, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """One row per variant."""
    steps = {name: _slowest([rank[name].seconds for rank in ranks]) for name in ranks[0]}
    return {name: _row(setting, ranks, name, steps) for name in steps}


def _row(setting: Setting, ranks: Ranks, name: str, steps: Mapping[str, list[float]]) -> dict[str, Any]:
    entry, seconds = VARIANTS[name], steps[name]
    median = statistics.median(seconds)
    ratios = {key: _ratios(steps, other, name) for key, other in opponents(name, steps).items()}
    hosts = [ranks[host * setting.lanes][name] for host in range(setting.hosts)]
    link = max(statistics.median(host.link_bytes) for host in hosts)
    payload = max(statistics.median(host.link_payload) for host in hosts)
    limit = 8 * link / parse_rate(setting.rate)
    cpu = statistics.median(map(sum, zip(*(rank[name].cpu_seconds for rank in ranks), strict=True)))
    by_host = [
        sum(ranks[host * setting.lanes + lane][name].formula_bytes for lane in range(setting.lanes))
        for host in range(setting.hosts)
    ]
    formula = max(by_host)
    return {
        "variant": name,
        "ids": setting.ids,
        "batch": setting.batch,
        "tag": setting.tag,
        "text": entry.text,
        "precision": entry.precision,
        "step_ms": [1e3 * s for s in seconds],
        "median_ms": 1e3 * median,
        "min_ms": 1e3 * min(seconds),
        "max_ms": 1e3 * max(seconds),
        "samples_per_s": setting.batch * setting.world_size / median,
        **{key: statistics.median(own) if own else None for key, own in ratios.items()},
        "ratios": ratios["ratio"],
        "best": opponents(name, steps)["ratio_to_best"],
        "nic_bytes_per_host": round(payload),
        "nic_frame_bytes_per_host": round(link),
        "nic_bytes_by_formula": formula or None,
        "nic_bytes_off": payload / formula - 1 if formula else None,
        "nic_limit_ms": 1e3 * limit,
        "nic_share": limit / median,
        "cpu_ms": 1e3 * cpu,
        "cpu_floor_ms": 1e3 * cpu / (os.cpu_count() or 1),
        **_compared(ranks, name, references(steps)[name]),
        "first_losses": ranks[0][name].losses[: setting.checked],
    }


def _compared(ranks: Ranks, name: str, reference: str | None) -> dict[str, Any]:
    """With whom, and how far off; what is too far has ended the run before."""
    if reference is None:
        return {"compared_with": None, "losses_off": None, "tables_off": None}
    return {
        "compared_with": reference,
        "losses_off": max(apart(rank[name].losses, rank[reference].losses) for rank in ranks),
        "tables_off": max(tables_apart(ranks, name, reference).values()),
    }


def opponents(name: str, steps: Mapping[str, Sequence[float]]) -> dict[str, str | None]:
    """Whom a variant's ratios are to, of those in the run: always of the same wire precision.

    Args:
        name: of the variant.
        steps: seconds of every variant's repeats.

    Returns:
        ``ratio``: TorchRec's table-wise plan; ``ratio_to_best``: the flat variant of TorchRec's with the lowest median;
        ``ratio_to_tower``: TorchRec's tower of the same compression, the faster if there are two; ``ratio_to_vbe``:
        TorchRec's variable batches of distinct ids; ``ratio_to_without``: the same variant when it sends every row.
    """
    entry = VARIANTS[name]
    flat = [n for n in steps if VARIANTS[n].kind == "torchrec" and VARIANTS[n].precision == entry.precision]
    best = min(flat, key=lambda n: statistics.median(steps[n]), default=None)
    towers = [
        n
        for n in steps
        if VARIANTS[n].kind == "torchrec_tower"
        and (VARIANTS[n].model, VARIANTS[n].precision) == (entry.model, entry.precision)
    ]
    base, variable = base_of(entry.precision), f"torchrec_vbe_{entry.precision}"
    return {
        "ratio": base if base in steps else None,
        "ratio_to_best": best,
        "ratio_to_tower": min(towers, key=lambda n: statistics.median(steps[n]), default=None),
        "ratio_to_vbe": variable if variable in steps else None,
        "ratio_to_without": entry.without if entry.without in steps else None,
    }


def _ratios(steps: Mapping[str, Sequence[float]], other: str | None, name: str) -> list[float]:
    # Repeats that both took part in.
    return [a / b for a, b in zip(steps[other], steps[name], strict=False)] if other else []


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows as text."""
    heads = {
        "ms (min-max)": 22, "samples/s": 11, "ratio": 8, "best": 8, "tower": 8, "vbe": 8, "without": 9, "NIC MB": 9,
        "formula": 9, "NIC ms": 9, "NIC/step": 10, "CPU ms": 9,
    }  # fmt: skip
    lines = [f"{'variant':36}" + "".join(f"{head:>{width}}" for head, width in heads.items())]
    for row in rows.values():
        off = row["nic_bytes_off"]
        cells = [
            f"{row['median_ms']:.1f} ({row['min_ms']:.0f}-{row['max_ms']:.0f})",
            f"{row['samples_per_s']:.0f}",
            *(f"{row[key]:.2f}x" if row[key] else "-" for key in RATIOS),
            f"{row['nic_bytes_per_host'] / 1e6:.2f}",
            "-" if off is None else f"{off:+.1%}",
            f"{row['nic_limit_ms']:.1f}",
            f"{row['nic_share']:.2f}",
            f"{row['cpu_floor_ms']:.1f}",
        ]
        own = "".join(f"{cell:>{width}}" for cell, width in zip(cells, heads.values(), strict=True))
        lines.append(f"{row['variant']:36}{own}")
    return "\n".join(lines)


def by_setting(summary: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The settings of a summary, each with its rows."""
    rows = summary["rows"].items()
    return [
        (own, {key: row for key, row in rows if row["tag"] == own["tag"]})
        for own in summary["settings"]
    ]


def _slowest(by_rank: Sequence[Sequence[float]]) -> list[float]:
    return [max(repeat) for repeat in zip(*by_rank, strict=True)]
