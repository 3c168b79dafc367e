"""The arguments of a call in a graph, by name, whether they were given by place or by keyword."""

from __future__ import annotations

from typing import Any

from torch import fx


def arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    """What a call was given, by name; what it was not given is not there.

    Args:
        node: the call.
        names: names of its leading arguments, in order. A name of several spellings is written ``"dim|axis"``; its
            value is found under the first.
    """
    first = {spelling: name.partition("|")[0] for name in names for spelling in name.split("|")}
    by_place = dict(zip(dict.fromkeys(first.values()), node.args, strict=False))
    return by_place | {first.get(key, key): value for key, value in node.kwargs.items()}


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """One argument, by place or by any of its names (``"dim|axis"``)."""
    if len(node.args) > place:
        return node.args[place]
    return next((node.kwargs[key] for key in name.split("|") if key in node.kwargs), default)
