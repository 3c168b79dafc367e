"""The logical graph with pass-through towers is the flat model, bit for bit; with tower modules it is the
model that the author's own constructor would build for the new streams."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import DMTError
from dmt_plugin.model.logical import TowerModel
from tests.zoo.models import ZOO, torchrec_dlrm

SPTT = {"dmt": {"towers": {"module": "none"}}}


def build(name: str, seed: int = 0, **sizes: int) -> tuple[nn.Module, Any]:
    torch.manual_seed(seed)
    return ZOO[name](**sizes)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", sorted(ZOO))
@pytest.mark.parametrize("strategy", ["strided", "contiguous"])
def test_pass_through_towers_are_the_flat_model(name: str, strategy: str) -> None:
    flat, batch = build(name)
    keys = list(flat.state_dict())
    config = {"dmt": {"towers": {"module": "none"}, "partition": {"strategy": strategy}}}
    towers = transform(copy.deepcopy(flat), batch(5, 0), config, "3x1")
    assert isinstance(towers, TowerModel)
    assert set(towers.state_dict()) == set(keys)
    for training in (False, True):
        for n in (4, 9):
            for model in (flat, towers):
                model.train(training)
                model.zero_grad()
                torch.manual_seed(7)
                out = model(*batch(n, 3))
                out.pow(2).sum().backward()
                model.seen = out.detach()  # type: ignore[assignment]
            assert torch.equal(flat.seen, towers.seen)
            expected, found = gradients(flat), gradients(towers)
            assert expected.keys() == found.keys()
            for key, value in expected.items():
                assert torch.equal(value, found[key]), key


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_users_model_is_left_alone(name: str) -> None:
    flat, batch = build(name)
    before = {n: (id(p), p.detach().clone()) for n, p in flat.named_parameters()}
    modules = [n for n, _ in flat.named_modules()]
    modes = [m.training for m in flat.modules()]
    transform(flat, batch(5, 0), {"dmt": {}}, "2x1")
    assert [n for n, _ in flat.named_modules()] == modules
    assert [m.training for m in flat.modules()] == modes
    for key, parameter in flat.named_parameters():
        assert id(parameter) == before[key][0] and torch.equal(parameter, before[key][1])


@pytest.mark.parametrize("name", sorted(ZOO))
@pytest.mark.parametrize(
    "towers",
    [
        {"module": "dlrm", "c": 1, "p": 0, "dim": 4},
        {"module": "dlrm", "c": 1, "p": 1, "dim": 8},
        {"module": "dlrm", "c": 0, "p": 2, "dim": 8},
        {"module": "dlrm", "c": 2, "p": 0, "dim": 8},
        {"module": "dcn"},
    ],
    ids=str,
)
def test_tower_modules_train_and_can_be_copied(name: str, towers: dict[str, Any]) -> None:
    flat, batch = build(name)
    model = transform(flat, batch(5, 0), {"dmt": {"towers": towers}}, "2x1")
    model.train()
    out = model(*batch(6, 1))
    assert out.shape == flat(*batch(6, 1)).shape
    out.sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without
    model.eval()
    expected = model(*batch(6, 2))
    assert torch.equal(copy.deepcopy(model)(*batch(6, 2)), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(*batch(6, 2)), expected)
    # Every stream matters: another order of the tower outputs gives another result.
    path = next(n for n, _ in model.named_modules() if n.endswith("tower0"))
    model.get_submodule(path).register_forward_hook(lambda module, args, result: result.flip(1))
    shuffled = model(*batch(6, 2))
    assert not torch.allclose(shuffled, expected)


@pytest.mark.parametrize(
    ("features", "width", "c", "p", "dim"),
    [(6, 8, 1, 0, 4), (6, 8, 1, 1, 8), (8, 8, 1, 0, 4), (8, 8, 0, 4, 16), (6, 8, 0, 1, 8), (5, 4, 2, 1, 8)],
)
def test_repaired_torchrec_dlrm_is_the_one_its_constructor_builds(
    features: int, width: int, c: int, p: int, dim: int
) -> None:
    """Oracle: the author's own class with F' tables of width D, the same weights, fed the tower outputs.

    The sizes include F == N and F*N == F'*D, where a rewrite by sizes alone goes wrong.
    """
    torch.manual_seed(1)
    flat, batch = torchrec_dlrm(features, width)
    config = {"dmt": {"towers": {"module": "dlrm", "c": c, "p": p, "dim": dim}}}
    model = transform(flat, batch(5, 0), config, "2x1").eval()
    streams = c * features + 2 * p
    oracle, _ = torchrec_dlrm(streams, dim)
    state = model.state_dict()
    own = oracle.state_dict()
    for key in own:
        if "embedding_bags" not in key:
            assert own[key].shape == state[key].shape, key
            own[key] = state[key]
    oracle.load_state_dict(own)
    captured: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if name.startswith("dmt_towers") and name.count(".") == 2:
            module.register_forward_hook(lambda m, a, result: captured.append(result))
    args = batch(7, 2)
    found = model(*args)
    fed = torch.cat(captured, dim=1).view(7, streams, dim)
    dense = oracle.dense_arch(args[0])
    expected = oracle.over_arch(oracle.inter_arch(dense_features=dense, sparse_features=fed))
    assert torch.equal(found, expected)


def test_sptt_model_gives_the_flat_model_back() -> None:
    flat, batch = build("dlrm")
    assert transform(flat, batch(5, 0), SPTT, "2x1").to_flat() is flat


@pytest.mark.parametrize("name", ["dlrm", "multi_hot_dlrm", "dcn_v2", "deepfm"])
def test_a_tower_model_can_be_exported(name: str) -> None:
    flat, batch = build(name)
    model = transform(flat, batch(5, 0), {"dmt": {}}, "2x1").to_flat().eval()
    exported = torch.export.export(model, batch(5, 1), strict=False)
    assert torch.allclose(exported.module()(*batch(5, 1)), model(*batch(5, 1)))


def test_a_trained_flat_model_goes_into_towers() -> None:
    flat, batch = build("dlrm")
    model = transform(flat, batch(5, 0), {"dmt": {"towers": {"dim": 4}}}, "2x1")
    other, _ = build("dlrm", seed=5)
    state = {k: v.clone() for k, v in other.state_dict().items()}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = model.load_flat_state(state)
    now = model.state_dict()
    assert set(found.loaded) | set(found.anew) == set(now)
    assert all(torch.equal(now[k], state[k]) for k in found.loaded)
    assert all(torch.equal(now[k], before[k]) for k in found.anew)
    sized = {r.target for r in model.repairs}
    assert sized and {k.rpartition(".")[0] for k in found.anew if not k.startswith("dmt_towers")} == sized
    kept = [f"{r.target}.bias" for r in model.repairs if "out_features" not in r.what]
    assert kept and set(kept) <= set(found.loaded)


def test_a_state_of_another_model_is_not_loaded() -> None:
    flat, batch = build("dlrm")
    model = transform(flat, batch(5, 0), {"dmt": {}}, "2x1")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = flat.state_dict()
    table = f"{model.table_names[0]}.weight"
    with pytest.raises(DMTError, match=f"missing.*{table}"):
        model.load_flat_state({k: v for k, v in state.items() if k != table})
    with pytest.raises(DMTError, match="of another shape"):
        model.load_flat_state({**state, table: state[table][:2]})
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["plan", "flat", "lookup", "findings", "binder", "passes"])
def test_members_called_like_ours_are_the_users(name: str) -> None:
    torch.manual_seed(0)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(9, 4) for _ in range(4))
            self.add_module(name, nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1)))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
            return self._modules[name](torch.cat(rows, dim=1))

    flat, ids = Named(), torch.arange(20).view(5, 4) % 9
    model = transform(flat, (ids,), SPTT, "2x1")
    assert set(model.state_dict()) == set(flat.state_dict()) and torch.equal(model(ids), flat(ids))
    assert model.get_submodule(name) is not None
    assert model.get_parameter(f"{name}.2.weight") is flat.get_parameter(f"{name}.2.weight")
