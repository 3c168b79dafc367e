"""Spreads whole tables over the lanes of one host, or over hosts.

1. Longest processing time first: the most expensive table goes to the cheapest lane that has memory for it; tables
   and lanes of equal cost in the order of their memory.
2. If memory runs out that way, the same with the largest tables first, which packs tighter.
3. Local search: a table moves from one lane to another, or changes places with a table there, as long as this lowers
   the larger cost of the two lanes. The sorted costs fall in every step, so the search ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dmt_plugin.planner.load import Load

_LEAST_GAIN = 1e-9
"""Smallest relative gain that counts, so that rounding does not keep the search going."""


def spread(
    tables: Mapping[str, Load],
    base: Sequence[Load],
    limit: int | None,
    cost_of: Callable[[Load], float],
    search: bool = True,
) -> dict[str, int] | None:
    """Lane of every table, or ``None`` where memory does not suffice.

    Args:
        tables: load of each table.
        base: what each lane carries already.
        limit: bytes of memory per lane; ``None`` for no limit.
        cost_of: cost of a load; that of a sum is the sum of the costs.
        search: whether to search on (3.); for many tables and lanes that takes long, and brings little.
    """
    lanes = _Lanes(tables, base, limit, cost_of)
    if limit is not None and max(lanes.memory) > limit:
        return None
    cost, memory = lanes.table_cost, lanes.table_memory
    by_cost = sorted(tables, key=lambda t: (-cost[t], -memory[t], t))
    if not lanes.fill(by_cost):
        lanes = _Lanes(tables, base, limit, cost_of)
        if not lanes.fill(sorted(tables, key=lambda t: (-memory[t], -cost[t], t))):
            return None
    while search and any(lanes.relieve(lane) for lane in lanes.costliest_first()):
        pass
    return lanes.lane_of


class _Lanes:
    """The lanes of a host while tables are put on them. Costs add up, so two numbers per table are enough."""

    def __init__(
        self,
        tables: Mapping[str, Load],
        base: Sequence[Load],
        limit: int | None,
        cost_of: Callable[[Load], float],
    ) -> None:
        self.table_cost = {name: cost_of(load) for name, load in tables.items()}
        self.table_memory = {name: load.memory for name, load in tables.items()}
        self.cost = [cost_of(load) for load in base]
        self.memory = [load.memory for load in base]
        self.limit = float("inf") if limit is None else limit
        self.lane_of: dict[str, int] = {}

    def fill(self, order: Sequence[str]) -> bool:
        """Puts each table on the lane that is cheapest with it; whether memory sufficed."""
        for table in order:
            need = self.table_memory[table]
            fitting = [lane for lane, used in enumerate(self.memory) if used + need <= self.limit]
            if not fitting:
                return False
            self._put(table, min(fitting, key=lambda lane: (self.cost[lane], self.memory[lane], lane)))
        return True

    def costliest_first(self) -> list[int]:
        return sorted(range(len(self.cost)), key=lambda lane: (-self.cost[lane], lane))

    def relieve(self, source: int) -> bool:
        """Takes load off a lane by the best move or swap with the cheapest lane that allows one."""
        for target in reversed(self.costliest_first()):
            bar = self.cost[source] * (1 - _LEAST_GAIN)
            if self.cost[target] >= bar:
                return False  # nothing that is added there could help
            theirs = ["", *self._tables_on(target)]
            found = [
                (cost, table, other)
                for table in self._tables_on(source)
                for other in theirs
                if (cost := self._larger_after(source, target, table, other)) < bar
            ]
            if found:
                _, table, other = min(found)
                self._put(table, target)
                if other:
                    self._put(other, source)
                return True
        return False

    def _larger_after(self, source: int, target: int, table: str, other: str) -> float:
        """The larger cost of two lanes after a swap; ``other`` may be empty."""
        cost, memory = self.table_cost[table], self.table_memory[table]
        if other:
            cost, memory = cost - self.table_cost[other], memory - self.table_memory[other]
        if max(self.memory[source] - memory, self.memory[target] + memory) > self.limit:
            return float("inf")
        return max(self.cost[source] - cost, self.cost[target] + cost)

    def _put(self, table: str, lane: int) -> None:
        for where, sign in ((self.lane_of.get(table), -1), (lane, 1)):
            if where is not None:
                self.cost[where] += sign * self.table_cost[table]
                self.memory[where] += sign * self.table_memory[table]
        self.lane_of[table] = lane

    def _tables_on(self, lane: int) -> list[str]:
        return sorted(table for table, own in self.lane_of.items() if own == lane)
