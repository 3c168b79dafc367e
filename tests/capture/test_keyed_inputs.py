"""Later batches whose keyed or jagged tensors have other keys: taken where the model asks by name, else refused."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.capture import ExampleBatch, capture
from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import CaptureError
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWire, SimulatedWorld
from tests.passes.world import settings
from tests.zoo.torchrec_pooled import collection, jagged

SPTT: dict[str, Any] = {"dmt": {"towers": {"module": "none"}}}


def keyed(n: int, widths: dict[str, int]) -> Any:
    from torchrec import KeyedTensor

    generator = torch.Generator().manual_seed(n)
    return KeyedTensor(list(widths), list(widths.values()), torch.rand(n, sum(widths.values()), generator=generator))


def reordered(features: list[str], n: int, seed: int = 0) -> Any:
    """A jagged tensor of features in some order, each with the ids that it has in any other."""
    from torchrec import JaggedTensor, KeyedJaggedTensor

    whole = jagged(n, range(6), seed).to_dict()
    return KeyedJaggedTensor.from_jt_dict(
        {f: JaggedTensor(whole[f].values(), lengths=whole[f].lengths()) for f in features}
    )


NAMES = [f"cat_{i}" for i in range(4)]
TURNED = [NAMES[i] for i in (2, 0, 3, 1)]
MORE = [*NAMES, "cat_4"]


class Model(nn.Module):
    """Four features looked up in a collection; ``before`` says what is done to the jagged tensor first."""

    def __init__(self, before: str = "as it is") -> None:
        super().__init__()
        self.bags = collection(range(4), 8)
        self.before = before
        self.top = nn.Linear(32, 1)

    def forward(self, sparse: Any) -> Tensor:
        return self.top(self.bags(WAYS[self.before](sparse)).values())


BY_NAME: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda sparse: sparse,
    "synchronised": lambda sparse: sparse.sync(),
    "one of its dict": lambda sparse: sparse if sparse.to_dict()["cat_3"] is not None else None,
    "moved": lambda sparse: sparse.to(torch.device("cpu")),
}


def again(keys: list[Any], values: Any, lengths: Any) -> Any:
    from torchrec import KeyedJaggedTensor

    return KeyedJaggedTensor(keys, values, lengths=lengths)


BY_PLACE: dict[str, Callable[[Any], Any]] = {
    "permuted": lambda sparse: sparse.permute([3, 1, 0, 2]),
    "split": lambda sparse: sparse.split([4])[0],
    "made again": lambda sparse: again(NAMES, sparse.values(), sparse.lengths()),
    "its own keys": lambda sparse: again(list(sparse.keys()), sparse.values(), sparse.lengths()),
    "its first key": lambda sparse: sparse if sparse.keys()[0] == "cat_0" else sparse.permute([0]),
    "a key among them": lambda sparse: sparse if "cat_9" not in sparse.keys() else sparse.permute([0]),  # noqa: SIM118
    "all of its dict": lambda sparse: sparse if len(sparse.to_dict()) == 4 else None,
    "behind a move": lambda sparse: sparse.sync() if "cat_9" not in sparse.sync().keys() else None,  # noqa: SIM118
}


WAYS = {**BY_NAME, **BY_PLACE}


@pytest.mark.parametrize("how", list(BY_NAME))
def test_a_jagged_tensor_that_is_asked_by_name_may_have_other_keys(how: str) -> None:
    model = Model(how)
    made = transform(model, (reordered(NAMES, 5),), SPTT, "2x1")
    for keys in (TURNED, MORE):
        call = (reordered(keys, 3, 1),)
        assert torch.equal(made(*call), model(*call))
    with pytest.raises(CaptureError) as refused:
        pickle.loads(pickle.dumps(made))(reordered(NAMES[:3], 3))
    (finding,) = refused.value.findings
    assert finding.code == "DMT109"
    assert finding.reason == (
        "the input sparse has the keys ['cat_0', 'cat_1', 'cat_2'], without ['cat_3'], which the model looks up"
    )


@pytest.mark.parametrize("how", list(BY_PLACE))
def test_a_jagged_tensor_that_is_gone_through_keeps_its_keys(how: str) -> None:
    model = Model(how)
    graph = capture(model, ExampleBatch((reordered(NAMES, 5),))).as_module()
    graph.binder.inputs((reordered(NAMES, 3, 1),), {})
    for keys in (TURNED, MORE):
        with pytest.raises(CaptureError) as refused:
            graph(reordered(keys, 3))
        reason = refused.value.findings[0].reason
        assert reason == (
            f"the input sparse has the keys {keys}, where the example batch had {NAMES}, and their order matters"
        )


@dataclasses.dataclass
class Batch:
    sparse: dict[str, Any]
    other: Any = None


class OfBatch(Model):
    def forward(self, batch: Batch) -> Tensor:  # type: ignore[override]
        return super().forward(batch.sparse["base"])


def test_the_name_says_where_it_is() -> None:
    made = transform(OfBatch(), (Batch({"base": reordered(NAMES, 5)}),), SPTT, "2x1")
    assert made(Batch({"base": reordered(TURNED, 5), "more": 3}, other=reordered(NAMES[:2], 4))).shape == (5, 1)
    with pytest.raises(CaptureError, match=r"the input batch\.sparse\.base has the keys \['cat_1'\], without"):
        made(Batch({"base": reordered(NAMES[1:2], 5)}))


# -- keyed tensors -----------------------------------------------------------------------


class Keyed(Model):
    """Dense features as a keyed tensor, which the model asks by name."""

    def forward(self, dense: Any, sparse: Any) -> Tensor:  # type: ignore[override]
        return super().forward(sparse) + dense["a"] * 2 + dense["b"].sum(1, keepdim=True)


WIDTHS = {"a": 1, "b": 2}
CHANGED: dict[str, tuple[Any, str]] = {
    "another order": (keyed(5, {"b": 2, "a": 1}), "has the keys ['b', 'a'], where the example batch had ['a', 'b']"),
    "other keys": (keyed(5, {"a": 1, "c": 2}), "has the keys ['a', 'c'], where the example batch had ['a', 'b']"),
    "more keys": (keyed(5, {**WIDTHS, "c": 1}), "has the keys ['a', 'b', 'c'], where the example batch had ['a', 'b']"),
    "other widths": (keyed(5, {"a": 2, "b": 1}), "has the widths [2, 1], where the example batch had [1, 2]"),
    "a tensor": (torch.rand(5, 3), "was a KeyedTensor when the model was captured and is a Tensor of the shape (5, 3)"),
    "a jagged tensor": (
        reordered(NAMES, 5), "was a KeyedTensor when the model was captured and is a KeyedJaggedTensor now",
    ),
    "nothing": (None, "was a tensor or batch object when the model was captured and is None now"),
}  # fmt: skip


@pytest.fixture(scope="module")
def placed() -> Any:
    """The model of one rank, ready to train."""
    from dmt_plugin.model.placed import place

    config = settings(towers={"module": "none"})
    logical = transform(Keyed(), (keyed(5, WIDTHS), reordered(NAMES, 5)), config, "1x1")
    model = place(logical, config, Topology(1, 1), 0)
    model.bind(SimulatedWire(SimulatedWorld(Topology(1, 1)), 0))
    return model


@pytest.mark.parametrize("how", list(CHANGED))
def test_a_keyed_tensor_keeps_its_keys(how: str, placed: Any) -> None:
    dense, said = CHANGED[how]
    made = placed.logical
    for model in (made, placed, pickle.loads(pickle.dumps(made))):
        assert model(keyed(3, WIDTHS), reordered(NAMES, 3)).shape == (3, 1)
        with pytest.raises(CaptureError) as refused:
            model(dense, reordered(NAMES, 5))
        (finding,) = refused.value.findings
        assert finding.code == "DMT109" and finding.reason.startswith(f"the input dense {said}")


def test_a_tensor_stays_one() -> None:
    made = transform(Keyed(), (keyed(5, WIDTHS), reordered(NAMES, 5)), SPTT, "2x1")
    plain = capture(nn.Linear(3, 1), ExampleBatch((torch.rand(5, 3),))).as_module()
    for value in (keyed(5, WIDTHS), reordered(NAMES, 5)):
        with pytest.raises(
            CaptureError, match="the input input was a tensor when the model was captured and is a Keyed"
        ):
            plain(value)
    with pytest.raises(CaptureError, match="the input sparse was a KeyedJaggedTensor when the model was captured and"):
        made(keyed(5, WIDTHS), keyed(5, WIDTHS))


def weighted(n: int) -> Any:
    return jagged(n, range(4), 0, weighted=True)


def test_weights_that_come_and_go() -> None:
    made = transform(Model(), (reordered(NAMES, 5),), SPTT, "2x1")
    with pytest.raises(CaptureError, match="the input sparse has weights, and had none in the example batch"):
        made(weighted(5))


# -- the example batch -------------------------------------------------------------------


@pytest.mark.parametrize("verify", [True, False])
def test_an_example_without_a_key_of_a_collection(verify: bool) -> None:
    with pytest.raises(CaptureError) as refused:
        transform(Model(), (reordered(NAMES[:3], 5),), {"dmt": {"transform": {"verify": verify}}}, "2x1")
    (finding,) = [f for f in refused.value.findings if f.severity == "error"]
    assert finding.code == "DMT109" and "does not take the example batch" in finding.reason
    assert "cat_3" in finding.reason
