"""Every kind of input that a forward may take, and what later calls must have in common with the captured one."""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from dmt_plugin import ExampleBatch
from dmt_plugin.capture import capture
from dmt_plugin.capture.inputs import InputBinder
from dmt_plugin.core.errors import CaptureError
from tests.capture.test_capture import rows


class Kind(enum.Enum):
    PLUS = 1
    MINUS = -1


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclasses.dataclass
class Inner:
    values: Tensor
    weights: Tensor | None = None
    name: str = "inner"


@dataclasses.dataclass
class Outer:
    dense: Tensor
    inner: Inner
    columns: list[Tensor]
    named: dict[str, Tensor]
    scale: float = 2.0

    @property
    def size(self) -> int:
        return self.dense.size(0)


class Takes(nn.Module):
    """Calls a function of its arguments."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.layer(self.function(*args, **kwargs))


class KeywordOnly(Takes):
    def forward(self, x: Tensor, *, mask: Tensor | None = None, more: Tensor | None = None) -> Tensor:  # type: ignore[override]
        x = x if mask is None else x * mask
        return self.layer(x if more is None else x + more)


def outer(n: int, **changes: Any) -> Outer:
    inner = Inner(rows(n) * 2, **changes)
    return Outer(rows(n), inner, [rows(n), rows(n) + 1], {"a": rows(n), "b": rows(n) - 1})


def reads_outer(batch: Outer) -> Tensor:
    inner = batch.inner
    out = batch.dense * batch.scale + batch.columns[1] + batch.named["b"]
    if inner.weights is not None:
        out = out * inner.weights
    return out + (inner.values if inner.name == "inner" else -inner.values) + torch.zeros(batch.size, 3)


def jagged(n: int, weights: bool = False) -> Any:
    from torchrec import KeyedJaggedTensor

    values = torch.arange(2 * n) % 3
    lengths = torch.ones(2 * n, dtype=torch.long)
    return KeyedJaggedTensor(["a", "b"], values, lengths=lengths, weights=torch.rand(2 * n) if weights else None)


def reads_jagged(features: Any) -> Tensor:
    weights = features.weights_or_none()
    values = features.values().view(2, -1).t().float()
    values = values if weights is None else values * weights.view(2, -1).t()
    return torch.cat([values, values[:, :1]], dim=1)


def recbatch(n: int) -> Any:
    from torchrec.datasets.utils import Batch

    return Batch(rows(n), jagged(n), torch.ones(n))


def filled(n: int) -> dict[str, Tensor]:
    table: dict[str, Tensor] = defaultdict(lambda: torch.zeros(1))
    table["x"] = rows(n)
    return table


CALLS: dict[str, tuple[Callable[..., Tensor], Callable[[int], ExampleBatch]]] = {
    "tensor": (lambda x: x, lambda n: ExampleBatch((rows(n),))),
    "list": (lambda x: x[0] + x[1], lambda n: ExampleBatch(([rows(n), rows(n)],))),
    "tuple": (lambda x: x[0] + x[1][0], lambda n: ExampleBatch(((rows(n), (rows(n),)),))),
    "named tuple": (lambda p: p.left + p.right, lambda n: ExampleBatch((Pair(rows(n), rows(n)),))),
    "dict": (lambda x: x["a"] + x["b"], lambda n: ExampleBatch(({"a": rows(n), "b": rows(n)},))),
    "ordered dict": (lambda x: x["a"] * 2, lambda n: ExampleBatch((OrderedDict(a=rows(n), b=rows(n)),))),
    "default dict": (lambda x: x["x"] * 2, lambda n: ExampleBatch((filled(n),))),
    "dict of lists": (lambda x: x["a"][0] + x["a"][1], lambda n: ExampleBatch(({"a": [rows(n), rows(n)]},))),
    "dataclass": (reads_outer, lambda n: ExampleBatch((outer(n),))),
    "dataclass with weights": (reads_outer, lambda n: ExampleBatch((outer(n, weights=rows(n)),))),
    "jagged": (reads_jagged, lambda n: ExampleBatch((jagged(n),))),
    "weighted jagged": (reads_jagged, lambda n: ExampleBatch((jagged(n, True),))),
    "torchrec batch": (
        lambda b: b.dense_features + reads_jagged(b.sparse_features) + b.labels.unsqueeze(1),
        lambda n: ExampleBatch((recbatch(n),)),
    ),
    "enum": (lambda x, kind: x * kind.value, lambda n: ExampleBatch((rows(n), Kind.MINUS))),
    "none": (lambda x, y: x if y is None else x + y, lambda n: ExampleBatch((rows(n), None))),
    "keywords": (lambda x, y=None: x if y is None else x + y, lambda n: ExampleBatch((rows(n),), {"y": rows(n)})),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_every_kind_of_input(name: str) -> None:
    function, call = CALLS[name]
    model = Takes(function)
    graph = capture(model, call(5)).as_module()
    for n in (1, 4, 7, 11):
        example = call(n)
        torch.manual_seed(n)
        assert torch.equal(graph(*example.args, **example.kwargs), model(*example.args, **example.kwargs))


@pytest.mark.parametrize("given", [{}, {"mask": rows(5)}, {"more": rows(5)}, {"mask": rows(5), "more": rows(5)}])
def test_keyword_only_with_none_as_default(given: dict[str, Tensor]) -> None:
    model = KeywordOnly(lambda x: x)
    graph = capture(model, ExampleBatch((rows(5),), given)).as_module()
    call = {key: rows(4) for key in given}
    assert torch.equal(graph(rows(4), **call), model(rows(4), **call))
    other = {"mask": None, "more": None} | {key: rows(4) for key in {"mask", "more"} - given.keys()}
    with pytest.raises(CaptureError, match="DMT109"):
        graph(rows(4), **other)


def refused(*args: Any, function: Any = lambda x, *rest: x) -> Any:
    with pytest.raises(CaptureError) as caught:
        capture(Takes(function), ExampleBatch(args))
    return caught.value.findings[0]


class Plain:
    def __init__(self, x: Tensor) -> None:
        self.x = x


@dataclasses.dataclass
class Holds:
    x: Tensor
    plain: Plain


HIDDEN: dict[str, tuple[Any, Callable[..., Tensor]]] = {
    "args_1": (Plain(rows(5)), lambda x, y: x + y.x),
    "args_1.plain": (Holds(rows(5), Plain(rows(5))), lambda x, y: x + y.plain.x),
    "args_1_1_a": ([rows(5), {"a": Plain(rows(5))}], lambda x, y: x + y[1]["a"].x),
    "args_1.columns.0": (
        Outer(rows(5), Inner(rows(5)), [Plain(rows(5))], {}),  # type: ignore[list-item]
        lambda x, y: x + y.columns[0].x,
    ),
}


@pytest.mark.parametrize("place", list(HIDDEN))
def test_an_object_whose_tensors_cannot_be_found_is_named(place: str) -> None:
    value, function = HIDDEN[place]
    found = refused(rows(5), value, function=function)
    assert (found.code, found.module) == ("DMT108", place) and "dataclasses" in found.hint


def test_an_array_in_the_place_of_a_tensor_is_named() -> None:
    found = refused(rows(5), np.zeros((5, 3)), function=lambda x, y: x + torch.from_numpy(y))
    assert (found.code, found.module) == ("DMT108", "args_1") and "torch.from_numpy(args_1)" in found.hint


@pytest.mark.parametrize(
    ("captured", "later", "says"),
    [
        (outer(5), outer(4, name="other"), "inner.name"),
        (outer(5), outer(4, weights=rows(4)), "inner.weights"),
        (outer(5, weights=rows(5)), outer(4), "inner.weights"),
        (outer(5), dataclasses.replace(outer(4), scale=3.0), "scale"),
    ],
)
def test_constants_inside_a_batch_object_must_stay(captured: Outer, later: Outer, says: str) -> None:
    graph = capture(Takes(reads_outer), ExampleBatch((captured,))).as_module()
    with pytest.raises(CaptureError) as caught:
        graph(later)
    (found,) = caught.value.findings
    assert found.code == "DMT109" and says in found.reason
    assert str(caught.value).startswith("the call does not fit the captured model")


@pytest.mark.parametrize("weights", [False, True])
def test_a_jagged_tensor_keeps_its_weights_or_their_absence(weights: bool) -> None:
    graph = capture(Takes(reads_jagged), ExampleBatch((jagged(5, weights),))).as_module()
    with pytest.raises(CaptureError, match="weights"):
        graph(jagged(4, not weights))


def test_calls_of_two_threads_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls are flattened at the same time, with keys in another order than the example's."""

    def forward(batch: dict[str, Tensor]) -> Tensor:
        return batch["a"] - batch["b"]

    binder = InputBinder(forward, ExampleBatch(({"a": rows(2), "b": rows(2)},)))
    both, flatten = threading.Barrier(2, timeout=10), pytree.tree_flatten

    def together(*args: Any, **kwargs: Any) -> Any:
        found = flatten(*args, **kwargs)
        both.wait()
        return found

    monkeypatch.setattr(pytree, "tree_flatten", together)
    batches = [{"b": rows(2), "a": rows(2)} for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda batch: binder.inputs((batch,), {}), batches)
    assert all(x is y for x, y in zip(first + second, [batch[k] for batch in batches for k in "ab"], strict=True))
