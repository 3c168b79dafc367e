"""From the ranks' traces to one row per variant whose parts add up.

1. Of every rank the middle half of its steps by duration (a machine that does other things makes outliers); the mean
   of each part over them, then over the ranks. Means add up where medians do not; the median is written beside each.
2. Blocked time is split by what was waited for, in which pass, and by whether a rank was behind or the bytes
   were under way (``_late``).
3. An exchange is exposed as far as the main thread is blocked for it. When its bytes were really there nobody knows
   but by waiting, so the time from posting it to collecting it stands beside, which is no measure of the link.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.step.breakdown_late import late_seconds
from benchmarks.step.breakdown_measure import RankTraces, TracedStep
from benchmarks.step.breakdown_parts import IDLE, PARTS, REST, WAITED_FOR, Where
from benchmarks.step.breakdown_trace import KNOWN_REST, totals
from benchmarks.step.variants import VARIANTS

REST_ALLOWED = 0.05
"""Share of a step that may be ``rest`` without a warning."""


BUSY = 1.5
"""So many times as long as on a core of its share may work take on the clock, without a warning."""


def rows_of(ranks: Sequence[RankTraces]) -> dict[str, dict[str, Any]]:
    """One row per variant."""
    return {name: _row(name, ranks) for name in ranks[0].variants}


def middle(steps: Sequence[TracedStep]) -> list[TracedStep]:
    """The middle half by duration; of fewer than four all."""
    order = sorted(steps, key=lambda step: step.seconds)
    cut = len(order) // 4
    return order[cut : len(order) - cut]


def _row(name: str, ranks: Sequence[RankTraces]) -> dict[str, Any]:
    traced = [rank.variants[name] for rank in ranks]
    kept = [middle(own.steps) for own in traced]
    late_of = {
        id(step): late
        for own, lates in zip(traced, late_seconds(ranks, name), strict=True)
        for step, late in zip(own.steps, lates, strict=True)
    }
    late = _mean_over_ranks(kept, lambda step: late_of[id(step)])
    found = _mean_over_ranks(kept, lambda step: totals(step.spans))
    step = _mean_over_ranks(kept, lambda step: {"": step.seconds})[""]
    cpu = _mean_over_ranks(kept, lambda step: {"": step.cpu_seconds})[""]
    plain = statistics.median(s for own in traced for s in own.plain_seconds)
    every = [totals(step.spans) for own in traced for step in own.steps]
    whole = [step.seconds for own in traced for step in own.steps]
    details: dict[str, float] = defaultdict(float)
    for (where, phase), seconds in found.items():
        details["/".join((where.part, where.detail, phase))] += 1e3 * seconds
    return {
        "text": VARIANTS[name].text if name in VARIANTS else name,
        "step_ms": 1e3 * step,
        "step_median_ms": 1e3 * statistics.median(whole),
        "untraced_step_ms": 1e3 * plain,
        "main_thread_cpu_ms": 1e3 * cpu,
        "parts": {
            part: {
                "ms": (ms := 1e3 * sum(s for (where, _), s in found.items() if where.part == part)),
                "median_ms": 1e3 * statistics.median(_of_part(one, part) for one in every),
                "share": ms / (1e3 * step),
            }
            for part in PARTS
        },
        "idle": _idle(found, late),
        "exchanges": _exchanges(kept),
        "rest": {
            where.detail: 1e3 * sum(s for (other, _), s in found.items() if other == where)
            for where in sorted({where for where, _ in found if where.part == REST})
        },
        "details": dict(sorted(details.items(), key=lambda item: -item[1])),
    }


def _of_part(found: Mapping[tuple[Where, str], float], part: str) -> float:
    return sum(seconds for (where, _), seconds in found.items() if where.part == part)


def _idle(found: Mapping[tuple[Where, str], float], late: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Milliseconds blocked, by what was waited for; ``late_ms`` of them until the last rank had posted."""
    result: dict[str, dict[str, float]] = {}
    kinds = {where.detail for where, _ in found if where.part == IDLE}
    for kind in sorted(kinds, key=lambda k: WAITED_FOR.index(k) if k in WAITED_FOR else len(WAITED_FOR)):
        by_phase = {phase: 1e3 * s for (where, phase), s in found.items() if where == Where(IDLE, kind)}
        behind = min(1e3 * late.get(kind, 0.0), sum(by_phase.values()))
        result[kind] = {"ms": sum(by_phase.values()), "late_ms": behind, **dict(sorted(by_phase.items()))}
    return result


