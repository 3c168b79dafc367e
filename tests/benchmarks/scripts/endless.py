"""Trains until something stops it; every rank writes a line per step, and its error, into a file of its own."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import nn

import dmt_plugin


class Recommender(nn.Module):
    """Its dense part is large enough for its all-reduce to take most of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.EmbeddingBag(50, 4, mode="sum") for _ in range(4)])
        self.over = nn.Sequential(nn.Linear(16, 20_000), nn.ReLU(), nn.Linear(20_000, 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.over(torch.cat([t(ids[:, i : i + 1]) for i, t in enumerate(self.tables)], dim=1)).squeeze(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int, default=-1)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = (args.folder / f"rank{os.environ['RANK']}").open("w", buffering=1)
    config = {
        "train_micro_batch_size_per_gpu": 8,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "steps_per_print": 10**9,
        "dmt": {"lookup": {"backend": "torch"}, "comm": {"timeout_s": args.timeout}},
    }
    ids = torch.randint(0, 50, (8, 4))
    try:
        engine, *_ = dmt_plugin.initialize(model=Recommender(), config=config, example_batch=(ids,))
        log.write(f"topology {engine.dmt.topology} by {engine.dmt.source}\n")
        for step in range(10**9):
            engine.backward(engine(ids).square().mean())
            engine.step()
            log.write(f"step {step}\n")
    except BaseException as error:
        log.write(f"{type(error).__name__}: {error}\n")
        raise


if __name__ == "__main__":
    main()
