"""Decoders: the start is the least-squares reconstruction of what the tower read; preserving towers start near it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.nn.decoders import affine_part, build_decoder
from dmt_plugin.nn.towers import PreserveTower, build_tower_module
from dmt_plugin.plan.tower_plan import TowerModuleSpec

F, N = 3, 8


class Shifted(nn.Module):
    """Affine with an offset, and a layer that counts batches in train mode."""

    def __init__(self, features: int, width: int, dim: int) -> None:
        super().__init__()
        self.out_features = dim
        self.layer = nn.Linear(features * width, dim)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x.flatten(1)))


def built(kind: str, c: int = 1, p: int = 0, dim: int = 4, init: str = "orthogonal", tower: int = 0) -> Any:
    spec = TowerModuleSpec(kind, c, p, dim, init)
    module = build_tower_module(spec, F, N, tower)
    return module, *build_decoder(module, spec, F, N, tower)


def reconstruction(module: nn.Module, x: Tensor) -> Tensor:
    """The shortest of the vectors that the tower's output is nearest to, by a solver of its own."""
    found = affine_part(module, F, N)
    assert found is not None
    matrix, offset = found
    wanted = (module.eval()(x) - offset).double().t()
    return torch.linalg.lstsq(matrix.double(), wanted, driver="gelsd").solution.t()


@pytest.mark.parametrize(
    "letters",
    [
        {"kind": "dlrm"},
        {"kind": "dlrm", "p": 1, "dim": 8},
        {"kind": "dlrm", "c": 2, "dim": 8},
        {"kind": "dlrm", "c": 0, "p": 1},
        {"kind": "dlrm", "p": 2, "init": "torch"},
        {"kind": "dlrm", "init": "identity"},
        {"kind": "dcn"},
        {"kind": "tests.nn.test_decoders:Shifted"},
    ],
    ids=str,
)
def test_decoding_reconstructs_as_well_as_can_be(letters: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module, decoder, start = built(**letters)
    assert (decoder.in_features, decoder.out_features) == (module.out_features, F * N)
    x = torch.randn(20, F, N)
    assert torch.allclose(decoder(module.eval()(x)).double(), reconstruction(module, x), atol=1e-4)
    assert "least-squares" in start


def test_an_orthogonal_towers_decoder_is_its_transpose() -> None:
    module, decoder, _ = built("dlrm")
    block = module.per_feature.weight.t()
    assert torch.allclose(decoder.weight, torch.block_diag(block, block, block), atol=1e-6)
    assert not decoder.bias.any()


def test_nothing_is_lost_where_nothing_is_compressed() -> None:
    x = torch.randn(5, F, N)
    for letters in ({"p": 1, "dim": N}, {"c": 2, "dim": N}):
        module, decoder, _ = built("dlrm", **letters)
        assert torch.allclose(decoder(module(x)), x.flatten(1), atol=1e-4)


def test_a_tower_that_is_not_affine() -> None:
    module, decoder, start = built("dcn", init="torch")
    assert affine_part(module, F, N) is None
    assert torch.allclose(decoder.weight.t() @ decoder.weight, torch.eye(module.out_features), atol=1e-5)
    assert not decoder.bias.any() and start == "orthonormal columns"


def test_a_decoder_is_the_same_everywhere_and_leaves_the_tower_alone() -> None:
    module, first, _ = built("tests.nn.test_decoders:Shifted")
    assert module.norm.num_batches_tracked == 0 and module.training
    torch.manual_seed(5)
    state = torch.get_rng_state()
    _, second, _ = built("tests.nn.test_decoders:Shifted")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    _, other, _ = built("tests.nn.test_decoders:Shifted", tower=1)
    assert not torch.equal(first.weight, other.weight)
    for init in ("torch",):  # the start that is drawn, not computed
        weights = [built("dcn", init=init, tower=t)[1].weight for t in (0, 0, 1)]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


# -- towers that preserve ----------------------------------------------------------------------


def test_a_preserving_tower() -> None:
    x = torch.randn(5, F, N)
    for init in ("orthogonal", "identity", "torch"):
        module = PreserveTower(F, N, init)
        assert module.out_features == F * N and module(x).shape == (5, F * N)
    weight = PreserveTower(F, N).mix.weight
    assert torch.allclose(weight @ weight.t(), torch.eye(F * N), atol=1e-5)
    turned = (PreserveTower(F, N)(x) - x.flatten(1)).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert ((turned > 0.02) & (turned < 0.3)).all()
    assert torch.equal(PreserveTower(F, N, "identity")(x), x.flatten(1))


def test_a_preserving_tower_has_the_width_of_its_features() -> None:
    assert isinstance(build_tower_module(TowerModuleSpec("preserve", dim=N), F, N, 0), PreserveTower)
    with pytest.raises(ConfigError, match=r"keeps the width of its features, 8.* width 4\. Set dmt\.towers\.dim to 8"):
        build_tower_module(TowerModuleSpec("preserve", dim=4), F, N, 0)
