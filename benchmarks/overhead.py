"""What the plugin costs where it does nothing, and where it does the least: ratios of step times.

Two ranks on this machine, gloo, a small DLRM, with the allocator of the other benchmarks
(:mod:`benchmarks.step.allocator`); each comparison in one pair of processes, sides in turn:

1. ``"enabled": false``: the step of ``dmt_plugin.initialize`` beside that of ``deepspeed.initialize``, same model;
2. one host with ``"none"`` for tower modules, beside a model-parallel step written by hand with the same lookups: ids
   and rows in one all-to-all each way, dense gradients in one all-reduce, the same optimizer;
3. such a step, of the size of the benchmarks of whole steps (26 features of width 64), with ``lookup.check_finite``
   beside that without it, FBGEMM's tables where it is installed;
4. each side runs a few steps, then the other; the ratio is taken of each pair of runs, and the median and the range of
   these ratios are reported, with the median ratio of the CPU time of rank 0, which others on the machine disturb less.

``python -m benchmarks.overhead`` prints a line for each, and exits with 1 where ``--check`` finds a median outside the
bounds: 0.97 to 1.03, at most 1.10, and at most 1.02.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from benchmarks.step.allocator import keep_freed_memory
from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.nn.lookup.site import LookupSite

RANKS, FEATURES, ROWS, WIDTH, DENSE, BATCH = 2, 16, 1_000, 32, 13, 512
LARGER = 26, 10_000, 64
"""Features, rows and width of the benchmarks of whole steps (:mod:`benchmarks.step`)."""
STEPS, REPEATS = 6, 11
LR, TABLE_LR = 0.01, 0.05
BOUNDS = {"disabled": (0.97, 1.03), "one host": (0.0, 1.10), "check_finite": (0.0, 1.02)}


class DLRM(nn.Module):
    """A flat recommender: single-hot tables, dot products of pairs."""

    def __init__(self, features: int = FEATURES, rows: int = ROWS, width: int = WIDTH) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for _ in range(features))
        self.bottom = nn.Sequential(nn.Linear(DENSE, 256), nn.ReLU(), nn.Linear(256, width), nn.ReLU())
        pairs = (features + 1) * features // 2
        self.register_buffer("pairs", torch.tril_indices(features + 1, features + 1, -1), persistent=False)
        self.top = nn.Sequential(
            nn.Linear(width + pairs, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 1)
        )

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """``(B, 13)`` and ``(B, features)`` to ``(B,)`` logits."""
        rows = [table(ids[:, f : f + 1]) for f, table in enumerate(self.tables)]
        return self.interact(self.bottom(dense), rows)

    def interact(self, x: Tensor, rows: list[Tensor]) -> Tensor:
        """Products of pairs beside the dense vector, through the top."""
        vectors = torch.stack([x, *rows], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([x, products], 1)).squeeze(1)


def batch(rank: int, number: int, features: int = FEATURES, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of one rank."""
    g = torch.Generator().manual_seed(1000 * number + rank)
    ids = torch.randint(0, rows, (BATCH, features), generator=g)
    return torch.randn(BATCH, DENSE, generator=g), ids, torch.randint(0, 2, (BATCH,), generator=g).float()


def loss_of(out: Tensor, label: Tensor) -> Tensor:
    """Mean log loss."""
    return nn.functional.binary_cross_entropy_with_logits(out, label)


