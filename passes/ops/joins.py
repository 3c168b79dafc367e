"""Joins, ``cat`` and ``stack``: the new shape where changed streams are joined with each other and with other tensors.

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

from dmt_plugin.fxtools.arguments import argument
from dmt_plugin.fxtools.names import SCATTERED, SEED
from dmt_plugin.passes.ops.axes import Axes, Axis, Segment, Unsupported
from dmt_plugin.passes.ops.dims import Asked, Dims, Token, is_tensor, leading
from dmt_plugin.passes.ops.names import name_of, shape_of
from dmt_plugin.passes.ops.registry import op
from dmt_plugin.passes.ops.splits import joined_pieces
from dmt_plugin.passes.ops.walk import Walk

CONCATENATIONS = ("cat", "concat", "concatenate")
STACKS = ("stack",)
JOINS = (*CONCATENATIONS, *STACKS)

Seed = tuple[str, int, int, int]


def joined_dim(node: fx.Node) -> int:
    """The dimension of a join's result along which its parts lie."""
    return int(argument(node, 1, "dim|axis", 0)) % len(shape_of(node))


def joined_parts(node: fx.Node) -> list[Any]:
    """What a join puts side by side; empty where that is no list."""
    given = argument(node, 0, "tensors")
    return list(given) if isinstance(given, (list, tuple)) else []


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
    stacked = name_of(node) in STACKS
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
        result[dim] = joined.standing(False) if node.meta.get(SCATTERED) else joined
    return result


def _parts(walk: Walk, node: fx.Node, wanted: Axes) -> Asked:
    """Other entries of a joined dimension are asked of each part, another size only where it is clear of which."""
    dim, runs = joined_dim(node), parts_of(joined_parts(node))
    stacked = name_of(node) in STACKS
    parts = [part for part, seed, _ in runs if seed is None]  # a tower's streams are what they are
    across = {d - (stacked and d > dim): axis for d, axis in wanted.items() if d != dim}
    if dim not in wanted:
        return [(part, across) for part in parts]
    if stacked or len(parts) < len(runs):
        return []
    sizes = [shape_of(part)[dim] for part in parts]
    segments = wanted[dim].segments
    if [s.old for s in segments] == sizes:
        along = [{dim: Axis((s,))} if s.changed else {} for s in segments]
    elif wanted[dim].old == wanted[dim].new:
        along = [{dim: Axis.of(size, size)} for size in sizes]
    else:
        return []
    return [(part, across | own) for part, own in zip(parts, along, strict=True) if across | own]


@op(*JOINS, forward=join, several=joined_pieces, producers=_parts)
def _side_by_side(node: fx.Node) -> Dims:
    """The joined dimension is no part's; all others are common."""
    parts = joined_parts(node)
    if not parts or not all(map(is_tensor, parts)):
        raise Unsupported("joins what is not a list of tensors")
    result: list[Token] = list(leading(len(shape_of(node))))
    result[joined_dim(node)] = "joined"
    stacked = name_of(node) in STACKS
    own = [t for t in result if t != "joined"] if stacked else result
    terms = [(part, tuple(f"part{at}" if t == "joined" else t for t in own)) for at, part in enumerate(parts)]
    return Dims(tuple(terms), tuple(result))
