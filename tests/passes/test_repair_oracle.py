"""A repaired model is the model its author's constructor builds for the towers' streams.

The head's class is built a second time with ``F'`` streams of width ``D``, given the repaired weights and
fed the tower outputs: parameters must have the same shapes, outputs must be equal bit for bit.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dmt_plugin.compiler import transform
from dmt_plugin.model.logical import TowerModel
from tests.passes import heads
from tests.passes.heads import Recommender, batch

SIZES = {
    "fewer": (6, 8, {"c": 1, "p": 0, "dim": 4}),
    "more": (6, 8, {"c": 1, "p": 1, "dim": 8}),
    "wider": (6, 8, {"c": 0, "p": 2, "dim": 16}),
    "F equal N": (8, 8, {"c": 1, "p": 0, "dim": 4}),
    "F+1 equal N": (7, 8, {"c": 1, "p": 0, "dim": 4}),
    "F*N equal F'*D": (8, 8, {"c": 0, "p": 2, "dim": 16}),
    "F*N equal F'*D, narrower": (8, 8, {"c": 2, "p": 0, "dim": 4}),
    "same sizes": (6, 8, {"c": 1, "p": 0, "dim": 8}),
}
FEW = ("more", "F+1 equal N", "F*N equal F'*D, narrower")
CASES = [
    (head, size)
    for head in (heads.Dot, heads.DotLiteral, heads.StackedLiteral, heads.GroupedRows, heads.CrossLinear)
    for size in sorted(SIZES)
] + [
    (head, size)
    for head in (
        heads.DotWithDiagonal, heads.DotUpper, heads.DotUpperWithDiagonal, heads.DotLists, heads.SumOverFeatures,
        heads.CrossParameters, heads.FactorisationMachine, heads.NormedMLP, heads.Attention, heads.TypedDense,
    )
    for size in FEW
]  # fmt: skip


def repaired(head: type[heads.Head], size: str) -> tuple[TowerModel, heads.Head, int, int]:
    features, width, letters = SIZES[size]
    torch.manual_seed(3)
    flat = Recommender(head(features, width), features, width)
    config = {"dmt": {"towers": {"module": "dlrm", **letters}}}
    model = transform(flat, batch(features, 5), config, "2x1")
    streams = letters["c"] * features + 2 * letters["p"]
    torch.manual_seed(4)
    return model, head(streams, letters["dim"]), streams, letters["dim"]


def tower_outputs(model: TowerModel) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if name.startswith("dmt_towers") and name.count(".") == 2:
            module.register_forward_hook(lambda m, a, result: found.append(result))
    return found


def assert_is_the_oracle(model: TowerModel, oracle: nn.Module, streams: int, dim: int, features: int) -> None:
    state = {k: v for k, v in model.state_dict().items() if k not in model.never_run}
    weights = {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
    expected = oracle.state_dict()
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in expected.items() if k in weights}
    unused = expected.keys() - weights.keys()
    lists = {key for key, value in expected.items() if value.dtype == torch.int64}  # rebuilt, and not saved
    assert all(key.startswith("bottom.") or key in lists for key in unused), unused  # a head that has no use for it
    oracle.load_state_dict({**expected, **weights})
    arrived = tower_outputs(model)
    for training in (False, True):
        arrived.clear()
        model.train(training)
        twin = copy.deepcopy(oracle).train(training)
        x, ids = batch(features, 6, seed=1)
        found = model(x, ids)
        fed = torch.cat(arrived, dim=1).split(dim, dim=1)
        assert len(fed) == streams
        assert torch.equal(found, twin(x, list(fed)))


@pytest.mark.parametrize(("head", "size"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_repair_builds_what_the_constructor_builds(head: type[heads.Head], size: str) -> None:
    model, oracle, streams, dim = repaired(head, size)
    assert_is_the_oracle(model, oracle, streams, dim, SIZES[size][0])


@pytest.mark.parametrize("size", sorted(SIZES))
def test_layers_whose_inputs_mean_something_else_start_anew(size: str) -> None:
    """Also where the number of inputs happens to be the same."""
    features, width, _ = SIZES[size]
    torch.manual_seed(3)
    before = Recommender(heads.StackedLiteral(features, width), features, width).head.top.weight
    model, *_ = repaired(heads.StackedLiteral, size)
    after = model.get_parameter("head.top.weight")
    assert after.shape != before.shape or not torch.equal(after, before)
    (repair,) = model.repairs
    assert repair.target == "head.top" and "in_features" in repair.what
    if after.shape == before.shape:
        assert "mean something else" in repair.what


def test_every_stream_and_every_pair_counts() -> None:
    model, *_ = repaired(heads.Dot, "more")
    x, ids = batch(6, 4, seed=2)
    model.eval()
    arrived = tower_outputs(model)
    expected = model(x, ids)
    arrived = [a.clone() for a in arrived]
    for tower in range(2):
        for column in range(0, arrived[tower].shape[1], 8):
            changed = arrived[tower].clone()
            changed[:, column : column + 8] += 1.0
            module = model.get_submodule(f"dmt_towers.group0.tower{tower}")
            hook = module.register_forward_hook(lambda m, a, r, value=changed: value)
            found = model(x, ids)
            hook.remove()
            assert (found != expected).all()


def test_the_new_values_follow_the_old() -> None:
    torch.manual_seed(0)
    flat = Recommender(heads.CrossLinear(6, 8), 6, 8)
    with torch.no_grad():
        flat.head.top.weight.normal_(0.5, 0.1)
    config = {"dmt": {"towers": {"module": "dlrm", "dim": 2}}}
    model = transform(flat, batch(6, 5), config, "2x1")
    old, new = flat.head.layers[0].weight, model.get_parameter("head.layers.0.weight")
    assert new.shape == (17, 17)
    assert new.std().item() == pytest.approx(old.std().item() * (53 / 17) ** 0.5, rel=0.15)
    top = model.get_parameter("head.top.weight")
    assert top.mean().item() == pytest.approx(0.5, abs=0.2)
    again = transform(flat, batch(6, 5), config, "2x1")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_transformation_leaves_global_random_numbers_alone() -> None:
    flat = Recommender(heads.Dot(6, 8), 6, 8)
    before = torch.get_rng_state()
    transform(flat, batch(6, 5), {"dmt": {}}, "2x1")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_than_float32(dtype: torch.dtype) -> None:
    for head in (heads.Dot, heads.CrossParameters, heads.NormedMLP):
        flat = Recommender(head(6, 8), 6, 8).to(dtype)
        x, ids = batch(6, 5)
        model = transform(flat, (x.to(dtype), ids), {"dmt": {}}, "2x1")
        assert model(x.to(dtype), ids).dtype == dtype
        assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_model_without_data() -> None:
    with torch.device("meta"):
        flat = Recommender(heads.CrossLinear(6, 8), 6, 8)
        flat.tables[0] = nn.Embedding(10**9, 8, padding_idx=0)
    args = tuple(t.to("meta") for t in batch(6, 5))
    model = transform(flat, args, {"dmt": {}}, "2x1")
    assert model(*args).shape == (5, 1)
    assert all(p.is_meta for p in model.parameters())