def _exchanges(kept: Sequence[Sequence[TracedStep]]) -> dict[str, dict[str, float]]:
    """Of each kind: milliseconds in which one was posted and not yet collected, and blocked ones among them."""

    def of_step(step: TracedStep) -> dict[str, float]:
        return {kind: _union_seconds(
            (max(f.started, step.begun), min(f.arrived, step.begun + step.seconds))
            for f in step.flights if f.part == kind and f.arrived is not None
        ) for kind in {f.part for f in step.flights}}  # fmt: skip

    def blocked(step: TracedStep) -> dict[str, float]:
        return {kind: _blocked_for(step, kind) for kind in {f.part for f in step.flights}}

    posted, waited = _mean_over_ranks(kept, of_step), _mean_over_ranks(kept, blocked)
    return {
        kind: {"posted_to_collected_ms": 1e3 * seconds, "blocked_ms": 1e3 * waited[kind]}
        for kind, seconds in sorted(posted.items())
    }


def _blocked_for(step: TracedStep, kind: str) -> float:
    """Seconds that the main thread was blocked for one kind of exchange."""
    return sum(span.end - span.begin for span in step.spans if span.where == Where(IDLE, kind))


def _union_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    total, until = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def _mean_over_ranks(kept: Sequence[Sequence[TracedStep]], of_step: Any) -> dict[Any, float]:
    result: dict[Any, float] = defaultdict(float)
    for steps in kept:
        for step in steps:
            for key, value in of_step(step).items():
                result[key] += value / len(steps) / len(kept)
    return dict(result)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Parts as lines, variants as columns: milliseconds, and the share of the step."""
    width = max(19, *(len(name) + 2 for name in rows))
    lines = [f"{'ms of a step':24}" + "".join(f"{name:>{width}}" for name in rows)]

    def line(text: str, values: Sequence[float], whole: Sequence[float]) -> str:
        cells = [f"{v:9.2f} {100 * v / w:5.1f} %" for v, w in zip(values, whole, strict=True)]
        return f"{text:24}" + "".join(f"{cell:>{width}}" for cell in cells)

    whole = [row["step_ms"] for row in rows.values()]
    for part in PARTS:
        values = [row["parts"][part]["ms"] for row in rows.values()]
        if any(value >= 0.005 for value in values):
            lines.append(line(part, values, whole))
        if part == IDLE:
            kinds = [kind for kind in WAITED_FOR if any(kind in row["idle"] for row in rows.values())]
            lines += [line(f"  for {kind}", [row["idle"].get(kind, {"ms": 0.0})["ms"] for row in rows.values()], whole)
                      for kind in kinds]  # fmt: skip
            behind = [sum(own["late_ms"] for own in row["idle"].values()) for row in rows.values()]
            lines.append(line("  (for ranks behind)", behind, whole))
    lines.append(line("step", whole, whole))
    for text, key in (("without a trace", "untraced_step_ms"), ("main thread on a core", "main_thread_cpu_ms")):
        lines.append(f"{text:24}" + "".join(f"{row[key]:{width - 8}.2f}        " for row in rows.values()))
    return "\n".join(lines)


def sentences(rows: Mapping[str, Mapping[str, Any]], crowd: float) -> list[str]:
    """What is exposed, variant by variant, and what could not be determined.

    Args:
        rows: see :func:`rows_of`.
        crowd: ranks per core.
    """
    result = []
    for name, row in rows.items():
        whole = row["step_ms"]
        idle = row["parts"][IDLE]["ms"]
        worst = sorted(row["idle"].items(), key=lambda item: -item[1]["ms"])
        waits = ", ".join(f"{kind} {own['ms']:.1f}" for kind, own in worst if own["ms"] >= 0.005 * whole)
        result.append(f"{name}: {idle:.1f} of {whole:.1f} ms blocked ({idle / whole:.0%}): {waits} ms.")
        behind = sum(own["late_ms"] for own in row["idle"].values())
        result.append(
            f"  {behind:.1f} ms of that until the slowest rank had posted, {idle - behind:.1f} ms behind that."
        )
        cpu = row["main_thread_cpu_ms"]
        busy = " The machine was busy: do not quote this." if whole - idle > BUSY * max(1.0, crowd) * cpu else ""
        result.append(f"  work: {whole - idle:.1f} ms on the clock, {cpu:.1f} ms of the main thread on a core.{busy}")
        shown = {k: v for k, v in row["exchanges"].items() if v["posted_to_collected_ms"] >= 0.005 * whole}
        told = ", ".join(f"{k} {v['posted_to_collected_ms']:.1f} ({v['blocked_ms']:.1f})" for k, v in shown.items())
        result.append(f"  from posted to collected, ms (blocked for it): {told}.")
        rest = row["parts"][REST]
        names = ", ".join(f"{what} {ms:.2f}" for what, ms in sorted(row["rest"].items(), key=lambda i: -i[1]))
        unknown = sorted(set(row["rest"]) - KNOWN_REST)
        warnings = [
            f" More than {REST_ALLOWED:.0%} of the step." if rest["share"] > REST_ALLOWED else "",
            f" Not known: {', '.join(unknown)}." if unknown else "",
        ]
        result.append(f"  rest, ms: {names}.{''.join(warnings)}")
    return result
