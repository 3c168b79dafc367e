"""``dmt partition``: which feature belongs to which tower, from a model and its data, with the reasons shown.

1. Build the model; load a checkpoint, or warm it up for some steps.
2. Measure the affinity of its features on batches of data, or read one measured before.
3. Make the partition; with ``--try-steps``, decide between objectives by short trainings.
4. Show it, and write what was asked for: the partition, the affinity, a report, the transformed model.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dmt_plugin.cli.partition_inputs import batches_of, importable_here, load_model, loss_of, read_section
from dmt_plugin.config import DMTConfig, PartitionConfig
from dmt_plugin.errors import ConfigError

if TYPE_CHECKING:
    from dmt_plugin.feature_rows import FeatureRows
    from dmt_plugin.partitioner import Affinity, Partition

_NO_DATA = ("strided", "contiguous", "random", "greedy_balance")


@dataclass(frozen=True)
class Request:
    """What was asked for; the fields are the options of the command."""

    towers: int | None = None
    model: str | None = None
    data: str | None = None
    config: str | None = None
    checkpoint: Path | None = None
    affinity: Path | None = None
    strategy: str | None = None
    objective: str | None = None
    balance: str | None = None
    bound: float | None = None
    seed: int | None = None
    samples: int = 50_000
    missing: str = "error"
    warm_up: int = 0
    try_steps: int = 0
    loss: str | None = None
    lr: float = 0.02
    progress: bool = False


@dataclass
class Made:
    """What came of a request.

    Attributes:
        partition: the towers and how they came about.
        section: the ``"dmt"`` section with the number of towers.
        fingerprint: of the model; ``""`` without one.
        affinity: what was measured or read, if anything.
        model: the model, warmed up where that was asked for.
        example: one call of it.
    """

    partition: Partition
    section: DMTConfig
    fingerprint: str = ""
    affinity: Affinity | None = None
    model: Any = None
    example: Any = None


def make(request: Request) -> Made:
    """Does what the command does, but for showing and writing.

    Raises:
        DMTError: anything that cannot be found, read, captured, measured or kept.
    """
    importable_here()
    section = read_section(request.config, request.model)
    towers = request.towers or section.towers.count
    if towers == "auto":
        raise ConfigError("how many towers? Give --towers, or a --config with dmt.towers.count.")
    section = section.model_copy(update={"towers": section.towers.model_copy(update={"count": int(towers)})})
    config = _settings(section.partition, request)
    if request.model is None:
        return _from_affinity_alone(request, section, config, int(towers))
    if request.data is None:
        raise ConfigError("--data is missing: package.module:function that returns an iterable of batches.")
    from dmt_plugin.feature_rows import FeatureRows
    from dmt_plugin.partitioner import Affinity, make_partition
    from dmt_plugin.short_training import warm_up

    model = load_model(request.model, request.checkpoint)
    start = batches_of(request.data)
    example = next(iter(start()), None)
    if example is None:
        raise ConfigError(f"--data {request.data} gave no batch.")
    if request.warm_up:
        loss = loss_of(request.loss, "--warm-up")
        warm_up(
            model, start(), loss, request.warm_up, learning_rate=request.lr, progress=request.progress
        )
    rows = FeatureRows(model, example)
    made = Made(
        make_partition(rows.features, rows.tables, 1, PartitionConfig()), section, rows.fingerprint, None, model, example
    )
    if request.try_steps and config.objective == "auto" and config.strategy == "learned":
        return _by_training(request, made, rows, config, start)
    if config.strategy not in _NO_DATA:
        made.affinity = (
            Affinity.load(request.affinity) if request.affinity else _measured(request, rows, start, _kind(config))
        )
    made.partition = make_partition(
        rows.features, rows.tables, int(towers), config, affinity=made.affinity, model=rows.fingerprint
    )
    made.partition = _told(made.partition, request)
    return made


def _settings(base: PartitionConfig, request: Request) -> PartitionConfig:
    """The config's ``partition`` section with the options on top of it."""
    kept = base.model_dump(exclude_unset=True)
    given = {"strategy": request.strategy, "objective": request.objective, "balance": request.balance}
    given |= {"bound": request.bound, "seed": request.seed}
    kept |= {key: value for key, value in given.items() if value is not None}
    if "strategy" not in kept or (kept["strategy"] == "file" and request.strategy is None):
        kept["strategy"] = "learned"
    kept.pop("file", None)
    kept.pop("affinity", None)
    from pydantic import ValidationError

    from dmt_plugin.config import read_dmt_config

    try:
        return PartitionConfig.model_validate(kept)
    except ValidationError:
        read_dmt_config({"dmt": {"partition": kept}}, "the options of dmt partition")  # says it in one message
        raise


def _kind(config: PartitionConfig) -> Any:
    return "mutual_information" if config.objective == "mutual_information" else "cosine"


def _measured(request: Request, rows: FeatureRows, start: Any, kind: Any) -> Affinity:
    from dmt_plugin.partitioning import measure_affinity

    return measure_affinity(
        rows, start(), kind, samples=request.samples, missing=request.missing, progress=request.progress
    )


