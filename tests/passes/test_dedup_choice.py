"""Whose rows travel once under "auto": by shares, by the bytes that are sent, by the link; and what it comes to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from benchmarks.step.ids import draw
from dmt_plugin.comm.input_dist.id_stage import Stream
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.model.placed import place_graph
from dmt_plugin.passes.facts import Lookup
from dmt_plugin.passes.placement.at_samples import AtSamples
from dmt_plugin.passes.placement.dedup_choice import PROCESSING_S, DedupRule
from dmt_plugin.passes.rank_facts import DedupChoice
from dmt_plugin.plan.row_shares import FeatureShare, RowShares, TableRows
from dmt_plugin.planner.row_counter import CountedRead, RowCounter
from dmt_plugin.topology.shape import Topology
from tests.passes.test_count_rows import model_of

B, L, N = 512, 2, 64


def lookup(name: str, hotness: int | None = 1, pooling: str = "sum", table: str = "", **more: Any) -> Lookup:
    node = fx.Graph().create_node("placeholder", name, name=name)
    return Lookup(node, table or name, 10_000, N, pooling, name, name, ("", (), {}), hotness, False, **more)


def shares_of(host: dict[str, float], rank: dict[str, float] | None = None, ids: float = 1.0) -> RowShares:
    """Rows that a host, and a rank, needs of each table."""
    rank = rank or host
    features = tuple(FeatureShare(n, ids, rank[n] / B / ids, host[n] / B / L / ids) for n in host)
    return RowShares("a test", B, L, 4, features, tuple(TableRows(n, rank[n], host[n]) for n in host))


def chosen(shares: RowShares | None, *lookups: Lookup, topology: str = "2x2", row: int = 0, **comm: Any) -> DedupChoice:
    config = DMTConfig.model_validate({"comm": comm}).comm
    rule = DedupRule(config, Topology.parse(topology), shares)
    return rule.choose(lookups, {x.node.name: x.width for x in lookups}, row)


def test_by_share() -> None:
    a, whole = lookup("a"), float(B * L)
    assert chosen(shares_of({"a": 0.79 * whole}), a).on
    assert not chosen(shares_of({"a": 0.81 * whole}), a).on
    assert chosen(shares_of({"a": 0.81 * whole}), a).share == pytest.approx(0.81)
    assert not chosen(None, a).on and chosen(None, a).share is None
    low = shares_of({"a": 0.1 * whole})
    assert not chosen(low, a, topology="1x4").on, "no row leaves the host"
    assert not chosen(low, a, topology="1x1", route="flat").on
    mixed = shares_of({"a": 0.1 * whole}, rank={"a": 0.9 * B})
    assert chosen(mixed, a).on and not chosen(mixed, a, route="flat").on, "flat: once per rank"
    assert not chosen(shares_of({"b": 1.0}), a).on, "of this table nothing is known"


def test_names_overrule() -> None:
    a, high = lookup("a"), shares_of({"a": 0.95 * B * L})
    assert not chosen(high, a).on and chosen(high, a, dedup_features={"a": "on"}).on
    assert chosen(high, a, dedup_features={"*": "on"}).by == "on"
    low = shares_of({"a": 0.1 * B * L})
    assert chosen(low, a, dedup="on", dedup_features={"a": "auto"}).by == "auto"


def test_bags_sequences_and_towers() -> None:
    bag, sequence, whole = lookup("a", hotness=10), lookup("a", 10, "none"), float(B * L)
    counted = shares_of({"a": 2 * whole}, ids=10)
    assert not chosen(counted, bag).on, "two rows in place of one pooled row"
    assert chosen(counted, sequence).on and chosen(counted, sequence).share == pytest.approx(0.2)
    assert chosen(shares_of({"a": 0.7 * whole}, ids=10), bag).on
    tower = lookup("a"), lookup("b")
    assert chosen(shares_of({"a": 0.95 * whole, "b": 0.05 * whole}), *tower, row=16).on
    assert not chosen(shares_of({"a": 0.95 * whole, "b": 0.75 * whole}), *tower, row=16).on
    shared = lookup("a", table="t"), lookup("b", table="t")
    counted = RowShares("", B, L, 1, (), (TableRows("t", 0, 0.9 * whole),))
    assert chosen(counted, *shared).share == pytest.approx(0.45), "rows that both read cross once"


def test_by_the_speed_of_the_link(tmp_path: Path) -> None:
    share = 0.9
    a, counted = lookup("a"), shares_of({"a": share * B * L})
    saved = (1 - share) * (2 * 4 * N + 4)
    limit = L * saved / PROCESSING_S
    assert chosen(counted, a, link=0.99 * limit).on and not chosen(counted, a, link=1.01 * limit).on
    assert chosen(counted, a, link="100 Mbit/s").on and not chosen(counted, a, link="25 GB/s").on
    frozen = lookup("a", frozen=True)
    assert not chosen(counted, frozen, link=0.99 * limit).on, "no gradients go back"
    assert not chosen(counted, a, link=0.99 * limit, peer_dtype="int8").on
    file = tmp_path / "doctor.json"
    for gigabytes, on in ((0.99 * limit / L / 1e9, True), (1.01 * limit / L / 1e9, False)):
        check = {"name": "links", "data": {"between hosts": {"GB_per_s": gigabytes}}}
        file.write_text(json.dumps({"checks": [{"name": "machine", "data": {}}, check]}))
        assert chosen(counted, a, link=str(file)).on is on, "measured per rank"
    file.write_text('{"checks": []}')
    with pytest.raises(ConfigError, match=r"dmt\.comm\.link: .*doctor\.json holds no measurement of links between"):
        chosen(counted, a, link=str(file))
    for bad in ("fast", "100 Mbit", 0, "0 GB/s"):
        with pytest.raises(ValueError, match="link"):
            DMTConfig.model_validate({"comm": {"link": bad}})


def test_what_mixes_features_counts_only_what_travels_by_rows() -> None:
    """Their ids travel by sample in any case: with them, there is less to save."""
    share = 0.7
    a, counted = lookup("a"), shares_of({"a": share * B * L})
    width, worth = 16, L / PROCESSING_S
    limits = {False: (1 - share) * (2 * 4 * width + 4) * worth, True: ((1 - share) * 2 * 4 * width - 4 * share) * worth}
    for mixed, limit in limits.items():
        for factor, on in ((0.99, True), (1.01, False)):
            comm = DMTConfig.model_validate({"comm": {"link": factor * limit}}).comm
            choice = DedupRule(comm, Topology(2, 2), counted).choose([a], {"a": N}, width, mixed)
            assert (choice.on, choice.mixed, choice.share) == (on, mixed, pytest.approx(share)), (mixed, factor)


def test_modules_where_the_samples_are() -> None:
    """Bytes of rows, and of summing the weights' gradients, to those of outputs by sample."""
    a, b = lookup("a"), lookup("b", frozen=True)
    outputs, weights, samples = 24, 1000, B * L

    def choice(rows: float, topology: str = "2x2", **comm: Any) -> DedupChoice:
        rule = DedupRule(
            DMTConfig.model_validate({"comm": comm}).comm, Topology.parse(topology), shares_of({"a": rows, "b": rows})
        )
        return rule.choose_at_samples([a, b], [AtSamples(outputs, weights)])

    sent = samples * 2 * 4 * outputs
    for topology, hosts, world in (("2x2", 2, 4), ("4x1", 4, 4)):
        sums = hosts / (hosts - 1) * (world - 1) / world * 2 * 4 * weights
        for factor, on in ((0.99, True), (1.01, False)):
            found = choice((factor * 0.8 * sent - sums) / (3 * 4 * N), topology)
            assert found.on == on and found.share == pytest.approx(0.8 * factor) and found.at_samples
    few = (0.1 * sent) / (3 * 4 * N)
    assert not choice(few, "1x4").on and choice(few, link="1 MB/s").on and not choice(few, link="1000 GB/s").on
    assert not choice(samples, dedup="on").on and choice(samples, dedup_features={"*": "on"}).on
    assert not choice(samples, dedup_features={"a": "on"}).on, "all features, or it is counts that decide"
    assert choice(samples, dedup_features={"*": "on"}).by == "on" and choice(few).by == "auto"


