"""Deals out tables over hosts by the rows that batches are known to need, where rows travel once.

The bytes that a host sends and receives follow the distinct rows of its tables. No tower binds these tables to a host.

1. A table that is larger than the memory of a rank is divided over all ranks by rows, where it may be.
2. The others are spread whole (:mod:`dmt_plugin.planner.balance`) by the bytes that hosts exchange for them, beside
   what hosts have already.
3. Where the largest host then has more than :data:`EVEN` times the mean, the one, two, ... tables that weigh most are
   divided over all ranks, each adding the same to every host, until it has not: the fewest that do it. If none do, the
   fewest of those that come closest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from dmt_plugin.planner.balance import spread
from dmt_plugin.planner.load import Load

EVEN = 1.03
"""Largest host to mean that counts as even."""

_ONE_BY_ONE = 16
"""Numbers of divided tables that are tried one after another; after that, each is a quarter more."""


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
    limit = None if memory_limit is None else ranks_per_host * memory_limit
    too_large = [t for t in sorted(divisible & tables.keys()) if memory_limit and tables[t].memory > memory_limit]
    order = sorted((divisible & tables.keys()) - set(too_large), key=lambda t: (-tables[t].once, t))
    total = sum(load.once for load in (*tables.values(), *base))
    mean = total / len(base)
    best: Owners | None = None
    for count in _numbers(len(order)):
        divided = [*too_large, *order[:count]]
        whole = {t: load for t, load in tables.items() if t not in set(divided)}
        shares = Load(
            memory=sum(-(-tables[t].memory // len(base)) for t in divided),
            once=sum(tables[t].once for t in divided) / len(base),
        )
        bar = EVEN * mean if best is None else min(best.largest, EVEN) * mean
        heaviest = max((load.once for load in whole.values()), default=0.0)
        if best is not None and shares.once + heaviest > bar and count < len(order):
            continue  # whichever host has it, that is too much
        filled = [load + shares for load in base]
        hosts = spread(whole, filled, limit, _exchanged)
        if hosts is None:
            continue
        for table, host in hosts.items():
            filled[host] = filled[host] + whole[table]
        largest = max(load.once for load in filled) / mean if mean else 1.0
        if best is None or largest < best.largest * (1 - 1e-9):
            best = Owners(hosts, tuple(divided), largest)
        if largest <= EVEN:
            break
    return best


def _numbers(most: int) -> Iterator[int]:
    """How many tables to divide: 0, 1, 2, ... and in the end all."""
    count = 0
    while count < most:
        yield count
        count += 1 if count < _ONE_BY_ONE else count // 4
    yield most


def _exchanged(load: Load) -> float:
    return load.once
