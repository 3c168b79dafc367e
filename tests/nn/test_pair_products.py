"""Products of pairs: the outputs of the plain form bit for bit, and its gradients, whatever the pairs are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from dmt_plugin.nn import pair_products as module
from dmt_plugin.nn.pair_products import pair_of, pair_products


def plain(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.bmm(x, x.transpose(1, 2))[:, first, second]


def gradient(function: object, x: Tensor, weight: Tensor, *args: object) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    out = function(x, *args)  # type: ignore[operator]
    (grad,) = torch.autograd.grad((out * weight).sum(), x)
    return out.detach(), grad


pairs = st.integers(1, 6).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=20))
)


@settings(deadline=None, max_examples=60)
@given(pairs, st.integers(0, 5), st.integers(1, 9))
def test_any_pairs(of: tuple[int, list[tuple[int, int]]], batch: int, width: int) -> None:
    """Also squares, pairs listed twice, in both orders, and none at all."""
    vectors, listed = of
    first, second = torch.tensor(listed, dtype=torch.int64).reshape(-1, 2).unbind(1)
    x = torch.randn(batch, vectors, width)
    weight = torch.randn(batch, len(listed))
    out, grad = gradient(pair_products, x, weight, first, second, vectors)
    expected, wanted = gradient(plain, x, weight, first, second)
    assert torch.equal(out, expected)
    assert torch.allclose(grad, wanted, rtol=1e-5, atol=1e-5)
    source = pair_of(first, second, vectors)
    unordered = {frozenset(pair) for pair in listed}
    assert (source is None) == (len(unordered) < len(listed) or any(len(pair) == 1 for pair in unordered))
    if source is not None:
        picked = gradient(pair_products, x, weight, first, second, vectors, source)
        assert torch.equal(picked[0], out) and torch.equal(picked[1], grad)


@pytest.mark.parametrize("offset", [-1, 0])
@pytest.mark.parametrize("width", [16, 64])
def test_the_triangle_of_a_dlrm(offset: int, width: int) -> None:
    first, second = torch.tril_indices(27, 27, offset)
    torch.manual_seed(0)
    x = torch.randn(512, 27, width)
    weight = torch.randn(512, len(first))
    out, grad = gradient(pair_products, x, weight, first, second, 27)
    expected, wanted = gradient(plain, x, weight, first, second)
    assert torch.equal(out, expected)
    assert float((grad - wanted).norm() / wanted.norm()) < 1e-6


def test_first_and_second_derivatives() -> None:
    x = torch.randn(2, 4, 3, dtype=torch.double, requires_grad=True)
    first, second = torch.tensor([0, 1, 2, 2, 3]), torch.tensor([1, 0, 2, 0, 3])

    def through(value: Tensor) -> Tensor:
        return pair_products(value, first, second, 4)

    low, high = torch.tril_indices(4, 4, -1)

    def triangle(value: Tensor) -> Tensor:
        return pair_products(value, low, high, 4, pair_of(low, high, 4))

    for function in (through, triangle):
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


def test_bf16_is_no_less_exact_than_the_plain_form() -> None:
    first, second = torch.tril_indices(9, 9, -1)
    torch.manual_seed(0)
    x, weight = torch.randn(64, 9, 16).bfloat16(), torch.randn(64, 36).bfloat16()
    out, grad = gradient(pair_products, x, weight, first, second, 9)
    expected, wanted = gradient(plain, x, weight, first, second)
    _, exact = gradient(plain, x.double(), weight.double(), first, second)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected)
    assert (grad.double() - exact).norm() <= (wanted.double() - exact).norm()


def test_another_number_of_vectors_is_looked_up_as_written() -> None:
    first, second = torch.tensor([3, 2]), torch.tensor([1, 0])
    x = torch.randn(2, 6, 5)
    assert torch.equal(pair_products(x, first, second, 4), plain(x, first, second))
    with pytest.raises(IndexError):
        pair_products(x[:, :3], first, second, 4)


def test_one_node_when_traced() -> None:
    class Uses(nn.Module):
        def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
            return pair_products(x, first, second, 3)

    calls = [n for n in fx.symbolic_trace(Uses()).graph.nodes if n.op == "call_function"]
    assert [n.target for n in calls] == [pair_products]


def test_without_gradients_nothing_is_kept() -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    with torch.no_grad():
        assert not pair_products(x, torch.tensor([0]), torch.tensor([1]), 3).requires_grad


@pytest.mark.parametrize("mutation", ["one side", "transposed"])
def test_a_mutated_backward_is_seen(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mutated(module._PairProducts):
        @staticmethod
        def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None, None, None]:
            x, first, second, _ = ctx.saved_tensors  # type: ignore[attr-defined]
            both = grad.new_zeros(x.shape[0], x.shape[1] ** 2).index_add(1, first * x.shape[1] + second, grad)
            if mutation == "transposed":
                both = both.index_add(1, first * x.shape[1] + second, grad)
            return torch.bmm(both.view(x.shape[0], x.shape[1], x.shape[1]), x), None, None, None

    monkeypatch.setattr(module, "_PairProducts", Mutated)
    first, second = torch.tril_indices(4, 4, -1)
    x, weight = torch.randn(3, 4, 5), torch.randn(3, 6)
    _, grad = gradient(pair_products, x, weight, first, second, 4)
    _, wanted = gradient(plain, x, weight, first, second)
    assert not torch.allclose(grad, wanted, atol=1e-3)
