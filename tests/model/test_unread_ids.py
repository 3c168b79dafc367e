"""A batch that cannot be read on one rank: every rank learns of it, and the next batch is as if nothing had been.

All ranks are threads over a simulated wire; ids of some features travel by sample, of others as distinct rows.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import CaptureError, DMTError, IdRangeError
from dmt_plugin.fxtools.names import INDEX, REQUESTS
from dmt_plugin.model.placed import PlacedModel, place
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWire, SimulatedWorld

WAYS: dict[str, dict[str, str]] = {
    "by sample": {"*": "off"},
    "distinct rows": {"*": "on"},
    "both": {"*": "off", "fields*": "on"},
}
SAMPLES = 3


class Model(nn.Module):
    """Columns of a matrix of ids, and bags with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(20, 4) for _ in range(3))
        self.bag = nn.EmbeddingBag(20, 4, mode="sum", padding_idx=1)
        self.over = nn.Linear(16, 1)

    def forward(self, columns: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        rows = [table(columns[:, i] % 20) for i, table in enumerate(self.fields)]
        return self.over(torch.cat([*rows, self.bag(ids, offsets)], 1))


def batch(seed: int = 0) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    columns = torch.randint(20, (SAMPLES, 3), generator=random)
    return columns, torch.randint(20, (6,), generator=random), torch.tensor([0, 2, 4])


GOOD = batch()
BAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "offsets beyond the ids": ((*GOOD[:2], torch.tensor([0, 2, 99])), "bag lengths"),
    "negative offsets": ((*GOOD[:2], torch.tensor([0, -2, 4])), "bag lengths"),
    "offsets of floats": ((*GOOD[:2], torch.tensor([0, 2, 4.0])), "offsets of the type torch.float32"),
    "ids of floats": ((GOOD[0], GOOD[1].float(), GOOD[2]), "ids of the type torch.float32"),
    "bags of another number": ((*GOOD[:2], torch.tensor([0, 2])), "samples"),
    "a column less": ((GOOD[0][:, :2], *GOOD[1:]), "failed before its ids could be read"),
    "no matrix": ((GOOD[0][:, 0], *GOOD[1:]), "failed before its ids could be read"),
    "no tensor": (([1, 2], *GOOD[1:]), "failed before its ids could be read"),
    "an argument less": (GOOD[:2], "failed before its ids could be read"),
}


CASES = [(way, name) for way in WAYS for name in BAD if (way, name) != ("both", "bags of another number")]
"""All but one: numbers of samples are compared between features whose ids go the same way."""


@pytest.fixture(scope="module")
def models() -> dict[str, list[PlacedModel]]:
    torch.manual_seed(0)
    model, found = Model(), {}
    for way, features in WAYS.items():
        dmt = {"towers": {"module": "none"}, "comm": {"dedup_features": features}, "lookup": {"backend": "torch"}}
        config = DMTConfig.model_validate(dmt)
        logical = transform(model, GOOD, config, "2x2")
        found[way] = [place(copy.deepcopy(logical), config, Topology(2, 2), rank) for rank in range(4)]
    return found


def outcomes(models: list[PlacedModel], bad: dict[int, tuple[Any, ...]]) -> tuple[list[str], list[Tensor]]:
    """What each rank says to its batch, and what it computes of the next one."""

    def program(wire: SimulatedWire) -> tuple[str, Tensor]:
        model = models[wire.rank]
        model.bind(wire)
        said = ""
        try:
            model(*bad.get(wire.rank, GOOD))
        except DMTError as error:
            said = f"{type(error).__name__}: {error}"
        return said, model(*batch(wire.rank)).detach()

    found = SimulatedWorld(Topology(2, 2), timeout_s=20).run(program)
    return [said for said, _ in found], [output for _, output in found]


@pytest.mark.parametrize(("way", "name"), CASES)
def test_one_error_on_every_rank_and_the_next_batch_is_right(
    models: dict[str, list[PlacedModel]], way: str, name: str
) -> None:
    names = set(models[way][0].id_exchanges)
    assert names == {"by sample": {INDEX}, "distinct rows": {REQUESTS}, "both": {INDEX, REQUESTS}}[way]
    spoilt, words = BAD[name]
    said, outputs = outcomes(models[way], {2: spoilt})
    others = said[:2] + said[3:]
    assert all(text == others[0] for text in others)
    assert others[0].startswith(f"{IdRangeError.__name__}: ") and "rank 2" in others[0] and words in others[0]
    own = CaptureError.__name__ if "failed before" in words else IdRangeError.__name__
    assert said[2].startswith(own), said[2]
    assert said[2] == others[0] or own == CaptureError.__name__
    logical = models[way][0].logical
    for rank, output in enumerate(outputs):
        torch.testing.assert_close(output, logical(*batch(rank)).detach())


def test_all_ranks_may_fail_at_once(models: dict[str, list[PlacedModel]]) -> None:
    said, _ = outcomes(models["both"], dict.fromkeys(range(4), BAD["a column less"][0]))
    assert all(text.startswith(CaptureError.__name__) for text in said)


def test_what_fails_behind_the_ids_is_not_told(models: dict[str, list[PlacedModel]]) -> None:
    """The other ranks are done with the ids: nothing is sent, which nobody would take."""
    sent: list[str] = []

    def program(wire: SimulatedWire) -> None:
        model = models["both"][wire.rank]
        model.bind(wire)
        hook = model.get_submodule("over").register_forward_pre_hook(lambda *_: 1 / 0)
        original = wire.all_to_all

        def counted(name: str, *args: Any, **kwargs: Any) -> Any:
            if wire.rank == 0:
                sent.append(name)
            return original(name, *args, **kwargs)

        wire.all_to_all = counted  # type: ignore[method-assign]
        try:
            with pytest.raises(ZeroDivisionError):
                model(*GOOD)
        finally:
            hook.remove()

    SimulatedWorld(Topology(2, 2), timeout_s=20).run(program)
    assert len([name for name in sent if name.endswith(".header")]) == 4
