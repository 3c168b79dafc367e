"""``save_checkpoint`` of a tower-decomposed model; all ranks call it.

1. One that is still being written is waited for (:mod:`.behind`). Rank 0 holds the folder for this run
   (:mod:`dmt_plugin.checkpoint.saver_lock`).
2. Every rank collects its pieces (:mod:`dmt_plugin.checkpoint.state`, :mod:`.optimizer_state`), and what it has for
   itself. Rank 0 makes a temporary folder; all agree which rank writes what.
3. The checkpoint is written and committed (:mod:`.writing`), here or, from a snapshot, behind the steps.

If a rank fails, all ranks end with its message; nothing is committed, and the checkpoints before are as they were. All
waits have the limit ``dmt.comm.timeout_s``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dmt_plugin.checkpoint import folder, saver_lock, state
from dmt_plugin.checkpoint.folder import STATE
from dmt_plugin.checkpoint.manifest import COUNTERS, Manifest, TensorEntry
from dmt_plugin.checkpoint.user_objects import UserObjects
from dmt_plugin.checkpoint.writes import Writes
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.integrations.deepspeed.checkpoint import rank_state, table_training
from dmt_plugin.integrations.deepspeed.checkpoint.load import merged
from dmt_plugin.integrations.deepspeed.checkpoint.optimizer_state import OptimizerState, shared_state
from dmt_plugin.integrations.deepspeed.checkpoint.trained import Trained
from dmt_plugin.integrations.deepspeed.checkpoint.waits import waits
from dmt_plugin.integrations.deepspeed.checkpoint.writing import Prepared, write
from dmt_plugin.topology.agreement import gather, meeting, together
from dmt_plugin.topology.discovery import launched_run

logger = logging.getLogger(__name__)


def save(
    engine: Trained,
    save_dir: str | Path,
    tag: Any,
    client_state: Any,
    save_latest: bool,
    exclude_frozen: bool,
    asynchronous: bool | None = None,
) -> Path:
    """See the module's docstring; arguments as for ``DMTEngine.save_checkpoint``.

    Returns:
        The checkpoint's folder, where it is or will be.

    Raises:
        CheckpointError: nothing was committed; the checkpoints before are as they were.
        ExchangeError: a rank is gone, or the time is up.
    """
    dmt, groups = engine.dmt, engine.dmt.groups
    name = f"global_step{engine.global_steps}" if tag is None else str(tag)
    with waits(engine, f"saving {name}"):
        with together(groups, f"preparing the checkpoint {name}"):
            engine.behind.wait(f"saving {name}")
            behind = _is_behind(engine, asynchronous)
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
            own = _of_rank(engine, client_state)
            schedule = None if engine.lr_scheduler is None else engine.lr_scheduler.state_dict()
            objects = UserObjects(dmt.config.checkpoint.classes)
            objects.check(own["client_state"], "client_state")
            objects.check(own["registered"], "the states of registered objects")
            objects.check({"lr_scheduler": schedule, "optimizer": shared}, "the state of the engine")
        of_ranks = gather(groups, (name, behind, mine, shared, left_out, steps))
        tags, behinds, entries_of, shared_of, left_out_of, steps_of = zip(*of_ranks, strict=True)
        _same("saves the checkpoint", tags, "the tag")
        _same("saves with asynchronous =", behinds, "asynchronous")
        temporary = _begin(engine, save_dir, name)
        with together(groups, f"planning the checkpoint {name}"):
            writes = Writes(pieces, temporary / STATE, groups.rank)
        writes.agree(lambda plan: gather(groups, plan, f"planning the checkpoint {name}"))
        left_out = sorted(set().union(*left_out_of))
        trained = (view.name, table_training.entry(dmt.config.lookup, dmt.plan, steps_of, dmt.frozen))
        manifest = _manifest(engine, name, merged(entries_of), left_out, save_latest, trained)
        common = {"optimizer": shared_state(shared_of), "scheduler": schedule}
        prepared = Prepared(temporary, writes, own, common, manifest)
        if behind:
            engine.behind.begin(prepared)
            return folder.place_of(temporary)
        place = write(prepared, groups, meeting(groups))
    if groups.rank == 0:
        logger.info("checkpoint %s of step %d is committed", place, engine.global_steps)
    return place


def wait(engine: Trained) -> str | None:
    """See ``DMTEngine.wait_for_checkpoint``."""
    doing = "waiting for the checkpoint that is being written"
    with waits(engine, doing), together(engine.dmt.groups, doing):
        place = engine.behind.wait()
    return None if place is None else str(place)


def _is_behind(engine: Trained, asynchronous: bool | None) -> bool:
    if asynchronous is not None and not isinstance(asynchronous, bool):
        raise CheckpointError(
            f"save_checkpoint(asynchronous={asynchronous!r}): expected True, False, or None, which is "
            "dmt.checkpoint.asynchronous"
        )
    return engine.dmt.config.checkpoint.asynchronous if asynchronous is None else asynchronous


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
            settings = engine.dmt.config.checkpoint
            saver_lock.hold(save_dir, engine, settings.run_id or launched_run(), settings.lock_stale_s)
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


def _manifest(
    engine: Trained,
    name: str,
    tensors: Mapping[str, TensorEntry],
    left_out: list[str],
    save_latest: bool,
    trained: tuple[str, dict[str, Any]],
) -> Manifest:
    """What can be said of the checkpoint before it is written: no files, no moment, no number."""
    dmt, scheduler = engine.dmt, engine.lr_scheduler
    logical = dmt.placed.logical
    return Manifest(
        tag=name,
        sequence=0,
        save_latest=bool(save_latest),
        saved_at="",
        versions={package: version(package) for package in ("dmt-plugin", "torch", "deepspeed")},
        topology=str(dmt.topology),
        plan=dmt.plan.to_dict(),
        semantic_preserving=logical.semantic_preserving,
        steps={key: int(getattr(engine, key)) for key in COUNTERS},
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
        rank_states=dmt.topology.world_size,
    )


def _of_rank(engine: Trained, client_state: Any) -> dict[str, Any]:
    return {
        "random": rank_state.random_states(),
        "buffers": state.own_buffers(engine.dmt.placed),
        "registered": engine.checkpointed.states(),
        "client_state": dict(client_state or {}),
    }


def _same(does: str, values: Sequence[Any], what: str) -> None:
    others = [rank for rank, value in enumerate(values) if value != values[0]]
    if others:
        raise CheckpointError(
            f"rank 0 {does} {values[0]!r}, rank {others[0]} {values[others[0]]!r}: {what} must be the same on all ranks"
        )
