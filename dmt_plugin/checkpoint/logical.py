"""The logical state of a model that runs on many ranks, and the flat model it belongs to.

A placed model holds the tables of one rank and the tower modules of one host. The logical state is what the
single-process model has: every table and every parameter under the user's names. All ranks take part in gathering it,
which is sent block by block (:mod:`.streams`) to those that are to have it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dmt_plugin.checkpoint.streams import StateStream, into
from dmt_plugin.core.errors import DMTError
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.placed import PlacedModel
from dmt_plugin.plan.tables import TableShard, TableSpec, assembled
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.tables.released import released_parameters
from dmt_plugin.topology.agreement import gather, together
from dmt_plugin.topology.groups import RankGroups

Receivers = Iterable[int] | Literal["all"]
"""Ranks that get something."""


def gather_state(placed: PlacedModel, groups: RankGroups, ranks: Receivers = "all") -> dict[str, Tensor] | None:
    """The logical state of a placed model; all ranks call this.

    Args:
        placed: this rank's model.
        groups: this rank's process groups.
        ranks: those that get it, the same on all ranks.

    Returns:
        State by the user's names, plus the tower modules'; tensors on the CPU. Of what several ranks hold (a running
        statistic), the first one's. None on the other ranks.

    Raises:
        DMTError: there is no such rank.
        ExchangeError: a rank is gone, or ``comm.timeout_s`` is over.
    """
    receivers = receivers_of(ranks, groups)
    stream = StateStream(placed, groups)
    state: dict[str, Tensor] | None = None
    if groups.rank in receivers:
        state = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in stream.entries.items()}
    stream.send(receivers, None if state is None else into(state))
    return state


def receivers_of(ranks: Receivers, groups: RankGroups) -> tuple[int, ...]:
    """The ranks that are meant, in their order; all ranks call this.

    Raises:
        DMTError: they are none of this run, or not the same on all ranks.
    """
    total = groups.topology.world_size
    listed = [ranks] if isinstance(ranks, int) else list(range(total) if ranks == "all" else ranks)
    found = tuple(sorted({rank for rank in listed if isinstance(rank, int)}))
    with together(groups, "looking at ranks="):
        if len(set(map(str, listed))) != len(found) or not found or found[0] < 0 or found[-1] >= total:
            raise DMTError(f"ranks={ranks!r}: expected 'all', or some of the ranks 0 to {total - 1}")
    for rank, other in enumerate(gather(groups, found, "comparing ranks=")):
        if other != found:
            raise DMTError(f"ranks= is {list(other)} on rank {rank} and {list(found)} here; it must be the same on all")
    return found


def join_tables(plan: TowerPlan, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole parameters from the shards of tables that ranks hold.

    Args:
        plan: the plan that divided them.
        shards: by a shard's name its values ``(rows, columns)``, or what its optimizer keeps per row ``(rows,)``.

    Returns:
        By the parameter's name all its rows, ``(parameter rows, dim)`` or ``(parameter rows,)``.

    Raises:
        PlanError: shards of a table are missing.
    """
    of_table: dict[TableSpec, dict[TableShard, Tensor]] = {}
    for name, values in shards.items():
        shard = plan.shard(name)
        of_table.setdefault(shard.table, {})[shard] = values
    of_parameter: dict[str, list[tuple[int, Tensor]]] = {}
    for table, own in of_table.items():
        of_parameter.setdefault(table.parameter, []).append((table.first_row, assembled(own)))
    return {
        name: torch.cat([rows for _, rows in sorted(tables, key=lambda x: x[0])])
        for name, tables in of_parameter.items()
    }


def to_flat(trained: Any, ranks: Receivers = (0,)) -> nn.Module | None:
    """The user's own model with the trained weights, in one process.

    Args:
        trained: an engine of ``dmt_plugin.initialize`` (then every rank must call this), or a ``TowerModel``.
        ranks: of an engine: those that get the model, and need the memory for it; ``"all"`` for every rank.

    Returns:
        For a semantic-preserving model (``towers.module`` is ``"none"``) the user's model itself, trained: a new copy
        for an engine. With tower modules, the single-process tower model with the trained weights. None on ranks that
        are not among ``ranks``.

    Raises:
        DMTError: ``trained`` is neither, or a weight has no place in the model; there is no such rank.
        ExchangeError: a rank is gone, or ``dmt.comm.timeout_s`` is over.
    """
    if isinstance(trained, TowerModel):
        return trained.to_flat()
    state = getattr(trained, "dmt", None)
    if state is None:
        raise DMTError(
            f"to_flat takes an engine of dmt_plugin.initialize with an active dmt section, or a TowerModel; found "
            f"{type(trained).__name__}. A stock engine trains the flat model itself: engine.module."
        )
    placed: PlacedModel = state.placed
    receivers = receivers_of(ranks, state.groups)
    stream = StateStream(placed, state.groups)
    target, known = None, dict[str, Tensor]()
    with together(state.groups, "making the model in one process"):
        if state.groups.rank in receivers:
            target = _copy_of(placed)
            known = target.state_dict()
            read = set(placed.logical.own_entries)  # parts of the user's model that never run keep what they hold
            missing = sorted(name for name in known if name in read and name not in stream.entries)
            if missing:
                raise DMTError(f"the trained model lacks {missing}; the flat model needs them.")
    wanted = gather(state.groups, list(known), "making the model in one process")[receivers[0]]
    stream.send(receivers, None if target is None else into(known), [n for n in wanted if n in stream.entries])
    return target


def _copy_of(placed: PlacedModel) -> nn.Module:
    """A copy of the model in one process; where tables were let go, with new memory for them, and not guarded."""
    model = placed.logical.to_flat()
    if placed.guard is None:
        return copy.deepcopy(model)
    memo: dict[int, Any] = {}
    for p in released_parameters(placed.guard.model).values():
        device = "cpu" if p.is_meta else p.device
        memo[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device=device), requires_grad=p.requires_grad)
    with placed.guard.lifted():
        return copy.deepcopy(model, memo)
