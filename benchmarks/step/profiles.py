"""What is measured together: interleaved runs of variants, their settings, and what they have to show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.step import bars
from benchmarks.step.setting import Setting
from benchmarks.step.variants import ABSENT, BASE


@dataclass(frozen=True)
class Run:
    """Variants that are measured in turn, in one set of ranks.

    Attributes:
        setting: cluster, model, repeats.
        variants: all in one set of ranks, in turn.
        rare: those timed a few times only: far behind, and there to be ruled out.
        memory: whether peak memory is measured too, each variant in ranks of its own.
    """

    setting: Setting
    variants: Sequence[str]
    rare: Sequence[str] = ()
    memory: bool = False


@dataclass(frozen=True)
class Profile:
    """What one call measures.

    Attributes:
        runs: one after the other, each of ids and a batch of its own; the first is the main one.
        bars: what they have to show.
        absent: what belongs beside its variants and nobody can measure, each with the reason.
    """

    runs: Sequence[Run]
    bars: Sequence[bars.Bar] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


_FULL = Setting(hosts=4, lanes=2, settle=1)
_PRECISIONS = ("fp32", "fp16", "int8")
_RULED_OUT = tuple(f"torchrec_{plan}_fp32" for plan in ("cw", "twrw", "planner", "pipelined"))
"""Never the fastest on ids that repeat, as tables that the planner replicates are not sent there."""
_MAIN = (
    "flat_fp32",
    "flat_dedup_fp32",
    *(f"torchrec_{plan}_{p}" for p in _PRECISIONS for plan in ("tw", "planner_dp_cpu", "planner_dp_cuda")),
    *_RULED_OUT,
    "torchrec_vbe_fp32",
    *(f"torchrec_tower_cr{ratio}_fp32" for ratio in (2, 4, 8)),
    "torchrec_tower_cr4_fp16",  # in int8, which holds inside a host too, small tables cannot be told from wrong ones
    *(f"{kind}_{p}" for p in _PRECISIONS for kind in ("sptt", "sptt_dedup")),
    *(f"dmt_cr{ratio}_{p}" for p in _PRECISIONS for ratio in (2, 4, 8)),
    *(f"dmt_cr{ratio}_dedup_fp32" for ratio in (2, 4, 8)),
)
_LARGE = (
    BASE, "torchrec_planner_dp_cpu_fp32", "torchrec_planner_dp_cuda_fp32", "torchrec_vbe_fp32", "sptt_fp32",
    "sptt_dedup_fp32", "dmt_cr4_fp32", "dmt_cr4_dedup_fp32",
)  # fmt: skip
_WITHOUT_DUPLICATES = (
    "flat_fp32",
    *(f"torchrec_{plan}_{p}" for p in _PRECISIONS for plan in ("tw", "planner_dp_cpu", "pipelined")),
    *(f"torchrec_tower_{kind}_{p}" for p in _PRECISIONS for kind in ("cr4", "pipelined_cr4")),
    "sptt_fp32", "sptt_fp32_blocks3", "sptt_dedup_fp32", "dmt_cr2_fp32", "dmt_cr2_fp32_blocks3", "dmt_cr4_fp32",
    "dmt_cr4_fp32_blocks3", "dmt_cr8_fp32", "dmt_cr4_fp16", "dmt_cr4_int8",
)  # fmt: skip


_MORE = (
    "torchrec_planner_dp_cpu_fp32", "torchrec_planner_dp_cuda_fp32", "torchrec_vbe_fp32", "sptt_fp32",
    "sptt_dedup_fp32",
)  # fmt: skip


def _with_ids(kind: str, batch: int = 512, **other: Any) -> Setting:
    return dataclasses.replace(_FULL, ids=kind, batch=batch, **other)


PROFILES = {
    "quick": Profile(
        [Run(Setting(hosts=2, lanes=2), variants=(BASE, "flat_fp32", "sptt_fp32", "dmt_cr4_fp32"))],
        bars=bars.QUICK,
    ),
    "full": Profile(
        [
            Run(_with_ids("kaggle"), variants=_MAIN, rare=_RULED_OUT),
            Run(_with_ids("kaggle", 2048), variants=_LARGE),
            Run(_with_ids("uniform"), variants=_WITHOUT_DUPLICATES, memory=True),
        ],
        bars=bars.FULL,
        absent=ABSENT,
    ),
    "more": Profile(
        [
            Run(_with_ids("flights", features=21), variants=(BASE, *_MORE, "dmt_cr4_fp32", "dmt_cr4_dedup_fp32")),
            Run(_with_ids("kaggle", bag=10, label="bags10"), variants=(BASE, *_MORE, "dmt_cr4_fp32")),
            Run(_with_ids("kaggle", hosts=8, label="8x2"), variants=_MORE),
        ],
        bars=bars.MORE,
    ),
}
