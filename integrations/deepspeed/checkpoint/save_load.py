"""``save_checkpoint`` and ``load_checkpoint`` of a tower-decomposed model; all ranks call them.

Saving:

1. every rank collects its pieces (:mod:`dmt_plugin.checkpoint.state`, :mod:`.optimizer_state`); nothing is written yet;
2. rank 0 makes a temporary folder; all ranks write their pieces and their own state into it, synced to the disk;
3. rank 0 adds what all share and the manifest, and commits (:mod:`dmt_plugin.checkpoint.folder`).

Loading:

1. rank 0 finds the checkpoint; all ranks read its manifest and check the content of the files, a share each;
2. all ranks say what they would fill, and compare the whole of it with what is stored: only if nothing is left over on
   either side, the first tensor is changed;
3. they read, and put counters, schedulers and random states in place.

If a rank fails before the first registered object gets its state, all ranks end with its message, and every engine is
as it was. All waits are in ``engine.dmt.groups``, so that ``dmt.comm.timeout_s`` limits them.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from dmt_plugin.checkpoint import folder, state
from dmt_plugin.checkpoint.changes import read_changes
from dmt_plugin.checkpoint.compare import check_tensors, retyped
from dmt_plugin.checkpoint.folder import COMMON, STATE, Found, check_content, entry_of, find_checkpoint, rank_file
from dmt_plugin.checkpoint.manifest import FileEntry, Manifest, TensorEntry
from dmt_plugin.checkpoint.pieces import read_pieces, stored_tensors, write_pieces
from dmt_plugin.checkpoint.single import volumes_of
from dmt_plugin.core.errors import CheckpointError, DMTError, ExchangeError
from dmt_plugin.integrations.deepspeed.checkpoint import rank_state, table_training
from dmt_plugin.integrations.deepspeed.checkpoint.changed import agreed_fit, report
from dmt_plugin.integrations.deepspeed.checkpoint.optimizer_state import OptimizerState, scheduler_state, shared_state
from dmt_plugin.integrations.deepspeed.checkpoint.trained import Trained
from dmt_plugin.topology.agreement import gather, together
from dmt_plugin.topology.lost_ranks import of_other_ranks

logger = logging.getLogger(__name__)


def save(
    engine: Trained, save_dir: str | Path, tag: Any, client_state: Any, save_latest: bool, exclude_frozen: bool
) -> Path:
    """See the module's docstring; arguments as for ``DMTEngine.save_checkpoint``.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: nothing was committed; the checkpoints before are as they were.
        ExchangeError: a rank is gone, or the time is up.
    """
    dmt, groups = engine.dmt, engine.dmt.groups
    name = f"global_step{engine.global_steps}" if tag is None else str(tag)
    with waits(engine, f"saving {name}"):
        with together(groups, f"preparing the checkpoint {name}"):
            _check_moment(engine)
            dmt.lookup.settle()
            view = OptimizerState(engine.optimizer, state.parameter_names(dmt.placed))
            left_out = state.frozen_names(dmt.placed) if exclude_frozen else []
            pieces = [
                *state.table_pieces(dmt.lookup, dmt.plan),
                *state.module_pieces(
                    dmt.placed, view.masters_to_write(), first=groups.rank == 0, first_of_host=groups.lane == 0,
                    left_out=left_out,
                ),
                *view.pieces(),
            ]  # fmt: skip
            mine = {piece.name: piece.entry for piece in pieces}
            shared = (view.scalars(), view.options())
            steps = table_training.steps_of(dmt.lookup, dmt.plan)
        of_ranks = gather(groups, (name, mine, shared, left_out, steps))
        tags, entries_of, shared_of, left_out_of, steps_of = zip(*of_ranks, strict=True)
        _same_tag(tags)
        temporary = _begin(engine, save_dir, name)
        write_pieces(pieces, temporary / STATE, groups.world)
        with together(groups, f"writing the checkpoint {name}"):
            own = temporary / rank_file(groups.rank)
            rank_state.write(own, _of_rank(engine, client_state))
            written = [own, *sorted((temporary / STATE).glob(f"__{groups.rank}_*"))]
            entries = {str(path.relative_to(temporary)): entry_of(path) for path in written}
        files = {path: entry for of_rank in gather(groups, entries) for path, entry in of_rank.items()}
        place = None
        with together(groups, f"committing the checkpoint {name}"):
            if groups.rank == 0:
                tensors, of_all = _merged(entries_of), shared_state(shared_of)
                left_out = sorted(set().union(*left_out_of))
                tables = table_training.entry(dmt.config.lookup, dmt.plan, steps_of)
                place = _commit(engine, temporary, tensors, files, of_all, left_out, save_latest, (view.name, tables))
    if place is not None:
        logger.info("checkpoint %s of step %d is committed", place, engine.global_steps)
    return Path(save_dir) / name


def load(
    engine: Trained,
    load_dir: str | Path,
    tag: Any,
    optimizer: bool,
    scheduler: bool,
    module_only: bool,
    changes: Any = None,
) -> tuple[str | None, dict[str, Any] | None]:
    """See the module's docstring; arguments as for ``DMTEngine.load_checkpoint``.

    Returns:
        Path and client state; two ``None`` where there is no whole checkpoint and no tag was asked for.

    Raises:
        CheckpointError: it does not fit, or is not whole; nothing was changed.
        ExchangeError: a rank is gone, or the time is up.
    """
    dmt, groups = engine.dmt, engine.dmt.groups
    optimizer, scheduler = optimizer and not module_only, scheduler and not module_only
    with waits(engine, "loading a checkpoint"):
        found = _find(engine, load_dir, tag)
        if found is None:
            return None, None
        manifest, where = found.manifest, str(found.path)
        same_ranks = manifest.rank_states == dmt.topology.world_size
        with together(groups, f"reading {where}"):
            check_content(found, folder.shared_of(groups.rank, dmt.topology.world_size, manifest.files))
        with together(groups, f"comparing {where} with this engine"):  # what is unpickled has been checked by then
            common = rank_state.read(found.path / COMMON)
            mine = rank_state.read(found.path / rank_file(groups.rank if same_ranks else 0))
            if same_ranks and not module_only:
                engine.checkpointed.check(mine["registered"], where)
            view = OptimizerState(engine.optimizer, state.parameter_names(dmt.placed))
            named = read_changes(changes)
        fit = agreed_fit(engine, manifest, named, where)
        with together(groups, f"comparing {where} with this optimizer"):
            manifest = fit.left_of(manifest)
            targets = state.module_targets(dmt.placed, view.masters(), [*manifest.left_out, *fit.fresh])
            pieces = [*state.table_pieces(dmt.lookup, dmt.plan, optimizer, fit.tables), *targets.pieces]
            planned = view.plan_load(manifest, common["optimizer"], states=optimizer, fresh=fit.fresh)
            pieces += planned.pieces
            own = _schedulers(engine, manifest, scheduler)
            if optimizer:
                own += [*planned.problems, *table_training.problems(dmt.config.lookup, dmt.plan, manifest)]
        problems = gather(groups, own)
        wanted = _merged(gather(groups, {piece.name: piece.entry for piece in pieces}))
        with together(groups, f"comparing {where} with this model"):
            ignored = () if optimizer else (state.OPTIMIZER, state.TABLE_OPTIMIZER)
            volumes = volumes_of(stored_tensors(found.state))
            check_tensors(wanted, manifest, volumes, ignored, where, [text for of_rank in problems for text in of_rank])
        if groups.rank == 0:
            for line in _other_types(wanted, manifest):
                logger.warning("%s: %s", where, line)
        if not same_ranks or module_only:
            engine.checkpointed.forget()
        else:
            with together(groups, "giving registered objects their states"):
                engine.checkpointed.load(mine["registered"])
        dmt.lookup.settle()
        read_pieces(pieces, found.state, groups.world)
        targets.finish()
        if optimizer:
            planned.finish()
            table_training.restore_steps(dmt.lookup, dmt.plan, manifest)
        if not module_only:
            _restore_run(engine, manifest, common, planned.of_groups, scheduler)
        forget_gradients(engine)
        _restore_rank(engine, mine, same_ranks, module_only, where, fit.fresh)
        report(fit, gather(groups, planned.shared_steps if optimizer else []), groups.rank, where)
    return where, mine["client_state"]


def _check_moment(engine: Trained) -> None:
    """A checkpoint holds no gradients, so there must be none."""
    pending = engine.managed_gradient_accumulation() and engine.micro_steps % engine.gradient_accumulation_steps()
    if pending or engine.dmt.lookup.holds:
        raise CheckpointError(
            "save_checkpoint was called within a step: gradients of micro-batches were collected that a checkpoint "
            "does not hold. Call it behind an engine.step() that ended a step: where engine.global_steps has just "
            "changed."
        )


def _begin(engine: Trained, save_dir: str | Path, name: str) -> Path:
    """The temporary folder, which all ranks see."""
    groups = engine.dmt.groups
    made: Path | None = None
    with together(groups, f"making {Path(save_dir) / name}{folder.SAVING}"):
        if groups.rank == 0:
            made = folder.begin(save_dir, name)
    temporary = gather(groups, made)[0]
    assert temporary is not None
    with together(groups, f"looking for {temporary}"):
        if not (temporary / folder.MARK).is_file():
            raise CheckpointError(
                f"rank {groups.rank} does not see {temporary}, which rank 0 has made: checkpoints need a folder that "
                "all hosts share, under the same path"
            )
    return temporary


def _commit(
    engine: Trained,
    temporary: Path,
    tensors: Mapping[str, TensorEntry],
    files: dict[str, FileEntry],
    of_all: dict[str, Any],
    left_out: list[str],
    save_latest: bool,
    trained: tuple[str, dict[str, Any]],
) -> Path:
    dmt = engine.dmt
    scheduler = engine.lr_scheduler
    common = {"optimizer": of_all, "scheduler": None if scheduler is None else scheduler.state_dict()}
    rank_state.write(temporary / COMMON, common)
    for path in (temporary / COMMON, *(temporary / STATE).glob(".*")):
        files[str(path.relative_to(temporary))] = entry_of(path)
    logical = dmt.placed.logical
    manifest = Manifest(
        tag=folder.place_of(temporary).name,
        sequence=folder.next_sequence(temporary.parent),
        save_latest=bool(save_latest),
        saved_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        versions={package: version(package) for package in ("dmt-plugin", "torch", "deepspeed")},
        topology=str(dmt.topology),
        plan=dmt.plan.to_dict(),
        semantic_preserving=logical.semantic_preserving,
        steps={key: int(getattr(engine, key)) for key in _COUNTERS},
        training={
            "zero_stage": int(engine.zero_optimization_stage()),
            "optimizer": trained[0],
            "scheduler": None if scheduler is None else type(scheduler).__name__,
            "bf16": bool(engine.bfloat16_enabled()),
            "tables": trained[1],
        },
        tensors=dict(sorted(tensors.items())),
        left_out=left_out,
        never_run=logical.never_run,
        files=dict(sorted(files.items())),
        rank_states=dmt.topology.world_size,
    )
    return folder.commit(temporary, manifest)


_COUNTERS = ("global_steps", "global_samples", "skipped_steps")


def _of_rank(engine: Trained, client_state: Any) -> dict[str, Any]:
    return {
        "random": rank_state.random_states(),
        "buffers": state.own_buffers(engine.dmt.placed),
        "registered": engine.checkpointed.states(),
        "client_state": dict(client_state or {}),
    }


def _find(engine: Trained, load_dir: str | Path, tag: Any) -> Found | None:
    """The checkpoint that rank 0 finds, on every rank."""
    groups = engine.dmt.groups
    found: Found | None = None
    with together(groups, f"looking for a checkpoint in {load_dir}"):
        if groups.rank == 0:
            found = find_checkpoint(load_dir, None if tag is None else str(tag))
            if found is None:
                logger.warning("no whole checkpoint to load: %s", folder.what_is_there(load_dir))
            for reason in found.ignored if found is not None else ():
                logger.warning("ignored, as it is no whole checkpoint: %s", reason)
    path = gather(groups, None if found is None else found.path)[0]
    if path is None:
        return None
    with together(groups, f"reading {path}"):
        return Found(path, folder.read_manifest(path))


def _restore_run(
    engine: Trained, manifest: Manifest, common: Mapping[str, Any], of_groups: list[int | None], scheduler: bool
) -> None:
    for key in _COUNTERS:
        setattr(engine, key, int(manifest.steps[key]))
    if scheduler and engine.lr_scheduler is not None:
        before = len(common["optimizer"]["groups"])
        now = engine.lr_scheduler.state_dict()
        engine.lr_scheduler.load_state_dict(scheduler_state(common["scheduler"], before, of_groups, now))
    engine.micro_steps = engine.global_steps * engine.gradient_accumulation_steps()
    engine.dmt.transport.step = engine.global_steps


def _schedulers(engine: Trained, manifest: Manifest, wanted: bool) -> list[str]:
    """What is wrong about the learning-rate scheduler."""
    mine = None if engine.lr_scheduler is None else type(engine.lr_scheduler).__name__
    saved = manifest.training["scheduler"]
    if not wanted or mine == saved:
        return []
    return [
        f"its learning-rate scheduler is {saved or 'none'}, that of this engine is {mine or 'none'} "
        "(load_lr_scheduler_states=False leaves it as it is)"
    ]


def forget_gradients(engine: Trained) -> None:
    """Drops what was collected for a step."""
    engine.dmt.lookup.zero_grad()
    if engine.optimizer is not None:
        engine.optimizer.zero_grad()


def _restore_rank(
    engine: Trained, mine: Mapping[str, Any], same_ranks: bool, module_only: bool, where: str, fresh: Collection[str]
) -> None:
    if same_ranks:
        state.load_own_buffers(engine.dmt.placed, mine["buffers"], fresh)
    if module_only:
        return
    if same_ranks:
        rank_state.set_random_states(mine["random"])
    elif engine.dmt.groups.rank == 0:
        kept = ", ".join(["random states", *sorted(mine["registered"])])
        logger.warning(
            "%s was saved by another number of ranks, so what each rank has for itself begins anew: %s; client_state "
            "is that of rank 0",
            where,
            kept,
        )


def _same_tag(tags: Sequence[str]) -> None:
    others = [rank for rank, tag in enumerate(tags) if tag != tags[0]]
    if others:
        raise CheckpointError(
            f"rank 0 saves the checkpoint {tags[0]!r}, rank {others[0]} {tags[others[0]]!r}: the tag must be the same "
            "on all ranks"
        )


def _other_types(wanted: Mapping[str, TensorEntry], manifest: Manifest) -> list[str]:
    """Tables that are stored in another type than they are kept in."""
    types = {name.removeprefix(state.MODEL): entry.dtype for name, entry in wanted.items() if entry.kind == "table"}
    stored = {name.removeprefix(state.MODEL): entry.dtype for name, entry in manifest.tensors.items()}
    return retyped(stored, types)


def _merged(of_ranks: Sequence[dict[str, TensorEntry]]) -> dict[str, TensorEntry]:
    return {name: entry for wanted in of_ranks for name, entry in wanted.items()}


@contextmanager
def waits(engine: Trained, doing: str) -> Iterator[None]:
    """Whatever fails in the block: a rank that is gone is reported as by the exchanges, the rest as CheckpointError."""
    transport, rank = engine.dmt.transport, engine.dmt.groups.rank
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        cause: BaseException = error
        if isinstance(error, ExchangeError):  # of a gathering, which knows of no step
            cause = error.__cause__ or error
        elif isinstance(error, DMTError):  # of a rank that only heard of another's failure
            raise CheckpointError(str(error)) from error
        elif isinstance(error, CheckpointException):
            rank, (cause, _) = next(iter(error.failures.items()), (0, (error, None)))
        if isinstance(error, ExchangeError) or isinstance(cause, dist.DistError) or of_other_ranks(cause):
            raise transport.failure(doing, "did not finish", cause) from error
        raise CheckpointError(f"rank {rank} failed while {doing}: {type(cause).__name__}: {cause}") from error
