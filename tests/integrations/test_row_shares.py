"""Distinct rows that are counted before a run: the same on all ranks, on data that the run finds as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.integrations.deepspeed import row_shares
from dmt_plugin.integrations.deepspeed.arguments.data_to_count import STEPS, data_to_count
from dmt_plugin.passes.rank_facts import DedupChoice
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.topology.shape import Topology
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env

ROWS = (5000, 3)
MICRO = 8


class Net(nn.Module):
    """A table whose rows hardly repeat, and one whose rows do."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, 4) for rows in ROWS)
        self.top = nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(torch.cat([t(ids[:, i]) for i, t in enumerate(self.tables)], 1)).squeeze(1)


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Draws from every generator there is."""

    def __init__(self, size: int = 300, own: int = 0, fails: bool = False) -> None:
        self.size, self.own, self.fails = size, own, fails

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if self.fails:
            raise OSError("the disk is gone")
        torch.rand(1), numpy.random.rand(), random.random()
        first = i * 37 % ROWS[0] if self.own == 0 else 0  # other ranks' rows all repeat
        return torch.tensor([first, i % ROWS[1]]), torch.tensor(float(i % 2))


class Stream(IterableDataset[Any]):
    """Can be read once."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        raise AssertionError("a sample is lost")


def states() -> list[Any]:
    return [torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), random.getstate()]


def start(data: Any, topology: str = "2x1", dmt: dict[str, Any] | None = None, **options: Any) -> Any:
    import dmt_plugin

    hosts, lanes = map(int, topology.split("x"))
    config = {
        "train_micro_batch_size_per_gpu": MICRO,
        "optimizer": {"type": "SGD", "params": {"lr": 0.05}},
        "steps_per_print": 100000,
        "dmt": {"topology": {"hosts": hosts, "ranks_per_host": lanes}, "towers": {"module": "none"}, **(dmt or {})},
    }
    torch.manual_seed(0)
    example = (torch.zeros(5, 2, dtype=torch.long),)
    engine, *_ = dmt_plugin.initialize(
        model=Net(), config=config, training_data=data, example_batch=example, **options
    )  # fmt: skip
    return engine


def decided(engine: Any) -> tuple[list[bool], str]:
    placement = engine.dmt.placed.placement
    found = [choice.on for choice in placement.choices], placement.once
    engine.destroy()
    return found


def several_starts(rank: int, world: int, folder: str) -> dict[str, Any]:
    torch.manual_seed(rank)
    before = states()
    engine = start(Samples(own=rank))
    found: dict[str, Any] = {"shares": engine.dmt.plan.row_shares.to_dict(), "fingerprint": engine.dmt.plan.fingerprint}
    engine.save_checkpoint(folder, tag="first")
    found["counted"] = decided(engine)
    torch.manual_seed(rank)
    found["undisturbed"] = states()[1:] == before[1:]
    resumed = start(None, dmt={"partition": {"strategy": "file", "file": folder}})
    found["same plan"] = resumed.dmt.plan.fingerprint == found["fingerprint"]
    found["resumed"] = decided(resumed)
    engine = start(None)
    engine.save_checkpoint(f"{folder}-of-before", tag="first")
    found["nothing"] = decided(engine)
    before = {"partition": {"strategy": "file", "file": f"{folder}-of-before"}}
    found["of before"] = decided(start(Samples(), dmt=before))
    batches = [(torch.tensor([[i, i % 3]] * 20),) for i in range(8)] if rank == 1 else None
    found["of rank 1"] = decided(start(None, shares_from=batches))
    try:
        start(Samples(fails=rank == 0))
    except Exception as error:
        found["failed"] = f"{type(error).__name__}: {error}"
    return found


@pytest.mark.processes
def test_ranks_agree_and_a_run_goes_on_as_it_was(tmp_path: Path) -> None:
    ranks = run_ranks(2, several_starts, str(tmp_path / "saved"), timeout=120, env=partial(launcher_env, "2x1"))
    first = ranks[0]
    for name in ("shares", "fingerprint", "counted", "resumed", "nothing", "of before", "of rank 1"):
        assert ranks[1][name] == first[name], name
    assert first["shares"]["samples"] == MICRO and first["shares"]["steps"] == STEPS
    assert first["counted"][0] == [False, True] and "of training_data, 1 x 8 samples" in first["counted"][1]
    assert first["resumed"] == first["counted"] and all(rank["same plan"] for rank in ranks)
    assert all(rank["undisturbed"] for rank in ranks)
    assert first["nothing"][0] == [False, False] and "nobody counted" in first["nothing"][1]
    assert first["of before"] == first["nothing"], "its plan has no counts, and none are made"
    assert first["of rank 1"][0] == [True, True] and "of shares_from" in first["of rank 1"][1]
    assert "OSError: the disk is gone" in first["failed"]
    assert "rank 0 failed while counting distinct rows" in ranks[1]["failed"]


