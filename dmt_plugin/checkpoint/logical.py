"""The logical state of a model that runs on many ranks, and the flat model it belongs to.

A placed model holds the tables of one rank and the tower modules of one host. The logical
state is what the single-process model has: every table and every parameter under the
user's names. Gathering it is a collective: every rank calls it, every rank gets it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmt_plugin.core.errors import DMTError
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.placed import PlacedModel
from dmt_plugin.plan.tables import TableShard, TableSpec, assembled
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.topology.agreement import gather
from dmt_plugin.topology.groups import RankGroups


def gather_state(placed: PlacedModel, groups: RankGroups) -> dict[str, Tensor]:
    """The logical state of a placed model, on every rank (a collective call).

    Tables are put together from the shards that ranks hold, tower modules come from the first lane
    of their host, the rest from this rank, where it is replicated.

    Args:
        placed: this rank's model.
        groups: this rank's process groups.

    Returns:
        State by the user's names, plus the tower modules'; tensors on the CPU.

    Raises:
        ExchangeError: a rank is gone, or ``comm.timeout_s`` is over.
    """
    held = {name: placed.lookup.table_weight(name).detach().cpu().clone() for name in placed.lookup.tables}
    own: dict[str, Tensor] = {}
    shared: dict[str, Tensor] = {}
    for name, value in placed.state_dict().items():
        plain = logical_name(name)
        target = own if any(plain.startswith(f"{path}.") for path in placed.tower_paths) else shared
        target[plain] = value.detach().cpu().clone()
    shards: dict[str, Tensor] = {}
    for states, tables in gather(groups, (own, held), "gathering the trained model"):
        for name, value in states.items():
            shared.setdefault(name, value)
        shards.update(tables)
    shared.update(join_tables(placed.plan, shards))
    return shared


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


def logical_name(name: str) -> str:
    """A parameter's name in the logical model; the engine's wrapper around towers adds to it."""
    return name.replace("deepspeed_moe.experts.deepspeed_experts.0.", "")


def to_flat(trained: Any) -> nn.Module:
    """The user's own model with the trained weights.

    Args:
        trained: an engine of ``dmt_plugin.initialize`` (then every rank must call this), or a
            ``TowerModel``.

    Returns:
        For a semantic-preserving model (``towers.module`` is ``"none"``) the user's model itself,
        trained: a new copy for an engine. With tower modules, the single-process tower model
        with the trained weights.

    Raises:
        DMTError: ``trained`` is neither, or a weight has no place in the model; a rank is gone.
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
    logical = placed.logical
    weights = gather_state(placed, state.groups)
    target = copy.deepcopy(logical.to_flat())
    known = target.state_dict()
    read = set(logical.state_dict())  # parts of the user's model that are never called keep what they hold
    missing = sorted(name for name in known if name in read and name not in weights)
    if missing:
        raise DMTError(f"the trained model lacks {missing}; the flat model needs them.")
    with torch.no_grad():
        for name, value in known.items():
            if name in weights:
                value.copy_(weights[name])
    return target
