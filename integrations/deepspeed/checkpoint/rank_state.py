"""What each rank has for itself in a checkpoint: random numbers, buffers, the user's objects and ``client_state``.

Ranks may disagree about all of these. They are put back rank by rank in a run of as many ranks; in another one, each
rank gets rank 0's ``client_state``, and the rest stays as it is.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from dmt_plugin.checkpoint.folder import synced
from dmt_plugin.core.errors import CheckpointError


class Stateful(Protocol):
    """An object whose state is saved beside the model's."""

    def state_dict(self) -> Any:
        """The state: plain values, tensors, or objects of classes that ``dmt.checkpoint.classes`` names."""

    def load_state_dict(self, state: Any) -> Any:
        """Takes it back."""


class Registered:
    """Objects of the user's whose state belongs to the checkpoint."""

    def __init__(self) -> None:
        self._objects: dict[str, Stateful] = {}
        self._waiting: dict[str, Any] = {}

    def add(self, name: str, thing: Stateful) -> None:
        """Registers an object; if a checkpoint was loaded that has its state, it gets it now.

        Raises:
            ValueError: the name is taken, or the object has no state.
        """
        lacking = [call for call in ("state_dict", "load_state_dict") if not callable(getattr(thing, call, None))]
        if lacking:
            raise ValueError(f"{name!r}: a {type(thing).__name__} has no {' and no '.join(lacking)}()")
        if name in self._objects and self._objects[name] is not thing:
            raise ValueError(f"{name!r} is registered already, for another object; choose another name")
        self._objects[name] = thing
        if name in self._waiting:
            thing.load_state_dict(self._waiting.pop(name))

    def states(self) -> dict[str, Any]:
        """The states of all; of those that a checkpoint had and that are not registered yet, what it had."""
        return {**self._waiting, **{name: thing.state_dict() for name, thing in self._objects.items()}}

    def forget(self) -> None:
        """Nothing waits any more: a checkpoint was loaded whose states are not for this rank."""
        self._waiting = {}

    def check(self, saved: Mapping[str, Any], where: str) -> None:
        """Whether all have a state in a checkpoint.

        Raises:
            CheckpointError: naming those that have none.
        """
        missing = sorted(set(self._objects) - set(saved))
        if missing:
            raise CheckpointError(
                f"{where} has no state of {missing}, which this run has registered; nothing was loaded. Register them "
                "behind load_checkpoint to let them begin anew."
            )

    def load(self, saved: Mapping[str, Any]) -> None:
        """Gives the states back; those of objects that are not registered yet wait."""
        self._waiting = {name: state for name, state in saved.items() if name not in self._objects}
        for name, thing in self._objects.items():
            if name in saved:
                thing.load_state_dict(saved[name])


def random_states() -> dict[str, Any]:
    """Of Python, numpy, torch and the accelerator."""
    accelerator = get_accelerator()
    found = {"python": random.getstate(), "numpy": numpy.random.get_state(), "torch": torch.get_rng_state()}
    if accelerator.device_name() != "cpu":
        found["accelerator"] = accelerator.get_rng_state()
    return found


def set_random_states(saved: Mapping[str, Any]) -> None:
    """Puts :func:`random_states` back; that of another kind of accelerator is left out."""
    random.setstate(saved["python"])
    numpy.random.set_state(saved["numpy"])
    torch.set_rng_state(saved["torch"])
    accelerator = get_accelerator()
    if "accelerator" in saved and accelerator.device_name() != "cpu":
        accelerator.set_rng_state(saved["accelerator"])


class Packed:
    """An object as it is now, in the bytes that :func:`write` would write.

    Args:
        content: the object.
    """

    def __init__(self, content: Any) -> None:
        stream = io.BytesIO()
        torch.save(content, stream)
        self.bytes = stream.getbuffer()


def write(path: Path, content: Any) -> None:
    """Writes an object, packed or not, synced to the disk."""
    with synced(path) as stream:
        if isinstance(content, Packed):
            stream.write(content.bytes)
        else:
            torch.save(content, stream)


def check_read(mine: Any, common: Any, where: str) -> None:
    """Whether a checkpoint's rank file and common file have the parts that a save gives them, before any is used.

    Args:
        mine: content of the rank file.
        common: content of the common file.
        where: the checkpoint, for the message.

    Raises:
        CheckpointError: naming the part that is missing, or of another kind.
    """
    parts = {
        "the rank's own file": (mine, ("random", "buffers", "registered", "client_state")),
        "common.pt": (common, ("optimizer", "scheduler")),
    }
    for name, (content, keys) in parts.items():
        wrong = [key for key in keys if not isinstance(content, dict) or key not in content]
        wrong = wrong or [key for key in keys if key != "scheduler" and not isinstance(content[key], dict)]
        if wrong:
            raise CheckpointError(f"{where}: {name} lacks {', '.join(wrong)}, which every save writes; {_ELSEWHERE}")
    optimizer = common["optimizer"]
    if not isinstance(optimizer.get("scalars"), dict) or not isinstance(optimizer.get("groups"), list):
        raise CheckpointError(f"{where}: common.pt has no options of an optimizer as a save writes them; {_ELSEWHERE}")
    if odd := [name for name, value in mine["buffers"].items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{where}: the rank's own file has buffers that are no tensors: {odd[:4]}; {_ELSEWHERE}")
    try:
        random.Random().setstate(mine["random"]["python"])
        numpy.random.RandomState().set_state(mine["random"]["numpy"])
        torch.Generator().set_state(mine["random"]["torch"])
    except Exception as error:  # each of the three has errors of its own
        raise CheckpointError(
            f"{where}: the rank's own file has no random states ({type(error).__name__}: {error}); {_ELSEWHERE}"
        ) from error


_ELSEWHERE = "it has changed since it was saved, or comes from elsewhere: load another checkpoint"