def _from_affinity_alone(request: Request, section: DMTConfig, config: PartitionConfig, towers: int) -> Made:
    """A partition of the features that an affinity file names; without a model there are no tables to weigh."""
    from dmt_plugin.partitioner import Affinity, make_partition
    from dmt_plugin.plan import FeatureSpec

    if request.affinity is None:
        raise ConfigError("give --model and --data, or the --affinity file of a model that was measured before.")
    if config.balance == "cost" or config.strategy == "greedy_balance":
        raise ConfigError("a balance by cost weighs tables, which an affinity file does not know. Give --model too.")
    found = Affinity.load(request.affinity)
    features = [FeatureSpec(name, (name,)) for name in found.features]
    partition = make_partition(features, (), towers, config, affinity=found)
    return Made(_told(partition, request), section, found.model, found)


def _by_training(request: Request, made: Made, rows: FeatureRows, config: PartitionConfig, start: Any) -> Made:
    """Partitions by every objective; the one whose towers train best is taken."""
    from dmt_plugin.partitioner import make_partition
    from dmt_plugin.partitioning import choose_by_training

    loss = loss_of(request.loss, "--try-steps")
    held = max(1, request.try_steps // 4)
    batches = list(itertools.islice(start(), request.try_steps + held))
    if len(batches) < request.try_steps + held:
        raise ConfigError(
            f"--try-steps {request.try_steps} needs {request.try_steps} batches to train on and {held} to judge by; "
            f"--data {request.data} has {len(batches)}. Lower it to at most {len(batches) * 4 // 5}."
        )
    affinities = {kind: _measured(request, rows, start, kind) for kind in ("cosine", "mutual_information")}
    candidates = {}
    for objective in ("coherent", "diverse", "mutual_information"):
        one = config.model_copy(update={"objective": objective})
        candidates[objective] = make_partition(
            rows.features, rows.tables, int(made.section.towers.count), one, affinity=affinities[_kind(one)]
        )
    best, losses = choose_by_training(
        made.model, candidates, made.example, made.section, batches[: request.try_steps],
        batches[request.try_steps :], loss, request.try_steps, learning_rate=request.lr, progress=request.progress,
    )  # fmt: skip
    made.affinity = candidates[best].affinity
    chosen = candidates[best]
    about = {**chosen.provenance, "asked": "auto", "held_out_loss": losses, "try_steps": request.try_steps}
    made.partition = _told(replace(chosen, provenance=about), request)
    return made


def _told(partition: Partition, request: Request) -> Partition:
    """The partition with what it was made from in its provenance."""
    about = dict(partition.provenance)
    if request.affinity is not None and "affinity" in about:
        about["affinity"] = {**about["affinity"], "file": str(request.affinity)}
    if request.warm_up:
        about["warm_up_steps"] = request.warm_up
    if request.checkpoint is not None:
        about["checkpoint"] = str(request.checkpoint)
    return replace(partition, provenance=about)


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
    checkpoint: Annotated[Path | None, typer.Option(help="State dict to load into the model.")] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print the partition as JSON.")] = False,
) -> None:
    """Decide which feature belongs to which tower, from a model and its data, and show why."""
    made = make(
        Request(
            towers, model, data, config, checkpoint, affinity, strategy, objective, balance, bound, seed, samples,
            missing, warm_up, try_steps, loss, lr, progress=not as_json,
        )  # fmt: skip
    )
    from dmt_plugin.partitioning import plan_data, with_partition
    from dmt_plugin.report.partition_view import table_of, view_of

    notes = []
    if (transform or topology) and made.model is None:
        raise ConfigError("--transform and --topology need --model and --data.")
    if save_affinity is not None:
        if made.affinity is None:
            raise ConfigError("--save-affinity: this strategy measures no affinity. Use learned or graph.")
        notes.append(f"affinity: {made.affinity.save(save_affinity)}")
    content = plan_data(made.partition, made.fingerprint)
    if transform is not None or topology is not None:
        import torch

        from dmt_plugin.topology import Topology

        where = Topology.parse(topology) if topology else None
        towered = with_partition(made.model, made.example, made.section, made.partition, where)
        if topology is not None:
            content = towered.plan.to_dict()
        if transform is not None:
            torch.save(towered, transform)
            notes.append(f"model with towers: {transform}, torch.load(..., weights_only=False)")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(content, indent=2) + "\n")
        fits = f"the topology {topology}" if topology else "any topology"
        notes.append(f'partition: {output}, for {fits}; "partition": {{"strategy": "file", "file": "{output}"}}')
    view = view_of(made.partition)
    if report is not None:
        from dmt_plugin.report.partition_page import page_of
        from dmt_plugin.report.partition_picture import save_png

        notes.append(f"picture: {save_png(view, report / 'partition.png')}")
        notes.append(f"page: {page_of(view).write(report / 'partition.html')}")
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    console = Console()
    console.print(table_of(view).to_rich(view.headline))
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
