"""``load_checkpoint`` of a tower-decomposed model; all ranks call it.

1. A checkpoint that this run is still writing is waited for (:mod:`.behind`).
2. Rank 0 finds the checkpoint; all ranks read its manifest and check the content of the files, a share each.
3. All ranks say what they would fill, and compare the whole of it with what is stored: only if nothing is left over on
   either side, the first tensor is changed.
4. They read, and put counters, schedulers and random states in place.

If a rank fails before the first registered object gets its state, all ranks end with its message, and every engine is
as it was. All waits are in ``engine.dmt.groups``, so that ``dmt.comm.timeout_s`` limits them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmt_plugin.checkpoint import folder, state
from dmt_plugin.checkpoint.changes import read_changes
from dmt_plugin.checkpoint.compare import check_tensors, retyped
from dmt_plugin.checkpoint.folder import COMMON, Found, check_content, find_checkpoint, rank_file
from dmt_plugin.checkpoint.manifest import COUNTERS, Manifest, TensorEntry
from dmt_plugin.checkpoint.pieces import divided, read_pieces, read_rows, stored_tensors
from dmt_plugin.checkpoint.single import volumes_of
from dmt_plugin.checkpoint.unchanged import IGNORED, pass_over
from dmt_plugin.checkpoint.user_objects import UserObjects
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.integrations.deepspeed.checkpoint import rank_state, table_training
from dmt_plugin.integrations.deepspeed.checkpoint.changed import agreed_fit, report
from dmt_plugin.integrations.deepspeed.checkpoint.optimizer_state import OptimizerState, scheduler_state
from dmt_plugin.integrations.deepspeed.checkpoint.trained import Trained
from dmt_plugin.integrations.deepspeed.checkpoint.waits import waits
from dmt_plugin.topology.agreement import gather, together

logger = logging.getLogger(__name__)


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
        with together(groups, "waiting for the checkpoint that is being written"):
            engine.behind.wait("load_checkpoint")
        found = _find(engine, load_dir, tag)
        if found is None:
            return None, None
        manifest, where = found.manifest, str(found.path)
        same_ranks = manifest.rank_states == dmt.topology.world_size
        with together(groups, f"comparing {where} with this engine"):  # what is unpickled has been checked by then
            objects = UserObjects(dmt.config.checkpoint.classes)
            common = objects.read(found.path / COMMON)
            mine = objects.read(found.path / rank_file(groups.rank if same_ranks else 0))
            rank_state.check_read(mine, common, where)
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
        wanted = merged(gather(groups, {piece.name: piece.entry for piece in pieces}))
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
        blocks, by_number = divided(pieces, manifest.tensors)
        read_pieces(blocks, found.state, groups.world)
        with together(groups, f"reading {where}"):
            read_rows(by_number, found.state, manifest.tensors)
        targets.finish()
        if optimizer:
            planned.finish()
            table_training.restore_steps(dmt.lookup, dmt.plan, manifest)
            table_training.restore_frozen(dmt, manifest, where)
        if not module_only:
            _restore_run(engine, manifest, common, planned.of_groups, scheduler)
        forget_gradients(engine)
        _restore_rank(engine, mine, same_ranks, module_only, where, fit.fresh)
        report(fit, gather(groups, planned.shared_steps if optimizer else []), groups.rank, where)
    return where, mine["client_state"]


def _find(engine: Trained, load_dir: str | Path, tag: Any) -> Found | None:
    """The checkpoint of a tag, or the newest whose files are as they were saved; the same on every rank."""
    groups, passed_over = engine.dmt.groups, dict[str, str]()
    name = None if tag is None else str(tag)
    while (found := _named(engine, load_dir, name, passed_over)) is not None:
        own = ""
        try:
            check_content(found, folder.shared_of(groups.rank, groups.topology.world_size, found.manifest.files))
        except (CheckpointError, OSError) as error:
            own = str(error)
        changed = [reason for reason in gather(groups, own, f"reading {found.path}") if reason]
        if not changed:
            break
        pass_over(found, load_dir, name, passed_over, changed[0])
    return found


def _named(engine: Trained, load_dir: str | Path, tag: str | None, passed_over: Mapping[str, str]) -> Found | None:
    """The checkpoint that rank 0 finds, on every rank."""
    groups = engine.dmt.groups
    found: Found | None = None
    with together(groups, f"looking for a checkpoint in {load_dir}"):
        if groups.rank == 0:
            found = find_checkpoint(load_dir, tag, passed_over)
            if found is None:
                logger.warning("no whole checkpoint to load: %s", folder.what_is_there(load_dir))
            for reason in found.ignored if found is not None else ():
                logger.warning(IGNORED, reason)
    path = gather(groups, None if found is None else found.path)[0]
    if path is None:
        return None
    with together(groups, f"reading {path}"):
        return Found(path, folder.read_manifest(path))


def _restore_run(
    engine: Trained, manifest: Manifest, common: Mapping[str, Any], of_groups: list[int | None], scheduler: bool
) -> None:
    for key in COUNTERS:
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


def _other_types(wanted: Mapping[str, TensorEntry], manifest: Manifest) -> list[str]:
    """Tables that are stored in another type than they are kept in."""
    types = {name.removeprefix(state.MODEL): entry.dtype for name, entry in wanted.items() if entry.kind == "table"}
    stored = {name.removeprefix(state.MODEL): entry.dtype for name, entry in manifest.tensors.items()}
    return retyped(stored, types)


def merged(of_ranks: Sequence[dict[str, TensorEntry]]) -> dict[str, TensorEntry]:
    """What all ranks hold, from what each of them does."""
    return {name: entry for wanted in of_ranks for name, entry in wanted.items()}
