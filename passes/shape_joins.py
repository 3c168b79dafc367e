"""The rule for ``cat`` and ``stack``: what lies beside the streams.

1. A run of one group's new streams is one part of the joined dimension: as many vectors as
   there are streams now, of their new width.
2. In every other dimension the parts must agree. A neighbour of the streams is a vector as
   wide as they are: if it has their new width already it stays, otherwise the layer that
   gives it is resized. Any other neighbour must change in the way that the part beside it
   does, even where the size happens to be the same.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from dmt_plugin.passes.axes import Axes, Axis, Segment, Unsupported
from dmt_plugin.passes.shape_ops import name_of, shape_of
from dmt_plugin.passes.shape_sweep import SEED, Sweep

Seed = tuple[str, int, int, int]


def parts_of(entries: list[fx.Node]) -> list[tuple[fx.Node, Seed | None, int]]:
    """Entries of a join; each run of one group's new streams is one part: (node, seed, number of streams)."""
    parts: list[tuple[fx.Node, Seed | None, int]] = []
    for entry in entries:
        seed = entry.meta.get(SEED)
        if seed is not None and parts and parts[-1][1] is not None and parts[-1][1][0] == seed[0]:
            parts[-1] = (parts[-1][0], seed, parts[-1][2] + 1)
        else:
            parts.append((entry, seed, 1))
    return parts


def join(sweep: Sweep, node: fx.Node) -> Axes:
    """See the module's docstring."""
    entries = list(node.args[0] if node.args else node.kwargs["tensors"])  # type: ignore[arg-type]
    stacked = name_of(node) == "stack"
    old = shape_of(node)
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    dim = int(given) % len(old)
    along: list[Axis | int] = []
    across: dict[int, Axis] = {}
    widths: dict[int, int] = {}
    flat = not stacked and dim == len(old) - 1
    for entry, seed, count in parts_of(entries):
        axes = sweep.states[entry].axes
        if seed is not None:
            _, features, width, new_width = seed
            if flat:
                along.append(Axis((Segment(features * width, count * new_width, width, new_width),)))
            else:
                along.append(Axis.of(features, count))
        elif stacked:
            along.append(1)
        else:
            along.append(axes.get(dim, shape_of(entry)[dim]))
        for d, axis in axes.items():
            place = d + (1 if stacked and d >= dim else 0)
            if stacked or d != dim:
                across.setdefault(place, axis)
                if seed is not None:
                    widths[place] = axis.new
    for entry in entries:
        missing: Axes = {}
        for place, axis in across.items():
            d = place - (1 if stacked and place > dim else 0)
            own = sweep.states[entry].axes.get(d)
            if own is not None and own.new != axis.new:
                raise Unsupported(f"joins widths {own.new} and {axis.new}")
            if own is None and shape_of(entry)[d] != widths.get(place):
                missing[d] = axis
        if missing:
            sweep.impose(entry, missing)
    result = dict(across)
    joined = Axis.joined(along, unit=flat)
    if joined is not None:
        result[dim] = joined
    return result
