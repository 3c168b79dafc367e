"""The watch over distinct rows: what it counts is what is there, and it says once that it is no longer what it was."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dmt_plugin.capture.example_call import example_of
from dmt_plugin.comm.distinct.row_groups import GroupTable, Read, RowGroup
from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.integrations.deepspeed import share_watch
from dmt_plugin.integrations.deepspeed.share_watch import ShareWatch
from dmt_plugin.model.placed import place
from dmt_plugin.passes.base import DataToCount
from dmt_plugin.plan.row_shares import FeatureShare, RowShares, TableRows
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWire, SimulatedWorld
from tests.passes.test_count_rows import LANES, SAMPLES, batch_of, data, model_of
from tests.test_placed_laws import prepared
from tests.test_placement_laws import MODELS

WHERE = Topology(2, LANES)


def watched(counted: Any, batches: list[Any], caplog: pytest.LogCaptureFixture) -> tuple[list[Any], list[str]]:
    """Two steps of every rank: what each counted, and what was said."""
    logical = model_of(counted)
    config = DMTConfig.model_validate({"towers": {"module": "none"}, "comm": {"dedup": "on"}})
    models = [place(logical, config, WHERE, rank) for rank in range(WHERE.world_size)]
    watches = [ShareWatch(logical.plan, m.placement, m.lookup, speaks=m.rank == 0) for m in models]

    def program(wire: SimulatedWire) -> None:
        model = models[wire.rank]
        model.bind(wire)
        with torch.no_grad():
            model(*batches[wire.rank])  # an evaluation does not count
        for step in range(2):
            model(*batches[step * WHERE.world_size + wire.rank])

    caplog.clear()
    with caplog.at_level(logging.WARNING, logger=share_watch.__name__):
        SimulatedWorld(WHERE).run(program)
    for watch in watches:
        watch.close()
    return [watch.take() for watch in watches], [record.getMessage() for record in caplog.records]


def test_counts_and_drift(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_watch, "WINDOW", 1)
    batches = [batch_of(SAMPLES, seed) for seed in range(8)]
    logical = model_of(data(batches))
    shares = logical.plan.row_shares
    assert shares is not None
    found, said = watched(shares, batches, caplog)
    assert said == []
    assert all(sum(own.ids for own in rank.values()) == 2 * SAMPLES * 5 for rank in found)
    for host in range(WHERE.hosts):
        exact = {"rank": 0, "asked": 0}
        for step in range(2):
            first = step * WHERE.world_size + host * LANES
            own = batches[first : first + LANES]
            users = [{*b[0].tolist()} for b in own]
            items = [{*b[1].reshape(-1).tolist(), *b[2].tolist()} for b in own]
            exact["rank"] += sum(map(len, (*users, *items)))
            exact["asked"] += len(set().union(*users)) + len(set().union(*items))
        lanes = found[host * LANES : (host + 1) * LANES]
        for key, expected in exact.items():
            assert sum(getattr(group, key) for rank in lanes for group in rank.values()) == expected, (host, key)
    fewer = RowShares.from_dict(
        {**shares.to_dict(), "tables": [{**vars(t), "rank": t.rank / 2.5} for t in shares.tables]}
    )
    _, said = watched(fewer, batches, caplog)
    assert len(said) == 1 and "of the ids of a rank's batch are distinct rows, the plan was made for" in said[0]
    larger = RowShares.from_dict({**fewer.to_dict(), "samples": 4 * SAMPLES})
    assert watched(larger, batches, caplog)[1] == [], "batches of another size"


def test_padding_and_bags_are_counted_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    """What is expected of the data that were counted is what a step of them asks for."""
    for name, samples in (("sequence", 5), ("multi_hot_dlrm", 5)):
        torch.manual_seed(0)
        flat, batch = MODELS[name]()
        config = DMTConfig.model_validate({"towers": {"module": "none"}, "comm": {"dedup": "on"}})
        calls = [example_of(batch(samples, seed), flat) for seed in range(WHERE.world_size)]
        counted = DataToCount("a test", lambda calls=calls: calls, samples, WHERE.hosts)
        logical = transform(prepared(flat), batch(samples, 0), config, WHERE, row_shares=counted)
        models = [place(logical, config, WHERE, rank) for rank in range(WHERE.world_size)]
        watches = [ShareWatch(logical.plan, m.placement, m.lookup, speaks=False) for m in models]

        def program(wire: SimulatedWire, models: Any = models, batch: Any = batch, samples: int = samples) -> None:
            models[wire.rank].bind(wire)
            models[wire.rank](*batch(samples, wire.rank))

        SimulatedWorld(WHERE).run(program)
        taken = [watch.take() for watch in watches]
        for i, (group, expected) in enumerate(zip(taken[0], watches[0]._expected, strict=True)):
            assert expected is not None
            ids, rank = (sum(getattr(own[group], key) for own in taken) for key in ("ids", "rank"))
            assert (ids / len(taken), rank / ids) == pytest.approx(expected), (name, i)


def test_streams_of_one_feature_share_its_ids() -> None:
    """Counts are of a feature: of bags that are read as quotient and remainder, each stream has half of the ids."""
    slots = [
        IdSlot("f", 9, None, False, 0, (0,)),
        IdSlot("f/2", 9, None, False, 0, (0,)),
        IdSlot("g", 9, 3, False, 0, (0,)),
    ]
    reads = tuple(Read(slot, 0) for slot in (0, 1, 2, 0))
    placement: Any = SimpleNamespace(groups=(RowGroup("rows0", 4, (), reads),), distinct_slots=tuple(slots))
    shares = RowShares("a test", 8, 1, 1, (FeatureShare("f", 5.0, 0.5, 0.5),), ())
    assert [share_watch._IdsPerSample(placement, shares)(read) for read in reads] == [2.5, 2.5, 3, 2.5]
    for once in (True, False):  # rows by id may be asked for by every id
        group = RowGroup("rows0", 4, (GroupTable("t", 9, ()),), reads[:1], once=once)
        own: Any = SimpleNamespace(groups=(group,), distinct_slots=tuple(slots[:1]))
        counted = RowShares("a test", 8, 1, 1, shares.features, (TableRows("t", 20.0, 20.0),))
        plan: Any = SimpleNamespace(row_shares=counted, tables=(SimpleNamespace(name="t"),))
        assert share_watch._expected(own, plan) == [(40.0, 0.5) if once else None]
    nothing = RowShares("a test", 8, 1, 1, (), ())
    assert [share_watch._IdsPerSample(placement, nothing)(read) for read in reads] == [None, None, 3, None]
