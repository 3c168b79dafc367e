"""What the processes of :mod:`benchmarks.memory` do: train and save, load on other ranks, make the flat model.

Each shows its parent by a number in shared memory which phase it is in, and how large its share of the tables is; what
it says goes into a file.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

DENSE, BATCH, STEPS, SEED = 4, 256, 20, 3
STEPS_BEHIND = 5
"""Steps behind each asynchronous save."""
TIMEOUT_S = 900.0
REPEATS = 5
MIB = 2**20
PHASES = ("start", "initialize", "steps", "save", "save_behind", "load", "to_flat", "end")
START, INITIALIZE, STEP, SAVE, SAVE_BEHIND, LOAD, TO_FLAT, END = range(len(PHASES))


@dataclass(frozen=True)
class Setting:
    """One run.

    Attributes:
        name: of the run.
        meta: whether tables are built on the meta device.
        tables: number of tables.
        rows: of each.
        width: of each.
        trains: hosts x ranks that train and save.
        loads: hosts x ranks that load.
        behind: whether checkpoints are written behind the steps; then nothing is loaded.
    """

    name: str
    meta: bool
    tables: int
    rows: int
    width: int = 64
    trains: tuple[int, int] = (2, 2)
    loads: tuple[int, int] = (4, 1)
    behind: bool = False

    @property
    def bytes(self) -> int:
        """Of all tables."""
        return 4 * self.tables * self.rows * self.width

    @property
    def phases(self) -> tuple[str, ...]:
        """Those with a bound."""
        if self.behind:
            return PHASES[SAVE : SAVE_BEHIND + 1]
        phases = PHASES[INITIALIZE if self.meta else STEP : END]
        return tuple(phase for phase in phases if phase != PHASES[SAVE_BEHIND])


class Model(nn.Module):
    """A small recommender with large tables."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(setting.rows, setting.width, mode="sum") for _ in range(setting.tables)
        )
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]
        self.bottom = nn.Linear(DENSE, setting.width)
        self.top = nn.Sequential(nn.Linear((setting.tables + 1) * setting.width, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """``(B, DENSE)`` and ``(B, tables)`` to ``(B,)`` logits."""
        rows = [table(ids[:, i : i + 1]) for i, table in enumerate(self.tables)]
        return self.top(torch.cat([*rows, self.bottom(dense)], dim=1)).squeeze(1)


def batch_of(setting: Setting, step: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Dense inputs, ids and labels."""
    draw = torch.Generator().manual_seed(1000 * step + rank)
    return (
        torch.randn(BATCH, DENSE, generator=draw),
        torch.randint(0, setting.rows, (BATCH, setting.tables), generator=draw),
        torch.randint(0, 2, (BATCH,), generator=draw).float(),
    )


@dataclass
class Seen:
    """What a watched process shows to its parent: its phase, and the bytes of its share; one entry per process."""

    phases: Any
    shares: Any


def watched(number: int, seen: Seen, folder: str, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    """One process: output and errors go into a file."""
    with Path(folder, f"log{number}").open("w", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
        torch.set_num_threads(1)
        try:
            work(number, seen, folder, *args)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # a clean end could wait for ranks that will never come
        os._exit(0)


def engine_of(rank: int, seen: Seen, folder: str, setting: Setting, shape: tuple[int, int]) -> Any:
    """This rank's engine; its phase is "initialize" from before the model is built."""
    import dmt_plugin

    hosts, lanes = shape
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(hosts * lanes), LOCAL_RANK=str(rank % lanes), LOCAL_SIZE=str(lanes),
        CROSS_RANK=str(rank // lanes), CROSS_SIZE=str(hosts),
    )  # fmt: skip
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{hosts}x{lanes}", rank=rank, world_size=hosts * lanes,
        timeout=timedelta(seconds=TIMEOUT_S),
    )  # fmt: skip
    torch.manual_seed(SEED)
    seen.phases[rank] = INITIALIZE
    if setting.meta:
        with dmt_plugin.tables_on_meta():
            model = Model(setting)
    else:
        model = Model(setting)
    engine, *_ = dmt_plugin.initialize(
        model=model,
        config={
            "train_micro_batch_size_per_gpu": BATCH,
            "optimizer": {"type": "Adam", "params": {"lr": 0.001, "torch_adam": True}},
            "zero_optimization": {"stage": 1},
            "steps_per_print": 10**9,
            "dmt": {
                "topology": {"hosts": hosts, "ranks_per_host": lanes},
                "towers": {"count": max(setting.trains[0], setting.loads[0]), "module": "dlrm", "dim": 16},
                "lookup": {"optimizer": "rowwise_adagrad", "lr": 0.05},
                "comm": {"timeout_s": TIMEOUT_S},
                "checkpoint": {"asynchronous": setting.behind},
            },
        },
        example_batch=batch_of(setting, 0, rank)[:2],
    )
    lookup = engine.dmt.lookup
    parts = [t for name in lookup.tables for t in (lookup.table_weight(name), *lookup.optimizer_state(name).values())]
    seen.shares[rank] = float(sum(part.nbytes for part in parts))
    return engine


def take_steps(engine: Any, setting: Setting, rank: int, count: int) -> None:
    """Those that come next."""
    for _ in range(count):
        dense, ids, label = batch_of(setting, engine.global_steps, rank)
        engine.backward(nn.functional.binary_cross_entropy_with_logits(engine(dense, ids), label))
        engine.step()


def train(rank: int, seen: Seen, folder: str, setting: Setting) -> None:
    """Initializes, takes steps, and saves in the step."""
    engine = engine_of(rank, seen, folder, setting, setting.trains)
    seen.phases[rank] = STEP
    take_steps(engine, setting, rank, STEPS)
    seen.phases[rank] = SAVE
    engine.save_checkpoint(f"{folder}/checkpoints")
    seen.phases[rank] = END
    dist.barrier()


def save_behind(rank: int, seen: Seen, folder: str, setting: Setting) -> None:
    """Saves in the step, then twice behind the steps; leaves ``saving<rank>.json``."""
    engine = engine_of(rank, seen, folder, setting, setting.trains)
    seen.phases[rank] = STEP
    take_steps(engine, setting, rank, STEPS)
    root = Path(folder, "checkpoints")

    def saved(**asked: bool) -> float:
        dist.barrier()
        start = time.perf_counter()
        engine.save_checkpoint(str(root), **asked)
        return time.perf_counter() - start

    seen.phases[rank] = SAVE
    found: dict[str, Any] = {"in_step": saved(asynchronous=False), "behind": [], "written": []}
    seen.phases[rank] = SAVE_BEHIND
    for _ in range(2):
        start, before = time.perf_counter(), engine.global_steps
        found["behind"].append(saved())
        take_steps(engine, setting, rank, STEPS_BEHIND)
        engine.wait_for_checkpoint()
        found["written"].append(time.perf_counter() - start)
        for old in root.glob("global_step*") if rank == 0 else ():  # the disk need not hold them all
            if old.name != f"global_step{before}":
                shutil.rmtree(old)
    Path(folder, f"saving{rank}.json").write_text(json.dumps(found))
    seen.phases[rank] = END
    dist.barrier()


def load(rank: int, seen: Seen, folder: str, setting: Setting) -> None:
    """Initializes on the other topology, and loads."""
    engine = engine_of(rank, seen, folder, setting, setting.loads)
    seen.phases[rank] = LOAD
    path, _ = engine.load_checkpoint(f"{folder}/checkpoints")
    seen.phases[rank] = END
    if path is None or engine.global_steps != STEPS:
        raise RuntimeError(f"loaded {path}, after {engine.global_steps} steps; {STEPS} were saved")
    dist.barrier()


def to_flat(number: int, seen: Seen, folder: str, setting: Setting) -> None:
    """``dmt checkpoint to-flat``, in this process."""
    from dmt_plugin.cli import app

    seen.phases[number] = TO_FLAT
    target = Path(folder, "flat.safetensors")
    app(["checkpoint", "to-flat", f"{folder}/checkpoints", str(target)], standalone_mode=False)
    seen.phases[number] = END
    written = target.stat().st_size
    if written < setting.bytes:
        raise RuntimeError(f"{target} has {written} bytes, the tables {setting.bytes}")


def make(number: int, seen: Seen, folder: str, rows: int, width: int) -> None:
    """Times rows by rule beside ``torch.normal_``; leaves ``making.json``."""
    import dmt_plugin
    from dmt_plugin.tables.layer_rules import meta_sources

    with dmt_plugin.tables_on_meta():
        model = Model(Setting("making", True, 1, rows, width))
    sources, _ = meta_sources(model, ["tables.0.weight"], seed=SEED, table_init=None, strict=True)
    (source,) = sources.values()
    half = range(rows // 2, rows)
    parts = {
        "table_wise": (range(rows), range(width)),
        "row_wise": (half, range(width)),
        "row_wise, every second row": (range(1, rows, 2), range(width)),
        "column_wise": (range(rows), range(width // 2, width)),
    }
    found = {}
    for kind, (some, columns) in parts.items():
        out = torch.empty(len(some), len(columns))
        sides: dict[str, Callable[[], Any]] = {
            "seconds": lambda out=out, some=some, columns=columns: source.fill(some, columns, out),
            "normal_seconds": lambda out=out: out.normal_(0.0, 0.02),
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        for repeat in range(REPEATS + 1):
            for side, run in sides.items():
                start = time.perf_counter()
                run()
                if repeat:  # the first is for warming up
                    times[side].append(time.perf_counter() - start)
        medians = {side: statistics.median(own) for side, own in times.items()}
        ratio = medians["seconds"] / medians["normal_seconds"]
        found[kind] = {"mib": out.nbytes / MIB, **medians, "ratio": ratio}
    Path(folder, "making.json").write_text(json.dumps({"threads": torch.get_num_threads(), "kinds": found}))
    seen.phases[number] = END
