"""The rule for ``cat`` and ``stack``: what lies beside the streams.

1. A run of one group's new streams is one part of the joined dimension: as many vectors as
   there are streams now, of their new width.
2. In every other dimension the parts must agree. A neighbour of the streams is a vector as
   wide as they are: if it has their new width already it stays, otherwise the layer that
   gives it is resized. Any other neighbour must change in the way that the part beside it
   does, even where the size happens to be the same.
"""

from __future__ import annotations

from torch import fx

from dmt_plugin.fxtools.names import SEED
from dmt_plugin.passes.ops.axes import Axes, Axis, Segment
from dmt_plugin.passes.ops.names import joined_dim, joined_parts, name_of, shape_of
from dmt_plugin.passes.ops.walk import Walk

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


def join(walk: Walk, node: fx.Node) -> Axes:
    """See the module's docstring."""
    entries, dim = joined_parts(node), joined_dim(node)
    stacked = name_of(node) == "stack"
    along: list[Axis | int] = []
    across: dict[int, Axis] = {}
    widths: dict[int, int] = {}
    flat = not stacked and dim == len(shape_of(node)) - 1
    for entry, seed, count in parts_of(entries):
        axes = walk.states[entry].axes
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
                across[place] = across[place].with_layout_of(axis) if place in across else axis
                if seed is not None:
                    widths[place] = axis.new
    for entry in entries:
        missing: Axes = {}
        for place, axis in across.items():
            d = place - (1 if stacked and place > dim else 0)
            if d not in walk.states[entry].axes and shape_of(entry)[d] != widths.get(place):
                missing[d] = axis
        if missing:
            walk.impose(entry, missing)
    result = dict(across)
    joined = Axis.joined(along, unit=flat)
    if joined is not None:
        result[dim] = joined
    return result
