"""Whole tables are dealt out over hosts by the rows that batches need, and as few as possible are divided."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.plan.tables import TableSpec, check_places, shards_of
from dmt_plugin.planner import PlacementRules, place_tables
from dmt_plugin.planner.load import CostModel, Load, TableUse
from dmt_plugin.planner.owners import deal_out
from dmt_plugin.planner.placement import TablePlacement
from dmt_plugin.topology.shape import Topology

MODEL = CostModel(once_members=4)
EVEN = 1.03


def uses_of(rows: list[float], sizes: list[int], free: bool = True, **other: Any) -> list[TableUse]:
    pairs = zip(sizes, rows, strict=True)
    return [TableUse(TableSpec(f"t{i}", n, 4), 1.0, 4, rows=d, free=free, **other) for i, (n, d) in enumerate(pairs)]


def loads(uses: list[TableUse], placed: TablePlacement, host_of: dict[str, int], where: Topology) -> list[Load]:
    found = [Load() for _ in range(where.hosts)]
    for use in uses:
        name = use.table.name
        host = placed.hosts.get(name, host_of[name])
        for shard in shards_of(use.table, host, placed.lanes.get(name), placed.splits.get(name)):
            found[shard.host] = found[shard.host] + MODEL.load(use, shard)
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 1.0), st.integers(8, 500)), min_size=1, max_size=12),
    st.sampled_from(["2x2", "4x2", "3x1", "1x3"]),
    st.none() | st.integers(2_000, 40_000),
    st.dictionaries(st.sampled_from(["t0", "t1"]), st.sampled_from(["table_wise", "row_wise"])),
)
def test_every_row_has_one_owner_and_rules_are_kept(tables: Any, shape: str, limit: Any, overrides: Any) -> None:
    where = Topology.parse(shape)
    uses = uses_of([d for d, _ in tables], [n for _, n in tables])
    host_of = {use.table.name: i % where.hosts for i, use in enumerate(uses)}
    rules = PlacementRules(memory_limit=limit, overrides=overrides)
    try:
        placed = place_tables(uses, host_of, where, rules, MODEL)
    except ConfigError as error:
        assert limit is not None and "dmt.placement.memory_per_rank" in str(error)
        return
    check_places([u.table for u in uses], placed.lanes, placed.splits, placed.hosts, host_of, where)
    assert place_tables(uses[::-1], host_of, where, rules, MODEL) == placed
    memory: Counter[tuple[int, int]] = Counter()
    for use in uses:
        name = use.table.name
        split = placed.splits.get(name)
        for shard in shards_of(use.table, placed.hosts.get(name, host_of[name]), placed.lanes.get(name), split):
            memory[shard.host, shard.lane] += MODEL.memory(use.table, shard.rows, shard.columns)
        if name in overrides:
            assert split is None or (overrides[name] == "row_wise" and split.is_plain)
    assert limit is None or max(memory.values()) <= limit
    if limit is None and not overrides and where.hosts > 1:
        own = [load.once for load in loads(uses, placed, host_of, where)]
        rows = {use.table.name: use.table.rows for use in uses}
        whole = {use.table.name: sum(load.once for load in loads([use], placed, host_of, where)) for use in uses}
        uneven = sum(whole[t] / rows[t] for t in placed.splits) * where.ranks_per_host
        assert max(own) <= EVEN * sum(own) / len(own) + uneven, "a rank has at most one row more of a divided table"


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(2, 3))
def test_no_fewer_divided_tables_would_do(sizes: list[int], hosts: int) -> None:
    """Beside every way there is, up to one table: the spread of the others is not always the best."""
    tables = {f"t{i}": Load(once=float(size)) for i, size in enumerate(sizes)}
    found = deal_out(tables, [Load()] * hosts, set(tables), 1, None)
    assert found is not None and found.largest <= EVEN
    mean = sum(sizes) / hosts

    def even(divided: tuple[str, ...]) -> bool:
        share = sum(tables[t].once for t in divided) / hosts
        rest = [t for t in tables if t not in divided]
        for way in itertools.product(range(hosts), repeat=len(rest)):
            sums = [share] * hosts
            for table, host in zip(rest, way, strict=True):
                sums[host] += tables[table].once
            if max(sums) <= EVEN * mean:
                return True
        return False

    least = next(n for n in range(len(tables) + 1) if any(map(even, itertools.combinations(tables, n))))
    assert len(found.divided) <= least + 1


def test_without_counts_tables_stay_on_the_hosts_of_their_towers() -> None:
    where = Topology(2, 2)
    uses = [TableUse(TableSpec(f"t{i}", 100, 4), 1.0, 4, free=True) for i in range(4)]
    host_of = dict.fromkeys([u.table.name for u in uses], 0)
    placed = place_tables(uses, host_of, where, PlacementRules(), MODEL)
    assert placed.hosts == {} == placed.splits and set(placed.lanes.values()) == {0, 1}
    bound = uses_of([1.0, 0.1, 0.1, 0.1], [100] * 4, free=False)
    kept = place_tables(bound, host_of, where, PlacementRules(split_gain=1.0), MODEL)
    assert kept.hosts == {} and all(r.host is None for split in kept.splits.values() for r in split.ranges)
    assert [r.step for r in kept.splits["t0"].ranges] == [2, 2]


def test_hosts_have_something_already() -> None:
    """A table of a tower counts, and what is dealt out goes to the other host."""
    found = deal_out({"a": Load(once=4.0)}, [Load(once=4.0), Load()], {"a"}, 2, None)
    assert found is not None and found.hosts == {"a": 1} and found.divided == ()
    assert deal_out({"a": Load(memory=9)}, [Load()] * 2, set(), 2, 4) is None
    large = deal_out({"a": Load(memory=9)}, [Load()] * 2, {"a"}, 2, 5)
    assert large is not None and large.divided == ("a",)
