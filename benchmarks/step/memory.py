"""Peak memory of a rank: each variant in ranks of its own, as memory given back by one would serve the next.

1. The ranks are forked from a process that has imported everything; what they have by then is no variant's doing, but
   counts as theirs, as it would in ranks started by a launcher.
2. Build the variant (the flat model of its user included), train a few steps, read the peak.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.step.model import make_batch
from benchmarks.step.parts import Held, Part
from benchmarks.step.protocols import LooksAhead
from benchmarks.step.setting import Setting
from benchmarks.step.variants import VARIANTS

STEPS = 4
FLAT = "flat_fp32"
MEASURED = (FLAT, "sptt_fp32", "dmt_cr4_fp32")


@dataclass(frozen=True)
class Peak:
    """Memory of one rank, in bytes.

    Attributes:
        begin: resident when the rank began.
        peak: most that was ever resident.
        tables: of the tables that it holds.
    """

    begin: int
    peak: int
    tables: int


def peak_memory(rank: int, setting: Setting, name: str) -> Peak:
    """Of one variant, on one rank."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again; else it would be the parent's
    begin = _status("VmRSS")
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    variant = VARIANTS[name].make(setting)
    prepared = [variant.prepare(make_batch(setting, step, rank)) for step in range(STEPS)]
    if isinstance(variant, LooksAhead):
        variant.look_ahead(iter(prepared))
    for batch in prepared:
        variant.step(batch)
    dist.barrier()
    return Peak(begin, _status("VmHWM"), _bytes_of(variant.tables()))


def memory_rows(peaks: Mapping[str, Sequence[Peak]]) -> dict[str, dict[str, Any]]:
    """One row per variant: its largest rank, next to that of the flat variant."""
    flat = max(peak.peak for peak in peaks[FLAT])
    own_flat = max(peak.peak - peak.begin for peak in peaks[FLAT])
    return {
        name: {
            "peak_mb": max(peak.peak for peak in own) / 1e6,
            "own_mb": max(peak.peak - peak.begin for peak in own) / 1e6,
            "tables_mb": max(peak.tables for peak in own) / 1e6,
            "over_flat": max(peak.peak for peak in own) / flat,
            "own_over_flat": max(peak.peak - peak.begin for peak in own) / own_flat,
        }
        for name, own in peaks.items()
    }


def memory_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Rows as text."""
    heads = f"{'peak of a rank':26}{'MB':>9}{'over flat':>11}{'since imports':>15}{'over flat':>11}{'tables MB':>11}"
    lines = [
        f"{name:26}{row['peak_mb']:9.0f}{row['over_flat']:10.2f}x{row['own_mb']:15.0f}{row['own_over_flat']:10.2f}x"
        f"{row['tables_mb']:11.1f}"
        for name, row in rows.items()
    ]
    return "\n".join([heads, *lines])


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def _bytes_of(held: Held) -> int:
    parts = [part for table in held.values() for part in ([Part(table)] if isinstance(table, Tensor) else table)]
    return sum(part.values.numel() * part.values.element_size() for part in parts)
