"""Maps state dicts between a flat model and its tower model: loads the weights of one into the other.

A tower model keeps the user's names, so the map is by name, and is the same in both directions:

1. tables and layers that the rewrite did not touch stand under the same names;
2. of a layer that changed (its size, say) those entries go on that the change keeps: a bias whose outputs stayed;
3. towers and decoders are the tower model's alone;
4. what only the flat model has (a list of pairs that was made for the old number of streams, a layer that forward
   never calls) has no place in the tower model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_plugin.core.errors import DMTError
from dmt_plugin.passes.facts import Change


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


@dataclass(frozen=True)
class StateMap:
    """Which entries of two states are the same.

    Attributes:
        same: names that stand for the same values in the flat model and in the tower model.
        new: names that the tower model has values of its own for, each with the change that made it so, if one did.
    """

    same: tuple[str, ...]
    new: Mapping[str, Change | None]

    def shared(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the state of one of the models, what it says about the other's."""
        return {name: state[name] for name in self.same if name in state}


def state_map(flat: Iterable[str], towers: Iterable[str], changes: Sequence[Change]) -> StateMap:
    """The map between two states.

    Args:
        flat: names in the state of the flat model.
        towers: names in the state of the tower model.
        changes: what towers changed.
    """
    known = set(flat)
    same: list[str] = []
    new: dict[str, Change | None] = {}
    for name in towers:
        change = next((c for c in changes if c.covers(name)), None)
        if name in known and (change is None or change.keeps(name)):
            same.append(name)
        else:
            new[name] = change
    return StateMap(tuple(same), new)


def check_flat_state(
    own: Mapping[str, tuple[int, ...]], found: StateMap, given: Mapping[str, tuple[int, ...]]
) -> LoadedState:
    """What becomes of a state of a trained flat model in a tower model.

    Args:
        own: shapes of the state of the tower model, by name.
        found: what it shares with that of the flat model.
        given: shapes of the state of the flat model.

    Raises:
        DMTError: a part that should continue is missing, or has another shape.
    """
    missing = [name for name in found.same if name not in given]
    wrong = {
        name: f"{tuple(given[name])} instead of {tuple(own[name])}"
        for name in found.same
        if name in given and tuple(given[name]) != tuple(own[name])
    }
    if missing or wrong:
        raise DMTError(
            f"this is not the state of the flat model: missing {missing}, of another shape {wrong}. Pass "
            "flat_model.state_dict() of the model that was transformed, before its layers changed their sizes."
        )
    same = set(found.same)
    return LoadedState(found.same, tuple(found.new), tuple(name for name in given if name not in same))


def load_flat_state(own: Mapping[str, Tensor], found: StateMap, state: Mapping[str, Tensor]) -> LoadedState:
    """Puts the state of a trained flat model into a tower model, in place.

    Args:
        own: state of the tower model.
        found: what it shares with that of the flat model.
        state: state of the flat model.

    Raises:
        DMTError: see :meth:`dmt_plugin.model.logical.TowerModel.load_flat_state`.
    """
    done = check_flat_state(
        {name: tuple(value.shape) for name, value in own.items() if isinstance(value, Tensor)},
        found,
        {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)},
    )
    with torch.no_grad():
        for name, value in found.shared(state).items():
            own[name].copy_(value)
    return done
