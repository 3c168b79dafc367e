"""Tower modules: the paper's shapes, starts that keep what flows through, and a user's own class."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.nn.towers import (
    DCNTower,
    DLRMTower,
    PassThroughTower,
    automatic_dim,
    build_tower_module,
    initialise_linear,
)
from dmt_plugin.plan.tower_plan import TowerModuleSpec

HERE = "tests.nn.test_towers"


class Own(nn.Module):
    """A user's tower with state that a forward in train mode changes."""

    def __init__(self, features: int, width: int, dim: int) -> None:
        super().__init__()
        self.out_features = 2 * dim
        self.norm = nn.BatchNorm1d(features * width)
        self.layer = nn.Linear(features * width, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(x.flatten(1)))


class WrongShape(Own):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).unsqueeze(1)


class WrongWidth(Own):
    def __init__(self, features: int, width: int, dim: int) -> None:
        super().__init__(features, width, dim)
        self.out_features = 2 * dim + 1
        self.layer = nn.Linear(features * width, 2 * dim + 1)


class WithoutOutFeatures(nn.Module):
    def __init__(self, features: int, width: int, dim: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class OtherArguments(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()


def spec(kind: str, **options: Any) -> TowerModuleSpec:
    return TowerModuleSpec(kind, **{"dim": 4, **options})


sizes = st.integers(1, 6)


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, sizes, st.integers(0, 3), st.integers(0, 3), st.sampled_from(["orthogonal", "identity", "torch"]))
def test_dlrm_shapes(features: int, width: int, dim: int, c: int, p: int, init: str) -> None:
    if c == p == 0:
        return
    module: Any = build_tower_module(spec("dlrm", dim=dim, c=c, p=p, init=init), features, width, 0)
    assert module.out_features == dim * (c * features + p)
    x = torch.randn(3, features, width)
    out = module(x)
    assert out.shape == (3, module.out_features)
    for f in range(features if c else 0):  # c outputs of each feature side by side, then those of the tower
        assert torch.allclose(out[:, c * dim * f : c * dim * (f + 1)], module.per_feature(x[:, f]), atol=1e-6)
    if p:
        assert torch.equal(out[:, c * dim * features :], module.per_tower(x.flatten(1)))


@settings(deadline=None, max_examples=20)
@given(sizes, sizes, sizes)
def test_dcn_shapes(features: int, width: int, dim: int) -> None:
    module: Any = build_tower_module(spec("dcn", dim=dim, init="torch"), features, width, 0)
    assert module.out_features == features * dim
    x = torch.randn(3, features, width)
    flat = x.flatten(1)
    assert torch.equal(module(x), module.project(flat * module.cross(flat) + flat))


@settings(deadline=None, max_examples=20)
@given(sizes, sizes, sizes, st.integers(1, 4), st.integers(1, 4))
def test_dcn_of_a_rank_with_outputs_of_the_tower(features: int, width: int, dim: int, rank: int, outputs: int) -> None:
    module: Any = build_tower_module(spec("dcn", dim=dim, init="torch", rank=rank, outputs=outputs), features, width, 0)
    assert module.out_features == outputs * dim
    x = torch.randn(3, features, width)
    flat = x.flatten(1)
    matrix = module.cross.weight @ module.reduce.weight
    assert module.reduce.weight.shape == (rank, features * width) and module.reduce.bias is None
    crossed = flat @ matrix.t() + module.cross.bias
    expected = module.project(flat * crossed + flat)
    assert expected.shape == (3, outputs * dim)
    torch.testing.assert_close(module(x), expected, atol=1e-4, rtol=1e-4)


def test_a_dcn_tower_that_was_pickled_without_a_rank() -> None:
    module = DCNTower(3, 4, 2, "torch")
    old = DCNTower.__new__(DCNTower)
    old.__setstate__({key: value for key, value in module.__dict__.items() if key != "reduce"})
    x = torch.randn(2, 3, 4)
    assert torch.equal(old(x), module(x))


def test_pass_through() -> None:
    module: Any = build_tower_module(spec("none"), 3, 5, 0)
    x = torch.randn(2, 3, 5)
    assert isinstance(module, PassThroughTower) and module.out_features == 15
    assert torch.equal(module(x), x.flatten(1))


@pytest.mark.parametrize(
    ("kind", "c", "width", "dim"), [("dlrm", 1, 16, 8), ("dlrm", 0, 16, 16), ("dcn", 1, 16, 16), ("dlrm", 1, 1, 1)]
)
def test_automatic_dim_and_compression(kind: str, c: int, width: int, dim: int) -> None:
    assert automatic_dim(kind, c, width) == dim
    if (kind, c, width) == ("dlrm", 1, 16):
        assert 6 * width / DLRMTower(6, width, dim).out_features == 2.0


# -- starts ----------------------------------------------------------------------------------


def linear(out: int, inside: int, init: str) -> nn.Linear:
    layer = nn.Linear(inside, out)
    initialise_linear(layer, init)
    return layer


@pytest.mark.parametrize(("out", "inside"), [(4, 8), (8, 8), (3, 48)])
def test_orthogonal_rows(out: int, inside: int) -> None:
    layer = linear(out, inside, "orthogonal")
    assert torch.allclose(layer.weight @ layer.weight.t(), torch.eye(out), atol=1e-5)
    assert not layer.bias.any()


@pytest.mark.parametrize(("out", "inside"), [(4, 8), (8, 8), (3, 8), (8, 3), (16, 4)])
def test_identity_averages_neighbours(out: int, inside: int) -> None:
    weight = linear(out, inside, "identity").weight
    for row in weight:
        (used,) = row.nonzero(as_tuple=True)
        assert used.tolist() == list(range(used[0], used[0] + len(used)))
        assert torch.allclose(row[used], torch.full((len(used),), 1 / math.sqrt(len(used))))
    assert torch.allclose(weight.norm(dim=1), torch.ones(out))  # variance is kept
    assert weight.any(dim=0).all() or out < inside
    if out == inside:
        assert torch.equal(weight, torch.eye(out))
    if inside % out == 0:
        assert (weight != 0).sum() == inside  # every input is used once


def test_identity_starts_as_the_flat_model() -> None:
    x = torch.randn(5, 3, 4)
    assert torch.equal(DLRMTower(3, 4, 4, init="identity")(x), x.flatten(1))
    assert torch.equal(DCNTower(3, 4, 4, init="identity")(x), x.flatten(1))


def test_a_cross_layer_starts_as_zero_unless_torch() -> None:
    for init in ("orthogonal", "identity"):
        assert not DCNTower(3, 4, 2, init).cross.weight.any()
    assert DCNTower(3, 4, 2, "torch").cross.weight.any()


def test_torch_is_the_librarys_own_start() -> None:
    torch.manual_seed(5)
    expected = nn.Linear(8, 4).weight
    torch.manual_seed(5)
    assert torch.equal(DLRMTower(3, 8, 4, init="torch").per_feature.weight, expected)


def test_an_unknown_start() -> None:
    with pytest.raises(ConfigError, match=r"dmt\.towers\.init is 'xavier'"):
        linear(2, 2, "xavier")


# -- seeds -----------------------------------------------------------------------------------


def state_of(options: TowerModuleSpec, tower: int) -> list[Tensor]:
    return [p.detach().clone() for p in build_tower_module(options, 3, 8, tower).parameters()]


@pytest.mark.parametrize("kind", ["dlrm", "dcn", f"{HERE}:Own"])
def test_the_seed_decides_and_global_random_numbers_do_not(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("seeds the accelerators, whose state is not put back")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    torch.random.default_generator.manual_seed(1)
    before = torch.get_rng_state()
    first = state_of(spec(kind, p=1), 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.random.default_generator.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, state_of(spec(kind, p=1), 0), strict=True))
    for other in (state_of(spec(kind, p=1), 1), state_of(spec(kind, p=1, seed=1), 0)):
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


# -- a user's own ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [f"{HERE}:Own", f"{HERE}.Own"])
def test_a_class_by_import_path(path: str) -> None:
    module = build_tower_module(spec(path), 3, 8, 0)
    assert type(module).__name__ == "Own" and module.training
    assert isinstance(module, nn.Module)
    assert module.get_buffer("norm.num_batches_tracked") == 0  # trying it out left no trace


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{HERE}:Nothing", "Importing it failed: AttributeError"),
        ("no_such_package:Tower", "Importing it failed: ModuleNotFoundError"),
        ("Tower", "Importing it failed: ValueError"),
        (f"{HERE}:WrongShape", r"breaks the contract.*gave the shape \(3, 1, 8\)"),
        (f"{HERE}:WrongWidth", r"whole number of streams of width dim.*gave the shape \(3, 9\)"),
        (f"{HERE}:WithoutOutFeatures", "breaks the contract.*AttributeError.*out_features"),
        (f"{HERE}:OtherArguments", r"built as cls\(features=3, width=8, dim=4\).*TypeError"),
        (f"{HERE}:spec", "breaks the contract.*TypeError"),
    ],
)
def test_breaches_of_the_contract(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_tower_module(spec(name), 3, 8, 0)
