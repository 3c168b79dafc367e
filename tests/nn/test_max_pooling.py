"""Pooling by maximum against torch's own: values, ties and gradients bit for bit, and which rows count as looked up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.nn.lookup.max_pooling import max_bags
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.nn.lookup.site import LookupSite

ROWS, DIM = 9, 4


def table() -> Tensor:
    """Few distinct values: many ties."""
    return torch.randint(-1, 2, (ROWS, DIM), generator=torch.Generator().manual_seed(0)).float()


def bags(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Bags of 0 to 5 ids, some twice; row 0 is in none of them."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([0, 3, 5, 1, 0, 4, 2, 5, 0])
    ids = torch.randint(1, ROWS, (int(lengths.sum()),), generator=generator).to(dtype)
    return ids, torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_values_and_gradients_are_torchs(dtype: torch.dtype) -> None:
    ids, offsets = bags(dtype)
    own, other = table().requires_grad_(), table().requires_grad_()
    found = max_bags(ids, own, offsets)
    expected = torch.nn.functional.embedding_bag(ids.long(), other, offsets, mode="max", include_last_offset=True)
    assert torch.equal(found, expected) and not found[0].any()
    factors = torch.randint(-4, 5, found.shape, generator=torch.Generator().manual_seed(2)).float()
    (found * factors).sum().backward()
    (expected * factors).sum().backward()
    assert own.grad is not None and other.grad is not None and own.grad.is_sparse
    assert torch.equal(own.grad.to_dense(), other.grad)
    ties = max_bags(torch.tensor([1, 2], dtype=dtype), torch.ones(3, 1).requires_grad_(), torch.tensor([0, 2]))
    assert ties.tolist() == [[1.0]]


def test_every_row_of_a_bag_is_looked_up_whoever_is_largest() -> None:
    ids, offsets = bags(torch.int64)
    own = table().requires_grad_()
    max_bags(ids, own, offsets).sum().backward()
    assert own.grad is not None
    assert own.grad.coalesce().indices()[0].tolist() == sorted(set(ids.tolist())) and 0 not in ids.tolist()


def test_the_first_of_equal_rows_gets_the_gradient() -> None:
    own = torch.ones(4, 2).requires_grad_()
    max_bags(torch.tensor([3, 1, 2]), own, torch.tensor([0, 3])).sum().backward()
    assert own.grad is not None
    assert own.grad.to_dense().tolist() == [[0, 0], [0, 0], [0, 0], [1, 1]]


def lookup(backend: str, rule: Rule | None = None) -> ShardedLookup:
    sites = [LookupSite("a", "a", 0, ROWS, DIM, "max", False), LookupSite("b", "b", 0, ROWS, DIM, "sum", False)]
    rules = {name: rule or Rule("sgd", 0.1) for name in ("a", "b")}
    return ShardedLookup(sites, {"a": table(), "b": table()}, backend=backend, rules=rules)


def test_auto_looks_such_a_table_up_on_torch_and_fbgemm_is_refused() -> None:
    auto = lookup("auto")
    assert (auto.backend_of("a"), auto.backend_of("b")) == ("torch", "fbgemm")
    with pytest.raises(ValueError, match=r"dmt.lookup.backend 'fbgemm' cannot serve table 'a' .*pooled by maximum"):
        lookup("fbgemm")


def test_rows_of_16_bits_are_pooled_alike() -> None:
    ids, offsets = bags(torch.int32)
    routed = RoutedIds((ids,), (offsets.diff(),), (None,), BatchLayout(9, ((9,),)))
    found = []
    for dtype in ("fp32", "bf16"):
        own = lookup("torch", Rule("sgd", 0.5, dtype=dtype))  # type: ignore[arg-type]
        out = own(routed)
        (out * torch.arange(out.numel()).view_as(out)).sum().backward()
        own.step()
        found += [out.detach(), own.table_weight("a").float()]
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[1], found[3], rtol=0.01, atol=0.01)


def test_rows_that_are_looked_up_decay_though_others_are_larger() -> None:
    own = lookup("torch", Rule("sgd", 0.1, weight_decay=1.0, decoupled=True))
    ids = torch.tensor([1, 2, 5])
    with torch.no_grad():
        own.table_weight("a")[:] = torch.arange(ROWS).float()[:, None] + 1
    before = own.table_weight("a").clone()
    out = own(RoutedIds((ids,), (torch.tensor([3]),), (None,), BatchLayout(1, ((1,),))))
    (out * 0).sum().backward()
    own.step()
    expected = before.clone()
    expected[ids] *= 0.9
    torch.testing.assert_close(own.table_weight("a"), expected)


def test_a_range_of_rows_is_refused() -> None:
    site = LookupSite("a", "a", 0, ROWS, DIM, "max", False, first_row=3)
    with pytest.raises(ValueError, match="does not know the maximum over a whole bag"):
        ShardedLookup([site], {"a": table()}, backend="torch")
