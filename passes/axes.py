"""The bookkeeping behind shape repair: what became of each dimension of a tensor.

A tower changes how many streams there are (``F -> F'``) and how wide they are
(``N -> D``). Every dimension that this reaches carries an :class:`Axis`; a dimension
without one is what it was. An axis is a run of :class:`Segment` s, because dense and tower
streams lie side by side in one dimension, and each segment knows the width of the vectors
it is made of. That is what tells "8 features of width 8" from "4 features of width 16",
which no comparison of sizes can.

An axis is also there when old and new size happen to be equal: what the dimension means
has changed all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class Unsupported(Exception):
    """A rewrite that cannot be proven; the text says why."""


@dataclass(frozen=True)
class Segment:
    """A part of a dimension.

    Attributes:
        old: size before.
        new: size now.
        old_unit: width of one vector of it before; 1 where a unit is one entry.
        new_unit: width of one vector now.
        changed: False for a neighbour that only shares the dimension.
        same_vectors: True if only the width of its vectors changed, not which ones there are.
        same_entries: True if only the vectors changed, not what one of them holds.
    """

    old: int
    new: int
    old_unit: int = 1
    new_unit: int = 1
    changed: bool = True
    same_vectors: bool = False
    same_entries: bool = False

    @staticmethod
    def plain(size: int) -> Segment:
        """An unchanged neighbour of ``size`` entries, one vector."""
        return Segment(size, size, size, size, False)


@dataclass(frozen=True)
class Axis:
    """A changed dimension.

    Attributes:
        segments: its parts, in order.
        free: True for what a layer or parameter gives anew: its entries have no meaning but
            that of what they are combined with.
    """

    segments: tuple[Segment, ...]
    free: bool = False

    @property
    def old(self) -> int:
        """Size before."""
        return sum(s.old for s in self.segments)

    @property
    def new(self) -> int:
        """Size now."""
        return sum(s.new for s in self.segments)

    @staticmethod
    def of(old: int, new: int) -> Axis:
        """One segment of single entries, such as the width of a stream or a list of pairs."""
        return Axis((Segment(old, new),))

    @staticmethod
    def joined(parts: Sequence[Axis | int], unit: bool) -> Axis | None:
        """Parts side by side: an int is an unchanged part of that size.

        Args:
            parts: in order.
            unit: True if each part is one vector (``cat`` of flat streams), False if its
                entries are counted (``cat`` of ``(B, n, N)`` along ``n``).

        Returns:
            The axis, or ``None`` if nothing in it changed.
        """
        if not any(isinstance(p, Axis) for p in parts):
            return None
        segments: list[Segment] = []
        for part in parts:
            if isinstance(part, int):
                segments.append(Segment.plain(part) if unit else Segment(part, part, 1, 1, False))
            elif unit and len(part.segments) == 1 and part.segments[0].old_unit == 1:
                only = part.segments[0]
                segments.append(Segment(only.old, only.new, only.old, only.new, only.changed))
            else:
                segments.extend(part.segments)
        return Axis(tuple(segments))


    def with_layout_of(self, other: Axis) -> Axis:
        """The axis of two that lie entry on entry.

        Raises:
            Unsupported: they differ in size, or in which parts and vectors they are made of.
        """
        if self.new != other.new:
            raise Unsupported(f"combines {self.new} with {other.new} entries")
        if self.free or other.free:
            return other if self.free else self
        if self._runs() != other._runs():
            raise Unsupported(f"combines two dimensions of {self.new} entries that are made of different parts")
        return self

    def satisfies(self, wanted: Axis) -> bool:
        """Whether it is what another place asks for: the size, and at least what changes there."""
        mine = [s for s in self.segments if s.changed]
        theirs = [s for s in wanted.segments if s.changed]
        return (
            self.new == wanted.new
            and (not all(s.same_vectors for s in mine) or all(s.same_vectors for s in theirs))
            and (not all(s.same_entries for s in mine) or all(s.same_entries for s in theirs))
        )

    def _runs(self) -> list[tuple[int, int, int, int, bool]]:
        """Neighbouring segments of one kind taken together."""
        runs: list[tuple[int, int, int, int, bool]] = []
        for s in self.segments:
            if runs and runs[-1][2:] == (s.old_unit, s.new_unit, s.changed):
                old, new = runs.pop()[:2]
                runs.append((old + s.old, new + s.new, s.old_unit, s.new_unit, s.changed))
            else:
                runs.append((s.old, s.new, s.old_unit, s.new_unit, s.changed))
        return runs


Axes = dict[int, Axis]


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
    for i, segment in enumerate(axis.segments):
        if segment.old % inner:
            raise Unsupported(f"a part of {segment.old} entries is not a whole number of vectors of {inner}")
        rows = segment.old // inner
        if not segment.changed:
            if segment.new != rows * width:
                return Need(i, rows * width)
            counts.append(Segment(rows, rows, 1, 1, False))
        elif segment.old_unit == inner:
            counts.append(Segment(rows, segment.new // width, changed=not segment.same_vectors))
        elif segment.new == rows * width:
            counts.append(Segment(rows, rows))
        else:
            raise Unsupported(f"a part of {segment.old} entries became {segment.new}, not {rows} vectors of {width}")
    # Entries that went through a tower module are other entries, even at the same width.
    moved = [s for s in axis.segments if s.changed]
    return (
        None if all(s.same_vectors for s in moved) else Axis(tuple(counts)),
        None if all(s.same_entries for s in moved) else Axis.of(inner, width),
    )


def merge(outer: Axis | int, inner: Axis | int) -> Axis:
    """Dimensions ``(n, w)`` flattened to one, at least one of them changed."""
    old_width = inner.old if isinstance(inner, Axis) else inner
    new_width = inner.new if isinstance(inner, Axis) else inner
    if isinstance(outer, int):
        return Axis((Segment(outer * old_width, outer * new_width, old_width, new_width, same_vectors=True),))
    kept = isinstance(inner, int)
    return Axis(
        tuple(
            Segment(
                s.old * old_width, s.new * new_width, old_width, new_width, s.changed or not kept,
                same_vectors=not s.changed, same_entries=kept,
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
        elif len(ins) == 2 and len(outs) == 1:
            result[outs[0]] = merge(axes.get(ins[0], old_in[ins[0]]), axes.get(ins[1], old_in[ins[1]]))
        else:
            raise Unsupported(f"a view from {list(old_in)} to {list(old_out)} mixes changed dimensions")
    return result
