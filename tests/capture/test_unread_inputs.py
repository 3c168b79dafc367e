"""What forward does not read of a batch is ignored and may change; what it reads, or looks for, must stay."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.capture import ExampleBatch, capture
from dmt_plugin.capture.reads import Reads, WatchedDict, parameters_read, watched
from dmt_plugin.core.errors import CaptureError
from tests.capture.test_capture import rows


class Takes(nn.Module):
    """One argument, of which a function reads something."""

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.function = function

    def forward(self, batch: Any) -> Tensor:
        return self.layer(self.function(batch))


class Arguments(nn.Module):
    """Arguments that are read, that are only asked whether they are there, and that are not read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, request: Any, step: int, mask: Tensor | None = None, *, name: str = "") -> Tensor:
        return self.layer(x if mask is None else x * 2)


@dataclasses.dataclass
class Record:
    x: Tensor
    scale: float = 2.0
    step: int = 0
    name: Any = "name"
    ids: Any = None
    more: Any = None


def taken(function: Callable[[Any], Tensor], batch: Any) -> Any:
    return capture(Takes(function), ExampleBatch((batch,))).as_module()


def full(n: int, **changes: Any) -> dict[str, Any]:
    more = {"step": 3, "name": "a", "ids": np.arange(n), "labels": [rows(n), "b"]}
    return {"x": rows(n), "y": rows(n), **more, **changes}


READS: dict[str, Callable[[Any], Tensor]] = {
    "item": lambda b: b["x"] + b["y"],
    "get": lambda b: b.get("x") + b.get("y"),
    "pop": lambda b: b.pop("x") + b.pop("y"),
    "unpacked by key": lambda b: sum((b[k] for k in ("x", "y")), torch.zeros(3)),
}


@pytest.mark.parametrize("how", list(READS))
def test_entries_of_a_dict_that_are_not_read_may_be_anything(how: str) -> None:
    graph = taken(READS[how], full(5))
    for other in ({}, {"step": "four", "name": None}, {"ids": object(), "labels": rows(1)}, {"new": 1}):
        batch = full(4, **other)
        expected = graph.layer(batch["x"] + batch["y"])
        assert torch.equal(graph(dict(batch)), expected)
        assert torch.equal(pickle.loads(pickle.dumps(graph))({"y": batch["y"], "x": batch["x"]}), expected)
        assert torch.equal(copy.deepcopy(graph)(OrderedDict(batch)), expected)


GOES_THROUGH: dict[str, Callable[[Any], Tensor]] = {
    "items": lambda b: sum((v for _, v in b.items()), torch.zeros(3)),
    "values": lambda b: sum(b.values(), torch.zeros(3)),
    "keys": lambda b: sum((b[k] for k in b.keys()), torch.zeros(3)),  # noqa: SIM118
    "iteration": lambda b: sum((b[k] for k in b), torch.zeros(3)),
    "length": lambda b: b["x"] / len(b),
    "copy": lambda b: sum(dict(b).values(), torch.zeros(3)),
    "unpacking": lambda b: sum({**b}.values(), torch.zeros(3)),
    "union": lambda b: sum((b | {}).values(), torch.zeros(3)),
    "union from the right": lambda b: sum(({} | b).values(), torch.zeros(3)),
    "keywords": lambda b: sum((lambda **k: k)(**b).values(), torch.zeros(3)),
    "truth": lambda b: b["x"] if b else rows(5),
}


@pytest.mark.parametrize("how", list(GOES_THROUGH))
def test_a_dict_that_is_gone_through_keeps_its_keys(how: str) -> None:
    graph = taken(GOES_THROUGH[how], {"x": rows(5), "y": rows(5)})
    model = graph_like(graph, how)
    assert torch.equal(graph({"y": rows(4), "x": rows(4)}), model({"x": rows(4), "y": rows(4)}))
    with pytest.raises(CaptureError, match="has the key 'z'"):
        graph({"x": rows(4), "y": rows(4), "z": rows(4)})
    with pytest.raises(CaptureError, match="has no 'y'"):
        graph({"x": rows(4)})


def graph_like(graph: Any, how: str) -> Takes:
    model = Takes(GOES_THROUGH[how])
    model.layer = graph.layer
    return model


def test_a_key_that_forward_looks_for_in_vain_must_stay_away() -> None:
    for function in (lambda b: b["x"] if "mask" not in b else b["x"] * 2, lambda b: b["x"] + (b.get("mask") or 0)):
        graph = taken(function, {"x": rows(5), "name": "a"})
        assert torch.equal(graph({"x": rows(4)}), graph.layer(rows(4)))
        with pytest.raises(CaptureError, match="the input batch has the key 'mask'"):
            graph({"x": rows(4), "mask": rows(4)})


def test_a_constant_that_is_read_must_stay() -> None:
    graph = taken(lambda b: b["x"] * b["step"], full(5))
    with pytest.raises(CaptureError, match=r"the input batch\['step'\] was the constant 3"):
        graph(full(4, step=4))


