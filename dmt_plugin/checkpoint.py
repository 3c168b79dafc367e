"""The logical state of a model that runs on many ranks, and the flat model it belongs to.

A placed model holds the tables of one rank and the tower modules of one host. The logical
state is what the single-process model has: every table and every parameter under the
user's names. Gathering it is a collective: every rank calls it, every rank gets it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmt_plugin.errors import DMTError
from dmt_plugin.tower_model import TowerModel

if TYPE_CHECKING:
    from dmt_plugin.placed import PlacedModel
    from dmt_plugin.topology import RankGroups


def gather_state(placed: PlacedModel, groups: RankGroups) -> dict[str, Tensor]:
    """The logical state of a placed model, on every rank (a collective call).

    Tables come from their owners, tower modules from the first lane of their host, the rest
    from this rank, where it is replicated.

    Args:
        placed: this rank's model.
        groups: this rank's process groups.

    Returns:
        State by the user's names, plus the tower modules'; tensors on the CPU.
    """
    ranges: dict[str, dict[int, Tensor]] = {}
    for name in placed.lookup.tables:
        table = placed.plan.table(name)
        rows = placed.lookup.table_weight(name).detach().cpu().clone()
        ranges.setdefault(table.parameter, {})[table.first_row] = rows
    own: dict[str, Tensor] = {}
    shared: dict[str, Tensor] = {}
    for name, value in placed.state_dict().items():
        plain = logical_name(name)
        target = own if any(plain.startswith(f"{path}.") for path in placed.tower_paths) else shared
        target[plain] = value.detach().cpu().clone()
    everyone: list[Any] = [None] * groups.topology.world_size
    dist.all_gather_object(everyone, (own, ranges), group=groups.world)
    tables: dict[str, dict[int, Tensor]] = {}
    for part, parts in everyone:
        for name, value in part.items():
            shared.setdefault(name, value)
        for name, pieces in parts.items():
            tables.setdefault(name, {}).update(pieces)
    for name, pieces in tables.items():
        shared[name] = torch.cat([rows for _, rows in sorted(pieces.items())])
    return shared


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
        DMTError: ``trained`` is neither, or a weight has no place in the model.
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
