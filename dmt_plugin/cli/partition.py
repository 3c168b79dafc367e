"""``dmt partition``: which feature belongs to which tower, from a model and its data, with the reasons shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from dmt_plugin.checkpoint.folder import whole_file
from dmt_plugin.cli.partition_flow import Request, counted_rows, make, weighed
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.partitioning.partition_model import plan_data, with_partition
from dmt_plugin.report.partition.page import page_of
from dmt_plugin.report.partition.picture import save_png
from dmt_plugin.report.partition.view import table_of, view_of
from dmt_plugin.topology.shape import Topology


def command(
    towers: Annotated[int | None, typer.Option(min=1, help="Number of towers; default: the config's.")] = None,
    model: Annotated[str | None, typer.Option(help="package.module:factory or path/to/file.py:factory.")] = None,
    data: Annotated[str | None, typer.Option(help="Function that returns an iterable of batches.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the partition goes: a dmt.partition.file.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help='DeepSpeed JSON whose "dmt" section gives defaults, rules and tower modules.')
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="State dict to load into the model, or to take tables from for --ids.")
    ] = None,
    ids: Annotated[
        Path | None, typer.Option(help="Instead of a model and data: .npz with an array of ids per feature.")
    ] = None,
    warm_up: Annotated[int, typer.Option(min=0, help="Train the flat model for this many steps first.")] = 0,
    loss: Annotated[
        str | None, typer.Option(help="For training: logits, probabilities, output, or package.module:function.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate of such training (Adagrad).")] = 0.02,
    strategy: Annotated[
        str | None, typer.Option(help="learned (default), graph, random, greedy_balance, strided, contiguous.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="coherent (default), diverse, mutual_information, auto.")
    ] = None,
    try_steps: Annotated[
        int, typer.Option(min=0, help="With --objective auto: decide by training this many steps with towers.")
    ] = 0,
    balance: Annotated[str | None, typer.Option(help="count (default) or cost.")] = None,
    bound: Annotated[float | None, typer.Option(min=1, help="See dmt.partition.bound.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of all starting points.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to measure the affinity on.")] = 50_000,
    missing: Annotated[str, typer.Option(help="Features that never occur: error, or zero affinity.")] = "error",
    affinity: Annotated[Path | None, typer.Option(help="Affinity file to use instead of measuring.")] = None,
    save_affinity: Annotated[Path | None, typer.Option(help="Where the affinity goes (.npz).")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for partition.png and partition.html.")] = None,
    transform: Annotated[
        Path | None, typer.Option(help="Also transform the model, and save it here with torch.save.")
    ] = None,
    topology: Annotated[
        str | None, typer.Option(help='"HxL": write a whole plan for H hosts of L ranks, not the towers alone.')
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Samples per rank, to count distinct rows for (comm.dedup); default: the config's micro batch."
        ),
    ] = None,
    ranks_per_host: Annotated[
        int | None, typer.Option(min=1, help="Ranks per host, for the same; default: --topology, the config, else 1.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the partition as JSON.")] = False,
) -> None:
    """Decide which feature belongs to which tower, from a model and its data, and show why."""
    if missing not in ("error", "zero"):
        raise ConfigError(f"--missing {missing}: expected error or zero.")
    request = Request(
        towers, model, data, config, checkpoint, ids, affinity, strategy, objective, balance, bound, seed, samples,
        missing, warm_up, try_steps, loss, lr, progress=not as_json,
    )  # fmt: skip
    made = make(request)
    notes = []
    if (transform or topology) and made.model is None:
        raise ConfigError("--transform and --topology need --model and --data.")
    if save_affinity is not None:
        if made.affinity is None:
            raise ConfigError("--save-affinity: this strategy measures no affinity. Use learned or graph.")
        notes.append(f"affinity: {made.affinity.save(save_affinity)}")
    where = Topology.parse(topology) if topology else None
    if where is not None and ranks_per_host not in (None, where.ranks_per_host):
        raise ConfigError(f"--ranks-per-host {ranks_per_host}, but --topology {topology}: leave one of them out.")
    lanes = where.ranks_per_host if where is not None else ranks_per_host
    shares, note = counted_rows(request, made, batch_size, lanes)
    notes += [note] if note else []
    made = weighed(request, made, shares, lanes)
    content = plan_data(made.partition, made.fingerprint, shares)
    if transform is not None or topology is not None:
        towered = with_partition(made.model, made.example, made.config, made.partition, where, shares)
        if topology is not None:
            content = towered.plan.to_dict()
        if transform is not None:
            with whole_file(transform) as stream:
                torch.save(towered, stream)
            notes.append(f"model with towers: {transform}, torch.load(..., weights_only=False)")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(content, indent=2) + "\n")
        fits = f"the topology {topology}" if topology else "any topology"
        notes.append(f'partition: {output}, for {fits}; "partition": {{"strategy": "file", "file": "{output}"}}')
    view = view_of(made.partition)
    if report is not None:
        notes.append(f"picture: {save_png(view, report / 'partition.png')}")
        notes.append(f"page: {page_of(view).write(report / 'partition.html')}")
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    console = Console()
    console.print(table_of(view).to_rich(view.headline))
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
