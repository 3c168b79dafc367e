"""A value counts as constant only if every call computes the same, and computing it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dmt_plugin.fxtools.constants import constant_of


def users_own(value: Tensor) -> Tensor:
    """A function of the user's, which may do anything."""
    return value


def graph_of(target: Callable[..., Any] | str, *args: Any) -> tuple[fx.GraphModule, fx.Node]:
    root = nn.Module()
    root.register_buffer("values", torch.full((3, 4), 0.5))
    graph = fx.Graph()
    read = graph.get_attr("values")
    call = graph.call_method if isinstance(target, str) else graph.call_function
    return fx.GraphModule(root, graph), call(target, (read, *args))


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (torch.bernoulli, ()), ("bernoulli", ()), (torch.rand_like, ()), (torch.normal, (0.5,)), (F.dropout, ()),
        (torch.multinomial, (2,)), (F.gumbel_softmax, ()), (torch.empty_like, ()), ("uniform_", ()), ("add_", (1,)),
        (users_own, ()),
    ],
)  # fmt: skip
def test_what_may_differ_between_calls_is_no_constant(target: Any, args: tuple[Any, ...]) -> None:
    gm, node = graph_of(target, *args)
    before = torch.get_rng_state()
    assert constant_of(gm, node) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(gm.get_buffer("values"), torch.full((3, 4), 0.5))


@pytest.mark.parametrize(("target", "args"), [(torch.add, (1,)), ("sum", (1,)), (torch.cumsum, (0,)), ("long", ())])
def test_what_is_the_same_in_every_call_is(target: Any, args: tuple[Any, ...]) -> None:
    gm, node = graph_of(target, *args)
    found, values = constant_of(gm, node), torch.full((3, 4), 0.5)
    expected = getattr(values, target)(*args) if isinstance(target, str) else target(values, *args)
    assert found is not None and torch.equal(found, expected)
