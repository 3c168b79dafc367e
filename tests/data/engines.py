"""An engine that only notes what is announced to it, and ranks that get what the others say."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.capture.inputs import ExampleBatch, InputBinder
from dmt_plugin.comm.wire.failure_notes import FailureNotes
from dmt_plugin.data.epoch_agreement import Ends
from dmt_plugin.topology.shape import Topology


class Model(nn.Module):
    """Two inputs."""

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return dense.sum(1) + ids.sum(1)


class Engine:
    """Of two ranks, with ids that travel ahead."""

    def __init__(self, ranks: int = 2, prefetches: bool = True, example: ExampleBatch | None = None) -> None:
        example = example or ExampleBatch((torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.long)))
        placed = SimpleNamespace(
            prefetcher=object() if prefetches else None, binder=InputBinder(Model().forward, example)
        )
        transport = SimpleNamespace(step=0, failure_notes=FailureNotes(None, "", 0, ranks))
        self.dmt = SimpleNamespace(topology=Topology(ranks, 1), placed=placed, transport=transport)
        self.announced: list[Any] = []

    def prefetch(self, *args: Any, **kwargs: Any) -> None:
        self.announced.append(args or kwargs)


@pytest.fixture
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks say what this one says."""
    others_say(monkeypatch, lambda mine: [mine, mine])


def others_say(monkeypatch: pytest.MonkeyPatch, told: Callable[[Any], list[Any]]) -> list[Any]:
    """What all ranks tell each other, made of what this one tells; returns the list that this one's words go to."""
    words: list[Any] = []

    def gather(self: Ends, mine: Any) -> list[Any]:
        words.append(mine)
        return told(mine)

    monkeypatch.setattr(Ends, "_gather", gather)
    return words