NET = Net()


def of(data: Any = None, shares_from: Any = None) -> Any:
    return data_to_count(
        NET, shares_from=shares_from, training_data=data, collate_fn=None, samples=MICRO, lanes=2, seconds=60.0
    )


def test_what_is_read_and_put_back() -> None:
    loader = DataLoader(Samples(), 4, shuffle=True, generator=torch.Generator().manual_seed(3))
    expected = [batch[0].tolist() for batch in loader]
    for generator in (loader.generator, loader.sampler.generator):
        generator.manual_seed(3)
    torch.manual_seed(5)
    before = states()
    calls = of(shares_from=loader).batches()
    assert next(calls).args[0].shape == (4, 2)
    calls.close()
    assert states() == before
    assert [batch[0].tolist() for batch in loader] == expected
    samples, before = Samples(), states()
    calls = list(of(samples).batches())
    assert states() == before and sum(len(call.args[0]) for call in calls) == MICRO * 2 * STEPS
    seen = [int(i) for call in calls for i in call.args[0][:, 0]]
    assert len(set(seen)) == len(seen) and seen != sorted(seen), "shuffled, as a loader does"
    assert [int(i) for call in of(samples).batches() for i in call.args[0][:, 0]] == seen


def test_what_cannot_be_counted_on() -> None:
    assert of() is None and of(Stream()) is None
    with pytest.raises(ConfigError, match=r"shares_from= is a generator, which can be read only once"):
        of(shares_from=(batch for batch in []))
    with pytest.raises(ConfigError, match=r"shares_from= gives a Tensor; expected an iterable of batches"):
        of(shares_from=torch.zeros(3))
    with pytest.raises(ConfigError, match=r"shares_from = .nowhere.py:batches.: no such file"):
        of(shares_from="nowhere.py:batches")
    with pytest.raises(ConfigError, match=r"the batch from shares_from does not fit Net\.forward"):
        list(of(shares_from=lambda: ([] for _ in range(2))).batches())
    assert len(list(of(shares_from=lambda: ([torch.zeros(2, 2)] for _ in range(2))).batches())) == 2


def test_ranks_with_other_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they meet in collectives of which each has others."""
    groups: Any = SimpleNamespace(rank=0, topology=Topology(2, 1))
    monkeypatch.setattr(row_shares, "together", lambda *_: nullcontext())

    def agreed(link: Any, of_rank_1: dict[str, Any]) -> Any:
        config = DMTConfig.model_validate({"comm": {"link": link}})
        monkeypatch.setattr(row_shares, "gather", lambda _, own: [own, ({**own[0], **of_rank_1}, None)])
        return row_shares.agreed_link(config, groups).comm.link

    assert agreed("1 GB/s", {}) == 1e9 and agreed(None, {}) is None
    for key, value in (("dedup", "off"), ("route", "flat"), ("dedup_features", {"a": "on"})):
        with pytest.raises(ConfigError, match=rf"rank 1 has another dmt\.comm\.{key} than rank 0"):
            agreed(None, {key: value})


@pytest.mark.parametrize("other", [{"on": False}, {"at_samples": True}])
def test_ranks_that_decide_otherwise_are_refused(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    here = DedupChoice(("f",), ("t",), True, 0.5, "auto")
    sent: list[Any] = []
    monkeypatch.setattr(row_shares, "gather", lambda _, own: [sent.append(own), *sent][1:])
    groups: Any = SimpleNamespace()
    ranks: list[Any] = [SimpleNamespace(choices=(choice,)) for choice in (here, here, replace(here, **other))]
    for placement in ranks[:2]:
        row_shares.check_same_rows(groups, placement)
    with pytest.raises(ConfigError, match="rank 2 would send rows otherwise than rank 0"):
        row_shares.check_same_rows(groups, ranks[2])


def test_counts_of_batches_of_another_size_are_said() -> None:
    counted = RowShares("a test", 512, 2, 1, (), ())
    config = DMTConfig.model_validate({})

    def said(samples: int, lanes: int, route: str = "hierarchical") -> str:
        own = config.model_copy(update={"comm": config.comm.model_copy(update={"route": route})})
        return row_shares._of_another_batch(counted, samples, own, Topology(2, lanes))

    assert said(512, 2) == said(256, 4) == said(500, 2) == said(512, 8, "flat") == ""
    assert said(64, 2).startswith("they were counted for 1024 samples, and a host has 128 here")
    assert said(64, 2, "flat").startswith("they were counted for 512 samples, and a rank has 64 here")
