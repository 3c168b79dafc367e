"""What is said of a call that does not fit the captured model, in the names of forward's arguments.

A call has the structure of the example batch, or it is refused before anything runs. Its tensors may have other shapes
than those of the example; where the graph then fails, :func:`explained` looks for the tensors that are others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dmt_plugin.capture.batch_parts import KEYS, LENGTH, WEIGHTS, WIDTHS, Path, is_jagged, parts
from dmt_plugin.capture.keyed_tensors import is_keyed
from dmt_plugin.core.errors import CaptureError, DMTError
from dmt_plugin.core.findings import Finding

CALL = "the call does not fit the captured model"
AGAIN = "call it as in the example batch, or transform the model again with a batch like this one"


def misfit(reason: str, hint: str, summary: str = "the example batch does not fit the model") -> CaptureError:
    """The error for a batch or a call that does not fit."""
    return CaptureError([Finding("DMT109", "error", "", reason, hint)], summary)


@dataclass(frozen=True)
class Described:
    """A tensor of a batch, or the keys of a jagged one.

    Attributes:
        shape: its shape.
        kind: ``"floats"``, ``"integers"`` or ``"truth values"``; ``"keys"`` for a jagged tensor.
        keys: of a jagged tensor.
    """

    shape: tuple[int, ...]
    kind: str
    keys: tuple[str, ...] = ()

    def like(self, other: Described) -> bool:
        """Whether both can be of one model: as many dimensions, columns, and the same kind of numbers."""
        if self.kind != other.kind or not set(self.keys) >= set(other.keys):
            return False
        return len(self.shape) == len(other.shape) and self.shape[1:] == other.shape[1:]

    def __str__(self) -> str:
        if self.kind == "keys":
            return f"the keys {list(self.keys)}"
        return f"{self.kind} of the shape ({', '.join(map(str, self.shape))})"


def described(value: Any) -> dict[Path, Described]:
    """The tensors of one graph input, by path inside it."""
    found: dict[Path, Described] = {}
    if isinstance(value, Tensor):
        kind = "truth values" if value.dtype == torch.bool else "floats" if value.is_floating_point() else "integers"
        found[()] = Described(tuple(value.shape), kind)
    elif is_jagged(value):
        found[()] = Described((), "keys", tuple(map(str, value.keys())))
    elif not is_keyed(value):
        for name, part in parts(value):
            found |= {(name, *path): own for path, own in described(part).items()}
    return found


@dataclass(frozen=True)
class KeysRead:
    """What a model needs of the keys of one jagged tensor.

    Attributes:
        names: those that it looks up.
        order: all of them, where it goes by their places.
    """

    names: frozenset[str]
    order: tuple[str, ...] | None = None

    def misfit(self, keys: Sequence[str]) -> str:
        """What is wrong with the keys of a later batch, as the end of a sentence; empty if nothing is."""
        if self.order is not None and tuple(keys) != self.order:
            return f"has the keys {list(keys)}, where the example batch had {list(self.order)}, and their order matters"
        missing = sorted(self.names.difference(keys))
        return f"has the keys {list(keys)}, without {missing}, which the model looks up" if missing else ""


_NONE = "no constant"


def check_fixed(name: str, before: Mapping[Path, Any], now: Mapping[Path, Any], value: Any) -> None:
    """Compares the constants inside one input of a call with those of the example batch.

    Args:
        name: of the input.
        before: of the example batch, by path inside the input, as :func:`~.batch_parts.fixed_parts` gives them.
        now: those of the call.
        value: the input.

    Raises:
        CaptureError: some of them are others.
    """
    if isinstance(value, Tensor):
        raise other_kind(name, _kind_of(before), value)
    changed = sorted((p for p in before.keys() | now.keys() if before.get(p, _NONE) != now.get(p, _NONE)), key=str)
    if not changed:
        return
    path = changed[0]
    inside = ".".join(map(str, (name, *path[:-1])))
    there, here = before.get(path), now.get(path)
    if len(path) == 1 and path[-1] in (KEYS, WIDTHS, WEIGHTS) and (path in before) != (path in now):
        raise other_kind(name, _kind_of(before), value)
    if path[-1] in (KEYS, LENGTH) and (path in before) != (path in now):
        was, is_ = ("a container", "none") if path in before else ("none", "one")
        raise misfit(f"the input {inside} was {was} when the model was captured and is {is_} now", AGAIN, CALL)
    if path[-1] == LENGTH:
        raise misfit(f"the input {inside} has {here} entries, where the example batch had {there}", AGAIN, CALL)
    if path[-1] == KEYS and isinstance(there, frozenset):
        had = f"where the example batch had {sorted(there, key=str)}"
        raise misfit(
            f"of the keys that the model reads the input {inside} has {sorted(here or (), key=str)}, {had}", AGAIN, CALL
        )
    if path[-1] in (KEYS, WIDTHS):
        what = "keys" if path[-1] == KEYS else "widths"
        raise misfit(f"the input {inside} has the {what} {here}, where the example batch had {there}", AGAIN, CALL)
    if path[-1] == WEIGHTS:
        have = ("has no weights, and had some", "has weights, and had none")[bool(here)]
        raise misfit(f"the input {inside} {have} in the example batch", AGAIN, CALL)
    raise misfit(
        f"in the input {name} {['.'.join(map(str, path)) for path in changed]} were "
        f"{[before.get(path, _NONE) for path in changed]} when the model was captured and are "
        f"{[now.get(path, _NONE) for path in changed]} now; constants are part of the captured program",
        AGAIN,
        CALL,
    )


def check_sizes(
    name: str,
    sizes: Mapping[Path, tuple[int | None, ...]],
    before: Mapping[Path, Described],
    now: Mapping[Path, Described],
) -> None:
    """Compares the sizes of one input of a call with those that a loop or a branch in forward has gone by.

    Args:
        name: of the input.
        sizes: by path inside the input; ``None`` for what follows the number of samples.
        before: the tensors of the example batch.
        now: those of the call.

    Raises:
        CaptureError: some of them are others.
    """
    for path, wanted in sizes.items():
        if path not in now:
            continue
        shape = now[path].shape
        same = len(shape) == len(wanted)
        if same and all(w is None or w == own for w, own in zip(wanted, shape, strict=True)):
            continue
        raise misfit(
            f"the input {'.'.join(map(str, (name, *path)))} has the shape {shape}, where the example batch had "
            f"{before[path].shape}, and forward goes by its sizes, in a loop or a branch",
            AGAIN,
            CALL,
        )


def _kind_of(fixed: Mapping[Path, Any]) -> str:
    if (KEYS,) in fixed:
        return "a KeyedTensor"
    return "a KeyedJaggedTensor" if (WEIGHTS,) in fixed else "a batch object"


def other_kind(name: str, before: str, value: Any) -> CaptureError:
    """The error for an input that is an object of another kind than it was in the example batch."""
    return misfit(f"the input {name} was {before} when the model was captured and is {brief(value)} now", AGAIN, CALL)


def brief(value: Any) -> str:
    """A container by its size or keys, a tensor by its shape, anything else by its type."""
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"a dict with the keys {list(value)}"
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of the shape {tuple(shape)}" if shape is not None else "")


class _Knows(Protocol):
    def differences(self, inputs: Sequence[Any]) -> list[tuple[str, Described, Described]]:
        """See :meth:`dmt_plugin.capture.inputs.InputBinder.differences`."""


@contextmanager
def said_to_the_user(binder: _Knows, inputs: Sequence[Any]) -> Iterator[None]:
    """Around a run of a graph: an error that comes of other tensors than the example's is said in the user's names.

    Args:
        binder: knows the example batch.
        inputs: those of the call.
    """
    try:
        yield
    except Exception as error:
        found = explained(error, binder, inputs)
        if found is None:
            raise
        raise found from None


def explained(error: Exception, binder: _Knows, inputs: Sequence[Any]) -> CaptureError | None:
    """What a failed run says to the user, if the call has other tensors than the example batch had.

    Args:
        error: what the graph raised.
        binder: knows the example batch.
        inputs: those of the call.
    """
    if isinstance(error, DMTError):
        return None
    found = binder.differences(inputs)
    if not found:
        return None
    for a, before, now in found:
        for b, other_before, other_now in found:
            if a < b and now.like(other_before) and other_now.like(before):
                reason = f"the inputs {a} and {b} are swapped: {a} is {now}, where the example batch had {before}"
                return misfit(reason, "pass them in the order of forward's parameters, or by name", CALL)
    said = "; ".join(f"the input {name} is {now}, where the example batch had {before}" for name, before, now in found)
    return misfit(f"{said} ({type(error).__name__}: {str(error).strip().splitlines()[0]})", AGAIN, CALL)