@pytest.mark.parametrize("kind", ["uniform", "kaggle"])
def test_on_ids_of_the_benchmark(kind: str) -> None:
    """Uniform ids hardly repeat; of those distributed as real ones, the fields that do."""
    own = torch.Generator().manual_seed(0)
    lanes = [draw(kind, 26, 10_000, (B, 1), own) for _ in range(L)]
    reads = [CountedRead(i, f"f{i}", f"f{i}") for i in range(26)]
    counter = RowCounter(reads, B, L)
    counter.add([{i: Stream(ids[:, i]) for i in range(26)} for ids in lanes])
    shares = counter.result(kind)
    distinct = [len(set(torch.cat([ids[:, i] for ids in lanes]).tolist())) for i in range(26)]
    on = [chosen(shares, lookup(f"f{i}")).on for i in range(26)]
    assert on == [count < 0.8 * B * L for count in distinct]
    if kind == "uniform":
        assert not any(on) and all(0.93 < f.host < 0.97 for f in shares.features)
    else:
        assert sum(on) > 20


def test_all_ranks_of_a_plan_decide_alike() -> None:
    counted = RowShares.from_dict(
        {
            "source": "a test", "samples": 4, "lanes": 2, "steps": 1,
            "features": [],
            "tables": [{"table": "user", "rank": 4, "host": 8.0}, {"table": "item", "rank": 3, "host": 3.0}],
        }
    )  # fmt: skip
    model = model_of(counted, dedup="auto")
    config = DMTConfig.model_validate({"towers": {"module": "none"}})
    where = Topology(2, 2)
    graphs = [place_graph(model, config, where, rank) for rank in range(4)]
    assert [c.on for c in graphs[0].placement.choices] == [False, True]
    assert all(graph.placement.choices == graphs[0].placement.choices for graph in graphs)
    assert graphs[0].placement.once == (
        "comm.dedup auto: rows of 2 of 3 feature(s) travel once per host; by sample those of user (1.00) (shares of "
        "distinct rows below 0.8, by 1 step(s) of a test, 2 x 4 samples)"
    )
