"""What a measurement has to show, as data, and the verdict on each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """One bar, over a number of a summary.

    Attributes:
        text: what is to be shown.
        path: keys to the number in the summary.
        least: the number is to be at least this, or None.
        most: the number's absolute value is to be at most this, or None.
        form: how the number is written.
        twin: another row that may show it: the better one of both counts.
    """

    text: str
    path: tuple[str, ...]
    least: float | None = None
    most: float | None = None
    form: str = ".2f"
    twin: str | None = None

    def check(self, summary: Mapping[str, Any]) -> Verdict:
        """Look it up; a number that is not there is a miss."""
        found = _at(summary, self.path)
        text = self.text
        if self.twin is not None:
            other = _at(summary, (self.path[0], self.twin, *self.path[2:]))
            if isinstance(found, int | float) and isinstance(other, int | float) and other > found:
                found, text = other, text.replace(self.path[1], self.twin, 1)
        wanted = f"at least {self.least:{self.form}}" if self.least is not None else f"at most {self.most:{self.form}}"
        if not isinstance(found, int | float):
            return Verdict(False, f"{text}: not measured, {wanted} wanted")
        # Written so that a NaN misses.
        holds = (self.least is None or found >= self.least) and (self.most is None or abs(found) <= self.most)
        return Verdict(holds, f"{text}: {found:{self.form}}, {wanted}")


def _at(summary: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = summary
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


@dataclass(frozen=True)
class Verdict:
    """On one bar.

    Attributes:
        holds: whether it is met.
        text: with figures.
    """

    holds: bool
    text: str


UNIFORM, KAGGLE, LARGE = "uniform_b512", "kaggle_b512", "kaggle_b2048"
"""Of which ids and batch a bar is: ends of the rows' names."""


def faster(name: str, least: float, than: str = "ratio_to_best", twin: str | None = None, at: str = UNIFORM) -> Bar:
    """A variant is that many times as fast as an opponent (see :func:`benchmarks.step.summary.opponents`)."""
    whom = {
        "ratio": "TorchRec table-wise",
        "ratio_to_best": "TorchRec's best flat variant",
        "ratio_to_tower": "TorchRec's tower by hand",
        "ratio_to_vbe": "TorchRec's variable batches",
        "ratio_to_without": "the same with every row sent",
    }[than]
    text = f"{name}_{at}: times as fast as {whom}, same wire precision"
    return Bar(text, ("rows", f"{name}_{at}", than), least, twin=twin and f"{twin}_{at}")


def at_the_link(name: str, least: float, twin: str | None = None, at: str = UNIFORM) -> Bar:
    """A variant's step is little longer than the link alone needs."""
    text = f"{name}_{at}: the link's own time over the step's"
    return Bar(text, ("rows", f"{name}_{at}", "nic_share"), least, twin=twin and f"{twin}_{at}")


def as_explained(name: str, at: str = UNIFORM) -> Bar:
    """Bytes counted on the link are those that ``dmt explain`` tells."""
    text = f"{name}_{at}: bytes counted on the link, off the formula's"
    return Bar(text, ("rows", f"{name}_{at}", "nic_bytes_off"), most=0.03, form=".1%")


def lean(name: str) -> Bar:
    """Peak memory of a rank, next to the flat variant's."""
    return Bar(f"{name}: peak memory of a rank over the flat variant's", ("memory", name, "over_flat"), most=1.15)


FULL = (
    faster("sptt_dedup_fp32", 2.0, at=KAGGLE),
    faster("sptt_dedup_fp32", 2.8, at=LARGE),
    faster("sptt_dedup_fp32", 1.3, "ratio_to_vbe", at=KAGGLE),
    faster("sptt_dedup_fp32", 1.45, "ratio_to_vbe", at=LARGE),
    faster("sptt_dedup_fp32", 2.5, "ratio_to_without", at=KAGGLE),
    faster("sptt_dedup_fp32", 3.3, "ratio_to_without", at=LARGE),
    *(faster("sptt_dedup_fp16", 2.2, than, at=KAGGLE) for than in ("ratio_to_best", "ratio_to_without")),
    *(faster("sptt_dedup_int8", 1.9, than, at=KAGGLE) for than in ("ratio_to_best", "ratio_to_without")),
    faster("dmt_cr4_dedup_fp32", 1.7, "ratio_to_without", at=KAGGLE),
    faster("dmt_cr4_dedup_fp32", 2.8, "ratio_to_without", at=LARGE),
    faster("dmt_cr4_dedup_fp32", 4.5, at=KAGGLE),
    faster("dmt_cr4_dedup_fp32", 7.0, at=LARGE),
    faster("sptt_dedup_fp32", 1 / 1.10, "ratio_to_without"),
    faster("sptt_fp32", 1.05, twin="sptt_fp32_blocks3"),
    faster("dmt_cr2_fp32", 2.05, twin="dmt_cr2_fp32_blocks3"),
    faster("dmt_cr4_fp32", 3.8, twin="dmt_cr4_fp32_blocks3"),
    faster("dmt_cr8_fp32", 5.5),
    faster("dmt_cr4_fp16", 3.2),
    faster("dmt_cr4_int8", 2.2),
    *(faster(f"dmt_cr4_{precision}", 1.2, "ratio_to_tower") for precision in ("fp32", "fp16", "int8")),
    at_the_link("sptt_fp32", 0.90, twin="sptt_fp32_blocks3"),
    at_the_link("dmt_cr4_fp32", 0.87, twin="dmt_cr4_fp32_blocks3"),
    *(as_explained(name, KAGGLE) for name in ("flat_fp32", "sptt_fp32", "sptt_dedup_fp32", "dmt_cr4_dedup_fp32")),
    *(as_explained(f"dmt_cr{ratio}_{p}", KAGGLE) for p in ("fp32", "fp16", "int8") for ratio in (2, 4, 8)),
    lean("sptt_fp32"),
    lean("dmt_cr4_fp32"),
)
"""Of 4 hosts x 2 ranks at 100 Mbit/s."""

MORE = (
    faster("sptt_dedup_fp32", 1.0, at="flights_b512"),
    faster("sptt_dedup_fp32", 1.0, at="kaggle_b512_8x2"),
)
"""Of real ids, bags and more hosts, at 100 Mbit/s: bags are measured without a bar."""

QUICK = (
    faster("dmt_cr4_fp32", 3.3, "ratio"),
    *(as_explained(name) for name in ("flat_fp32", "sptt_fp32", "dmt_cr4_fp32")),
)
"""Of 2 hosts x 2 ranks at 100 Mbit/s."""


def verdicts(bars: Sequence[Bar], summary: Mapping[str, Any]) -> list[Verdict]:
    """On every bar."""
    return [bar.check(summary) for bar in bars]


def listed(found: Sequence[Verdict]) -> str:
    """Verdicts as text."""
    missed = sum(not verdict.holds for verdict in found)
    lines = [f"{'PASS' if verdict.holds else 'FAIL'}  {verdict.text}" for verdict in found]
    return "\n".join([*lines, f"{len(found) - missed} of {len(found)} bars are met"])
