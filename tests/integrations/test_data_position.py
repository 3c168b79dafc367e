"""A run that is resumed goes on in the data where it was, a batch ahead or not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests._util.ranks import run_ranks
from tests.integrations.runs import differences, everything, make, refused
from tests.test_placed_laws import launcher_env


def data_position(rank: int, world: int, folder: str) -> dict[str, Any]:
    """A shuffled loader, looked one batch ahead, in the middle of its second epoch."""
    from dmt_plugin.data import prefetched

    def start(seed: int) -> tuple[Any, Any]:
        engine, batch = make("2x2", seed=seed)
        dense, sparse = batch(24, 9)
        torch.manual_seed(70 + seed + rank)
        data = TensorDataset(dense, sparse, torch.arange(24))
        return engine, prefetched(DataLoader(data, batch_size=2, shuffle=True), engine, inputs=lambda b: (b[0], b[1]))

    def go(engine: Any, loader: Any, steps: int) -> list[list[int]]:
        seen: list[list[int]] = []
        while True:
            for dense, sparse, number in loader:
                engine.backward(engine(dense, sparse).square().mean())
                engine.step()
                seen.append(number.tolist())
                if len(seen) == steps:
                    return seen

    engine, loader = start(0)
    engine.register_state("data", loader)
    go(engine, loader, 5)  # broken off: a new epoch begins
    walk = iter(loader)
    for _ in range(4):
        dense, sparse, _ = next(walk)
        engine.backward(engine(dense, sparse).square().mean())
        engine.step()
    engine.save_checkpoint(folder, client_state={"data": loader.state_dict()})
    rest = [next(walk)[2].tolist() for _ in range(3)]
    said: dict[str, Any] = {}
    for way in ("before", "behind", "client state"):
        other, again = start(30)
        if way == "before":
            other.register_state("data", again)
        _, client = other.load_checkpoint(folder)
        if way == "behind":
            other.register_state("data", again)
        if way == "client state":
            again.load_state_dict(client["data"])
        said[way] = go(other, again, 3) == rest
    short = prefetched(DataLoader(TensorDataset(torch.zeros(2)), shuffle=True), other)
    late, _ = start(1)
    late.register_state("data", short)
    before = everything(late)
    said["another loader"] = "this loader has 2" in refused(lambda: late.load_checkpoint(folder))
    said["nothing changed"] = not differences(before, everything(late))
    late, _ = start(1)
    late.register_state("other", loader)
    said["not there"] = "no state of ['other']" in refused(lambda: late.load_checkpoint(folder))
    return said


@pytest.mark.processes
def test_the_data_goes_on_where_it_was(tmp_path: Path) -> None:
    for said in run_ranks(4, data_position, str(tmp_path), timeout=240, env=partial(launcher_env, "2x2")):
        assert all(said.values()), said
