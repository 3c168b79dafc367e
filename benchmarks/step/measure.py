"""What one rank does: build the variants, compare their losses, time them in turn.

1. Every variant is built from the same weights; process groups are shared (:mod:`benchmarks.step.rig`).
2. Each trains the same ``checked`` batches; all losses are kept, and what became of every table.
3. For each repeat, for each variant in turn: ``settle`` steps that are not timed, barriers, ``iterations`` steps, the
   rank's own time. The next variant waits for the slowest rank of this one. Every second repeat goes through the
   variants backwards: what drifts over a repeat, and who comes after whom, favours nobody. Variants named in ``rare``
   take part in the first ``few`` repeats.
4. Frames on the host's link and CPU time are read around the same steps. While the frames are read no rank sends:
   another lane's step would count to the wrong side. (The two barriers' few are included.)
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch.distributed as dist

from benchmarks.cluster.frames import Frames, own_frames
from benchmarks.step.allocator import give_back_freed_memory
from benchmarks.step.model import make_model
from benchmarks.step.parts import Change, changes
from benchmarks.step.rig import Rig
from benchmarks.step.setting import Setting


@dataclass
class Found:
    """What one rank found of one variant.

    Attributes:
        losses: of every step, this rank's.
        changes: what became, over the checked steps, of what this rank holds of each table.
        seconds: of each repeat, per step.
        cpu_seconds: of each repeat, per step, all threads of this rank.
        link_bytes: of each repeat, per step: all that this rank's host sent to others, headers included.
        link_payload: the same without headers of frames.
        formula_bytes: to other hosts in one step, this rank's, by formula.
    """

    losses: list[float] = field(default_factory=list)
    changes: dict[int, Change] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    link_bytes: list[float] = field(default_factory=list)
    link_payload: list[float] = field(default_factory=list)
    formula_bytes: int = 0


def measure(rank: int, setting: Setting, names: Sequence[str], rare: Sequence[str] = ()) -> dict[str, Found]:
    """Everything, on one rank."""
    rig = Rig(rank, setting, names)
    variants, step = rig.variants, rig.step
    found = {name: Found(formula_bytes=variant.formula_bytes()) for name, variant in variants.items()}
    start = make_model(setting).weights()
    for name in names:
        found[name].losses += [float(step(name)) for _ in range(setting.checked)]
        found[name].changes = changes(variants[name].tables(), start)
    del start
    gc.collect()
    gc.disable()
    give_back_freed_memory()
    for repeat in range(setting.repeats):
        for name in names[:: -1 if repeat % 2 else 1]:
            if name in rare and repeat >= setting.few:
                continue
            losses = [step(name) for _ in range(setting.settle)]
            sent = _frames_of_all_so_far()
            cpu, begun = time.process_time(), time.perf_counter()
            losses += [step(name) for _ in range(setting.iterations)]
            seconds = time.perf_counter() - begun
            cpu = time.process_time() - cpu
            own, sent = found[name], _frames_of_all_so_far() - sent
            own.link_bytes.append(sent.bytes / setting.iterations)
            own.link_payload.append(sent.payload / setting.iterations)
            own.seconds.append(seconds / setting.iterations)
            own.cpu_seconds.append(cpu / setting.iterations)
            own.losses += [float(loss) for loss in losses]
    return found


def _frames_of_all_so_far() -> Frames:
    """What left this host until every rank came here; none goes on before all have read."""
    dist.barrier()
    frames = own_frames()
    dist.barrier()
    return frames
