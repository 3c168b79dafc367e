"""One table for all features, whose ids the data pipeline has made unique: its fields are stated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import ConfigError, IdRangeError
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWorld
from tests.passes.flat import found
from tests.passes.world import differences, run_placed, settings

ROWS = (5, 7, 3, 9, 4, 6)
FIRST = (0, 5, 12, 15, 24, 28)
N = 8


class Unique(nn.Module):
    """First-order weights and vectors of all features in a table each."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.table = nn.Embedding(sum(ROWS), N)
        self.first = nn.Embedding(sum(ROWS), 1)
        self.top = nn.Linear(len(ROWS) * N, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(self.table(ids).flatten(1)) + self.first(ids).sum(1)


def batch(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.randint(0, r, (n,), generator=generator) + f for r, f in zip(ROWS, FIRST, strict=True)]
    return torch.stack(columns, 1)


FIELDS: dict[str, Any] = {"table": list(ROWS), "fir*": list(ROWS)}


def test_every_column_is_a_feature_with_its_rows() -> None:
    ctx = found(Unique(), batch(5), lookup={"fields": FIELDS})
    own = [(x.first_row, x.rows) for x in ctx.facts.lookups if x.weight == "table.weight"]
    assert own == list(zip(FIRST, ROWS, strict=True))
    assert [(g.kind, len({x.feature for x in g.lookups})) for g in ctx.facts.groups] == [("tower", 6), ("transport", 6)]
    assert len({x.feature for x in ctx.facts.lookups}) == 6  # of both tables


@pytest.mark.parametrize("module", ["none", "dlrm"])
def test_towers_in_one_process_and_on_ranks(module: str) -> None:
    dmt = {"towers": {"module": module, "c": 1, "p": 0, "dim": 4}, "comm": {"dedup": "on"}}
    config = settings(**dmt).model_copy(update={"lookup": settings().lookup.model_copy(update={"fields": FIELDS})})
    flat = Unique()
    logical = transform(flat, (batch(5),), config, "2x1")
    assert set(logical.state_dict()) >= set(flat.state_dict())
    if module == "none":
        for ids in (batch(9, 1), batch(9, 1).int()):
            assert torch.equal(logical(ids), flat(ids))
    batches = [(batch(4, 1),), (batch(3, 2),)]
    world = SimulatedWorld(Topology(2, 1))
    assert differences(logical, run_placed(logical, config, world, batches), batches) == []
    wrong = batch(3, 2)
    wrong[1, 2] = FIRST[3]  # a row of the next field
    with pytest.raises(IdRangeError):
        run_placed(logical, config, SimulatedWorld(Topology(2, 1)), [(batch(4, 1),), (wrong,)])


class Other(Unique):
    def forward(self, ids: Tensor) -> Tensor:
        return self.top(self.table(ids).flatten(1)) + self.first(ids[:, 0])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tabel": [20, 14]}, "did you mean 'table'"),
        ({"table": [20, 14]}, r"the rows of 2 fields, but table is read by ids \(B, 6\)"),
        ({"table": [5, 7, 3, 9, 4, 7]}, "the rows of 6 fields, together 35, but table has 34 rows"),
        ({"first": list(ROWS)}, r"first is not read as an nn\.Embedding by ids \(B, 6\)"),
    ],
    ids=["no table", "columns", "rows", "one column"],
)
def test_what_does_not_fit_is_an_error(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        transform(Other(), (batch(5),), {"dmt": {"lookup": {"fields": fields}}}, "2x1")
