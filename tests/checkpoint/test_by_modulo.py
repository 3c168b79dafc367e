"""Checkpoints of tables in rows by modulo: whatever placement saved them, any other reads them, bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmt_plugin.checkpoint import folder
from dmt_plugin.checkpoint.delta import write_delta
from dmt_plugin.checkpoint.delta_apply import apply_delta
from dmt_plugin.checkpoint.folder import COMMON, MANIFEST, STATE, Found, entry_of, rank_file
from dmt_plugin.checkpoint.manifest import FORMAT, Manifest, StoredByModulo
from dmt_plugin.checkpoint.pieces import divided, read_pieces, read_rows
from dmt_plugin.checkpoint.reshard import plan_for, reshard
from dmt_plugin.checkpoint.row_order import RowOrder
from dmt_plugin.checkpoint.single import read_tensors, write_flat
from dmt_plugin.checkpoint.state import StoredTable, table_pieces
from dmt_plugin.checkpoint.stored import stored_blocks
from dmt_plugin.checkpoint.weights import open_state, state_of
from dmt_plugin.checkpoint.writes import write_pieces
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.plan.row_shares import RowShares, TableRows
from dmt_plugin.plan.tables import TableRange, TableShard, TableSplit
from dmt_plugin.plan.tower_plan import FeatureSpec, TableSpec, TowerPlan
from dmt_plugin.planner.ranges import all_ranks, deal_rows, divide
from dmt_plugin.topology.shape import Topology
from tests.checkpoint.test_folder import manifest

TABLES = (
    TableSpec("joint[0:23]", 23, 6, "joint.weight"),
    TableSpec("joint[23:32]", 9, 6, "joint.weight", 23),
    TableSpec("users", 17, 6),
)
KEPT = ("sum", "exp_avg")
"""By row, and by entry."""


def plan_of(where: str, *splits: Any, hosts: dict[str, int] | None = None, tables: Any = TABLES) -> TowerPlan:
    """A plan of two towers; ``splits`` are those of the tables in their order, None for a whole one."""
    topology = Topology.parse(where)
    features = tuple(FeatureSpec(f"f{i}", (t.name,), 1) for i, t in enumerate(tables))
    found = {t.name: s for t, s in zip(tables, splits, strict=False) if s is not None}
    lanes = {t.name: 0 for t in tables if t.name not in found}
    towers = (("f0", "f1"), ("f2",))
    on = tuple(t * topology.hosts // 2 for t in range(2))
    return TowerPlan(where, tables, features, (), towers, on, lanes, table_splits=found, table_hosts=hosts or {})


def dealt(table: TableSpec, where: str, start: int = 0) -> TableSplit:
    return deal_rows(table, all_ranks(Topology.parse(where)), start)


def over_lanes(table: TableSpec, lanes: int) -> TableSplit:
    return deal_rows(table, [(None, lane) for lane in range(lanes)], 1)


PLANS = {
    "whole": plan_of("1x1"),
    "elsewhere": plan_of("2x1", hosts={"users": 0, "joint[23:32]": 1}),
    "ranges": plan_of("2x2", *(divide(t, "row_wise", [0, 0]) for t in TABLES)),
    "columns": plan_of("1x3", None, None, divide(TABLES[2], "column_wise", [0, 0, 0])),
    "lanes": plan_of("2x2", over_lanes(TABLES[0], 2), None, over_lanes(TABLES[2], 2)),
    "ranks": plan_of("2x2", dealt(TABLES[0], "2x2"), dealt(TABLES[1], "2x2", 3)),
    "more ranks": plan_of("2x3", dealt(TABLES[0], "2x3", 1), None, dealt(TABLES[2], "2x3", 5)),
}


class Held:
    """The tables of one rank, by shard, with what an optimizer keeps."""

    def __init__(self, shards: list[TableShard], values: dict[str, Tensor], fill: bool) -> None:
        self._own = {}
        for shard in shards:
            of = {name: values[name][shard.table.first_row :][: shard.table.rows] for name in names_of(shard.table)}
            parts = [shard.within(own).clone() for own in of.values()]
            self._own[shard.name] = parts if fill else [torch.full_like(part, -1) for part in parts]

    @property
    def tables(self) -> list[str]:
        return list(self._own)

    def table_weight(self, name: str) -> Tensor:
        return self._own[name][0]

    def optimizer_state(self, name: str) -> dict[str, Tensor]:
        return dict(zip(KEPT, self._own[name][1:], strict=True))

    def all_of(self, name: str) -> list[Tensor]:
        return self._own[name]


def names_of(table: TableSpec) -> list[str]:
    return [f"model.{table.parameter}", *(f"table_optimizer.{key}.{table.parameter}" for key in KEPT)]


def values_of(tables: Any = TABLES, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    rows = {t.parameter: max(x.first_row + x.rows for x in tables if x.parameter == t.parameter) for t in tables}
    found: dict[str, Tensor] = {}
    for parameter, count in rows.items():
        shapes = [(count, 6), (count,), (count, 6)]
        names = [f"model.{parameter}", *(f"table_optimizer.{key}.{parameter}" for key in KEPT)]
        found |= {name: torch.randn(shape, generator=g) for name, shape in zip(names, shapes, strict=True)}
    return found


def held(plan: TowerPlan, values: dict[str, Tensor], fill: bool = True) -> list[Held]:
    topology = Topology.parse(plan.topology)
    own: list[list[TableShard]] = [[] for _ in range(topology.world_size)]
    for table in plan.tables:
        for shard in plan.shards_of(table.name):
            own[topology.rank_of(shard.host, shard.lane)].append(shard)
    return [Held(shards, values, fill) for shards in own]


def saved(root: Path, tag: str, plan: TowerPlan, values: dict[str, Tensor], number: int = 1) -> Found:
    """What all ranks write."""
    temporary = folder.begin(root, tag)
    # The state by row cannot be divided by columns.
    pieces = [piece for rank in held(plan, values) for piece in table_pieces(rank, plan, optimizer=by_row(plan))]
    write_pieces(pieces, temporary / STATE, None)
    torch.save({}, temporary / COMMON)
    torch.save({}, temporary / rank_file(0))
    paths = [temporary / COMMON, temporary / rank_file(0), *(temporary / STATE).iterdir()]
    made = dataclasses.replace(
        manifest(tag, number), tensors={piece.name: piece.entry for piece in pieces}, plan=plan.to_dict(),
        files={str(path.relative_to(temporary)): entry_of(path) for path in paths}, topology=plan.topology,
    )  # fmt: skip
    return Found(folder.commit(temporary, made), made)


def by_row(plan: TowerPlan) -> bool:
    return all(plan.kind_of(table.name) != "column_wise" for table in plan.tables)


def loaded(found: Found, plan: TowerPlan, values: dict[str, Tensor], stored: dict[str, StoredTable]) -> list[Held]:
    ranks = held(plan, values, fill=False)
    for rank in ranks:
        optimizer = any(name.startswith("table_optimizer") for name in found.manifest.tensors) and by_row(plan)
        pieces = table_pieces(rank, plan, optimizer, stored)
        blocks, numbered = divided(pieces, found.manifest.tensors)
        read_pieces(blocks, found.state, None)
        read_rows(numbered, found.state, found.manifest.tensors)
    return ranks


def stored_tables(plan: TowerPlan) -> dict[str, StoredTable]:
    sizes = {t.parameter: max(x.first_row + x.rows for x in plan.tables if x.parameter == t.parameter) for t in TABLES}
    return {t.name: StoredTable(t.first_row, t.rows, sizes[t.parameter]) for t in plan.tables}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=3))
def test_rows_have_one_place_each_and_shards_are_blocks(cases: list[tuple[int, int, int]]) -> None:
    tables, end = [], 0
    for gap, rows, step in cases:
        tables.append(StoredByModulo(end + gap, rows, min(step, rows)))
        end += gap + rows
    order = RowOrder(tables)
    places = order.places(range(end + 2))
    assert sorted(places.tolist()) == list(range(end + 2))
    assert order.rows(places).tolist() == list(range(end + 2))
    for table in tables:
        for remainder in range(table.step):
            rows = range(table.first_row + remainder, table.first_row + table.rows, table.step)
            own = order.places(rows).tolist()
            assert own == list(range(own[0], own[0] + len(rows)))


@pytest.mark.parametrize("saver", PLANS)
def test_any_placement_reads_what_another_has_saved(saver: str, tmp_path: Path) -> None:
    values = values_of()
    found = saved(tmp_path, "a", PLANS[saver], values)
    for plan in PLANS.values():
        stored = stored_tables(PLANS[saver])
        expected = held(plan, values)
        for rank, right in zip(loaded(found, plan, values, stored), expected, strict=True):
            for name in rank.tables:
                count = len(right.all_of(name)) if by_row(plan) and by_row(PLANS[saver]) else 1
                pairs = list(zip(rank.all_of(name), right.all_of(name), strict=True))[:count]
                assert all(torch.equal(a, b) for a, b in pairs), name
    in_memory = {name: value for name, value in values.items() if name in found.manifest.tensors}
    assert all(torch.equal(v, in_memory[n]) for n, v in read_tensors(found, list(in_memory)).items())
    flat = {name: tensor.read() for name, tensor in state_of(found).items()}
    assert all(torch.equal(value, values[f"model.{name}"]) for name, value in flat.items()) and len(flat) == 2
    write_flat(found, tmp_path / "flat.pt", "torch")
    assert all(torch.equal(t.read(), flat[name]) for name, t in open_state(tmp_path / "flat.pt").items())


@pytest.mark.parametrize(("saver", "reader"), [("ranks", "lanes"), ("whole", "more ranks"), ("lanes", "whole")])
def test_tables_that_have_grown(saver: str, reader: str, tmp_path: Path) -> None:
    """Rows that are stored are read, the others stay."""
    found = saved(tmp_path, "a", PLANS[saver], values_of())
    tables = (dataclasses.replace(TABLES[0], rows=31), dataclasses.replace(TABLES[1], first_row=31), TABLES[2])
    shape = PLANS[reader].topology
    splits = [dealt(t, shape) if t.name in PLANS[reader].table_splits else None for t in tables]
    plan = plan_of(shape, *splits, tables=tables)
    values = values_of(tables, seed=1)
    before = values_of()
    for name in before:
        expected = values[name].fill_(-1)
        for old, new in zip(TABLES, tables, strict=True):
            if name in names_of(new):
                expected[new.first_row :][: old.rows] = before[name][old.first_row :][: old.rows]
    stored = stored_tables(PLANS[saver])
    for rank, right in zip(loaded(found, plan, values, stored), held(plan, values), strict=True):
        for name in rank.tables:
            assert all(torch.equal(a, b) for a, b in zip(rank.all_of(name), right.all_of(name), strict=True))


ROUND = ("ranges", "lanes", "ranks", "more ranks", "ranges")


@pytest.mark.parametrize(("one", "other"), itertools.pairwise(ROUND))
def test_written_again_for_another_placement(one: str, other: str, tmp_path: Path) -> None:
    """Byte for byte what that placement saves itself, each shard in one block; and deltas across both."""
    values = values_of()
    first = saved(tmp_path / "run", "a", PLANS[one], values)
    again = folder.find_checkpoint(reshard(first, PLANS[other], tmp_path / "again"))
    assert again is not None and again.manifest.tower_plan == PLANS[other]
    assert all(torch.equal(v, values[name]) for name, v in read_tensors(again, list(values)).items())
    shards = sum(len(PLANS[other].shards_of(t.name)) for t in TABLES)
    assert sum(len(blocks) for name, blocks in stored_blocks(again.state).items() if "model" in name) == shards
    for name in names_of(TABLES[0]):
        values[name][[3, 20, 25]] += 1
    later = saved(tmp_path / "run", "b", PLANS[other], values, number=2)
    made = write_delta(first, later, tmp_path / "d")
    assert made.tables["joint.weight"].changed == 3 and made.tables["users.weight"].changed == 0
    place = apply_delta(first, tmp_path / "d", tmp_path / "out")
    for name in later.manifest.files:
        assert (place / name).read_bytes() == (later.path / name).read_bytes()


def test_the_manifest_says_it_and_is_of_a_format_that_older_releases_refuse(tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain", "a", PLANS["ranges"], values_of())
    data = json.loads((plain.path / MANIFEST).read_text())
    assert data["format"] == 1 and all("by_modulo" not in entry for entry in data["tensors"].values())
    found = saved(tmp_path / "modulo", "a", PLANS["ranks"], values_of())
    text = (found.path / MANIFEST).read_text()
    data = json.loads(text)
    entry = {"first_row": 23, "rows": 9, "step": 4}
    assert data["format"] == FORMAT == 2 and data["tensors"]["model.joint.weight"]["by_modulo"][1] == entry
    assert "by_modulo" not in data["tensors"]["model.users.weight"]
    assert Manifest.from_json(text, "x").tensors == found.manifest.tensors
    with pytest.raises(CheckpointError, match="format 3 found, this release reads the formats 1 to 2"):
        Manifest.from_json(json.dumps({**data, "format": 3}), "x")


def test_a_plan_for_another_topology_deals_the_rows_out_again() -> None:
    """By the rows that were counted; what towers read stays on their hosts."""
    rows = tuple(TableRows(t.name, n, n) for t, n in zip(TABLES, (90.0, 10.0, 80.0), strict=True))
    shares = RowShares("a test", 10, 2, 1, (), rows)
    counted = dataclasses.replace(PLANS["ranks"], row_shares=shares)
    moved = plan_for(counted, Topology(2, 3))
    assert {s.step for s in moved.shards_of("joint[0:23]")} == {6} and moved.kind_of("users") == "table_wise"
    behind = plan_for(dataclasses.replace(PLANS["lanes"], row_shares=shares), Topology(2, 4))
    assert all(s.host == behind.host_of_table(t.name) for t in TABLES for s in behind.shards_of(t.name))
    assert plan_for(counted, Topology(1, 1)).table_splits == {} == plan_for(counted, Topology(1, 1)).table_hosts


def test_ranges_of_one_remainder_are_blocks_too() -> None:
    """Two owners of the even rows, and two of the odd ones."""
    spans = [range(0, 12, 2), range(1, 13, 2), range(12, 23, 2), range(13, 23, 2)]
    ranges = tuple(TableRange(i % 2, s.start, s.stop, 2, i // 2) for i, s in enumerate(spans))
    plan = plan_of("2x2", TableSplit("row_wise", ranges))
    values = values_of()
    pieces = [p for rank in held(plan, values) for p in table_pieces(rank, plan) if p.name == "model.joint.weight"]
    assert sorted((p.offsets[0], len(p.values)) for p in pieces) == [(0, 6), (6, 6), (12, 6), (18, 5), (23, 9)]
