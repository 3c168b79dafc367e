"""A checkpoint that is loaded into a model which has changed since: what all ranks agree on, and what is said of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dmt_plugin.checkpoint import state
from dmt_plugin.checkpoint.changes import Fit, Named, fit_to
from dmt_plugin.checkpoint.compare import check_towers, shown
from dmt_plugin.checkpoint.differences import side_of, side_of_manifest
from dmt_plugin.checkpoint.manifest import Manifest
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.integrations.deepspeed.checkpoint.trained import Trained
from dmt_plugin.topology.agreement import gather, together

logger = logging.getLogger(__name__)


def agreed_fit(engine: Trained, manifest: Manifest, named: Named, where: str) -> Fit:
    """What of a checkpoint goes where, the same on all ranks; all of them call this.

    Args:
        engine: this rank's.
        manifest: of the checkpoint.
        named: what the caller said has changed, of :func:`dmt_plugin.checkpoint.changes.read_changes`.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: something differs that is not named, what is named is not so, or ranks name other things; the
            same on all ranks.
        ExchangeError: a rank is gone, or the time is up.
    """
    dmt = engine.dmt
    doing = f"comparing {where} with this model"
    with together(dmt.groups, doing):
        own = state.entries(dmt.placed)
    of_ranks = gather(dmt.groups, (own, named), doing)
    with together(dmt.groups, doing):
        others = [rank for rank, (_, given) in enumerate(of_ranks) if given != of_ranks[0][1]]
        if others:
            given = [{key: list(names) for key, names in of_ranks[rank][1].items() if names} for rank in (0, others[0])]
            raise CheckpointError(
                f"changes= is {given[0]} on rank 0 and {given[1]} on rank {others[0]}: it must be the same on all. "
                "Nothing was loaded."
            )
        if not any(named.values()) and dmt.plan.model == manifest.tower_plan.model:
            check_towers(dmt.plan, manifest, where)
        tensors = {name: entry for entries, _ in of_ranks for name, entry in entries.items()}
        here, saved = side_of(tensors, dmt.plan), side_of_manifest(manifest)
        return fit_to(here, saved, named, where, manifest.left_out, dmt.placed.logical.never_run)


def report(fit: Fit, shared_steps: Sequence[Sequence[str]], rank: int, where: str) -> None:
    """Says on rank 0 what was not loaded as it was saved.

    Args:
        fit: what went where.
        shared_steps: of each rank, the parameters that start anew but for their number of steps.
        rank: this one.
        where: the checkpoint.
    """
    if rank != 0 or not (fit.fresh or fit.gone or fit.grown):
        return
    logger.info("%s was loaded into a model that has changed since; %s", where, fit)
    counted = sorted({name for names in shared_steps for name in names})
    if counted:
        logger.warning(
            "ZeRO keeps one number of steps for all parameters of a group, so %s, which start anew, go on from that of "
            "the others: what an optimizer corrects by it (Adam's averages) is not corrected for them",
            shown(counted),
        )
