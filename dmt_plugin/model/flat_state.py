"""The state of a flat model and that of its tower model: what is the same, and what starts anew.

A tower model keeps the user's names, so the map between both states is by name:

1. tables and layers that the rewrite did not touch are the same, under the same names;
2. a layer that changed its size starts anew, except a bias whose outputs stayed;
3. towers and decoders are new;
4. what only the flat model has (a list of pairs that was made for the new number of
   streams, a layer that forward never calls) has no place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_plugin.core.errors import DMTError
from dmt_plugin.passes.base import Repair


@dataclass(frozen=True)
class LoadedState:
    """What :meth:`dmt_plugin.model.logical.TowerModel.load_flat_state` did, by name.

    Attributes:
        loaded: took the flat model's values.
        anew: parts of the tower model that the flat model has no values for; they were left as they are.
        unused: parts of the flat state that the tower model has no place for.
    """

    loaded: tuple[str, ...]
    anew: tuple[str, ...]
    unused: tuple[str, ...]


def new_parts(
    own: Mapping[str, Tensor], flat: Mapping[str, Tensor], repairs: Sequence[Repair]
) -> dict[str, Repair | None]:
    """Names of a tower model's state that do not continue the flat model's, each with the repair that made it new."""
    found: dict[str, Repair | None] = {}
    for name, value in own.items():
        repair = next((r for r in repairs if name == r.target or name.startswith(f"{r.target}.")), None)
        if name not in flat or (repair is not None and not _kept(name, value, flat[name], repair)):
            found[name] = repair
    return found


def _kept(name: str, value: Tensor, before: Tensor, repair: Repair) -> bool:
    """A bias continues where only the inputs of its layer changed."""
    return name.endswith(".bias") and repair.what.startswith("in_") and "out_" not in repair.what and (
        value.shape == before.shape
    )


def load_flat_state(own: Mapping[str, Tensor], anew: Collection[str], state: Mapping[str, Tensor]) -> LoadedState:
    """Puts the state of a trained flat model into a tower model, in place.

    Args:
        own: state of the tower model.
        anew: names of it that do not continue the flat model's.
        state: state of the flat model.

    Raises:
        DMTError: see :meth:`dmt_plugin.model.logical.TowerModel.load_flat_state`.
    """
    wanted = [name for name in own if name not in anew]
    missing = [name for name in wanted if name not in state]
    wrong = {
        name: f"{tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != own[name].shape
    }
    if missing or wrong:
        raise DMTError(
            f"this is not the state of the flat model: missing {missing}, of another shape {wrong}. Pass "
            "flat_model.state_dict() of the model that was transformed, before its layers changed their sizes."
        )
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(state[name])
    unused = tuple(name for name in state if name not in own or name in anew)
    return LoadedState(tuple(wanted), tuple(anew), unused)
