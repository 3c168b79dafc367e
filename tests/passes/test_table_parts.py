"""Divided tables compute what whole ones do: every kind of lookup, both routes, and mutations that must be seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.config.section import CommConfig, DMTConfig
from dmt_plugin.core.errors import ConfigError, PlanError, TransformError
from dmt_plugin.model.placed import place
from dmt_plugin.nn.graph_ops import graph_function
from dmt_plugin.nn.lookup import site_ids
from dmt_plugin.passes.placement import table_shards as table_parts
from dmt_plugin.passes.rank import place as place_pass
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWorld
from tests.passes.flat import ROWS, Flat, cat, ids, only
from tests.passes.world import differences, run_placed, settings, towered
from tests.zoo.catalogue import CATALOGUE
from tests.zoo.models import ZOO

SIZES = (3, 0, 2, 4)
"""Samples of each rank; one has none."""

PLACEMENTS: dict[str, dict[str, Any]] = {
    "rows": {"strategy": "row_wise"},
    "columns": {"strategy": "column_wise"},
    "mixed": {"overrides": {"tables.0": "row_wise", "tables.1": "column_wise", "tables.3": "row_wise",
                            "tables.5": "column_wise", "tables.6": "row_wise"}},
}  # fmt: skip


def every_kind(model: Any, index: Tensor) -> list[Tensor]:
    """Means, padding, weights, several ids, one id, sequences summed, multiplied and reduced.

    With 24 columns of ids each table reads its own, with 3 they share them.
    """
    t = model.tables
    own = [index[:, 3 * f : 3 * f + 3] if index.shape[1] > 3 else index for f in range(8)]
    return [
        t[0](own[0]),
        t[1](own[1]),
        t[2](own[2][:, 2:3]).squeeze(1),
        t[3](own[3], per_sample_weights=(own[3] % 4 + 0.5).float()),
        t[4](own[4][:, 1]),
        t[5](own[5]).sum(1),
        t[6](own[6]).prod(1),
        t[7](own[7]).amax(1),
    ]


def model_of_every_kind(columns: int) -> nn.Module:
    torch.manual_seed(0)
    bag, one = nn.EmbeddingBag, nn.Embedding
    tables: list[nn.Module] = [
        bag(ROWS, 4, mode="mean"), bag(ROWS, 4, mode="mean", padding_idx=2), one(ROWS, 4, padding_idx=0),
        bag(ROWS, 4, mode="sum"), one(ROWS, 4), one(ROWS, 4, padding_idx=3), one(ROWS, 4), one(ROWS, 4),
    ]  # fmt: skip
    return Flat(cat, tables, every_kind, features=columns)


def found_wrong(
    placement: dict[str, Any],
    topology: str = "2x2",
    route: str = "hierarchical",
    backends: Sequence[str] = ("torch",),
    towers: dict[str, Any] | None = None,
) -> list[str]:
    columns, section = 24 if towers else 3, {"comm": {"route": route}, "placement": placement}
    configs = [settings(backend, **section, towers=towers or {"module": "none"}) for backend in backends]
    logical = towered(model_of_every_kind(columns), (ids(columns, 5),), topology, configs[0])
    batches = [(ids(columns, size, seed=rank),) for rank, size in enumerate(SIZES)]
    where = Topology.parse(topology)
    batches = batches[: where.world_size]
    placed = (run_placed(logical, config, SimulatedWorld(where), batches) for config in configs)
    return [text for found in placed for text in differences(logical, found, batches)]


@pytest.mark.parametrize("route", ["hierarchical", "flat"])
@pytest.mark.parametrize("topology", ["2x2", "1x4", "1x3", "2x1"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_divided_tables_are_the_whole_ones(placement: str, topology: str, route: str) -> None:
    assert found_wrong(PLACEMENTS[placement], topology, route, ("torch", "fbgemm")) == []


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_in_front_of_tower_modules(placement: str) -> None:
    assert found_wrong(PLACEMENTS[placement], towers={"module": "dlrm", "c": 1, "p": 1, "dim": 4}) == []


@pytest.mark.parametrize("route", ["hierarchical", "flat"])
@pytest.mark.parametrize("strategy", ["row_wise", "column_wise"])
@pytest.mark.parametrize("name", ["multi_hot_dlrm", "torchrec_dlrm", "joint_dlrm", "dlrm_qr_mult", "dlrm_mixed_dims"])
def test_models_of_the_zoo(name: str, strategy: str, route: str) -> None:
    torch.manual_seed(0)
    flat, batch = (ZOO[name] if name in ZOO else CATALOGUE[name].build)()
    config = settings(comm={"route": route}, placement={"strategy": strategy})
    logical = towered(flat, batch(5, 0), "2x2", config)
    assert set(map(logical.plan.kind_of, logical.plan.table_splits)) == {strategy}
    batches = [batch(size, 10 + rank) for rank, size in enumerate((3, 1, 2, 4))]
    assert differences(logical, run_placed(logical, config, SimulatedWorld(Topology(2, 2)), batches), batches) == []


def test_more_lanes_than_rows_or_columns() -> None:
    torch.manual_seed(0)
    tables: list[nn.Module] = [nn.Embedding(3, 4), nn.Embedding(ROWS, 2), nn.Embedding(1, 4), nn.Embedding(ROWS, 1)]

    def look(model: Any, index: Tensor) -> list[Tensor]:
        few = [3, ROWS, 1, ROWS]
        rows = [t(index[:, f] % few[f]) for f, t in enumerate(model.tables)]
        return [nn.functional.pad(row, (0, 4 - row.shape[1])) for row in rows]

    placement = {"overrides": {"tables.0": "row_wise", "tables.1": "column_wise"}}
    for strategy in ("row_wise", "column_wise"):
        config = settings(placement={**placement, "strategy": strategy}, towers={"module": "none"})
        logical = towered(Flat(cat, tables, look), (ids(4, 5),), "1x4", config)
        kept = "tables.2" if strategy == "row_wise" else "tables.3"
        assert only([f for f in logical.findings if f.module == kept], "DMT308").severity == "info"
        assert len(logical.plan.shards_of("tables.0")) == 3 and len(logical.plan.shards_of("tables.1")) == 2
        batches = [(ids(4, size, seed=rank),) for rank, size in enumerate(SIZES)]
        assert differences(logical, run_placed(logical, config, SimulatedWorld(Topology(1, 4)), batches), batches) == []


def test_each_rank_holds_its_ranges_only() -> None:
    config = settings(placement={"strategy": "row_wise", "overrides": {"tables.4": "column_wise"}})
    config = config.model_copy(update={"towers": config.towers.model_copy(update={"module": "none"})})
    logical = towered(model_of_every_kind(3), (ids(3, 5),), "1x2", config)
    sizes = [
        {t: tuple(m.lookup.table_weight(t).shape) for t in m.lookup.tables}
        for m in (place(logical, config, Topology(1, 2), rank) for rank in (0, 1))
    ]
    assert sizes[0]["tables.0[rows 0:5]"] == sizes[1]["tables.0[rows 5:10]"] == (5, 4)
    assert sizes[0]["tables.4[columns 0:2]"] == sizes[1]["tables.4[columns 2:4]"] == (ROWS, 2)
    assert not set(sizes[0]) & set(sizes[1]) and len(sizes[0]) == 8
    loads = place(logical, config, Topology(1, 2), 1).placement.loads
    assert [(x.host, x.lane, x.tables) for x in loads] == [(0, 0, 8), (0, 1, 8)]
    assert loads[0].bytes == loads[1].bytes == 7 * 5 * 4 * 4 + ROWS * 2 * 4


# -- what cannot be divided -----------------------------------------------------------------------


def test_rows_that_meet_their_ids_stay_on_one_lane() -> None:
    def look(model: Any, index: Tensor) -> list[Tensor]:
        t = model.tables
        mask = (index[:, :3] != 0).float().unsqueeze(2)
        return [(t[0](index[:, :3]) * mask).sum(1), *(t[i](index[:, i]) for i in (1, 2, 3))]

    torch.manual_seed(0)
    config = settings(placement={"strategy": "row_wise"}, towers={"module": "none"})
    logical = towered(Flat(cat, look=look), (ids(4, 5),), "2x2", config)
    finding = only(logical.findings, "DMT308")
    assert (finding.module, finding.severity) == ("tables.0", "info") and "needs their ids" in finding.reason
    assert logical.plan.kind_of("tables.0") == "table_wise" and logical.plan.kind_of("tables.1") == "row_wise"
    batches = [(ids(4, size, seed=rank),) for rank, size in enumerate(SIZES)]
    assert differences(logical, run_placed(logical, config, SimulatedWorld(Topology(2, 2)), batches), batches) == []
    config = settings(placement={"overrides": {"tables.0": "row_wise"}}, towers={"module": "none"})
    with pytest.raises(TransformError) as raised:
        towered(Flat(cat, look=look), (ids(4, 5),), "2x2", config)
    assert only(raised.value.findings, "DMT309").module == "tables.0"


def maxima(model: Any, index: Tensor) -> list[Tensor]:
    return [t(index[:, 3 * f : 3 * f + 3]) for f, t in enumerate(model.tables)]


def of_maxima() -> nn.Module:
    """Bags of three ids; few distinct values, so that many entries of a bag are equal."""
    torch.manual_seed(0)
    options: list[dict[str, Any]] = [{"mode": "max"}, {"mode": "sum"}, {"mode": "max", "padding_idx": 2}]
    model = Flat(cat, [nn.EmbeddingBag(ROWS, 4, **given) for given in (*options, options[0])], maxima, features=12)
    with torch.no_grad():
        for table in model.tables:
            table.weight.copy_(torch.randint(-1, 2, (ROWS, 4)).float())  # type: ignore[operator]
    return model


@pytest.mark.parametrize("strategy", ["row_wise", "column_wise", "table_wise"])
@pytest.mark.parametrize("route", ["hierarchical", "flat"])
def test_pooled_by_maximum(route: str, strategy: str) -> None:
    config = settings("auto", placement={"strategy": strategy}, comm={"route": route}, towers={"module": "none"})
    logical = towered(of_maxima(), (ids(12, 5),), "2x2", config)
    batches = [(ids(12, size, seed=rank),) for rank, size in enumerate(SIZES)]
    assert differences(logical, run_placed(logical, config, SimulatedWorld(Topology(2, 2)), batches), batches) == []
    kinds = [logical.plan.kind_of(f"tables.{i}") for i in range(4)]
    assert kinds == ["table_wise" if strategy == "row_wise" and i != 1 else strategy for i in range(4)]
    whole = [f.module for f in logical.findings if f.code == "DMT308" and "maximum" in f.reason]
    assert whole == (["tables.0", "tables.2", "tables.3"] if strategy == "row_wise" else [])


def test_rows_of_a_table_pooled_by_maximum_are_not_divided() -> None:
    config = settings(placement={"overrides": {"tables.0": "row_wise"}}, towers={"module": "none"})
    with pytest.raises(TransformError) as raised:
        towered(of_maxima(), (ids(12, 5),), "2x2", config)
    finding = only(raised.value.findings, "DMT309")
    assert finding.module == "tables.0" and "maximum" in finding.reason and '"column_wise"' in finding.hint


def test_columns_and_rowwise_adagrad_are_refused() -> None:
    rule: dict[str, Any] = {"optimizer": "rowwise_adagrad", "lr": 0.1}
    config = settings(placement={"overrides": {"tables.1": "column_wise"}}, lookup=rule)
    with pytest.raises(TransformError) as raised:
        towered(Flat(cat), (ids(4, 5),), "2x2", config)
    finding = only(raised.value.findings, "DMT310")
    assert finding.module == "tables.1" and "mean of squares" in finding.reason
    for name in ("adagrad", "sgd"):
        towered(Flat(cat), (ids(4, 5),), "2x2", config.model_copy(update={"lookup": rule_named(name)}))
    towered(Flat(cat), (ids(4, 5),), "2x1", config)  # one lane: nothing is divided


def rule_named(name: str) -> Any:
    return settings(lookup={"optimizer": name, "lr": 0.1}).lookup


# -- mutations ------------------------------------------------------------------------------------


def test_mutations_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(placement: str, target: Any, name: str, mutation: Any) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setattr(target, name, mutation)
            return found_wrong(PLACEMENTS[placement])

    in_range = site_ids._in_range

    def swapped_ranges(site: Any, ids: Any, rows: int) -> Any:
        other = ROWS - site.rows - site.first_row
        return in_range(type(site)(**{**vars(site), "first_row": other}), ids, rows)

    def own_ids_only(site: Any, ids: Any, rows: int) -> Any:
        values, counts, weights = in_range(site, ids, rows)
        if site.pooling == "mean":
            weights = (1.0 / counts.clamp(min=1)).repeat_interleave(counts)
        return site_ids.SiteIds(values, counts, weights)

    @graph_function
    def join_whole_sequences(ranges: Any, vectors: int) -> Tensor:
        return torch.cat(list(ranges), 1)

    @graph_function
    def first_range_only(partial: Any) -> Tensor:
        return partial[0]

    def in_given_order(graph: Any, pieces: Any, columns: Any) -> Any:
        """Ranges joined as they come, here from the last lane to the first."""
        found: dict[Any, list[Any]] = {}
        for piece, column in list(zip(pieces, columns, strict=True))[::-1]:
            found.setdefault(piece.value.node, []).append((piece, column))
        join = table_parts.join_column_ranges
        return [
            (own[0][0].value, graph.call_function(join, ([c for _, c in own], vectors_of(own[0][0]))))
            for own in found.values()
        ]

    def vectors_of(piece: Any) -> int:
        return piece.looked_up // piece.shard.columns

    assert found_wrong(PLACEMENTS["rows"]) == found_wrong(PLACEMENTS["columns"]) == []
    assert "outputs" in wrong("rows", site_ids, "_in_range", swapped_ranges)
    assert "outputs" in wrong("rows", site_ids, "_in_range", own_ids_only)
    assert "outputs" in wrong("rows", table_parts, "add_row_ranges", first_range_only)
    assert "outputs" in wrong("columns", table_parts, "join_column_ranges", join_whole_sequences)
    assert "outputs" in wrong("columns", place_pass, "arrived_columns", in_given_order)


# -- what the configuration and a plan from a file say ---------------------------------------------


def plan_file(path: Path, **placement: Any) -> DMTConfig:
    """Writes the plan of a model placed that way, and gives a configuration that reads it."""
    config = settings(placement=placement, towers={"module": "none"})
    towered(Flat(cat), (ids(4, 5),), "1x2", config).plan.save(path)
    return settings(partition={"strategy": "file", "file": str(path)}, towers={"module": "none"})


def test_a_plan_from_a_file_places_the_tables(tmp_path: Path) -> None:
    config = plan_file(tmp_path / "p.json", strategy="row_wise", overrides={"tables.1": "column_wise"})
    logical = towered(Flat(cat), (ids(4, 5),), "1x2", config)
    kinds = [logical.plan.kind_of(f"tables.{i}") for i in range(4)]
    assert kinds == ["row_wise", "column_wise", "row_wise", "row_wise"]
    batches = [(ids(4, size, seed=rank),) for rank, size in enumerate((3, 2))]
    assert differences(logical, run_placed(logical, config, SimulatedWorld(Topology(1, 2)), batches), batches) == []
    by_row = settings(partition={"strategy": "file", "file": str(tmp_path / "p.json")}, towers={"module": "none"},
                      lookup={"optimizer": "rowwise_adagrad"})  # fmt: skip
    with pytest.raises(TransformError) as raised:
        towered(Flat(cat), (ids(4, 5),), "1x2", by_row)
    assert only(raised.value.findings, "DMT310").module == "tables.1"


def test_the_model_says_what_is_frozen_and_in_which_type_not_the_plan(tmp_path: Path) -> None:
    model = Flat(cat)
    model.tables[2].requires_grad_(False)
    model.tables[1].bfloat16()
    torch.manual_seed(0)
    config = settings(placement={"strategy": "row_wise"}, towers={"module": "none"})
    towered(model, (ids(4, 5),), "1x2", config).plan.save(tmp_path / "p.json")
    planned = json.loads((tmp_path / "p.json").read_text())["tables"]
    assert [table.get("frozen") for table in planned] == [None, None, True, None]
    again = settings(partition={"strategy": "file", "file": str(tmp_path / "p.json")}, towers={"module": "none"})
    other = Flat(cat)
    other.tables[3].requires_grad_(False)
    logical = towered(other, (ids(4, 5),), "1x2", again)
    assert [t.frozen for t in logical.plan.tables] == [False, False, False, True]
    assert {t.dtype for t in logical.plan.tables} == {"fp32"}
    placed = place(logical, again, Topology(1, 2), 0)
    exchange = placed.placement.exchanges["lanes"]
    assert (exchange.recv_widths, exchange.gradient_widths) == ((16, 16), (12, 12))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"strategy": "column_wise"}, r"placement\.strategy is 'column_wise', but the plan in .* tables\.0 row_wise"),
        ({"overrides": {"tables.2": "table_wise"}}, r"overrides\.tables\.2 is 'table_wise', but .* tables\.2 row_wise"),
        ({"memory_per_rank": 100}, r"memory_per_rank is 100 bytes, but the plan .*'host 0, lane 0': 320"),
    ],
)
def test_a_key_that_contradicts_the_plan(asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    plan_file(tmp_path / "p.json", strategy="row_wise")
    partition = {"strategy": "file", "file": str(tmp_path / "p.json")}
    with pytest.raises(PlanError, match=message):
        config = settings(partition=partition, placement=asked, towers={"module": "none"})
        towered(Flat(cat), (ids(4, 5),), "1x2", config)


def test_rows_by_modulo_or_on_another_host_are_refused_where_ranks_are_filled(tmp_path: Path) -> None:
    config = plan_file(tmp_path / "p.json", strategy="row_wise")
    plan = json.loads((tmp_path / "p.json").read_text())
    plan["table_splits"]["tables.1"]["ranges"] = [
        {"lane": 0, "first": 0, "end": ROWS, "step": 2},
        {"lane": 1, "first": 1, "end": ROWS, "step": 2},
    ]
    (tmp_path / "p.json").write_text(json.dumps(plan))
    logical = towered(Flat(cat), (ids(4, 5),), "1x2", config)
    assert logical.plan.shard("tables.1[rows 1:10:2]").step == 2
    with pytest.raises(PlanError, match=r"tables\.1\[rows 0:9:2\] 2 rows apart.* do not: set dmt.comm.dedup to"):
        place(logical, config.model_copy(update={"comm": CommConfig(dedup="off")}), Topology(1, 2), 0)
    assert place(logical, config, Topology(1, 2), 0).placement.groups, '"auto": the plan was made for it'


def test_overrides_name_tables_of_the_model_and_memory_suffices() -> None:
    with pytest.raises(ConfigError, match=r'dmt\.placement\.overrides\.table\.1: .*did you mean "tables\.1"'):
        towered(Flat(cat), (ids(4, 5),), "1x2", settings(placement={"overrides": {"table.1": "row_wise"}}))
    with pytest.raises(ConfigError, match="host 0 needs 320 B for 2 table"):
        towered(Flat(cat), (ids(4, 5),), "2x2", settings(placement={"memory_per_rank": 100}))
    logical = towered(Flat(cat), (ids(4, 5),), "1x3", settings(placement={"memory_per_rank": 224}))
    # A table has 160 bytes: three lanes hold a whole one each, and a part of the fourth.
    assert len(logical.plan.table_splits) == 1
