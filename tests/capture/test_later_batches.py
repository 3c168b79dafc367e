"""Later batches that differ from the example in what Python was told while the model was traced are refused."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dmt_plugin.capture import ExampleBatch, capture
from dmt_plugin.capture.reads import parameters_read
from dmt_plugin.core.errors import CaptureError
from tests.capture.test_capture import rows


class Takes(nn.Module):
    """A function of the batch, then a layer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.function = function

    def forward(self, *batch: Any) -> Tensor:
        return self.layer(self.function(*batch))


@dataclasses.dataclass
class Record:
    x: Any
    more: Any = None
    flag: Any = None


def steps(n: int, length: int) -> Tensor:
    return torch.rand(n, length, 3, generator=torch.Generator().manual_seed(n))


def every(x: Any, parts: Any) -> Any:
    return sum(list(parts), x)


LATER: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...], tuple[Any, ...], str]] = {
    "a longer sequence in a loop": (
        lambda x: sum(x[:, t] for t in range(x.shape[1])), (steps(5, 4),), (steps(3, 4),), (steps(4, 6),),
        "has the shape (4, 6, 3), where the example batch had (5, 4, 3), and forward goes by its sizes",
    ),
    "another branch": (
        lambda x: x.sum(1) if x.size(1) > 3 else x.mean(1), (steps(5, 4),), (steps(3, 4),), (steps(4, 2),),
        "has the shape (4, 2, 3), where the example batch had (5, 4, 3), and forward goes by its sizes",
    ),
    "samples that were taken for something else": (
        lambda bank, x: torch.stack([x[i] + bank.mean(0) for i in range(len(x))]),
        (rows(100), rows(5)), (rows(100), rows(5)), (rows(100), rows(6)),
        "has the shape (6, 3), where the example batch had (5, 3), and forward goes by its sizes",
    ),
    "a key in a field": (
        lambda b: b.x * 0 if "mask" in b.more else b.x, (Record(rows(5), {"y": 1}),), (Record(rows(4), {"y": 1}),),
        (Record(rows(4), {"y": 1, "mask": rows(4)}),), "more has ['mask', 'y'], where the example batch had ['y']",
    ),
    "a key that is asked for": (
        lambda b: b.x if b.more.get("mask") is None else b.x * 0, (Record(rows(5), {"y": 1}),),
        (Record(rows(4), {"y": 2}),), (Record(rows(4), {"mask": rows(4)}),),
        "more has ['mask'], where the example batch had []",
    ),
    "a longer list in a field": (
        lambda b: every(b.x, b.more), (Record(rows(5), [rows(5)] * 2),), (Record(rows(4), [rows(4)] * 2),),
        (Record(rows(4), [rows(4)] * 3),), "more has 3 entries, where the example batch had 2",
    ),
    "no container": (
        lambda b: every(b.x, b.more), (Record(rows(5), [rows(5)] * 2),), (Record(rows(4), [rows(4)] * 2),),
        (Record(rows(4)),), "more was a container when the model was captured and is none now",
    ),
    "a field that goes": (
        lambda b: b.x if b.flag is None else b.x * b.flag, (Record(rows(5), flag=rows(5)),),
        (Record(rows(4), flag=rows(4)),), (Record(rows(4)),), "['flag'] were ['no constant']",
    ),
    "fields of two inputs with one name": (
        lambda a, b: a["x"].x * a["x"].flag + b.x * b.flag,
        ({"x": Record(rows(5), flag=2.0)}, Record(rows(5), flag=3.0)),
        ({"x": Record(rows(4), flag=2.0)}, Record(rows(4), flag=3.0)),
        ({"x": Record(rows(4), flag=5.0)}, Record(rows(4), flag=3.0)), "['flag'] were [2.0]",
    ),
    "unequal dicts": (
        lambda b: b["x"] if b != {"y": 0} else 0, ({"x": rows(5)},), ({"x": rows(4)},), ({"x": rows(4), "y": 0},),
        "has the key 'y', which it had not when the model was captured",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LATER))
