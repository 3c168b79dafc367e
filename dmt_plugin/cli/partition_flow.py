"""What ``dmt partition`` does, but for showing and writing.

1. Build the model; load a checkpoint, or warm it up for some steps.
2. Measure the affinity of its features on batches of data, or read one measured before. Without a model: on a file of
   ids, for cosines with the tables of a checkpoint.
3. Make the partition; with ``--try-steps``, decide between objectives by short trainings.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from dmt_plugin.capture.example_call import example_of
from dmt_plugin.cli.load import importable_here
from dmt_plugin.cli.partition_inputs import batches_of, load_model, loss_of, read_config, read_state
from dmt_plugin.compiler import candidate_rows_of, count_rows_of
from dmt_plugin.config.section import DMTConfig, PartitionConfig, read_dmt_config
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.partitioner import Affinity, Partition, make_partition
from dmt_plugin.partitioner.samples import affinity_of_ids, read_ids
from dmt_plugin.partitioning.feature_rows import FeatureRows
from dmt_plugin.partitioning.partition_model import choose_by_training, measure_affinity
from dmt_plugin.partitioning.short_training import warm_up
from dmt_plugin.passes.base import DataToCount
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.plan.tower_plan import FeatureSpec
from dmt_plugin.topology.shape import Topology

_NO_AFFINITY = ("strided", "contiguous", "random", "greedy_balance")


@dataclass(frozen=True)
class Request:
    """What was asked for; the fields are the options of the command."""

    towers: int | None = None
    model: str | None = None
    data: str | None = None
    config: str | None = None
    checkpoint: Path | None = None
    ids: Path | None = None
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
        config: the ``"dmt"`` section with the number of towers.
        fingerprint: of the model; ``""`` without one.
        affinity: what was measured or read, if anything.
        model: the model, warmed up where that was asked for.
        example: one call of it.
        micro_batch: samples per rank, where the configuration says them.
        rows: gives the model's features and tables.
        rules: the partition's settings.
    """

    partition: Partition
    config: DMTConfig
    fingerprint: str = ""
    affinity: Affinity | None = None
    model: Any = None
    example: Any = None
    micro_batch: int | None = None
    rows: FeatureRows | None = None
    rules: PartitionConfig | None = None


@dataclass(frozen=True)
class _Flat:
    """A flat model that is ready to be looked at."""

    model: nn.Module
    rows: FeatureRows
    start: Callable[[], Iterable[Any]]
    example: Any


def make(request: Request) -> Made:
    """Does what the command does, but for showing and writing.

    Raises:
        DMTError: anything that cannot be found, read, captured, measured or kept.
    """
    importable_here()
    config, whole = read_config(request.config, request.model)
    towers = request.towers or config.towers.count
    if towers == "auto":
        raise ConfigError("how many towers? Give --towers, or a --config with dmt.towers.count.")
    config = config.model_copy(update={"towers": config.towers.model_copy(update={"count": int(towers)})})
    rules = _settings(config.partition, request)
    _refuse_unread(request, rules)
    if request.model is None:
        return _without_model(request, config, rules, int(towers))
    flat = _prepared(request)
    if request.try_steps and rules.objective == "auto" and rules.strategy == "learned":
        partition = _by_training(request, flat, config, rules)
    else:
        partition = _by_affinity(request, flat, int(towers), rules)
    own = whole.get("train_micro_batch_size_per_gpu")
    return Made(
        _told(partition, request), config, flat.rows.fingerprint, partition.affinity, flat.model, flat.example,
        own if isinstance(own, int) else None, flat.rows, rules,
    )  # fmt: skip


def weighed(request: Request, made: Made, shares: RowShares | None, lanes: int | None) -> Made:
    """The same with a balance by cost that weighs distinct rows; as it is where nothing is weighed, or was counted.

    Args:
        request: what was asked for.
        made: what came of it.
        shares: what was counted.
        lanes: ranks per host; None: as they were counted.
    """
    rules, rows = made.rules, made.rows
    if shares is None or rules is None or rows is None or request.try_steps:
        return made
    if rules.balance != "cost" and rules.strategy != "greedy_balance":
        return made
    towers = len(made.partition.towers)
    where = Topology(towers, lanes or shares.lanes)
    counted = candidate_rows_of(made.model, made.example, made.config, where, shares)
    partition = make_partition(
        rows.features, rows.tables, towers, rules, affinity=made.affinity, model=rows.fingerprint, rows=counted
    )
    return replace(made, partition=_told(partition, request))


