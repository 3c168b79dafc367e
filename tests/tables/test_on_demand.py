"""Rows of tables on the meta device, made while a model computes."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dmt_plugin.tables.on_demand import RowsNotMadeError, RowsOnDemand

ROWS = 2**31
"""With 64 columns half a TiB."""

FEW, MANY = torch.tensor([[3, ROWS - 1], [3, 70]]), torch.arange(70_000) * 64


class Made:
    """Rows that differ by row and column; counts how often each is made."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def fill(self, rows: range | Tensor, columns: range, out: Tensor) -> None:
        assert isinstance(rows, Tensor)
        self.rows += rows.tolist()
        out.copy_(values(rows, columns))


def values(rows: Tensor, columns: range = range(64)) -> Tensor:
    return torch.sin(rows.unsqueeze(-1).double() * 0.7 + torch.tensor(list(columns)).double()).float()


class Model(nn.Module):
    """Does something with a table."""

    def __init__(self, use: Callable[[Tensor], Tensor], shape: tuple[int, int] = (ROWS, 64)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, device="meta"))
        self.use = use

    def forward(self) -> Tensor:
        return self.use(self.weight)


def on_demand(model: Model, budget: int = 2**28) -> tuple[RowsOnDemand, Made]:
    source = Made()
    return RowsOnDemand({"weight": model.weight}, {"weight": source}, budget), source


OFFSETS = torch.tensor([0, 1])
LOOKUPS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "embedding": (lambda w: functional.embedding(FEW, w), values),
    "int32": (lambda w: functional.embedding(torch.tensor([70]).int(), w), lambda ids: values(torch.tensor([70]))),
    "bags": (lambda w: functional.embedding_bag(FEW, w, mode="mean"), lambda ids: values(ids).mean(1)),
    "offsets": (lambda w: functional.embedding_bag(FEW[0], w, OFFSETS, mode="sum"), lambda ids: values(ids[0])),
    "max": (lambda w: functional.embedding_bag(FEW, w, mode="max"), lambda ids: values(ids).amax(1)),
    "index": (lambda w: w[FEW], values),
    "counted from the end": (lambda w: w[FEW - ROWS], values),
    "second dimension": (lambda w: w.unsqueeze(0)[:, FEW[0]].squeeze(0), lambda ids: values(ids[0])),
    "two indices": (lambda w: w[FEW, torch.tensor([5, 6])], lambda ids: values(ids)[:, [0, 1], [5, 6]]),
    "index_select": (lambda w: w.index_select(0, FEW[0]), lambda ids: values(ids[0])),
    "gather": (lambda w: w.gather(0, FEW), lambda ids: values(ids)[..., :2].diagonal(0, 1, 2)),
    "part": (lambda w: w[60:80][FEW[1] - FEW[1] + 10], lambda ids: values(torch.tensor([70, 70]))),
    "one row": (lambda w: w[70] * 1, lambda ids: values(torch.tensor(70))),
    "some rows": (lambda w: w[3:9] * 1, lambda ids: values(torch.arange(3, 9))),
    "half rows": (lambda w: w.view(-1, 32)[torch.tensor([140])], lambda ids: values(torch.tensor([70]))[:, :32]),
    "no ids": (lambda w: functional.embedding(FEW[:0], w), lambda ids: values(ids[:0])),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_rows_that_are_looked_up_are_there(name: str) -> None:
    use, expected = LOOKUPS[name]
    model = Model(use)
    weight = model.weight
    rows, source = on_demand(model)
    with torch.no_grad():
        for _ in range(2):
            with rows.held_by(model):
                assert torch.equal(model(), expected(FEW))
    assert len(set(source.rows)) == len(source.rows) <= 6
    assert model.weight is weight and weight.is_meta and weight.grad is None


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda w: w.mean(), "mean reads all 2,147,483,648 rows of 'weight', which is on the meta device"),
        (lambda w: w.T @ torch.ones(3, 1), "reads all"),
        (lambda w: functional.embedding(FEW, w * 2), "mul reads all"),
        (lambda w: functional.embedding(FEW, w.clone()), "clone reads all"),
        (lambda w: w[:, :2].sum(), "sum reads all"),
        (lambda w: w[w[:, 0] > 0], "gt reads all"),
        (lambda w: w.unsqueeze(0)[torch.tensor([0])], "index reads all"),
        (lambda w: w[: 2**30].sum(), "sum reads 1,073,741,824 rows"),
        (lambda w: functional.embedding(MANY, w), r"embedding reads .* take 273.4 MiB .* takes 256.0 MiB at most"),
        (lambda w: functional.embedding(FEW, torch.empty(4, 4, device="meta")), "a tensor that is on the meta device"),
    ],
)
@pytest.mark.parametrize("caught", [False, True])
def test_what_needs_more_than_some_rows_is_refused(use: Callable[[Tensor], Tensor], words: str, caught: bool) -> None:
    def use_or_not(weight: Tensor) -> Tensor:
        try:
            return use(weight)
        except RowsNotMadeError as error:
            if caught:
                raise ValueError("of the model's own") from error
            raise

    model = Model(use_or_not)
    weight = model.weight
    rows, source = on_demand(model)
    with pytest.raises(RowsNotMadeError, match=words), rows.held_by(model):
        model()
    assert model.weight is weight and weight.is_meta and not source.rows


