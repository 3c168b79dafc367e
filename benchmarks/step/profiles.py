"""What is measured together: the variants of one interleaved run, their setting, and what it has to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.step import bars
from benchmarks.step.setting import Setting
from benchmarks.step.variants import BASE, VARIANTS


@dataclass(frozen=True)
class Profile:
    """One run.

    Attributes:
        setting: cluster, model, repeats.
        variants: all in one set of ranks, in turn.
        rare: those timed a few times only: far behind, and there to be ruled out.
        bars: what it has to show.
        memory: whether peak memory is measured too, each variant in ranks of its own.
    """

    setting: Setting
    variants: Sequence[str]
    rare: Sequence[str] = ()
    bars: Sequence[bars.Bar] = ()
    memory: bool = False


PROFILES = {
    "quick": Profile(
        Setting(hosts=2, lanes=2),
        variants=(BASE, "flat_fp32", "sptt_fp32", "dmt_cr4_fp32"),
        bars=bars.QUICK,
    ),
    "full": Profile(
        Setting(hosts=4, lanes=2, settle=1),
        variants=tuple(VARIANTS),
        rare=tuple(name for name in VARIANTS if name.startswith("torchrec_rw_")),
        bars=bars.FULL,
        memory=True,
    ),
}