def counted_rows(
    request: Request, made: Made, batch_size: int | None, lanes: int | None
) -> tuple[RowShares | None, str]:
    """How many of the rows that the data look up are distinct, and what there is to say of it.

    Args:
        request: what was asked for.
        made: what came of it.
        batch_size: samples per rank; None: the config's micro batch. Without either nothing is counted.
        lanes: ranks per host; None: the config's, else 1.

    Raises:
        IdRangeError: an id of the data is outside its table.
    """
    if made.model is None or request.data is None:
        if batch_size is not None:
            raise ConfigError("--batch-size counts distinct rows, which needs --model and --data.")
        return None, ""
    samples = batch_size or made.micro_batch
    if samples is None:
        return None, "distinct rows: not counted, as neither --batch-size nor the config says a rank's samples"
    own = made.config.topology.ranks_per_host
    ranks = lanes or (1 if own == "auto" else int(own))
    start = batches_of(request.data)

    def calls() -> Iterable[Any]:
        return (example_of(batch, made.model, labelled=True) for batch in start())

    data = DataToCount(request.data, calls, samples)
    shares = count_rows_of(made.model, made.example, data, ranks)
    if shares is None:
        return None, f"distinct rows: not counted, as the data have fewer than {samples * ranks} samples"
    return shares, f"distinct rows: of {shares.steps} step(s) of {ranks} x {samples} samples, in the file (comm.dedup)"


def _prepared(request: Request) -> _Flat:
    """The model with its weights, and its data."""
    if request.data is None:
        raise ConfigError("--data is missing: package.module:function that returns an iterable of batches.")
    assert request.model is not None
    model = load_model(request.model, request.checkpoint, request.seed or 0)
    start = batches_of(request.data)
    example = next(iter(start()), None)
    if example is None:
        raise ConfigError(f"--data {request.data} gave no batch.")
    if request.warm_up:
        loss = loss_of(request.loss, "--warm-up")
        warm_up(model, start(), loss, request.warm_up, learning_rate=request.lr, progress=request.progress)
    return _Flat(model, FeatureRows(model, example), start, example)


def _by_affinity(request: Request, flat: _Flat, towers: int, rules: PartitionConfig) -> Partition:
    affinity = None
    if rules.strategy not in _NO_AFFINITY:
        affinity = Affinity.load(request.affinity) if request.affinity else _measured(request, flat, _kind(rules))
    rows = flat.rows
    return make_partition(
        rows.features, rows.tables, towers, rules, affinity=affinity, model=rows.fingerprint, joined=rows.joined
    )


def _settings(base: PartitionConfig, request: Request) -> PartitionConfig:
    """The config's ``partition`` section with the options on top of it."""
    kept = base.model_dump(exclude_unset=True)
    given: dict[str, Any] = {"strategy": request.strategy, "objective": request.objective, "balance": request.balance}
    given |= {"bound": request.bound, "seed": request.seed}
    kept |= {key: value for key, value in given.items() if value is not None}
    if "strategy" not in kept or (kept["strategy"] == "file" and request.strategy is None):
        kept["strategy"] = "learned"
    kept.pop("file", None)
    kept.pop("affinity", None)
    try:
        return PartitionConfig.model_validate(kept)
    except ValidationError:
        read_dmt_config({"dmt": {"partition": kept}}, "the options of dmt partition")  # says it in one message
        raise


def _refuse_unread(request: Request, rules: PartitionConfig) -> None:
    """An option that nothing would read is a mistake, not a wish."""
    objective = rules.objective if rules.strategy == "learned" else "-"
    blind = f"the strategy {rules.strategy} uses no affinity" if rules.strategy in _NO_AFFINITY else ""
    given = {
        "--try-steps": (request.try_steps, objective == "auto", "set --objective auto"),
        "--affinity": (request.affinity, not blind, blind),
        "--loss": (request.loss, request.warm_up or request.try_steps, "give --warm-up or --try-steps too"),
        "--data": (request.data, request.model, "give --model too"),
        "--checkpoint": (request.checkpoint, request.model or request.ids, "give --model or --ids too"),
        "--ids": (
            request.ids, not (blind or request.model or request.affinity), blind or "--model or --affinity is given"
        ),
        "--warm-up": (request.warm_up, request.model, "give --model too"),
    }  # fmt: skip
    for option, (value, read, way_out) in given.items():
        if value and not read:
            raise ConfigError(f"{option} would not be read: {way_out}, or leave it out.")
    if request.try_steps and request.affinity:
        raise ConfigError("--try-steps measures both kinds of affinity itself; leave out --affinity.")


