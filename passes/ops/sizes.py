"""Reads the sizes, or numbers of copies, among a call's arguments in every spelling that torch allows, and sets others.

``x.view(b, n)``, ``x.view((b, n))`` and ``torch.reshape(x, shape=(b, n))`` are read alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from dmt_plugin.passes.ops.names import name_of

_KEYS = ("size", "sizes", "shape", "repeats", "dims")
_FUNCTIONS_OF_SIZES = ("zeros", "ones", "full", "rand", "randn")
_VALUE_FOLLOWS = ("full", "new_full", "unflatten")


@dataclass(frozen=True)
class Sizes:
    """Sizes as arguments of a call.

    Attributes:
        node: the call.
        given: each size, a number or a node; empty if a node gives all of them.
        whole: the node that gives all of them.
        place: position of the first among the arguments, or the keyword that holds them.
        spread: whether each is an argument of its own.
    """

    node: fx.Node
    given: tuple[Any, ...]
    whole: fx.Node | None
    place: int | str
    spread: bool

    def replaced(self, new: Callable[[int, Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments and keywords of the call with ``new(place, size)`` for every size."""
        args, kwargs = self.node.args, dict(self.node.kwargs)
        if self.whole is not None:
            return args, kwargs
        sizes = [new(at, size) for at, size in enumerate(self.given)]
        if isinstance(self.place, str):
            held = kwargs[self.place]
            return args, kwargs | {self.place: type(held)(sizes) if isinstance(held, (list, tuple)) else sizes[0]}
        if self.spread:
            return (*args[: self.place], *sizes), kwargs
        held = args[self.place]
        one = type(held)(sizes) if isinstance(held, (list, tuple)) else sizes[0]
        return (*args[: self.place], one, *args[self.place + 1 :]), kwargs


def sizes_of(node: fx.Node) -> Sizes:
    """The sizes that a view, a repetition, or a tensor filled with one value is given."""
    name = name_of(node)
    place: int | str = 0 if name in _FUNCTIONS_OF_SIZES else 2 if name == "unflatten" else 1
    key = next((key for key in _KEYS if key in node.kwargs), None)
    assert isinstance(place, int)
    spread = key is None and len(node.args) != place + 1 and name not in _VALUE_FOLLOWS
    given: Any
    if key is not None:
        given, place = node.kwargs[key], key
    else:
        given = node.args[place:] if spread else node.args[place]
    if isinstance(given, fx.Node) and not isinstance(given.meta.get("val"), int):
        return Sizes(node, (), given, place, spread)
    return Sizes(node, tuple(given) if isinstance(given, (list, tuple)) else (given,), None, place, spread)
