"""What one rank does: build the variants, compare their losses, time them in turn.

1. Every variant is built from the same weights.
2. Each trains the same ``checked`` batches; all losses are kept, and what became of every table.
3. For each repeat, for each variant in turn: a barrier, ``iterations`` steps, the rank's own time. The next variant
   waits for the slowest rank of this one.
4. Bytes on the host's link and CPU time are read around the same steps (the barrier's few bytes included).
"""

from __future__ import annotations

import gc
import logging
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.cluster.counters import own_link
from benchmarks.step.model import make_batch, make_model
from benchmarks.step.setting import Setting
from benchmarks.step.variants import VARIANTS, Variant

_BATCHES = 4


@dataclass
class Found:
    """What one rank found of one variant.

    Attributes:
        losses: of every step, this rank's.
        changes: of each table of this rank over the checked steps: the norm of its change, and the product of the
            change with a random matrix, divided by that norm.
        seconds: of each repeat, per step.
        cpu_seconds: of each repeat, per step, all threads of this rank.
        link_bytes: of each repeat, per step: sent by this rank's host; read on lane 0 alone.
        formula_bytes: to other hosts in one step, this rank's, by formula.
    """

    losses: list[float] = field(default_factory=list)
    changes: dict[int, tuple[float, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    link_bytes: list[float] = field(default_factory=list)
    formula_bytes: int = 0


def measure(rank: int, setting: Setting, names: list[str]) -> dict[str, Found]:
    """Everything, on one rank."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    variants = {name: VARIANTS[name].make(setting) for name in names}
    batches = [make_batch(setting, step, rank) for step in range(_BATCHES)]
    prepared = {name: [variant.prepare(batch) for batch in batches] for name, variant in variants.items()}
    found = {name: Found(formula_bytes=variant.formula_bytes()) for name, variant in variants.items()}
    taken = dict.fromkeys(names, 0)

    def step(name: str) -> Any:
        taken[name] += 1
        return variants[name].step(prepared[name][taken[name] % _BATCHES])

    for name in names:
        found[name].losses += [float(step(name)) for _ in range(setting.checked)]
        found[name].changes = _changes(setting, variants[name])
    gc.collect()
    gc.disable()
    for _ in range(setting.repeats):
        for name in names:
            dist.barrier()
            sent, cpu, begun = own_link().sent, time.process_time(), time.perf_counter()
            losses = [step(name) for _ in range(setting.iterations)]
            seconds = time.perf_counter() - begun
            cpu = time.process_time() - cpu
            dist.barrier()
            own = found[name]
            own.link_bytes.append((own_link().sent - sent) / setting.iterations)
            own.seconds.append(seconds / setting.iterations)
            own.cpu_seconds.append(cpu / setting.iterations)
            own.losses += [float(loss) for loss in losses]
    dist.barrier()
    return found


def _changes(setting: Setting, variant: Variant) -> dict[int, tuple[float, float]]:
    start = make_model(setting).tables
    found = {}
    for feature, table in variant.tables().items():
        change = (table.detach() - start[feature].weight.detach()).double()
        direction = torch.randn(change.shape, generator=torch.Generator().manual_seed(feature))
        norm = float(change.norm())
        found[feature] = (norm, float((change * direction).sum()) / norm if norm else 0.0)
    return found
