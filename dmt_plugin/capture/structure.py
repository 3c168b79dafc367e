"""The structure of a call: which containers it nests, and which of their entries are constants or the graph's inputs.

A captured model has the structure of its example batch. A later call is matched with it entry by entry
(:func:`find_inputs`); the first that does not fit is said in the user's names. What forward never reads is taken out
of the structure (:func:`without`), so that it may be anything in later calls, or not there.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from dmt_plugin.capture.batch_parts import Path, is_constant, is_own_container
from dmt_plugin.capture.misfits import AGAIN, CALL, brief, misfit
from dmt_plugin.capture.reads import Reads


@dataclass(frozen=True)
class Input:
    """An input of the graph, by number."""

    number: int


@dataclass(frozen=True)
class Constant:
    """A value that is part of the captured program."""

    value: Any


@dataclass(frozen=True)
class Items:
    """A list or tuple.

    Attributes:
        kind: name of its type.
        items: its entries.
    """

    kind: str
    items: tuple[Structure, ...]


@dataclass(frozen=True)
class Keys:
    """A dict.

    Attributes:
        items: its entries, in the example's order.
        whole: whether it must have these keys and no others.
        absent: keys that it must not have, as forward asked for them in vain.
    """

    items: dict[Any, Structure]
    whole: bool = True
    absent: frozenset[Any] = field(default_factory=frozenset)


Structure = Input | Constant | Items | Keys


def leaf_paths(structure: Structure, path: Path = ()) -> list[Path]:
    """The paths of the graph's inputs, in order."""
    if isinstance(structure, Input):
        return [path]
    if isinstance(structure, Keys):
        return [p for key, item in structure.items.items() for p in leaf_paths(item, (*path, key))]
    if isinstance(structure, Items):
        return [p for i, item in enumerate(structure.items) for p in leaf_paths(item, (*path, i))]
    return []


def without(structure: Structure, reads: Reads, parameters: Set[str] | None) -> Structure:
    """The part of a call's structure that forward reads.

    Args:
        structure: by the names of forward's parameters.
        reads: what was read.
        parameters: the parameters that its code reads; ``None``: all of them.
    """
    assert isinstance(structure, Keys)
    items = {
        name: _read_of(item, reads, (name,))
        for name, item in structure.items.items()
        if parameters is None or name in parameters
    }
    return Keys(items, False)


def _read_of(structure: Structure, reads: Reads, path: Path) -> Structure:
    if isinstance(structure, Items):
        items = tuple(_read_of(item, reads, (*path, i)) for i, item in enumerate(structure.items))
        return Items(structure.kind, items)
    if not isinstance(structure, Keys):
        return structure
    asked = reads.asked.get(path)
    whole = asked is None or path in reads.whole
    items_read = {
        key: _read_of(item, reads, (*path, key))
        for key, item in structure.items.items()
        if whole or key in (asked or ())
    }
    return Keys(items_read, whole, frozenset((asked or set()) - structure.items.keys()))


def find_inputs(structure: Structure, arguments: dict[str, Any]) -> list[Any]:
    """The graph's inputs in a call.

    Args:
        structure: that of the captured call, by the names of forward's parameters.
        arguments: those of this call.

    Raises:
        CaptureError: it has another structure, or another constant.
    """
    assert isinstance(structure, Keys)
    found: dict[int, Any] = {}
    for name, item in structure.items.items():
        if name not in arguments:
            raise _other(f"the input {name} was given when the model was captured and is not there now")
        _find(item, arguments[name], name, found)
    for name in arguments.keys() - structure.items.keys() if structure.whole else ():
        raise _other(f"the input {name} was not given when the model was captured")
    return [found[number] for number in range(len(found))]


def _find(structure: Structure, value: Any, name: str, found: dict[int, Any]) -> None:
    if isinstance(structure, Constant):
        constant = structure.value
        if value is not constant and (type(value) is not type(constant) or value != constant):
            now = repr(value) if is_constant(value) else brief(value)
            raise misfit(
                f"the input {name} was the constant {constant!r} when the model was captured and is {now} now; "
                "constants are part of the captured program",
                "transform the model again with this value, or make it a tensor",
                CALL,
            )
    elif isinstance(structure, Input):
        if is_constant(value) or (isinstance(value, (list, tuple, dict)) and not is_own_container(value)):
            now = repr(value) if is_constant(value) else brief(value)
            raise _other(f"the input {name} was a tensor or batch object when the model was captured and is {now} now")
        found[structure.number] = value
    elif isinstance(structure, Items):
        if not isinstance(value, (list, tuple)) or len(value) != len(structure.items):
            before = f"a {structure.kind} of {len(structure.items)}"
            raise _other(f"the input {name} was {before} when the model was captured and is {brief(value)} now")
        for i, (item, own) in enumerate(zip(structure.items, value, strict=True)):
            _find(item, own, f"{name}[{i}]", found)
    else:
        _find_keys(structure, value, name, found)


def _find_keys(structure: Keys, value: Any, name: str, found: dict[int, Any]) -> None:
    keys = list(structure.items)
    if not isinstance(value, dict):
        raise _other(f"the input {name} was a dict when the model was captured and is {brief(value)} now")
    if missing := [key for key in keys if key not in value]:
        raise _other(f"the input {name} has no {missing[0]!r}, which the model reads; it has the keys {list(value)}")
    more = [key for key in value if key not in keys and (structure.whole or key in structure.absent)]
    if more:
        raise _other(
            f"the input {name} has the key {more[0]!r}, which it had not when the model was captured, and the model "
            "looks whether it is there"
        )
    for key, item in structure.items.items():
        _find(item, value[key], f"{name}[{key!r}]", found)


def _other(reason: str) -> Exception:
    return misfit(reason, AGAIN, CALL)
