"""The number of samples of a batch of flat ids, offsets, lengths and weights, in any numbers of ids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin import transform
from dmt_plugin.capture import ExampleBatch, capture
from dmt_plugin.capture.batch_sizes import batch_size_of, shapes_tell

B = 5


class Bags(nn.Module):
    """Offsets, and what else a bag may be given, in a list or in one tensor for all tables."""

    def __init__(self, *, last: bool = False, dense: bool = True) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(40, 4, mode="sum", include_last_offset=last) for _ in range(3))
        self.bottom = nn.Linear(3, 4) if dense else None
        self.top = nn.Linear(16 if dense else 12, 1)

    def forward(self, dense: Any, ids: Any, offsets: Any, weights: Any = None) -> Tensor:
        own = [None] * 3 if weights is None else weights
        pooled = [bag(i, o, per_sample_weights=w) for bag, i, o, w in zip(self.bags, ids, offsets, own, strict=True)]
        if self.bottom is not None:
            pooled.insert(0, self.bottom(dense))
        return self.top(torch.cat(pooled, 1)).squeeze(1)


class Lengths(Bags):
    """Lengths in place of offsets."""

    def forward(self, dense: Any, ids: Any, lengths: Any, weights: Any = None) -> Tensor:
        offsets = [torch.cumsum(own, 0) - own for own in lengths]
        return super().forward(dense, ids, offsets, weights)


def call(counts: list[int], *, last: bool = False, weighted: bool = False, stacked: bool = False, n: int = B) -> Any:
    """Bags of as many ids per feature as there are counts; ``n`` samples."""
    g = torch.Generator().manual_seed(sum(counts))
    ids = [torch.randint(0, 40, (count,), generator=g) for count in counts]
    offsets = [torch.arange(n) * count // n for count in counts]
    if last:
        offsets = [torch.cat([o, torch.tensor([len(i)])]) for o, i in zip(offsets, ids, strict=True)]
    weights = ([torch.rand(count, generator=g) for count in counts],) if weighted else ()
    return (torch.randn(n, 3, generator=g), ids, torch.stack(offsets) if stacked else offsets, *weights)


COUNTS = ([B] * 3, [3 * B] * 3, [B + 1] * 3, [B + 1, 7, 11], [7] * 3, [11, 11, 11], [3 * B, 9, 11], [0, 0, 2])


OPTIONS = (
    {}, {"last": True}, {"weighted": True}, {"stacked": True}, {"last": True, "weighted": True, "stacked": True}
)  # fmt: skip


@pytest.mark.parametrize(("counts", "options"), list(zip(COUNTS, [*OPTIONS, *OPTIONS], strict=False)), ids=str)
def test_bags(counts: list[int], options: dict[str, bool]) -> None:
    check(counts, options, dense=sum(counts) % 2 > 0)


@pytest.mark.campaign
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dense", [True, False])
def test_bags_in_any_numbers(counts: list[int], options: dict[str, bool], dense: bool) -> None:
    check(counts, options, dense)


def check(counts: list[int], options: dict[str, bool], dense: bool) -> None:
    torch.manual_seed(0)
    model = Bags(last=options.get("last", False), dense=dense)
    captured = capture(model, ExampleBatch(call(counts, **options)))
    assert captured.binder.samples == B
    later = call([6, 2, 8], **options, n=3)
    assert torch.equal(captured.as_module()(*later), model(*later))


@pytest.mark.parametrize("weighted", [False, True])
def test_lengths(weighted: bool) -> None:
    torch.manual_seed(0)
    model = Lengths()
    dense, ids, _, *weights = call([7, 7, 8], weighted=weighted)
    lengths = [torch.tensor(own) for own in ([1, 2, 0, 3, 1], [0, 2, 2, 3, 0], [4, 0, 0, 3, 1])]
    captured = capture(model, ExampleBatch((dense, ids, lengths, *weights)))
    assert captured.binder.samples == B
    later = (dense[:2], ids, [torch.tensor([len(i), 0]) for i in ids], *weights)
    assert torch.equal(captured.as_module()(*later), model(*later))


def test_weights_of_as_many_ids_as_samples_are_no_row_per_sample() -> None:
    check([B, B, 2 * B], {"weighted": True}, dense=True)


def test_offsets_by_column() -> None:
    class Columns(Bags):
        def forward(self, dense: Any, ids: Any, offsets: Any, weights: Any = None) -> Tensor:
            return super().forward(dense, ids, offsets.t(), weights)

    def batch(n: int) -> tuple[Any, ...]:
        dense, ids, offsets = call([7, 9, 11], stacked=True, n=n)
        return dense, ids, offsets.t().contiguous()

    model = Columns()
    captured = capture(model, ExampleBatch(batch(B)))
    assert captured.binder.samples == B
    assert torch.equal(captured.as_module()(*batch(3)), model(*batch(3)))


@pytest.mark.parametrize("spelled", ["lengths", "offsets"])
def test_jagged_tensors_made_in_forward(spelled: str) -> None:
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

    tables = [EmbeddingBagConfig(name=f"t{k}", embedding_dim=4, num_embeddings=40, feature_names=[k]) for k in "ab"]

    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags = EmbeddingBagCollection(tables)
            self.top = nn.Linear(8, 1)

        def forward(self, values: Tensor, counted: Tensor) -> Tensor:
            jagged = KeyedJaggedTensor(keys=["a", "b"], values=values, **{spelled: counted})
            return self.top(self.bags(jagged).values()).squeeze(1)

    def batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
        counted = torch.tensor(lengths)
        ends = torch.cat([torch.zeros(1, dtype=torch.long), counted.cumsum(0)])
        return torch.arange(sum(lengths)) % 40, counted if spelled == "lengths" else ends

    model = Made()
    captured = capture(model, ExampleBatch(batch([2, 0, 1, 1, 3, 1])))
    assert captured.binder.samples == 3
    later = batch([1, 0, 2, 2, 1, 1, 0, 1, 3, 1])
    assert torch.equal(captured.as_module()(*later), model(*later))


def test_weights_are_kept_though_they_may_be_left_out() -> None:
    model = Bags()
    given, without = call([9, 8, 7], weighted=True), call([9, 8, 7])
    towers = transform(model, given, {"dmt": {"towers": {"module": "none"}}}, "2x1")
    assert torch.equal(towers(*given), model(*given)) and not torch.equal(model(*given), model(*without))


def ids(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)


def test_shapes_alone() -> None:
    assert batch_size_of([ids(9), ids(9), torch.zeros(4, 2)]) == 4
    assert batch_size_of([ids(4, 6), ids(9), ids(9)]) == 4
    assert batch_size_of([torch.zeros(9), ids(4, 6)]) == 4
    assert batch_size_of([ids(9), torch.zeros(4)]) == 4
    assert shapes_tell([torch.zeros(4, 2), ids(4, 3)]) and shapes_tell([torch.zeros(4, 2), ids(4)])
    assert not shapes_tell([torch.zeros(4, 2), ids(4), ids(9)]) and not shapes_tell([ids(4), ids(4)])
