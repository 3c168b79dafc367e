"""A rank with several variants of the model, each of which takes steps when it is its turn."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.step.allocator import give_back_freed_memory, keep_freed_memory
from benchmarks.step.cores import stay_on_own_cores
from benchmarks.step.groups import SharedGroups
from benchmarks.step.model import BATCHES, make_batch
from benchmarks.step.protocols import LooksAhead, Variant
from benchmarks.step.setting import Setting
from benchmarks.step.variants import VARIANTS


class Rig:
    """Sets this rank up, and builds the variants from the same weights over shared process groups.

    Args:
        rank: of the cluster's.
        setting: what is measured.
        names: of the variants.
        make: makes one by its name; default: as :mod:`benchmarks.step.variants` has it.

    Attributes:
        variants: by name.
    """

    def __init__(
        self, rank: int, setting: Setting, names: Sequence[str], make: Callable[[str], Variant] | None = None
    ) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        stay_on_own_cores(rank // setting.lanes, setting.hosts)
        logging.disable(logging.WARNING)
        dist.init_process_group("gloo", timeout=timedelta(seconds=300))
        self.variants: dict[str, Variant] = {}
        groups = SharedGroups()
        for name in names:
            with groups.one_variant():
                self.variants[name] = make(name) if make is not None else VARIANTS[name].make(setting)
            gc.collect()  # of the models that variants are built from: references in circles keep them else
            gc.freeze()  # what stays is not looked through again for each variant behind it
            give_back_freed_memory()
        batches = [make_batch(setting, step, rank) for step in range(BATCHES)]
        self._prepared: dict[str, list[Any]] = {
            name: [variant.prepare(batch) for batch in batches] for name, variant in self.variants.items()
        }
        self._taken = dict.fromkeys(names, 0)
        for name, variant in self.variants.items():
            if isinstance(variant, LooksAhead):
                variant.look_ahead(itertools.cycle(self._prepared[name]))

    def step(self, name: str) -> Any:
        """The next step of a variant: its loss. All variants get the same batches, round and round."""
        batch = self._prepared[name][self._taken[name] % BATCHES]
        self._taken[name] += 1
        return self.variants[name].step(batch)
