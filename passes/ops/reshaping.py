"""Maps changed dimensions through a view or a flattening: by memory order, never by comparing sizes.

1. The dimensions before and after are grouped so that each group holds the same entries.
2. One dimension seen as ``(n, w)`` is cut at its vectors, which must be ``w`` wide; a
   neighbour in it that would then not fit is reported, so that it can be resized first.
3. Dimensions flattened to one keep the innermost as the width of its vectors.

Backwards the same holds: what a view must give says what its input must give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from dmt_plugin.passes.ops.axes import Axes, Axis, Segment, Unsupported


@dataclass(frozen=True)
class Need:
    """A neighbour that must grow or shrink before a reshape is possible: segment index and its new size."""

    segment: int
    size: int


def split_flat(axis: Axis, outer: int, inner: int) -> tuple[Axis | None, Axis | None] | Need:
    """A flat dimension viewed as ``(n, w)``: the axes of both, or the neighbour that does not fit.

    Args:
        axis: the flat dimension.
        outer: old ``n``.
        inner: old ``w``.

    Raises:
        Unsupported: the view does not cut the dimension at its vectors.
    """
    if outer * inner != axis.old:
        raise Unsupported(f"a view cuts {axis.old} entries into {outer} x {inner}")
    widths = {s.new_unit for s in axis.segments if s.changed and s.old_unit == inner}
    if len(widths) != 1:
        raise Unsupported(
            f"a view cuts {axis.old} entries into vectors of {inner}, but the streams in it have the widths "
            f"{sorted({s.old_unit for s in axis.segments if s.changed})}"
        )
    width = widths.pop()
    counts: list[Segment] = []
    for i, segment in enumerate(axis.standing(axis.in_place).segments):
        if segment.old % inner:
            raise Unsupported(f"a part of {segment.old} entries is not a whole number of vectors of {inner}")
        rows = segment.old // inner
        if not segment.changed:
            if segment.new != rows * width:
                return Need(i, rows * width)
            counts.append(Segment(rows, rows, 1, 1, False, free=segment.free, in_place=segment.in_place))
        elif segment.old_unit == inner:
            new, same = segment.new // width, segment.same_vectors
            counts.append(Segment(rows, new, changed=not same, free=segment.free, in_place=segment.in_place))
        elif segment.new == rows * width:
            counts.append(Segment(rows, rows, free=segment.free, in_place=segment.in_place))
        else:
            raise Unsupported(f"a part of {segment.old} entries became {segment.new}, not {rows} vectors of {width}")
    # Entries that went through a tower module are other entries, even at the same width.
    moved = [s for s in axis.segments if s.changed]
    return (
        None if all(s.same_vectors for s in moved) else Axis(tuple(counts)),
        None if all(s.same_entries for s in moved) else Axis((Segment(inner, width, free=axis.free),)),
    )


def merge(outer: Axis | int, inner: Axis | int) -> Axis | int:
    """Dimensions ``(n, w)`` flattened to one; the product of two that did not change."""
    if isinstance(outer, int) and isinstance(inner, int):
        return outer * inner
    old_width = inner.old if isinstance(inner, Axis) else inner
    new_width = inner.new if isinstance(inner, Axis) else inner
    kept = isinstance(inner, int)
    given = isinstance(inner, int) or inner.free
    if isinstance(outer, int):
        size = outer * old_width, outer * new_width
        return Axis((Segment(*size, old_width, new_width, same_vectors=True, free=given),))
    return Axis(
        tuple(
            Segment(
                s.old * old_width, s.new * new_width, old_width, new_width, s.changed or not kept,
                same_vectors=not s.changed, same_entries=kept, free=given and (s.free or not s.changed),
                in_place=outer.in_place,
            )
            for s in outer.segments
        )
    )  # fmt: skip


def align(old_in: Sequence[int], old_out: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Groups the dimensions of a view so that each group holds the same number of entries.

    Returns:
        Pairs of (input dimensions, output dimensions); sizes of 1 join the group before them.
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old_in) or j < len(old_out):
        ins, outs = ([i] if i < len(old_in) else []), ([j] if j < len(old_out) else [])
        left = old_in[i] if ins else 1
        right = old_out[j] if outs else 1
        i, j = i + len(ins), j + len(outs)
        while left != right:
            if left < right and i < len(old_in):
                left *= old_in[i]
                ins.append(i)
                i += 1
            elif right < left and j < len(old_out):
                right *= old_out[j]
                outs.append(j)
                j += 1
            else:
                raise Unsupported(f"a view from {list(old_in)} to {list(old_out)} cannot be followed")
        groups.append((ins, outs))
    return groups


def view_axes(axes: Axes, old_in: Sequence[int], old_out: Sequence[int]) -> Axes | tuple[int, Need]:
    """Axes of the result of a view.

    Returns:
        The axes, or ``(input dimension, need)`` if a neighbour must change first.

    Raises:
        Unsupported: the view cannot be followed.
    """
    result: Axes = {}
    for ins, outs in align(old_in, old_out):
        if not any(d in axes for d in ins):
            continue
        ins = [d for d in ins if old_in[d] != 1 or d in axes]
        outs = [d for d in outs if old_out[d] != 1] or outs[:1]
        if len(ins) == len(outs) and all(old_in[a] == old_out[b] for a, b in zip(ins, outs, strict=True)):
            result.update({b: axes[a] for a, b in zip(ins, outs, strict=True) if a in axes})
        elif len(ins) == 1 and len(outs) == 2:
            found = split_flat(axes[ins[0]], old_out[outs[0]], old_out[outs[1]])
            if isinstance(found, Need):
                return ins[0], found
            result.update({d: axis for d, axis in zip(outs, found, strict=True) if axis is not None})
        elif (regrouped := _heads(axes, [old_in[d] for d in ins], [old_out[d] for d in outs], ins)) is not None:
            result[outs[1]] = regrouped
        elif len(ins) > 1 and len(outs) == 1:
            flat = reduce(merge, (axes.get(d, old_in[d]) for d in ins))
            assert isinstance(flat, Axis)
            result[outs[0]] = flat
        else:
            raise Unsupported(f"a view from {list(old_in)} to {list(old_out)} mixes changed dimensions")
    return result


def _heads(axes: Axes, before: Sequence[int], after: Sequence[int], dims: Sequence[int]) -> Axis | None:
    """What became of ``f`` where ``(b, f, h * d)`` is seen as ``(b * h, f, d)``, or the other way round; else ``None``.

    That view does not turn dimensions: it deals the rows of a sample out to ``h`` groups in their order, as many to
    each as there are features (where that is the number of heads too, nobody can tell which is meant). So its rows are
    as many as before, and each may hold entries of any feature.
    """
    if len(before) != 3 or len(after) != 3 or before[1] != after[1]:
        return None
    outer, inner = (before, after) if before[0] < after[0] else (after, before)
    heads, left = divmod(inner[0], outer[0])
    alone = all((d in axes) == (d == dims[1]) for d in dims)
    if left or heads < 2 or heads == before[1] or outer[2] != inner[2] * heads or not alone:
        return None
    return Axis.of(axes[dims[1]].old, axes[dims[1]].new)
