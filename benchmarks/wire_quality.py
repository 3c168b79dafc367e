"""What a wire format between hosts costs in AUC: the demo's towers, trained with rounded exchanges, over seeds.

    python -m benchmarks.wire_quality                              # 16 seeds, about 5 minutes of one core
    python -m benchmarks.wire_quality --seeds 5 --formats fp32 int8 int8/bf16

1. Model, data, batches, optimizer and towers are the demo's (`examples/`, `ds_dmt.json`), on its 2 hosts of 2 ranks.
2. One process trains the logical graph on the batches of all four ranks together. What leaves a host is what its tower
   module returns, so that is encoded and decoded, by the codecs that ranks use; and so is its gradient on the way back,
   at the size it has on a rank, whose loss is the mean over its own samples. Ranks compute the same, to the order of
   additions (`tests/benchmarks/test_wire_quality.py` compares). Rows are rounded in evaluation too.
3. Runs of one seed differ in the format alone: each is compared with fp32 of its own seed.
4. Every run goes to `build/wire_quality.json` as it ends; then mean, deviation and the paired difference are printed.

A format is `forward` or `forward/backward`, with what `dmt.comm.peer_grad_dtype` takes where it is "auto".
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.autograd import Function
from tqdm import tqdm

import dmt_plugin
from benchmarks.quality_statistics import paired
from dmt_plugin.comm.formats import FORMATS, Format, gradient_format
from dmt_plugin.comm.wire.codecs import Codec, codec_of
from dmt_plugin.config.section import load_ds_config
from dmt_plugin.fxtools.names import tower_number
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.report.parts.tables import Column, Table
from examples import flights, seeds
from examples.dlrm import build, example_batch

TOPOLOGY = "2x2"
CHOSEN = ("fp32", "bf16", "fp16", "int8", "int8/bf16")


def formats_of(name: str) -> tuple[Format, Format]:
    """The formats of both directions: `"fp16"` sends gradients as the plugin does by default, `"int8/bf16"` as named.

    Raises:
        ValueError: there is no such format.
    """
    forward, _, backward = name.partition("/")
    unknown = sorted({forward, backward or forward} - set(FORMATS))
    if unknown:
        raise ValueError(f"unknown wire format {unknown[0]!r} in {name!r}; expected one of {', '.join(FORMATS)}.")
    return forward, gradient_format(forward, backward or "auto")  # type: ignore[arg-type, return-value]


def _sent(rows: Tensor, codec: Codec) -> Tensor:
    """Rows `(B, width)` as they arrive."""
    (arrived,) = codec.decode(codec.encode([rows]), [(rows.shape[0], rows.shape[1])], rows.dtype)
    return arrived


class _Exchange(Function):
    """What the exchange between hosts does to the numbers, in both directions."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, codecs: tuple[Codec, Codec], ranks: int) -> Tensor:
        ctx.codec, ctx.ranks = codecs[1], ranks
        return _sent(rows, codecs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return _sent(gradient * ctx.ranks, ctx.codec) / ctx.ranks, None, None


def round_towers(model: TowerModel, formats: tuple[Format, Format], ranks: int) -> None:
    """Rounds what each tower returns, and its gradient, as the exchange between hosts does; changes `model`.

    Args:
        model: towers, one on each host: then what a tower returns for a sample is one row of the exchange.
        formats: of the forward and the backward direction.
        ranks: over how many ranks the loss is averaged: on a rank gradients are so many times larger.

    Raises:
        ValueError: a host has several towers, whose outputs share a row (and its scales).
    """
    hosts = model.plan.tower_hosts
    if len(set(hosts)) != len(hosts):
        raise ValueError(f"the towers are on the hosts {list(hosts)}; this comparison takes one tower on each host.")
    codecs = codec_of(formats[0]), codec_of(formats[1])
    for name, module in model.named_modules():
        if tower_number(name) is not None:
            module.register_forward_hook(lambda m, args, out: _Exchange.apply(out, codecs, ranks))


def train(seed: int, names: Sequence[str], train_part: Any, test_part: Any, config: dict[str, Any]) -> list[dict]:
    """One run for each format, from the same weights on the same batches."""
    torch.manual_seed(seed)
    towers = dmt_plugin.transform(build(), example_batch(), config, TOPOLOGY)
    found = []
    for name in names:
        model = copy.deepcopy(towers)
        round_towers(model, formats_of(name), seeds.RANKS)
        started = time.perf_counter()
        auc = seeds.auc(model, train_part, test_part, seed, config)
        found.append({"format": name, "seed": seed, "auc": auc, "seconds": time.perf_counter() - started})
    return found


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each format: mean and standard deviation of the AUC, and the difference to fp32 of the same seed."""
    exact = {run["seed"]: run["auc"] for run in runs if run["format"] == "fp32"}
    found = {}
    for name in dict.fromkeys(run["format"] for run in runs):
        own = [run for run in runs if run["format"] == name]
        values = [run["auc"] for run in own]
        differences = [run["auc"] - exact[run["seed"]] for run in own]
        found[name] = {
            "gradients": formats_of(name)[1],
            "seeds": len(own),
            "auc": float(np.mean(values)),
            "auc_std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "to_fp32": {**paired(differences), "each": differences},
        }
    return found


def table_of(summary: dict[str, dict[str, Any]]) -> Table:
    """The summary as a table."""
    columns = (
        Column("rows", "wire format"), Column("gradients", "of gradients"), Column("auc", "test AUC", ".5f"),
        Column("std", "std", ".5f"), Column("mean", "to fp32", "+.6f", "same seed"),
        Column("low", "from", "+.6f", "95 %"), Column("high", "to", "+.6f", "95 %"),
    )  # fmt: skip
    rows = []
    for name, entry in summary.items():
        forward, gradients = formats_of(name)
        difference = {key: entry["to_fp32"][key] for key in ("mean", "low", "high")}
        rows.append(
            {"rows": forward, "gradients": gradients, "auc": entry["auc"], "std": entry["auc_std"]} | difference
        )
    return Table(columns, rows)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="AUC of the demo's towers by wire format, over seeds")
    parser.add_argument("--seeds", type=int, default=16, help="runs of each format")
    parser.add_argument("--formats", nargs="+", default=CHOSEN, help="forward, or forward/backward; fp32 is added")
    parser.add_argument("--data", type=Path, default=Path("build/demo/flights.npz"), help="made if it is not there")
    parser.add_argument("--out", type=Path, default=Path("build/wire_quality.json"))
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Trains, writes, prints."""
    options = arguments(given)
    names = tuple(dict.fromkeys(("fp32", *options.formats)))
    for name in names:
        formats_of(name)  # an unknown one is refused before anything is trained
    torch.set_num_threads(1)
    options.data.parent.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    data = flights.load(options.data)
    parts = [seeds.tensors(data.part(part)) for part in (flights.TRAIN, flights.TEST)]
    config = load_ds_config(seeds.CONFIG)
    setting = {
        "topology": TOPOLOGY, "config": config, "training_samples": len(parts[0][2]), "test_samples": len(parts[1][2]),
        "torch": torch.__version__, "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread used",
    }  # fmt: skip
    every: list[dict[str, Any]] = []
    summary: dict[str, dict[str, Any]] = {}
    for seed in tqdm(range(1, options.seeds + 1), unit="seed"):
        every += train(seed, names, *parts, config)
        summary = summarise(every)
        written = {"setting": setting, "formats": summary, "runs": every}
        options.out.write_text(json.dumps(written, indent=2) + "\n")
    console = Console(width=120)
    console.print(table_of(summary).to_rich(f"test AUC over {options.seeds} seeds, by wire format between hosts"))
    console.print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
