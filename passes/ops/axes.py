"""The bookkeeping behind shape repair: what became of each dimension of a tensor.

A tower changes how many streams there are (``F -> F'``) and how wide they are
(``N -> D``). Every dimension that this reaches carries an :class:`Axis`; a dimension
without one is what it was. An axis is a run of :class:`Segment` s, because dense and tower
streams lie side by side in one dimension, and each segment knows the width of the vectors
it is made of. That is what separates "8 features of width 8" from "4 features of width 16",
which no comparison of sizes can.

An axis is also there when old and new size happen to be equal: what the dimension means
has changed all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace


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
        free: True for what a re-initialized layer or parameter gives: its entries have no meaning but
            that of what they are combined with.
        in_place: True if it surely stands where it stood among the parts beside it.
    """

    old: int
    new: int
    old_unit: int = 1
    new_unit: int = 1
    changed: bool = True
    same_vectors: bool = False
    same_entries: bool = False
    free: bool = False
    in_place: bool = field(default=False, compare=False, repr=False)

    @property
    def fixed(self) -> bool:
        """Whether it changed, and what it holds now has a meaning of its own."""
        return self.changed and not self.free

    @property
    def counted(self) -> bool:
        """Whether its entries are counted one by one, and are still as many."""
        return self.old == self.new and self.old_unit == self.new_unit == 1

    def part(self, size: int) -> Segment:
        """Some of the entries of a neighbour that did not change."""
        return replace(self, old=size, new=size, old_unit=min(self.old_unit, size), new_unit=min(self.new_unit, size))

    @staticmethod
    def plain(size: int) -> Segment:
        """An unchanged neighbour of ``size`` entries, one vector."""
        return Segment(size, size, size, size, False)


@dataclass(frozen=True)
class Axis:
    """A changed dimension: its parts, in order."""

    segments: tuple[Segment, ...]

    @property
    def old(self) -> int:
        """Size before."""
        return sum(s.old for s in self.segments)

    @property
    def new(self) -> int:
        """Size now."""
        return sum(s.new for s in self.segments)

    @property
    def free(self) -> bool:
        """Whether all of it comes from a re-initialized layer or parameter."""
        return all(s.free for s in self.segments)

    @property
    def in_place(self) -> bool:
        """Whether its parts surely stand in the order in which they stood."""
        return len(self.segments) == 1 or all(s.in_place for s in self.segments)

    def standing(self, in_place: bool) -> Axis:
        """The same parts, of which it is known whether they stand where they stood."""
        return Axis(tuple(replace(s, in_place=in_place) for s in self.segments))

    def cut(self, sizes: Sequence[int]) -> list[Axis | int]:
        """The dimension in pieces that had these sizes before; an int is a piece that did not change.

        Raises:
            Unsupported: a cut goes through what changed, so that it is not known what it separates.
        """
        left = list(self.segments) if self.in_place else []
        pieces: list[Axis | int] = []
        for size in sizes:
            own: list[Segment] = []
            while (missing := size - sum(s.old for s in own)) > 0:
                whole = left.pop(0) if left else None
                if whole is None or (whole.old > missing and (whole.changed or whole.old != whole.new)):
                    raise Unsupported("cuts a dimension whose features changed into pieces")
                if whole.old > missing:
                    left.insert(0, whole.part(whole.old - missing))
                    whole = whole.part(missing)
                own.append(whole)
            pieces.append(Axis(tuple(own)) if any(s.changed for s in own) else size)
        return pieces

    def anew(self) -> Axis:
        """The same dimension, given by a layer or parameter that is re-initialized."""
        return Axis(tuple(replace(s, free=True) for s in self.segments))

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
                one = Segment.plain(part) if unit else Segment(part, part, 1, 1, False)
                segments.append(replace(one, in_place=True))
            elif unit and len(part.segments) == 1 and part.segments[0].old_unit == 1:
                only = part.segments[0]
                segments.append(replace(only, old_unit=only.old, new_unit=only.new, in_place=True))
            else:
                segments.extend(part.standing(part.in_place).segments)
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
        in_place = self.in_place and other.in_place
        if self._runs() == other._runs():
            return self.standing(in_place)
        both = self._over(other)
        if both is None or any(a.fixed and b.fixed and a != b for a, b in both):
            raise Unsupported(f"combines two dimensions of {self.new} entries that are made of different parts")
        return Axis(tuple(a if a.fixed or (a.changed and not b.fixed) else b for a, b in both)).standing(in_place)

    def satisfies(self, wanted: Axis) -> bool:
        """Whether it is what another place asks for: the size, and at least what changes there."""
        mine = [s for s in self.segments if s.changed]
        theirs = [s for s in wanted.segments if s.changed]
        both = self._over(wanted)
        return (
            self.new == wanted.new
            and (both is None or all(a.changed or a.free or not b.fixed for a, b in both))
            and (not all(s.same_vectors for s in mine) or all(s.same_vectors for s in theirs))
            and (not all(s.same_entries for s in mine) or all(s.same_entries for s in theirs))
        )

    def _over(self, other: Axis) -> list[tuple[Segment, Segment]] | None:
        """Parts laid over parts, cut where either is cut; ``None`` unless the entries of both are still as many."""
        if not all(s.counted for s in (*self.segments, *other.segments)):
            return None
        cells: list[tuple[Segment, Segment]] = []
        mine, theirs = list(self.segments), list(other.segments)
        while mine and theirs:
            a, b = mine.pop(0), theirs.pop(0)
            size = min(a.old, b.old)
            for left, whole in ((mine, a), (theirs, b)):
                if whole.old > size:
                    left.insert(0, replace(whole, old=whole.old - size, new=whole.old - size))
            cells.append((replace(a, old=size, new=size), replace(b, old=size, new=size)))
        return cells

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