def _kind(rules: PartitionConfig) -> Any:
    return "mutual_information" if rules.objective == "mutual_information" else "cosine"


def _measured(request: Request, flat: _Flat, kind: Any) -> Affinity:
    return measure_affinity(
        flat.rows, flat.start(), kind, samples=request.samples, missing=request.missing, progress=request.progress
    )


def _without_model(request: Request, config: DMTConfig, rules: PartitionConfig, towers: int) -> Made:
    """A partition of the features that an affinity file or a file of ids names; there are no tables to weigh."""
    if request.affinity is None and request.ids is None:
        raise ConfigError(
            "give --model and --data, a file of --ids, or the --affinity file of a model that was measured before."
        )
    if rules.balance == "cost" or rules.strategy == "greedy_balance":
        raise ConfigError("a balance by cost weighs tables, which only a model has. Give --model too.")
    found = _read_affinity(request, rules)
    features = [FeatureSpec(name, (name,)) for name in found.features]
    partition = make_partition(features, (), towers, rules, affinity=found)
    return Made(_told(partition, request), config, found.model, found)


def _read_affinity(request: Request, rules: PartitionConfig) -> Affinity:
    """From its file, or measured on a file of ids."""
    if request.ids is None:
        assert request.affinity is not None
        return Affinity.load(request.affinity)
    kind = _kind(rules)
    if kind == "cosine" and request.checkpoint is None:
        raise ConfigError(
            "--ids alone has no embeddings to compare. Add --objective mutual_information, which needs none, or the "
            "--checkpoint of a trained model."
        )
    if kind != "cosine" and request.checkpoint is not None:
        raise ConfigError("--checkpoint would not be read: mutual information looks at ids alone. Leave it out.")
    state = read_state(request.checkpoint) if request.checkpoint else None
    ids = read_ids(request.ids)
    return affinity_of_ids(
        ids, kind, state, samples=request.samples, missing=request.missing, progress=request.progress
    )


def _by_training(request: Request, flat: _Flat, config: DMTConfig, rules: PartitionConfig) -> Partition:
    """Partitions by every objective; the one whose towers train best is taken."""
    loss = loss_of(request.loss, "--try-steps")
    steps, held = request.try_steps, max(1, request.try_steps // 4)
    batches = list(itertools.islice(flat.start(), steps + held))
    if len(batches) < steps + held:
        raise ConfigError(
            f"--try-steps {steps} needs {steps} batches to train on and {held} to judge by; --data {request.data} has "
            f"{len(batches)}. Lower it to at most {len(batches) * 4 // 5}."
        )
    affinities = {kind: _measured(request, flat, kind) for kind in ("cosine", "mutual_information")}
    candidates = {}
    for objective in ("coherent", "diverse", "mutual_information"):
        one = rules.model_copy(update={"objective": objective})
        candidates[objective] = make_partition(
            flat.rows.features, flat.rows.tables, int(config.towers.count), one, affinity=affinities[_kind(one)],
            joined=flat.rows.joined,
        )
    best, losses = choose_by_training(
        flat.model, candidates, flat.example, config, batches[:steps], batches[steps:], loss, steps,
        learning_rate=request.lr, progress=request.progress,
    )  # fmt: skip
    chosen = candidates[best]
    return replace(
        chosen, provenance={**chosen.provenance, "asked": "auto", "held_out_loss": losses, "try_steps": steps}
    )


def _told(partition: Partition, request: Request) -> Partition:
    """The partition with what it was made from in its provenance."""
    about = dict(partition.provenance)
    for key, file in (("file", request.affinity), ("ids", request.ids)):
        if file is not None and "affinity" in about:
            about["affinity"] = {**about["affinity"], key: str(file)}
    if request.warm_up:
        about["warm_up_steps"] = request.warm_up
    if request.checkpoint is not None:
        about["checkpoint"] = str(request.checkpoint)
    return replace(partition, provenance=about)
