"""The watch over distinct rows: what it counts is what is there, and it says once that it is no longer what it was."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from dmt_plugin.config.section import DMTConfig
from dmt_plugin.integrations.deepspeed import share_watch
from dmt_plugin.integrations.deepspeed.share_watch import ShareWatch
from dmt_plugin.model.placed import place
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWire, SimulatedWorld
from tests.passes.test_count_rows import LANES, SAMPLES, batch_of, data, model_of

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
