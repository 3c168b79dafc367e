"""Counts of distinct rows against sets of Python, and where they come from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin import compiler
from dmt_plugin.capture import ExampleBatch
from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError, IdRangeError
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.passes.base import DataToCount
from dmt_plugin.passes.logical.count_rows import known_shares
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.topology.shape import Topology

SAMPLES, LANES, STEPS = 4, 2, 3
ROWS = {"user": 40, "item": 6}


class Three(nn.Module):
    """A table that two features share, one of them a bag, and a table of one feature."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(ROWS["user"], 4)
        self.item = nn.EmbeddingBag(ROWS["item"], 4, mode="sum")
        self.top = nn.Linear(12, 1)

    def forward(self, user: Tensor, seen: Tensor, item: Tensor) -> Tensor:
        return self.top(torch.cat([self.user(user), self.item(seen), self.item(item.unsqueeze(1))], dim=1))


def batch_of(count: int, seed: int) -> tuple[Tensor, ...]:
    own = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randint(0, ROWS[table], shape, generator=own)
        for table, shape in (("user", (count,)), ("item", (count, 3)), ("item", (count,)))
    )


def data(batches: list[tuple[Tensor, ...]]) -> DataToCount:
    return DataToCount("a test", lambda: (ExampleBatch(batch) for batch in batches), SAMPLES, STEPS)


def model_of(row_shares: Any = None, topology: str = "2x2", partition: Any = None, **comm: Any) -> TowerModel:
    config = DMTConfig.model_validate({"towers": {"module": "none"}, "comm": {"dedup": "on", **comm}})
    torch.manual_seed(0)
    where = Topology.parse(topology)
    return transform(Three(), batch_of(3, 0), config, where, row_shares=row_shares, partition=partition)


def by_hand(batches: list[tuple[Tensor, ...]]) -> dict[str, tuple[float, float, float]]:
    """By feature and table: ids, distinct rows of a rank and of a host, on average."""
    user, seen, item = (torch.cat([b[i] for b in batches]) for i in range(3))
    streams = {"user": [user], "seen": [seen], "item": [item], "table of items": [seen, item]}
    found = {}
    for name, own in streams.items():
        ids = rank = host = 0
        for step in range(STEPS):
            of_host: set[int] = set()
            for lane in range(LANES):
                first = (step * LANES + lane) * SAMPLES
                rows = [i for x in own for i in x[first : first + SAMPLES].reshape(-1).tolist()]
                ids, rank, of_host = ids + len(rows), rank + len(set(rows)), of_host | set(rows)
            host += len(of_host)
        found[name] = ids / STEPS, rank / STEPS, host / STEPS
    return found


def test_counts_are_those_of_sets() -> None:
    batches = [batch_of(5, seed) for seed in range(1, 9)]  # of another size than a rank's
    shares = model_of(data(batches)).plan.row_shares
    assert shares is not None and (shares.samples, shares.lanes, shares.steps) == (SAMPLES, LANES, STEPS)
    expected = by_hand(batches)
    for name, feature in zip(("user", "seen", "item"), shares.features, strict=True):
        ids, rank, host = expected[name]
        found = feature.ids * SAMPLES * LANES, feature.rank * ids, feature.host * ids
        assert found == pytest.approx((ids, rank, host)), name
    for name, table in (("user", "user"), ("table of items", "item")):
        own = shares.of_table(table)
        assert own is not None
        assert (own.rank * LANES, own.host) == pytest.approx(expected[name][1:]), name


def test_where_counts_come_from(tmp_path: Path) -> None:
    batches = [batch_of(8, seed) for seed in range(1, 9)]
    counted = model_of(data(batches)).plan
    shares = counted.row_shares
    assert shares is not None and counted.to_dict()["version"] == 2
    other = RowShares.from_dict({**shares.to_dict(), "source": "a file"})
    file, plan = tmp_path / "shares.json", tmp_path / "plan.json"
    file.write_text(json.dumps(other.to_dict()))
    counted.save(plan)

    def source(**options: Any) -> str | None:
        found = model_of(**options).plan.row_shares
        return None if found is None else found.source

    assert source(dedup_shares=str(file)) == "a file"
    assert source(dedup_shares=str(plan)) == "a test"
    assert source(dedup_shares=str(file), row_shares=data([])) == "a file"
    assert source(dedup_shares=str(file), partition=counted) == "a test"
    assert source(row_shares=other, partition=counted) == "a test"
    assert source(row_shares=other) == "a file"
    towers = {"towers": [list(names) for names in counted.towers], "row_shares": other.to_dict()}
    assert source(partition=towers) == "a file"
    assert source(row_shares=data(batches[:0])) is None, "less than a step of a host"
    assert source(row_shares=data(batches), dedup="off") is None, "nobody reads it"
    assert source(row_shares=data(batches), topology="1x2") is None, "no row crosses"
    assert source(row_shares=data(batches), topology="1x2", route="flat") == "a test"
    with pytest.raises(IdRangeError, match="step 0: rank 0: feature 'user' has id 99"):
        model_of(data([(torch.full((8,), 99), *batches[0][1:])]))
    file.write_text(json.dumps({**other.to_dict(), "tables": []}))
    with pytest.raises(ConfigError, match=r"from a file are not those of this model.*\['item', 'user'\]"):
        model_of(dedup_shares=str(file))
    with pytest.raises(ConfigError, match=r"dmt\.comm\.dedup_shares: no such file"):
        model_of(dedup_shares=str(tmp_path / "nothing"))
    file.write_text('{"towers": []}')
    with pytest.raises(ConfigError, match="not a count of distinct rows"):
        model_of(dedup_shares=str(file))


def test_the_plan_of_a_checkpoint_says_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """For another shape, too, what it counted holds; and what it did not count is not counted now."""
    counted = model_of(data([batch_of(8, seed) for seed in range(1, 9)])).plan
    for plan, expected in ((counted, counted.row_shares), (replace(counted, row_shares=None), None)):
        saved = SimpleNamespace(manifest=SimpleNamespace(plan=plan.to_dict()))
        monkeypatch.setattr(compiler, "find_checkpoint", lambda file, saved=saved: saved)
        for shape in ("2x2", "3x2"):
            given = compiler.partition_on_disk(str(Path(__file__).parent), Topology.parse(shape))
            assert known_shares(None, given) == (expected, True), shape
