"""Choices for a cluster: which win, what is left out, what is said of them, and that they can be run."""

from __future__ import annotations

import cProfile
import dataclasses
import json
import pstats
import time

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.section import DMTConfig, read_dmt_config
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.model.memory import memory_need_of
from dmt_plugin.planner.cluster.cluster import Cluster, Figure
from dmt_plugin.planner.cluster.files import cluster_of
from dmt_plugin.planner.cost import exchange_costs
from dmt_plugin.planner.distinct_cost import distinct_costs
from dmt_plugin.planner.paper.figures import printed
from dmt_plugin.planner.paper.settings import FEATURES, WIDTH
from dmt_plugin.planning.candidates import MEMORY_SHARE, Pricer, choices_of
from dmt_plugin.planning.distinct import counted_on, stated
from dmt_plugin.planning.estimate import Planner, estimate
from dmt_plugin.planning.loads import Wire
from dmt_plugin.planning.outcome import Estimate
from dmt_plugin.planning.paper_models import DotProducts
from dmt_plugin.planning.sweep import axis_of, lines, sweep
from dmt_plugin.planning.variants import Rewriter, Way
from dmt_plugin.topology.shape import Topology
from tests.planning.models import batch, batches, dots, narrow

ADAGRAD = DMTConfig.model_validate({"lookup": {"optimizer": "adagrad"}})
"""Tables may be divided by columns."""


