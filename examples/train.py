"""Trains the flat DLRM on the flights data under DeepSpeed, for one epoch, on any number of ranks.

    deepspeed --num_accelerators 4 examples/train.py --deepspeed --deepspeed_config examples/ds_dmt.json

What `dmt_plugin` asks of a training script is two lines: the import, and `dmt_plugin.initialize` where
`deepspeed.initialize` stood. The JSON file decides whether the model is rewritten; the script does not know.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import deepspeed
import flights  # type: ignore[import-not-found]
import torch
import torch.distributed as dist
from dlrm import build, example_batch  # type: ignore[import-not-found]
from measure import TrafficMeter, count_dense, count_tables, predict, score  # type: ignore[import-not-found]
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

import dmt_plugin


def parse_args() -> argparse.Namespace:
    """The script's own options and DeepSpeed's."""
    parser = argparse.ArgumentParser(description="a flat DLRM on the flights of 2013")
    parser.add_argument("--data", default="build/demo/flights.npz", help="prepared data; made if it is not there")
    parser.add_argument("--out", default="build/demo/train", help="folder for metrics.json and logits.pt")
    parser.add_argument("--name", default="train", help="label of the progress bar")
    parser.add_argument("--seed", type=int, default=2, help="decides the initial weights and the batches")
    parser.add_argument("--max-steps", type=int, default=None, help="stop early")
    parser.add_argument("--check-step", type=int, default=20, help="save all test logits after this step")
    parser.add_argument("--curve-every", type=int, default=32, help="steps between points of the learning curve")
    parser.add_argument(
        "--tables-on-meta", action="store_true", help="build the model without its tables; their owners make the rows"
    )
    parser.add_argument("--local_rank", type=int, default=-1, help="set by the launcher")
    return deepspeed.add_config_arguments(parser).parse_args()


def tensors(part: tuple) -> tuple[Tensor, Tensor, Tensor]:
    """One part of the data set, `(dense, sparse, label)`, as tensors."""
    dense, sparse, label = (torch.from_numpy(array) for array in part)
    return dense, sparse.long(), label


def batches(rows: int, per_rank: int, seed: int) -> list[Tensor]:
    """This rank's row numbers for each step of the epoch; every rank takes the same number of steps.

    The order depends on the seed alone. What is left for the last step is shared out as evenly as it goes.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return [step.tensor_split(world)[rank] for step in order.split(per_rank * world) if len(step) >= world]


def main() -> None:
    """Trains, evaluates, and writes `metrics.json` and `logits.pt` on rank 0."""
    args = parse_args()
    torch.manual_seed(args.seed)
    with dmt_plugin.tables_on_meta() if args.tables_on_meta else nullcontext():
        model = build()
    table_params = count_tables(model)
    data = flights.load(args.data)
    dense, sparse, label = tensors(data.part(flights.TRAIN))
    validation, test = tensors(data.part(flights.VALIDATION)), tensors(data.part(flights.TEST))

    def first_batches() -> Iterator[tuple[Tensor, Tensor]]:
        """For `"dedup": "auto"`: how many of the rows that these look up are distinct decides how rows travel."""
        order = torch.randperm(len(label), generator=torch.Generator().manual_seed(args.seed))
        return ((dense[rows], sparse[rows]) for rows in order.split(1024))

    engine, _, _, _ = dmt_plugin.initialize(
        args=args,
        model=model,
        model_parameters=model.parameters(),
        example_batch=example_batch(),
        shares_from=first_batches,
    )
    rank, world = dist.get_rank(), dist.get_world_size()
    steps = batches(len(label), engine.train_micro_batch_size_per_gpu(), args.seed)[: args.max_steps]

    traffic = TrafficMeter(engine)
    curve: list[dict[str, float]] = []
    losses: list[float] = []
    early_logits = None
    seconds = 0.0
    timed = samples = 0
    traffic.drop()
    started = time.perf_counter()
    for step, rows in enumerate(tqdm(steps, desc=args.name, unit="step", disable=rank != 0), start=1):
        logits = engine(dense[rows].to(engine.device), sparse[rows].to(engine.device))
        loss = binary_cross_entropy_with_logits(logits, label[rows].to(engine.device))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        samples += len(rows)
        timed += len(rows)

        if step == args.check_step or step % args.curve_every == 0 or step == len(steps):
            seconds += time.perf_counter() - started
            traffic.take()
            if step == args.check_step:  # the steps so far were the warm-up
                early_logits = predict(engine, test)
                seconds, timed = 0.0, 0
            else:
                logits = predict(engine, validation)
                found = score(logits, validation[2]) if rank == 0 else {}
                mean = torch.tensor(losses).mean().to(engine.device)
                dist.all_reduce(mean)
                curve.append({"samples": samples * world, "train_loss": mean.item() / world, **found})
                losses.clear()
            traffic.drop()
            dist.barrier()
            started = time.perf_counter()

    logits = predict(engine, test)
    counted = torch.tensor([samples, timed], device=engine.device)
    dist.all_reduce(counted)
    metrics = {
        **(score(logits, test[2]) if rank == 0 else {}),
        "samples_per_s": int(counted[1]) / seconds if seconds else None,
        "steps": len(steps),
        "samples": int(counted[0]),
        "world": world,
        "batch_per_rank": engine.train_micro_batch_size_per_gpu(),
        "seed": args.seed,
        "table_params": table_params,
        "dense": count_dense(engine),
        "traffic": traffic.total(),
        "curve": curve,
    }
    if rank == 0:
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        torch.save({"early": early_logits, "final": logits}, out / "logits.pt")
        (out / "metrics.json").write_text(json.dumps(metrics, indent=2))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
