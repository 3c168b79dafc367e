"""Places towers on hosts and tables on the lanes of their host.

Tables whose rows travel once, and of which it is known how many these are, may go to any host where no tower module
reads them: they are dealt out first (:mod:`dmt_plugin.planner.owners`). Then for each host by itself, as its towers
decide which other tables it holds:

1. Tables that are to be divided are: by the strategy, by an override, or, with ``"auto"``, because they are larger than
   the memory of a rank (by rows).
2. The others are spread whole (:mod:`dmt_plugin.planner.balance`). Where memory does not suffice, ``"auto"`` divides
   the largest of them and tries again; nothing left to divide is an error.
3. With ``"auto"``, the tables that cost most are divided by rows if that lowers the cost of the costliest lane by the
   factor ``split_gain``: one, two, ... of them, up to one per lane, and the smallest number that does it. Again, until
   none does. Dividing never lowers the sum of all costs, so nothing is tried where even lanes would not gain that much.

Rows that are known to travel once are divided by modulo, unless ranges are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.plan.tables import Kind, TableSplit, shards_of
from dmt_plugin.planner.balance import spread
from dmt_plugin.planner.load import CostModel, Load, TableUse, total
from dmt_plugin.planner.owners import deal_out
from dmt_plugin.planner.ranges import all_ranks, deal_rows, divide, divisible
from dmt_plugin.topology.shape import Topology


@dataclass(frozen=True)
class PlacementRules:
    """What the ``dmt.placement`` section asks for.

    Attributes:
        strategy: ``"auto"`` or the kind of all tables.
        memory_limit: bytes of tables and optimizer state per rank; ``None`` for no limit.
        split_gain: see the module's docstring.
        overrides: tables with a kind of their own.
    """

    strategy: Literal["auto", "table_wise", "row_wise", "column_wise"] = "auto"
    memory_limit: int | None = None
    split_gain: float = 1.5
    overrides: Mapping[str, Kind] = field(default_factory=dict)

    def kind_of(self, table: str) -> Literal["auto", "table_wise", "row_wise", "column_wise"]:
        """What is asked for one table."""
        return self.overrides.get(table, self.strategy)


@dataclass(frozen=True)
class TablePlacement:
    """Where tables are.

    Attributes:
        lanes: lane of each whole table.
        splits: ranges of each divided table.
        hosts: host of the whole tables that are elsewhere than their tower.
    """

    lanes: dict[str, int]
    splits: dict[str, TableSplit]
    hosts: dict[str, int] = field(default_factory=dict)


def towers_to_hosts(towers: int, topology: Topology) -> tuple[int, ...]:
    """Host of each tower; towers of one host are neighbours.

    Raises:
        ConfigError: fewer towers than hosts, or a number that leaves hosts unequal.
    """
    if towers < topology.hosts or towers % topology.hosts:
        raise ConfigError(
            f"dmt.towers.count is {towers} on {topology.hosts} host(s); it must be a multiple of the number of hosts, "
            'so that every host runs the same number of towers. Use "auto" for one tower per host. A tower may span '
            "several machines: dmt.topology.machines_per_host says how many neighbouring ones are one host."
        )
    return tuple(t * topology.hosts // towers for t in range(towers))


def place_tables(
    uses: Sequence[TableUse],
    host_of: Mapping[str, int],
    topology: Topology,
    rules: PlacementRules | None = None,
    model: CostModel | None = None,
) -> TablePlacement:
    """Lanes of every table on its host.

    Args:
        uses: every table of the model.
        host_of: host of each table.
        topology: hosts and lanes.
        rules: what is asked for.
        model: the cost model.

    Raises:
        ConfigError: a host has too little memory for its tables.
    """
    rules, model = rules or PlacementRules(), model or CostModel()
    lanes: dict[str, int] = {}
    splits, hosts = _deal_out(uses, host_of, topology, rules, model)
    dealt = [[Load()] * topology.ranks_per_host for _ in range(topology.hosts)]
    for use in (use for use in uses if use.table.name in splits):
        for shard in shards_of(use.table, 0, None, splits[use.table.name]):
            dealt[shard.host][shard.lane] = dealt[shard.host][shard.lane] + model.load(use, shard)
    here = {use.table.name: hosts.get(use.table.name, host_of[use.table.name]) for use in uses}
    for host in range(topology.hosts):
        mine = [use for use in uses if here[use.table.name] == host and use.table.name not in splits]
        mine.sort(key=lambda use: use.table.name)
        found = _Host(host, mine, dealt[host], rules, model).place()
        lanes.update(found.lanes)
        for name, split in found.splits.items():
            splits[name] = split if here[name] == host_of[name] else _on(host, split)
    elsewhere = {t: h for t, h in sorted(hosts.items()) if t in lanes and h != host_of[t]}
    return TablePlacement(lanes, splits, elsewhere)


def _deal_out(
    uses: Sequence[TableUse], host_of: Mapping[str, int], topology: Topology, rules: PlacementRules, model: CostModel
) -> tuple[dict[str, TableSplit], dict[str, int]]:
    """Splits over all ranks, and hosts, of the tables that may be on any host."""
    free = [
        use
        for use in uses
        if use.free and use.rows is not None and rules.kind_of(use.table.name) in ("auto", "table_wise")
    ]
    if topology.hosts == 1 or not free:
        return {}, {}
    loads = {
        use.table.name: Load(model.memory(use.table, use.table.rows, use.table.dim), once=model.between_hosts(use))
        for use in uses
    }
    base = [Load()] * topology.hosts
    names = [use.table.name for use in free]
    for table, load in loads.items():
        if table not in set(names):
            base[host_of[table]] = base[host_of[table]] + load
    divisible = {
        use.table.name
        for use in free
        if rules.kind_of(use.table.name) == "auto"
        and use.table.rows >= topology.world_size
        and not use.why_not("row_wise")
    }
    found = deal_out(
        {name: loads[name] for name in names}, base, divisible, topology.ranks_per_host, rules.memory_limit
    )
    if found is None:
        return {}, {}  # where they are, it is said what does not fit
    ranks = all_ranks(topology)
    table_of = {use.table.name: use.table for use in free}
    splits = {name: deal_rows(table_of[name], ranks, start) for start, name in enumerate(found.divided)}
    return splits, dict(found.hosts)


def _on(host: int, split: TableSplit) -> TableSplit:
    """The same ranges on another host than that of the table's tower."""
    return TableSplit(split.kind, tuple(replace(r, host=host) for r in split.ranges))