@pytest.fixture(autouse=True)
def few_choices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer formats, blocks and stages where it does not matter how many there are."""
    if "campaign" not in request.keywords:
        narrow(monkeypatch)


def names(found: Estimate) -> set[str]:
    return {row.name for rows in found.groups.values() for row in rows}


def slow(cluster: Cluster, nic: float = 0.1e9) -> Cluster:
    return dataclasses.replace(cluster, nic=Figure(nic, "test"), fixed=Figure(0.0, "test"))


@pytest.fixture(scope="module")
def wide() -> Planner:
    """Rows are most of a step, and tables too large to be everywhere."""
    return Planner(dots(8, 128, 8_000_000), batch(8), shares=stated("0.9,0.9"), ratios=(2, 8))


def test_exact_choices_come_before_those_that_change_the_model(wide: Planner) -> None:
    found = wide.estimate(slow(cluster_of("h100-dgx:4")), 4096)
    assert list(found.groups) == ["exact", "CR 2", "CR 8"]
    for rows in found.groups.values():
        assert [row.ms for row in rows] == sorted(row.ms for row in rows)
    exact = found.groups["exact"]
    kinds = {(row.name.startswith("flat"), row.name.endswith("dedup")) for row in exact}
    assert len(kinds) >= 4 and names(found) >= {"SPTT", "SPTT + dedup", "flat", "flat + dedup"}
    assert found.best is exact[0] and found.reference is not None and found.reference.name.startswith("flat")
    assert found.reference.speed_up == 1.0 and found.reference.range_speed_up == (1.0, 1.0)
    fastest = min((row for rows in found.groups.values() for row in rows), key=lambda row: row.ms)
    assert fastest.group == "CR 8"  # and it is still not what is recommended


def test_every_row_is_whole(wide: Planner) -> None:
    found = wide.estimate(slow(cluster_of("h100-dgx:4")), 4096)
    for row in (row for rows in found.groups.values() for row in rows):
        assert row.range_ms[0] <= row.ms <= row.range_ms[1] and 0 < row.binds_share <= 1
        assert row.samples_per_s == pytest.approx(32 * 4096 / row.ms * 1e3)
        assert row.exposed_ms <= sum(row.exposed_by.values()) + 1e-9
        section = json.loads(json.dumps(row.section))
        dmt = read_dmt_config(section, "test")
        assert (dmt is None) == (row.name == "replicated")
        assert DeepSpeedSettings(section).zero_stage == row.stage
    assert json.loads(json.dumps(found.as_dict()))["estimate"] is True


def test_towers_pay_where_the_link_is_slow(wide: Planner) -> None:
    found = wide.estimate(slow(cluster_of("h100-dgx:4")), 4096)
    assert found.best is not None and found.best.name.startswith("SPTT")
    assert found.findings[0].startswith("Towers pay here without a change")
    assert found.best.binds == "link to other hosts"


def test_do_not_use_towers_on_one_host(wide: Planner) -> None:
    found = wide.estimate(cluster_of("h100-dgx:1"), 4096)
    assert list(found.groups) == ["exact"] and all(name.startswith("flat") for name in names(found))
    assert found.findings[0].startswith("Do not use towers here: nothing crosses hosts")


def test_do_not_use_towers_where_the_fixed_cost_is_all() -> None:
    cluster = dataclasses.replace(cluster_of("h100-dgx:2"), fixed=Figure(0.05, "test"))
    found = estimate(dots(8, 16, 50_000_000), batch(), cluster, 64)
    assert found.findings[0].startswith("Do not use towers here: the best of them")
    assert "bound by fixed cost" in found.findings[0] and found.best is not None and found.best.name.startswith("flat")
    assert any("2 hosts: the paper measured" in finding for finding in found.findings)


def test_flat_with_distinct_rows_wins_where_little_is_left_to_cross() -> None:
    model = dots(16, 128, 2_000_000)
    cluster = dataclasses.replace(cluster_of("a100-dgx:2"), lanes=Figure(3e9, "test"), fixed=Figure(0.0, "test"))
    found = estimate(model, batch(16), cluster, 4096, shares=stated("0.02,0.02"), ratios=())
    assert found.best is not None and found.best.name in found.findings[0]
    assert found.best.name.startswith("flat") and found.best.name.endswith("+ dedup")
    assert found.best.section["dmt"]["comm"]["dedup"] == "on"


def test_replicated_wins_where_tables_are_small() -> None:
    found = estimate(dots(8, 16, 50), batch(), slow(cluster_of("h100-dgx:2")), 8192)
    assert found.best is not None and found.best.name == "replicated"
    assert found.findings[0].startswith("Do not use towers here: replicate the tables")
    assert found.best.section == {"zero_optimization": {"stage": 0}, "dmt": {"enabled": False}}


def test_nothing_fits() -> None:
    found = estimate(dots(8, 128, 800_000_000), batch(), cluster_of("v100-hgx:2"), 1024)
    assert not found.fits and found.best is None and found.reference is None and found.groups == {}
    assert found.findings[0].startswith("Nothing fits: the least is") and "more hosts" in found.findings[0]
    assert found.as_dict()["candidates"]["priced"] == 0


def test_a_table_too_large_for_a_rank_is_divided() -> None:
    cluster = cluster_of("a100-dgx:2")
    rows = int(1.2 * MEMORY_SHARE * cluster.memory.value / (128 * 4))
    found = estimate(dots(2, 128, rows), batch(2), cluster, 256, ADAGRAD, ratios=())
    limit = MEMORY_SHARE * cluster.memory.value
    placed = {row.name: row.section["dmt"].get("placement", {}) for row in found.groups["exact"]}
    by_rows = [own for name, own in placed.items() if "columns" not in name]
    assert by_rows and all(0 < own["memory_per_rank"] < limit for own in by_rows)
    assert all(row.memory <= limit for row in found.groups["exact"])


def test_more_hosts_than_features() -> None:
    found = estimate(dots(6, 32, 3_000_000), batch(6), cluster_of("h100-dgx:12"), 1024, ratios=(2,))
    assert "6 features on 12 hosts: at most 6 towers. Planned as 6x16" in " ".join(found.findings)
    sptt = next(row for row in found.groups["exact"] if row.name.startswith("SPTT"))
    assert sptt.section["dmt"]["topology"] == {"hosts": 6, "ranks_per_host": 16}
    assert "machines" in {name.partition(" ")[0] for name in sptt.exposed_by}
    prime = estimate(dots(6, 32, 3_000_000), batch(6), cluster_of("h100-dgx:7"), 1024, ratios=(2,))
    assert "only the flat route is left" in " ".join(prime.findings)
    assert not any(name.startswith("SPTT") for name in names(prime))


def test_a_way_that_the_model_does_not_take_is_said() -> None:
    found = estimate(dots(), batch(), cluster_of("h100-dgx:2"), 64, towers=("no.such:Module",), ratios=(2,))
    assert any(f.startswith("DMT CR 2 is not possible here") for f in found.findings) and "CR 2" not in found.groups


def variant(**section: object):
    way = Way("w", {"comm": {"dedup": "off", **section}, "towers": {"module": "none"}}, dedup="dedup" in section)
    shares = stated("0.5,0.25")
    rewriter = Rewriter(dots(6, 16, 4000), batch(6), DMTConfig(), {})
    plan = rewriter.variant(Way("p", {"comm": {"dedup": "off"}}), Topology(2, 2), 64).placed.plan
    return rewriter.variant(way, Topology(2, 2), 64, shares.of(plan.tables, plan.features)(64, 2))


def test_towers_send_less_and_the_routes_alike() -> None:
    rewriter, topology = Rewriter(dots(16, 128), batch(16), ADAGRAD, {}), Topology(4, 8)
    pricer = Pricer(cluster_of("h100-dgx:4"), 1024, {})

    def sent(route: str, **towers: object) -> float:
        section = {"comm": {"route": route, "dedup": "off"}, "towers": {"module": "none", **towers}}
        made = rewriter.variant(Way("", {**section, "placement": {"strategy": "column_wise"}}), topology, 1024)
        choice = next(c for c in choices_of(made) if c.wire.peers == "bf16")
        return sum(pricer.load(choice)[0].rows)

    flat, sptt, halved = sent("flat"), sent("hierarchical"), sent("hierarchical", module="dlrm", dim=64)
    assert flat == sptt == 2 * 3 * 1024 * 4 * 128 * 2 and halved == sptt / 2


@pytest.mark.parametrize("section", [{}, {"route": "flat"}, {"dedup": "on"}, {"dedup": "on", "route": "flat"}])
def test_bytes_are_those_of_the_formulas(section: dict[str, str]) -> None:
    made = variant(**section)
    pricer = Pricer(dataclasses.replace(cluster_of("h100-dgx:2"), ranks_per_host=2), 64, {})
    choice = next(c for c in choices_of(made) if c.wire.peers == "bf16" and c.wire.lanes in ("bf16", "fp32"))
    load, _ = pricer.load(choice)
    formats, layout = choice.wire.formats(), made.layout
    sent = 0
    for rank in range(4):
        if layout.groups:
            own = {f"{g.name}.{end}": formats[end] for g in layout.groups for end in ("peers", "lanes", "world")}
            if layout.route == "hierarchical":
                own = {name: form for name, form in own.items() if not name.endswith(".world")}
            else:
                own = {name: form for name, form in own.items() if name.endswith(".world")}
            costs = distinct_costs(
                layout.groups, layout.distinct_slots, layout.topology, rank, 64, own, needs=layout.needs
            )
        else:
            costs = exchange_costs(
                layout.slots, layout.rank_widths, layout.host_widths, layout.topology, rank, 64, layout.route,
                formats=formats,
            )  # fmt: skip
        rows = [c for c in costs if c.phase == "forward" and not c.name.startswith(("index.", "requests."))]
        sent = max(sent, sum(c.other_hosts for c in rows))
    assert load.rows[0] >= sent > 0  # or more, where a rank receives more than any sends


def test_memory_is_that_of_the_formula_and_what_layers_keep() -> None:
    made = variant()
    pricer = Pricer(dataclasses.replace(cluster_of("h100-dgx:2"), ranks_per_host=2), 64, {})
    choice = next(c for c in choices_of(made) if c.wire == Wire("fp32", "fp32") and c.stage == 0)
    need = memory_need_of(made.placed, made.config, DeepSpeedSettings({}), 64)
    assert pricer.memory(choice) == need.ranks[need.largest].total + int(64 * made.flops.saved)


def test_columns_spread_few_tables_where_the_rule_allows() -> None:
    cluster = slow(cluster_of("h100-dgx:4"))
    whole = estimate(dots(4, 128, 2_000_000), batch(4), cluster, 1024, ratios=())
    assert any("not divided by columns" in f and "rowwise_adagrad" in f for f in whole.findings)
    cut = estimate(dots(4, 128, 2_000_000), batch(4), cluster, 1024, ADAGRAD, ratios=())
    assert cut.best is not None and whole.best is not None and cut.best.ms < whole.best.ms
    assert "(columns)" in cut.best.name and cut.best.section["dmt"]["placement"] == {"strategy": "column_wise"}


def test_rows_of_two_bytes_are_not_sent_in_four() -> None:
    assert Wire("fp32", "int8").formats("bf16") == {
        "peers": ("bf16", "bf16"), "world": ("bf16", "bf16"), "lanes": ("int8", "int8")
    }  # fmt: skip
    assert Wire("fp16", "fp32").formats()["peers"] == ("fp16", "bf16")
    found = estimate(dots(), batch(), cluster_of("h100-dgx:2"), 64, None, {"bf16": {"enabled": True}}, ratios=())
    sent = {row.wire: row.nic_bytes for row in found.groups["exact"] if row.name == "flat" and row.blocks == 1}
    assert "fp32" not in sent or sent["fp32"] == sent["bf16"]


def test_keys_of_other_tower_modules_do_not_hold() -> None:
    config = DMTConfig.model_validate({"towers": {"module": "dcn", "rank": 4, "outputs": 1}})
    found = estimate(dots(), batch(), cluster_of("h100-dgx:2"), 64, config, towers=("dcn",), ratios=(2,))
    rows = found.groups["CR 2"]
    assert rows and rows[0].section["dmt"]["towers"] == {"module": "dcn", "dim": 8}


def test_the_papers_dlrm() -> None:
    class Paper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.EmbeddingBag(1_000_000, WIDTH, mode="sum") for _ in range(FEATURES))
            self.dense = DotProducts(FEATURES, WIDTH, (1024, 1024, 512, 256, 1))

        def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
            rows = [table(ids[:, f : f + 1]) for f, table in enumerate(self.tables)]
            return self.dense(dense, torch.cat(rows, dim=1))

    with torch.device("meta"):
        model = Paper()
    found = estimate(model, batch(FEATURES), cluster_of("h100-dgx:8"), 16384, ratios=())
    assert found.mflops == pytest.approx(printed()["mflops"]["DLRM"], rel=1e-3)
    assert found.best is not None and found.best.name.startswith("SPTT")


def test_counts_of_real_batches() -> None:
    model: nn.Module = dots()
    shares = counted_on(model, batch(), batches, "test")
    found = shares(32, 2)
    assert found is not None and {own.rank for own in found.features} == {0.5} and shares(32, 2) is found
    with pytest.raises(ConfigError, match="fewer than 40000 samples"):
        shares(20000, 2)


@pytest.mark.parametrize("text", ["0", "2", "0.2,0.4", "x", "0.1,0.1,0.1", ""])
def test_shares_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="--distinct-share: found"):
        stated(text)


@pytest.mark.campaign
def test_five_hundred_choices_in_five_seconds_and_the_same_twice() -> None:
    planner = Planner(dots(26, 128, 1_000_000), batch(26), ADAGRAD, shares=stated("0.4,0.2"))
    cluster = cluster_of("h100-dgx:8")
    first = planner.estimate(cluster, 16384)
    started = time.process_time()
    again = planner.estimate(cluster, 16384)
    assert time.process_time() - started < 5.0
    assert first.priced + len(first.misfits) >= 500 and first.as_dict() == again.as_dict()


def test_sweeps() -> None:
    planner, cluster = Planner(dots(), batch(), ratios=()), cluster_of("h100-dgx:4")
    told = lines(sweep(planner, axis_of("nic=1,10"), cluster, 1024))
    slower, faster = (min(row.ms for name, row in line["rows"].items() if "SPTT" in name) for line in told)
    assert [line["value"] for line in told] == [1.0, 10.0] and slower > faster
    samples = sweep(planner, axis_of("batch=256,1024"), cluster, 1)
    assert [own.samples for own in samples.values()] == [256, 1024]
    hosts = sweep(planner, axis_of("hosts=4,2,2"), cluster, 256)
    assert [own.cluster.hosts for own in hosts.values()] == [2, 4]


@pytest.mark.parametrize("text", ["hosts", "host=2", "hosts=2.5", "batch=0", "nic=x", "hosts=", "nic=-1"])
def test_sweeps_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="--sweep"):
        axis_of(text)


def calls(hosts: int) -> float:
    """Calls of functions that it takes to price a choice of one way whose rows travel once."""
    shares, topology = stated("0.5,0.25"), Topology(hosts, 8)
    rewriter = Rewriter(dots(hosts, 16, 4000), batch(hosts), ADAGRAD, {})
    plan = rewriter.variant(Way("p", {"comm": {"dedup": "off"}}), topology, 64).placed.plan
    way = Way("w", {"comm": {"dedup": "on"}, "towers": {"module": "none"}}, dedup=True)
    made = rewriter.variant(way, topology, 64, shares.of(plan.tables, plan.features)(64, 8))
    pricer, choices = Pricer(cluster_of(f"h100-dgx:{hosts}"), 64, {}), list(choices_of(made))
    profile = cProfile.Profile()
    profile.runcall(pricer.price, choices)
    return pstats.Stats(profile).total_calls / len(choices)  # type: ignore[attr-defined,no-any-return]


def test_more_ranks_make_little_more_work_for_a_choice() -> None:
    ranks = 8 * (24 - 8)
    assert (calls(24) - calls(8)) / ranks < 50
