"""Deals out tables over hosts by the rows that batches are known to need, where rows travel once.

The bytes that a host sends and receives follow the distinct rows of its tables. No tower binds these tables to a host.

1. A table that is larger than the memory of a rank is divided over all ranks by rows, where it may be.
2. The others are spread whole (:mod:`dmt_plugin.planner.balance`) by the bytes that hosts exchange for them, beside
   what hosts have already.
3. Where the largest host then has more than :data:`EVEN` times the mean, one, two, ... tables are divided over all
   ranks, each adding the same to every host, until it has not. Of so many, all sets are tried where these are few, else
   neighbours in the order of their weight, as a table may be just what a host is to have: those that weigh most first.
   If hosts cannot be even, the fewest are divided that come closest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations
from math import comb

from dmt_plugin.planner.balance import spread
from dmt_plugin.planner.load import Load

EVEN = 1.03
"""Largest host to mean that counts as even."""

_ONE_BY_ONE = 16
"""Numbers of divided tables that are tried one after another; after that, each is a quarter more."""
_MOST_SETS = 400
"""Sets of tables of one size that are all tried."""
_MOST_SEARCHED = 1000
"""Tables times hosts up to which the spread is searched on."""
_MOST_PLACED = 50_000
"""Tables that are placed in all ways together, before only those that weigh most are tried."""


@dataclass(frozen=True)
class Owners:
    """Which host has which table.

    Attributes:
        hosts: host of each whole table.
        divided: tables whose rows are dealt out over all ranks.
        largest: bytes of the largest host to the mean.
    """

    hosts: Mapping[str, int]
    divided: tuple[str, ...]
    largest: float


def deal_out(
    tables: Mapping[str, Load],
    base: Sequence[Load],
    divisible: Set[str],
    ranks_per_host: int,
    memory_limit: int | None,
) -> Owners | None:
    """Hosts of tables; ``None`` where memory does not suffice.

    Args:
        tables: load of each table; ``once`` is what hosts exchange for it.
        base: what each host has already.
        divisible: tables that may be divided.
        ranks_per_host: ``L``.
        memory_limit: bytes of memory per rank; ``None`` for no limit.
    """
    return _Dealer(tables, base, None if memory_limit is None else ranks_per_host * memory_limit).deal(
        sorted(divisible & tables.keys(), key=lambda t: (-tables[t].once, t)), memory_limit
    )


class _Dealer:
    def __init__(self, tables: Mapping[str, Load], base: Sequence[Load], limit: int | None) -> None:
        self._tables, self._base, self._limit = tables, base, limit
        self._mean = sum(load.once for load in (*tables.values(), *base)) / len(base)

    def deal(self, divisible: Sequence[str], memory_limit: int | None) -> Owners | None:
        """The best way found; ``divisible`` are those that weigh most first."""
        too_large = [t for t in divisible if memory_limit is not None and self._tables[t].memory > memory_limit]
        order = [t for t in divisible if t not in set(too_large)]
        best: Owners | None = None
        placed = 0
        for count in _numbers(len(order)):
            for divided in self._ways(order, count):
                found = self._with([*too_large, *divided], best.largest if best else None)
                if found is not None and (best is None or found.largest < best.largest * (1 - 1e-9)):
                    best = found
                if best is not None and best.largest <= EVEN:
                    return best
                placed += 0 if found is None else len(found.hosts)
                if placed > _MOST_PLACED:
                    break
        return best

    def _ways(self, order: Sequence[str], count: int) -> Iterator[Sequence[str]]:
        """Sets of so many tables to try: all where these are few, else neighbours in the order of their weight."""
        if comb(len(order), count) <= _MOST_SETS:
            yield from combinations(order, count)
            return
        for first in range(min(len(order) - count, 2 * len(self._base)) + 1):
            yield order[first : first + count]

    def _with(self, divided: Sequence[str], least: float | None) -> Owners | None:
        """With these tables divided; ``None`` where memory does not suffice, or hosts cannot be more even than that."""
        tables, hosts = self._tables, len(self._base)
        whole = {t: load for t, load in tables.items() if t not in set(divided)}
        share = Load(
            memory=sum(-(-tables[t].memory // hosts) for t in divided),
            once=sum(tables[t].once for t in divided) / hosts,
        )
        heaviest = max((load.once for load in whole.values()), default=0.0)
        if least is not None and share.once + heaviest >= least * self._mean:
            return None
        filled = [load + share for load in self._base]
        found = spread(whole, filled, self._limit, _exchanged, search=len(whole) * hosts <= _MOST_SEARCHED)
        if found is None:
            return None
        for table, host in found.items():
            filled[host] = filled[host] + whole[table]
        largest = max(load.once for load in filled) / self._mean if self._mean else 1.0
        return Owners(found, tuple(divided), largest)


def _numbers(most: int) -> Iterator[int]:
    """How many tables to divide: 0, 1, 2, ... and in the end all."""
    count = 0
    while count < most:
        yield count
        count += 1 if count < _ONE_BY_ONE else count // 4
    yield most


def _exchanged(load: Load) -> float:
    return load.once