def test_dicts_inside_lists_and_dicts() -> None:
    graph = taken(lambda b: b["a"]["x"] + b["l"][1]["x"], {"a": full(5), "l": [full(5), full(5)], "z": full(5)})
    batch = {"a": {"x": rows(4)}, "l": [None, {"x": rows(4), "more": 3}]}
    with pytest.raises(CaptureError, match=r"the input batch\['l'\]\[0\] was a dict"):
        graph(batch)
    batch["l"][0] = {}
    assert torch.equal(graph(batch), graph.layer(rows(4) * 2))


# -- arguments ---------------------------------------------------------------------------


def test_arguments_that_are_not_read_may_be_anything() -> None:
    graph = capture(Arguments(), ExampleBatch((rows(5), np.arange(5), 3), {"name": "a"})).as_module()
    assert torch.equal(graph(rows(4), None, "four", name="b"), graph.layer(rows(4)))
    assert [n.target for n in graph.graph.nodes if n.op == "placeholder"] == ["x"]


def test_an_argument_that_is_asked_whether_it_is_there_must_stay() -> None:
    graph = capture(Arguments(), ExampleBatch((rows(5), 0, 3, rows(5)))).as_module()
    assert torch.equal(graph(rows(4), 1, 2, rows(3)), graph.layer(rows(4) * 2))
    with pytest.raises(CaptureError, match="the input mask was a tensor"):
        graph(rows(4), 0, 3)
    without = capture(Arguments(), ExampleBatch((rows(5), 0, 3))).as_module()
    with pytest.raises(CaptureError, match="the input mask was the constant None"):
        without(rows(4), 0, 3, rows(4))


def closure(x: Any, unread: Any, inner: Any) -> Any:
    return [x + inner for _ in range(2)]


def sees_all(x: Any, unread: Any) -> Any:
    return sorted(locals()), x


@torch.no_grad()
def decorated(x: Any, unread: Any) -> Any:
    return x


def overwritten(x: Any, unread: Any) -> Any:
    unread = x
    return unread


def test_what_the_code_reads() -> None:
    assert parameters_read(closure) == {"x", "inner"}
    assert parameters_read(sees_all) is None and parameters_read(decorated) is None
    assert "x" in (parameters_read(overwritten) or ())
    assert parameters_read(Arguments().forward) == {"self", "x", "mask"}


# -- fields ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 9},
        {"name": object()},
        {"ids": np.arange(3)},
        {"more": {"anything": rows(2)}},
        {"name": None, "ids": rows(4), "more": [object()]},
    ],
    ids=["step", "name", "ids", "more", "three"],
)
def test_fields_that_are_not_read_may_be_anything(changes: dict[str, Any]) -> None:
    for first, second in (({}, changes), (changes, {})):
        graph = taken(lambda b: b.x * b.scale, Record(rows(5), **first))
        assert torch.equal(graph(Record(rows(4), **second)), graph.layer(rows(4) * 2.0))
        with pytest.raises(CaptureError, match=r"\['scale'\] were \[2.0\]"):
            graph(Record(rows(4), 3.0))


def test_containers_in_fields() -> None:
    more = {"y": rows(5), "factor": 2, "label": "a", "ids": np.arange(5)}
    graph = taken(lambda b: b.x + b.more["y"], Record(rows(5), more=more))
    assert torch.equal(graph(Record(rows(4), more={"y": rows(4), "label": 3})), graph.layer(rows(4) * 2))
    through = taken(lambda b: b.x + sum(b.more.values(), torch.zeros(3)), Record(rows(5), more={"y": rows(5), "n": 2}))
    with pytest.raises(CaptureError, match=r"more.n"):
        through(Record(rows(4), more={"y": rows(4), "n": 3}))


@dataclasses.dataclass
class NamedLikeOurs:
    x: Tensor
    name: Tensor
    owner: float


def test_fields_with_names_of_our_own() -> None:
    graph = taken(lambda b: (b.x + b.name) * b.owner, NamedLikeOurs(rows(5), rows(5), 2.0))
    record = Record(rows(5), more=NamedLikeOurs(rows(5), rows(5), 2.0))
    nested = taken(lambda b: b.more.x + b.more.name * b.more.owner, record)
    assert torch.equal(graph(NamedLikeOurs(rows(4), rows(4), 2.0)), graph.layer(rows(4) * 4))
    found = nested(Record(rows(4), more=NamedLikeOurs(rows(4), rows(4), 2.0)))
    assert torch.equal(found, nested.layer(rows(4) + rows(4) * 2.0))


def test_a_watched_dict_is_a_dict() -> None:
    reads = Reads()
    (found,) = watched([{"a": 1, "b": 2}], reads)
    assert isinstance(found, WatchedDict) and found == {"a": 1, "b": 2}
    assert reads.whole == {(0,)}
    reads.whole.clear()
    assert found["a"] == 1 and found.get("c") is None and found.pop("b") == 2 and "d" not in found
    assert found.setdefault("e", 5) == 5
    assert reads.asked == {(0,): {"a", "b", "c", "d", "e"}} and not reads.whole
