"""What belongs to one feature: how far it reaches, and where it must stop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.passes.base import PassContext
from tests.passes.flat import ROWS, Flat, cat, found, ids

SPTT = {"towers": {"module": "none"}}


class Layers(nn.Module):
    """Layers that ``look`` may use; kept in one place so that every model has them."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.shared = nn.Linear(4, 4), nn.Linear(4, 4)
        self.layer_norm, self.batch_norm = nn.LayerNorm(4), nn.BatchNorm1d(4)
        self.softmin = nn.Softmin(dim=0)
        self.dropout, self.identity = nn.Dropout(0.5), nn.Identity()
        self.scale = nn.Parameter(torch.ones(4))
        self.history = nn.Embedding(ROWS, 4)
        self.register_buffer("halves", torch.full((4,), 0.5), persistent=False)


def regions_of(first: Any, **options: Any) -> PassContext:
    """``first(layers, rows, ids)`` is what the model makes of its first feature."""

    def look(model: Any, index: Tensor) -> list[Tensor]:
        if not hasattr(model, "layers"):
            model.layers = Layers()
        rows = [t(index[:, f]) for f, t in enumerate(model.tables)]
        return [first(model.layers, rows[0], index), *rows[1:]]

    return found(Flat(cat, look=look, **options), ids(4, 5), **SPTT)


def masked_mean(m: Any, rows: Tensor, index: Tensor) -> Tensor:
    mask = (index != 0).unsqueeze(-1).float()
    return (m.history(index) * mask).sum(dim=1) / (mask.sum(dim=1) + 1e-8)


ACCEPTED = {
    "activation": lambda m, rows, index: torch.relu(rows),
    "own layer": lambda m, rows, index: m.narrow(rows),
    "layer norm": lambda m, rows, index: m.layer_norm(rows),
    "dropout": lambda m, rows, index: m.dropout(rows),
    "constant": lambda m, rows, index: rows * m.halves,
    "there and back": lambda m, rows, index: rows.unsqueeze(1).view(-1, 1, 4).squeeze(1),
    "softmax over the width": lambda m, rows, index: torch.softmax(rows, dim=-1),
    "divided by the width": lambda m, rows, index: rows / rows.size(1),
    "product with itself": lambda m, rows, index: torch.bmm(
        rows.unsqueeze(1), rows.unsqueeze(2) * rows.unsqueeze(1)
    ).squeeze(1),
    "softmin over the width": lambda m, rows, index: nn.functional.softmin(rows, dim=1),
    "normalised": lambda m, rows, index: nn.functional.normalize(rows, dim=1),
    "a trained factor": lambda m, rows, index: rows * m.scale,
    "zeros where the ids are": lambda m, rows, index: rows + torch.zeros(1, 4, device=index.device),
    "zeros where the rows are": lambda m, rows, index: rows + torch.zeros(rows.size(0), 4, device=rows.device),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_work_on_one_feature_belongs_to_it(name: str) -> None:
    ctx = regions_of(ACCEPTED[name])
    first = ctx.facts.lookups[0]
    join = next(n for n in ctx.gm.graph.nodes if n.target is torch.cat)
    stream = ctx.facts.stream_of(first)
    assert stream is not first.node and stream.users.keys() <= {join, *join.users}
    assert ctx.facts.regions[first.node].layers == (name in ("own layer", "layer norm", "a trained factor"))


REFUSED = {
    "statistics over the batch": lambda m, rows, index: m.batch_norm(rows),
    "sum over the batch": lambda m, rows, index: rows - rows.sum(dim=0, keepdim=True),
    "softmax over the batch": lambda m, rows, index: torch.softmax(rows, dim=0),
    "softmin over the batch": lambda m, rows, index: nn.functional.softmin(rows, dim=0),
    "softmax layer over the batch": lambda m, rows, index: m.softmin(rows),
    "noise": lambda m, rows, index: torch.randn_like(rows) + rows,
    "normalised over the batch": lambda m, rows, index: nn.functional.normalize(rows, 2.0, 0),
    "size of the batch as a number": lambda m, rows, index: rows / rows.size(0),
    "size of the batch from the shape": lambda m, rows, index: rows * rows.shape[0],
    "copies of the batch": lambda m, rows, index: rows.expand(rows.size(0), -1, -1).sum(1),
    "written in place": lambda m, rows, index: rows.mul_(2),
    "cumulative over the batch": lambda m, rows, index: rows.cumsum(0),
    "a triangle over the batch": lambda m, rows, index: rows.tril(),
    "turned around": lambda m, rows, index: rows.flip(0),
    "a trained factor that is read twice": lambda m, rows, index: rows * m.scale + m.scale,
    "a layer used twice": lambda m, rows, index: m.shared(m.shared(rows)),
    "with the dense part": lambda m, rows, index: rows * index[:, 1:2].float(),
    "used by others as well": lambda m, rows, index: torch.relu(rows) + rows.mean() * 0,
    "size of the batch from elsewhere": lambda m, rows, index: rows.unsqueeze(1).view(index.size(0), 4),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_other_samples_or_others_stays(name: str) -> None:
    ctx = regions_of(REFUSED[name])
    region = ctx.facts.regions.get(ctx.facts.lookups[0].node)
    forbidden = {"batch_norm", "tril", "sum", "softmax", "cumsum", "flip", "scale", "shared", "mul", "view"}
    forbidden |= {"softmin", "randn_like", "normalize", "truediv", "expand", "mul_"}
    inside = () if region is None else region.nodes
    names = {n.target.split(".")[-1] if isinstance(n.target, str) else n.target.__name__ for n in inside}
    assert not forbidden & names


def test_a_sequence_is_pooled_beside_its_table_with_its_mask() -> None:
    ctx = regions_of(masked_mean)
    lookup = next(x for x in ctx.facts.lookups if x.pooling == "none")
    region = ctx.facts.regions[lookup.node]
    assert region.stream.meta["val"].shape[1:] == (4,) and region.ids and not region.layers


def test_a_mask_of_other_ids_stays_out() -> None:
    """The owner of a table has that table's ids, no others."""

    def other(m: Any, rows: Tensor, index: Tensor) -> Tensor:
        mask = (index.flip(1) != 0).unsqueeze(-1).float()
        return (m.history(index) * mask).sum(dim=1)

    ctx = regions_of(other)
    lookup = next(x for x in ctx.facts.lookups if x.pooling == "none")
    assert lookup.node not in ctx.facts.regions


def test_rows_of_one_raw_input_that_meet_are_one_feature() -> None:
    def product(m: Any, rows: Tensor, index: Tensor) -> Tensor:
        first = index[:, 0]
        return m.history(first // 3) * rows[:, :4]

    ctx = regions_of(product)
    features = {x.table: x.feature for x in ctx.facts.lookups}
    names = [x for t, x in features.items() if "history" in t or t == "tables.0"]
    assert len(set(names)) == 1 and len(ctx.facts.regions) == 2


def test_rows_of_two_inputs_that_meet_are_two_features() -> None:
    def product(m: Any, rows: Tensor, index: Tensor) -> Tensor:
        return m.history(index[:, 1]) * rows

    ctx = regions_of(product)
    assert not ctx.facts.regions and len({x.feature for x in ctx.facts.lookups}) == 4