def test_what_python_was_told_must_stay(name: str) -> None:
    function, example, good, bad, said = LATER[name]
    model = Takes(function)
    graph = capture(model, ExampleBatch(example)).as_module()
    assert torch.equal(graph(*good), model(*good))
    with pytest.raises(CaptureError) as refused:
        graph(*bad)
    (finding,) = refused.value.findings
    assert finding.code == "DMT109" and said in finding.reason, finding.reason


def test_sizes_that_are_operations_may_change() -> None:
    model = Takes(lambda x: x.sum(1) / x.size(1) + torch.arange(x.shape[1]).sum())
    graph = capture(model, ExampleBatch((steps(5, 4),))).as_module()
    assert torch.equal(graph(steps(3, 7)), model(steps(3, 7)))


class AB(nn.Module):
    """Two inputs whose readable names are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, user: Any, user_id: Any) -> Tensor:
        return self.layer(user["id"] - user_id)


def test_inputs_have_names_of_their_own() -> None:
    model = AB()
    graph = capture(model, ExampleBatch(({"id": rows(5)}, rows(5)))).as_module()
    assert graph.binder.names == ["user_id", "user_id_1"]
    call = ({"id": rows(4)}, rows(4) * 2)
    for module in (graph, pickle.loads(pickle.dumps(graph))):
        assert torch.equal(module(*call), model(*call))
    odd = Takes(lambda b: b["x²"] - b["class"] + b[1] - b["1"])
    batch = {"x²": rows(4), "class": rows(4) * 2, 1: rows(4) * 3, "1": rows(4)}
    assert torch.equal(capture(odd, ExampleBatch((batch,))).as_module()(batch), odd(batch))


class Pair(NamedTuple):
    x: Tensor
    scale: float


class Own(dict[str, Any]):
    """A dict with attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def test_dicts_that_are_mapped_and_dicts_of_the_user() -> None:
    model = Takes(lambda b: tree_map(lambda t: t * 2, b)["x"])
    graph = capture(model, ExampleBatch(({"x": rows(5), "y": rows(5)},))).as_module()
    assert torch.equal(graph({"x": rows(4), "y": rows(4)}), model({"x": rows(4), "y": rows(4)}))
    named = Takes(lambda b: b.x * b.scale)
    taken = capture(named, ExampleBatch((Pair(rows(5), 2.0),))).as_module()
    assert torch.equal(taken(Pair(rows(4), 2.0)), named(Pair(rows(4), 2.0)))
    with pytest.raises(CaptureError) as refused:
        capture(Takes(lambda b: b.x), ExampleBatch((Own(x=rows(5)),)))
    finding = refused.value.findings[0]
    assert finding.code == "DMT108" and "test_later_batches.Own, whose tensors cannot be found" in finding.reason


def test_attributes_that_are_not_there() -> None:
    of_record = Takes(lambda b: b.x * (2 if hasattr(b, "absent") else 1))
    of_tensor = Takes(lambda b: b * (2 if hasattr(b, "absent") else 1))
    for model, value in ((of_record, Record(rows(5))), (of_tensor, rows(5))):
        graph = capture(model, ExampleBatch((value,))).as_module()
        assert torch.equal(graph(value), model(value))


def test_instructions_of_two_steps_read_what_they_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """``STORE_FAST_LOAD_FAST`` of newer versions of Python."""
    import dis

    class Step(NamedTuple):
        opname: str
        argval: Any

    def forward(x: Any, scale: Any) -> Any:
        y = x
        return y, scale

    made = [Step("LOAD_FAST", "x"), Step("STORE_FAST_LOAD_FAST", ("y", "scale"))]
    monkeypatch.setattr(dis, "get_instructions", lambda code: iter(made))
    assert parameters_read(forward) == {"x", "y", "scale"}
