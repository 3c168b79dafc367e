"""What is said of a call that does not fit the captured model, in the names of forward's arguments.

A call has the structure of the example batch, or it is refused before anything runs. Its tensors may have other shapes
than those of the example; where the graph then fails, :func:`explained` looks for the tensors that are others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dmt_plugin.capture.batch_parts import Path, is_jagged, parts
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