def test_an_error_that_the_model_goes_on_after_is_not_forgotten() -> None:
    def use(weight: Tensor) -> Tensor:
        try:
            return weight.sum()
        except Exception:
            return torch.zeros(())

    model = Model(use)
    with pytest.raises(RowsNotMadeError, match="sum reads all"), on_demand(model)[0].held_by(model):
        model()


@pytest.mark.parametrize("ids", [[ROWS], [-1]])
def test_ids_out_of_range_are_the_operations_own_error(ids: list[int]) -> None:
    model = Model(lambda w: functional.embedding(torch.tensor(ids), w))
    weight = model.weight
    with pytest.raises(IndexError), on_demand(model)[0].held_by(model):
        model()
    assert model.weight is weight


def test_the_budget_counts_pages() -> None:
    pages = torch.arange(4) * mmap.PAGESIZE // 256  # a row of 64 floats has 256 bytes
    model = Model(lambda w: functional.embedding(torch.cat([pages, pages + 1]), w))
    rows, source = on_demand(model, 4 * mmap.PAGESIZE)
    with rows.held_by(model):
        model()
    assert len(source.rows) == 8
    with pytest.raises(RowsNotMadeError), on_demand(model, 4 * mmap.PAGESIZE - 1)[0].held_by(model):
        model()


GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "embedding": lambda w: functional.embedding(torch.tensor([[1, 5], [5, 2]]), w, padding_idx=2),
    "bag": lambda w: functional.embedding_bag(torch.tensor([[1, 5], [5, 2]]), w, mode="mean"),
    "weighed": lambda w: functional.embedding_bag(
        torch.tensor([[1, 5], [5, 2]]), w, mode="sum", per_sample_weights=torch.tensor([[1.0, 2], [3, 4]])
    ),
    "two lookups": lambda w: (
        functional.embedding(torch.tensor([1, 5]), w) * functional.embedding(torch.tensor([5, 3]), w)
    ),
    "index": lambda w: w[torch.tensor([1, 5, 5])],
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_a_table_with_values(name: str) -> None:
    model = Model(GRADIENTS[name], (8, 64))
    real = values(torch.arange(8)).requires_grad_()
    model.use(real).square().sum().backward()
    with on_demand(model)[0].held_by(model):
        model().square().sum().backward()
        found = model.weight.grad
    assert found is not None and real.grad is not None
    assert found.is_sparse == (name != "index")
    assert torch.allclose(found.to_dense(), real.grad, rtol=1e-6)
    assert model.weight.grad is None


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w[FEW],
        lambda w: functional.embedding_bag(FEW, w, mode="max"),
        lambda w: functional.embedding(FEW, w, scale_grad_by_freq=True),
    ],
)
def test_a_dense_gradient_of_a_large_table_is_refused(use: Callable[[Tensor], Tensor]) -> None:
    model = Model(use)
    with pytest.raises(RowsNotMadeError, match=r"dense and take 512.0 GiB"), on_demand(model)[0].held_by(model):
        model().sum().backward()


def test_weights_of_samples_get_their_gradient() -> None:
    weights = torch.ones(2, 2, requires_grad=True)
    model = Model(lambda w: functional.embedding_bag(FEW, w, mode="sum", per_sample_weights=weights))
    with on_demand(model)[0].held_by(model):
        model().sum().backward()
    assert weights.grad is not None
    assert torch.allclose(weights.grad, values(FEW).sum(2))


def test_two_models_hold_one_table() -> None:
    first = Model(lambda w: w[FEW])
    second = nn.Sequential(Model(lambda w: w[FEW] * 1), nn.Identity())
    second[0].weight = first.weight
    rows, source = on_demand(first)
    with rows.held_by(first, second):
        assert first.weight is second[0].weight and not first.weight.is_meta
        assert torch.equal(first(), second[0]())
    assert first.weight is second[0].weight and first.weight.is_meta
    assert sorted(source.rows) == [3, 70, ROWS - 1]


def test_no_address_space_is_said() -> None:
    model = Model(lambda w: w, (2**49, 64))
    with pytest.raises(RowsNotMadeError, match=r"no address space for 'weight', 131072.0 TiB"):
        on_demand(model)
