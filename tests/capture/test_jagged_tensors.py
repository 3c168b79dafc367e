"""Jagged tensors while a model is recorded: every way to get at their parts, and what torchrec's methods make of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmt_plugin.capture import ExampleBatch, GraphModel, capture
from dmt_plugin.capture.jagged import ids_per_sample, of_key, resized
from dmt_plugin.core.errors import CaptureError

fbgemm = torch.ops.fbgemm


def keyed(n: int, *, weighted: bool = False) -> Any:
    """Keys ``a`` with none to three ids, and ``b`` with one."""
    from torchrec import KeyedJaggedTensor

    g = torch.Generator().manual_seed(n)
    lengths = torch.cat([torch.randint(0, 4, (n,), generator=g), torch.ones(n, dtype=torch.long)])
    count = int(lengths.sum())
    weights = torch.rand(count, generator=g) if weighted else None
    return KeyedJaggedTensor(["a", "b"], torch.randint(0, 9, (count,), generator=g), weights, lengths)


class Reads(nn.Module):
    """A table, and a function of it and of a keyed jagged tensor."""

    def __init__(self, function: Callable[[nn.Embedding, Any], Any]) -> None:
        super().__init__()
        self.table, self.function = nn.Embedding(9, 3), function

    def forward(self, features: Any) -> Any:
        return self.function(self.table, features)


def padded(rows: Tensor, offsets: Tensor) -> Tensor:
    return fbgemm.jagged_to_padded_dense(rows, [offsets], [4], 0.0)


def made(table: nn.Embedding, features: Any) -> Tensor:
    from torchrec import JaggedTensor

    jagged = features["a"]
    return JaggedTensor(values=table(jagged.values()), offsets=jagged.offsets()).to_padded_dense(4, 0.5)


def made_and_moved(table: nn.Embedding, features: Any) -> Tensor:
    from torchrec import JaggedTensor

    jagged = JaggedTensor(values=table(features["a"].values()), lengths=features["a"].lengths())
    moved = jagged.to(torch.device("cpu"))
    return padded(moved.values(), moved.offsets()) * moved.lengths().view(-1, 1, 1)


def again_as_rows(table: nn.Embedding, features: Any) -> Tensor:
    """``dense_to_jagged`` that is not told how many rows there are."""
    jagged = features["a"]
    rows = fbgemm.dense_to_jagged(padded(table(jagged.values()), jagged.offsets()), [jagged.offsets()])[0]
    return rows + table(jagged.values())


def again_by_lengths(table: nn.Embedding, features: Any) -> Tensor:
    offsets = fbgemm.asynchronous_complete_cumsum(features["a"].lengths())
    return fbgemm.dense_to_jagged(padded(table(features["a"].values()), offsets), [offsets])[0]


READS: dict[str, Callable[[nn.Embedding, Any], Any]] = {
    "one key": lambda table, features: padded(table(features["a"].values()), features["a"].offsets()),
    "all keys": lambda table, features: table(features.to_dict()["b"].values()),
    "lengths": lambda table, features: table(features["b"].values()) * features["a"].lengths().unsqueeze(1),
    "nothing weighs": lambda table, features: table(features["b"].values()) * (
        2 if features["a"].weights_or_none() is None else 3
    ),
    "all values": lambda table, features: table(features.values()).sum(0),
    "split": lambda table, features: table(features.split([1, 1])[1]["b"].values()),
    "permuted": lambda table, features: table(features.permute([1, 0])["b"].values()),
    "a bag": lambda table, features: F.embedding_bag(
        features["a"].values(), table.weight, features["a"].offsets(), include_last_offset=True
    ),
    "made": made,
    "made and moved": made_and_moved,
    "again as rows": again_as_rows,
    "again by lengths": again_by_lengths,
    "handed out": lambda table, features: {"rows": features["a"], "b": table(features["b"].values())},
}  # fmt: skip


def parts(value: Any) -> list[Tensor]:
    """The tensors of a result; those of a jagged one too."""
    if isinstance(value, dict):
        return [part for item in value.values() for part in parts(item)]
    return [value] if isinstance(value, Tensor) else [value.values(), value.lengths(), value.offsets()]


def graph_of(model: nn.Module, features: Any) -> GraphModel:
    return capture(model, ExampleBatch((features,))).as_module()


@pytest.mark.parametrize("name", READS)
def test_the_graph_is_the_model(name: str) -> None:
    model = Reads(READS[name])
    graph = graph_of(model, keyed(5))
    for found in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        for n in (1, 4, 7):
            expected = parts(model(keyed(n)))
            assert all(torch.equal(a, b) for a, b in zip(parts(found(keyed(n))), expected, strict=True))


def test_weights() -> None:
    model = Reads(lambda table, features: table(features["a"].values()) * features["a"].weights().unsqueeze(1))
    graph = graph_of(model, keyed(5, weighted=True))
    assert torch.equal(graph(keyed(8, weighted=True)), model(keyed(8, weighted=True)))


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(CaptureError, match="'c' is none of the keys"):
        graph_of(Reads(lambda table, features: table(features["c"].values())), keyed(5))


def test_a_list_per_sample_is_refused() -> None:
    with pytest.raises(CaptureError, match="DMT10"):
        graph_of(Reads(lambda table, features: table(features["a"].to_dense()[0])), keyed(5))


def test_stand_ins_have_one_id_where_the_example_has() -> None:
    found = resized(keyed(5), 7)
    assert found.lengths().tolist() == [2] * 7 + [1] * 7 and ids_per_sample(found) == [2, 1]
    assert of_key(found, "a").values().shape == (14,) and of_key(found, "b").values().shape == (7,)
    assert of_key(found, "b").offsets().shape == (8,)