def engine_step(engine: Any) -> Callable[[tuple[Tensor, Tensor, Tensor]], None]:
    """A training step of a DeepSpeed engine."""

    def step(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        engine.backward(loss_of(engine(*inputs[:2]), inputs[2]))
        engine.step()

    return step


def ds_config(section: dict[str, Any] | None) -> dict[str, Any]:
    """Plain SGD at ZeRO stage 0."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": BATCH,
        "optimizer": {"type": "SGD", "params": {"lr": LR}},
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
    }
    return config if section is None else {**config, "dmt": section}


class _Exchange(torch.autograd.Function):
    """One all-to-all of rows in equal parts, and its transpose."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        out = torch.empty_like(rows)
        dist.all_to_all_single(out, rows.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        out = torch.empty_like(gradient)
        dist.all_to_all_single(out, gradient.contiguous())
        return out


class ByHand:
    """A model-parallel step as one would write it: half of the tables on each of the two ranks."""

    def __init__(self, model: DLRM, rank: int) -> None:
        self.own = FEATURES // RANKS
        mine = range(rank * self.own, (rank + 1) * self.own)
        sites = [LookupSite(f"s{f}", f"t{f}", i, ROWS, WIDTH, "sum", False) for i, f in enumerate(mine)]
        weights = {f"t{f}": model.tables[f].weight for f in mine}  # type: ignore[union-attr]
        self.lookup = ShardedLookup(sites, weights, optimizer="sgd", lr=TABLE_LR)  # type: ignore[arg-type]
        self.lookup.grad_scale = 1 / RANKS
        self.model = model
        self.parameters = [*model.bottom.parameters(), *model.top.parameters()]
        self.optimizer = torch.optim.SGD(self.parameters, lr=LR)
        self.layout = BatchLayout(BATCH, ((BATCH,) * RANKS,))

    def __call__(self, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        """One step."""
        dense, ids, label = inputs
        sent = ids.t().to(torch.int32).contiguous()
        arrived = torch.empty_like(sent)
        dist.all_to_all_single(arrived, sent)
        by_feature = arrived.view(RANKS, self.own, BATCH).transpose(0, 1).reshape(self.own, -1)
        none = (None,) * self.own
        rows = self.lookup(RoutedIds(tuple(by_feature), none, none, self.layout))
        blocks = _Exchange.apply(rows).view(RANKS, BATCH, self.own, WIDTH)
        columns = [blocks[r, :, i] for r in range(RANKS) for i in range(self.own)]
        loss_of(self.model.interact(self.model.bottom(dense), columns), label).backward()
        flat = torch.cat([p.grad.view(-1) for p in self.parameters])  # type: ignore[union-attr]
        dist.all_reduce(flat)
        flat /= RANKS
        for p, part in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            p.grad = part.view_as(p)
        self.optimizer.step()
        self.optimizer.zero_grad()


def sides(name: str, rank: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """The step that is judged, and the one it is judged by."""
    import deepspeed

    import dmt_plugin
    from dmt_plugin.integrations.deepspeed.private import without_shm_build

    larger = LARGER if name == "check_finite" else (FEATURES, ROWS, WIDTH)

    def model() -> DLRM:
        torch.manual_seed(0)
        return DLRM(*larger)

    if name == "disabled":
        with without_shm_build():
            deepspeed.init_distributed("gloo")
            stock, *_ = deepspeed.initialize(model=model(), config=ds_config(None))
            ours, *_ = dmt_plugin.initialize(model=model(), config=ds_config({"enabled": False}))
        return engine_step(ours), engine_step(stock)

    def on_one_host(check_finite: bool) -> Callable[..., None]:
        section = {
            "topology": {"hosts": 1, "ranks_per_host": RANKS},
            "towers": {"module": "none"},
            "lookup": {"optimizer": "sgd", "lr": TABLE_LR, "check_finite": check_finite},
        }
        example = batch(0, 0, *larger[:2])[:2]
        engine, *_ = dmt_plugin.initialize(model=model(), config=ds_config(section), example_batch=example)
        return engine_step(engine)

    return on_one_host(True), on_one_host(False) if name == "check_finite" else ByHand(model(), rank)


def measure(rank: int, name: str, folder: str, repeats: int) -> None:
    """One comparison on this rank; rank 0 leaves the seconds of each side's runs in a file."""
    torch.set_num_threads(1)
    keep_freed_memory()
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank), LOCAL_SIZE=str(RANKS), CROSS_RANK="0",
        CROSS_SIZE="1", DS_ACCELERATOR="cpu",
    )  # fmt: skip
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    both = sides(name, rank)
    sizes = LARGER[:2] if name == "check_finite" else (FEATURES, ROWS)
    data = [batch(rank, number, *sizes) for number in range(STEPS)]
    seconds: list[list[float]] = [[], []]
    busy: list[list[float]] = [[], []]
    for repeat in range(repeats + 1):
        for side in (0, 1) if repeat % 2 else (1, 0):
            dist.barrier()
            start, used = time.perf_counter(), time.process_time()
            for inputs in data:
                both[side](inputs)
            dist.barrier()
            if repeat:  # the first is for warming up
                seconds[side].append((time.perf_counter() - start) / STEPS)
                busy[side].append((time.process_time() - used) / STEPS)
    if rank == 0:
        Path(folder, "seconds.json").write_text(json.dumps([seconds, busy]))
    dist.barrier()
    dist.destroy_process_group()


def compare(name: str, repeats: int = REPEATS) -> dict[str, float]:
    """Median step times of both sides in milliseconds, and median, least and largest ratio."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, args=(name, folder, repeats), nprocs=RANKS)  # type: ignore[no-untyped-call]
        (ours, other), busy = json.loads(Path(folder, "seconds.json").read_text())
    ratios = sorted(a / b for a, b in zip(ours, other, strict=True))
    return {
        "ours_ms": 1e3 * statistics.median(ours),
        "other_ms": 1e3 * statistics.median(other),
        "ratio": statistics.median(ratios),
        "least": ratios[0],
        "largest": ratios[-1],
        "cpu": statistics.median(a / b for a, b in zip(*busy, strict=True)),
    }


def main() -> int:
    """All comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"runs of each side ({REPEATS})")
    parser.add_argument("--only", choices=list(BOUNDS), help="one of the comparisons")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a median is out of bounds")
    options = parser.parse_args()
    failed = False
    for name, (low, high) in BOUNDS.items():
        if options.only not in (None, name):
            continue
        found = compare(name, options.repeats)
        fits = low <= found["ratio"] <= high
        failed |= not fits
        sys.stdout.write(
            f"{name}: {found['ours_ms']:.2f} ms beside {found['other_ms']:.2f} ms, ratio {found['ratio']:.3f} "
            f"({found['least']:.3f} to {found['largest']:.3f} over {options.repeats} runs; of rank 0's CPU time "
            f"{found['cpu']:.3f}), bounds {low} to {high}: "
            f"{'inside' if fits else 'OUTSIDE'}\n"
        )
    return int(failed and options.check)


if __name__ == "__main__":
    raise SystemExit(main())