@dataclass(frozen=True)
class _Solution:
    placement: TablePlacement
    costs: list[float]


class _Host:
    """One host while its tables are placed."""

    def __init__(
        self, host: int, uses: Sequence[TableUse], dealt: Sequence[Load], rules: PlacementRules, model: CostModel
    ) -> None:
        self.host, self.lanes, self.dealt, self.rules, self.model = host, len(dealt), dealt, rules, model
        self.uses = {use.table.name: use for use in uses}
        self.whole = {name: model.load(use, shards_of(use.table, host, 0, None)[0]) for name, use in self.uses.items()}

    def place(self) -> TablePlacement:
        """The placement.

        Raises:
            ConfigError: too little memory.
        """
        limit = self.rules.memory_limit
        divided: dict[str, Kind] = {}
        for name in self.uses:
            kind = self.rules.kind_of(name)
            if kind in ("row_wise", "column_wise") and self._can(name, kind):
                divided[name] = kind
            elif limit is not None and self.whole[name].memory > limit and self._free(name):
                divided[name] = "row_wise"
        solution = self._solve(divided)
        while solution is None:
            rest = [name for name in self.uses if name not in divided and self._free(name)]
            if not rest:
                raise ConfigError(self._no_room(divided))
            divided[max(rest, key=lambda name: (self.whole[name].memory, name))] = "row_wise"
            solution = self._solve(divided)
        return self._balanced(divided, solution).placement

    def _balanced(self, divided: dict[str, Kind], solution: _Solution) -> _Solution:
        """Divides more tables while that pays."""
        while True:
            bar = max(solution.costs) / self.rules.split_gain
            free = [name for name in solution.placement.lanes if self._free(name)]
            free.sort(key=lambda name: (-self.model.cost(self.whole[name]), name))
            if sum(solution.costs) / self.lanes > bar:
                return solution
            for count in range(1, min(len(free), self.lanes) + 1):
                more: dict[str, Kind] = {**divided, **dict.fromkeys(free[:count], "row_wise")}
                tried = self._solve(more)
                if tried is not None and max(tried.costs) <= bar and max(tried.costs) < max(solution.costs):
                    divided, solution = more, tried
                    break
            else:
                return solution

    def _solve(self, divided: Mapping[str, Kind]) -> _Solution | None:
        """The best placement with these tables divided; ``None`` where memory does not suffice."""
        base = list(self.dealt)
        splits: dict[str, TableSplit] = {}
        for start, name in enumerate(sorted(divided, key=lambda name: (-self.model.cost(self.whole[name]), name))):
            use = self.uses[name]
            if use.rows is not None and self.rules.kind_of(name) == "auto":
                splits[name] = deal_rows(use.table, [(None, lane) for lane in range(self.lanes)], start)
            else:
                splits[name] = divide(use.table, divided[name], [self.model.cost(load) for load in base])
            for shard in shards_of(use.table, self.host, None, splits[name]):
                base[shard.lane] = base[shard.lane] + self.model.load(use, shard)
        rest = {name: load for name, load in self.whole.items() if name not in divided}
        lanes = spread(rest, base, self.rules.memory_limit, self.model.cost)
        if lanes is None:
            return None
        for name, lane in lanes.items():
            base[lane] = base[lane] + rest[name]
        return _Solution(TablePlacement(lanes, splits), [self.model.cost(load) for load in base])

    def _free(self, name: str) -> bool:
        """Whether the placer may divide a table by itself."""
        return self.rules.kind_of(name) == "auto" and self._can(name, "row_wise")

    def _can(self, name: str, kind: Kind) -> bool:
        use = self.uses[name]
        return self.lanes > 1 and not use.why_not(kind) and divisible(use.table, kind)

    def _no_room(self, divided: Mapping[str, Kind]) -> str:
        limit = self.rules.memory_limit
        assert limit is not None
        need = total((*self.whole.values(), *self.dealt)).memory
        room = self.lanes * limit
        text = (
            f"host {self.host} needs {say_bytes(need)} for {len(self.whole)} table(s) and their optimiser state; its "
            f"{self.lanes} rank(s) may use {say_bytes(limit)} each, {say_bytes(room)} together "
            f"(dmt.placement.memory_per_rank)."
        )
        whole = [name for name in self.whole if name not in divided]
        if need <= room and whole:
            largest = max(whole, key=lambda name: (self.whole[name].memory, name))
            use = self.uses[largest]
            why = use.why_not("row_wise") or (
                f"it is to be {self.rules.kind_of(largest)}" if divisible(use.table, "row_wise") else "it has one row"
            )
            text += (
                f" No way to fit them was found: the largest table that stays whole, {largest}, takes "
                f"{say_bytes(self.whole[largest].memory)}; {why}."
            )
        divide_more = "" if self.rules.strategy == "auto" else ' set dmt.placement.strategy to "auto",'
        return (
            f"{text} Raise the limit, use more hosts or ranks,{divide_more} or choose an optimiser with less state "
            "(dmt.lookup.optimizer)."
        )
