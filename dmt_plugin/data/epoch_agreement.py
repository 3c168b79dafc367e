"""When all ranks stop: every step needs every rank, so an epoch has as many steps on each.

1. When an epoch begins, the ranks tell each other how many batches they have. Where all know it and have as many,
   nothing more has to be said; where they have not, all refuse, or all train for as long as the shortest (``uneven``).
2. Where a rank cannot tell (a stream), all say before each batch whether they have another: one small exchange per
   step. There a loader that fails also stops all ranks at once, with its error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch.utils.data import IterableDataset

from dmt_plugin.core.errors import DataError
from dmt_plugin.topology.agreement import gather

Uneven = Literal["error", "stop"]

_MORE, _OVER = "more", "over"


@dataclass
class Ahead:
    """What was found when a loader was asked for another batch.

    Attributes:
        batch: the batch.
        over: there is none.
        error: the loader has failed.
    """

    batch: Any = None
    over: bool = False
    error: Exception | None = None

    @property
    def there(self) -> bool:
        """Whether it is a batch."""
        return not self.over and self.error is None


class Ends:
    """The end of one epoch, for all ranks; every rank makes one when its epoch begins.

    Args:
        dmt: the plugin's part of the engine, for its groups and the errors of its transport.
        length: batches of this rank's loader in an epoch, where it says so.
        begun: batches of the epoch that were handed out already.
        uneven: what to do where ranks have different numbers of batches.

    Attributes:
        limit: batches that the epoch has on every rank; None where that shows only at its end.

    Raises:
        DataError: on every rank, where the numbers differ and that is an error.
        ExchangeError: a rank is gone, or the time is up.
    """

    def __init__(self, dmt: Any, length: int | None, begun: int, uneven: Uneven) -> None:
        self._dmt, self._length, self._uneven = dmt, length, uneven
        told = self._gather((length, begun))
        if len({begun for _, begun in told}) > 1:
            raise DataError(
                f"the ranks go on at different positions: batches handed out are {_by_rank([b for _, b in told])}. "
                "Load the position that was saved at the same step on every rank."
            )
        lengths = [length for length, _ in told]
        self.limit = None if None in lengths else min(lengths)
        if self.limit is not None and len(set(lengths)) > 1 and uneven == "error":
            raise DataError(
                f"the ranks have different numbers of batches: {_by_rank(lengths)}. Every step needs every rank: give "
                'all as many (a DistributedSampler does), or pass uneven="stop" to stop all with the shortest.'
            )

    def agree(self, ahead: Ahead, handed_out: int) -> Ahead:
        """What all ranks make of what each of them has found.

        Args:
            ahead: what this rank's loader gave.
            handed_out: number of batches before that one.

        Raises:
            ExchangeError: a rank is gone, or the time is up.
        """
        if self.limit is None:
            return self._together(ahead, handed_out)
        if handed_out == self.limit < (self._length or 0):
            return Ahead(over=True)  # dropped: another rank has no more
        if ahead.error is None and ahead.over != (handed_out == self.limit):
            found = f"ended after {handed_out}" if ahead.over else "went on behind them"
            return Ahead(
                error=DataError(
                    f"the loader says that it has {self._length} batches, and {found}: the ranks rely on len(loader). "
                    "Mend its __len__, or leave it out; the ranks then ask each other at every step."
                )
            )
        return ahead

    def _together(self, ahead: Ahead, handed_out: int) -> Ahead:
        mine = f"{type(ahead.error).__name__}: {ahead.error}" if ahead.error else _OVER if ahead.over else _MORE
        told = self._gather(mine)
        if ahead.error is not None:
            return ahead
        failed = [(rank, said) for rank, said in enumerate(told) if said not in (_MORE, _OVER)]
        if failed:
            rank, said = failed[0]
            return Ahead(error=DataError(f"the loader of rank {rank} failed, so all ranks stop: {said}"))
        if len(set(told)) == 1:
            return ahead
        if self._uneven == "stop":
            return Ahead(over=True)
        out = ", ".join(str(rank) for rank, said in enumerate(told) if said == _OVER)
        return Ahead(
            error=DataError(
                f"rank(s) {out} ran out after {handed_out} batches while others have more. Every step needs every "
                'rank: give all as many batches, or pass uneven="stop" to stop all with the shortest.'
            )
        )

    def _gather(self, mine: Any) -> list[Any]:
        dmt = self._dmt
        return gather(dmt.groups, mine, "the agreement of all ranks on the next batch", dmt.transport)


def length_of(loader: Any) -> int | None:
    """Number of batches of an epoch, or None where the loader cannot tell for certain."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None  # torch divides what the stream says by the batch size; workers make other numbers of it
    try:
        return len(loader)
    except TypeError:
        return None


def _by_rank(values: list[Any]) -> str:
    groups: dict[Any, list[int]] = {}
    for rank, value in enumerate(values):
        groups.setdefault(value, []).append(rank)
    return "; ".join(
        f"{value} on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:8]))}{', ...' * (len(ranks) > 8)}"
        for value, ranks in groups.items()
    )
