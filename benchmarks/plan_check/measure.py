"""What a rank does: all variants of a setting in turn, each with an engine that records its steps.

Everybody's turn is one step that is not like others, because the records of the step before are of another variant,
and some that count. Every second round goes backwards. The engines record as they do in a user's run: nothing else is
measured here.
"""

from __future__ import annotations

import gc
from pathlib import Path

import torch.distributed as dist

from benchmarks.plan_check.settings import VARIANTS, folder_of, section_of
from benchmarks.step.ours import OursVariant
from benchmarks.step.protocols import Variant
from benchmarks.step.rig import Rig
from benchmarks.step.setting import Setting

_WARM = 2
_APART = 1e-5


def measure(rank: int, setting: Setting, root: str, rounds: int, steps: int) -> dict[str, float]:
    """Trains, and leaves the records in folders.

    Args:
        rank: of the cluster's.
        setting: what is measured.
        root: folder of all runs.
        rounds: of turns.
        steps: of a turn.

    Returns:
        By variant this rank's loss of the first step.
    """

    def make(name: str) -> Variant:
        return OursVariant(setting, section_of(setting, name, folder_of(Path(root), setting, name)))

    rig = Rig(rank, setting, VARIANTS, make)
    first: dict[str, float] = {}
    for name in VARIANTS:
        first[name] = float(rig.step(name))
        for _ in range(_WARM - 1):
            rig.step(name)
    gc.collect()
    gc.disable()
    for turn in range(rounds):
        for name in VARIANTS[:: -1 if turn % 2 else 1]:
            dist.barrier()
            for _ in range(steps):
                rig.step(name)
    return first
