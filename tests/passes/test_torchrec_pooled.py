"""torchrec's pooled embeddings, split, merged and fed as its users do it: the groups that are found, placed laws."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.compiler import transform
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWorld
from tests.passes.world import differences, run_placed, settings, towered
from tests.zoo.checks import build, example
from tests.zoo.spec import call_of
from tests.zoo.torchrec_pooled import VARIANTS, Regroup, RegroupModule, collection, jagged, one_jagged

BY_NAME = {variant.name: variant for variant in VARIANTS}
HALVES = {name for name in BY_NAME if BY_NAME[name].oracle is None} - {"tr_regroup_shared", "tr_split_jagged"}
TOWERS: dict[str, Any] = {"towers": {"module": "dlrm", "c": 1, "p": 0, "dim": 4}}
UNEVEN = (3, 1, 4, 2)


@pytest.mark.parametrize("name", sorted(HALVES))
def test_halves_are_groups_of_their_own(name: str) -> None:
    model, batch = build(BY_NAME[name])
    made = transform(model, example(batch), {"dmt": TOWERS}, "2x1")
    groups = [(g.kind, g.form, sorted(g.features)) for g in made.plan.groups]
    assert sorted(groups) == [("tower", "native", [f"cat_{f}" for f in half]) for half in (range(3), range(3, 6))]


def placed_law(name: str, topology: str, **dmt: Any) -> None:
    flat, batch = build(BY_NAME[name])
    config = settings(**{"partition": {"strategy": "strided"}, **dmt})
    logical = towered(flat, call_of(batch(5, 0))[0], topology, config)
    world = Topology.parse(topology)
    batches = [call_of(batch(UNEVEN[rank], 10 + rank))[0] for rank in range(world.world_size)]
    placed = run_placed(logical, config, SimulatedWorld(world), batches)
    assert differences(logical, placed, batches) == []


SPTT: dict[str, Any] = {"towers": {"module": "none"}}
ONCE: dict[str, Any] = {"comm": {"dedup": "on"}}
CORE = (
    ("tr_regroup_module", "2x2", TOWERS),
    ("tr_permute_multi", "2x1", {**SPTT, **ONCE}),
    ("tr_merged_dicts", "2x2", {**SPTT, **ONCE}),
    ("tr_made_in_forward", "2x2", TOWERS),
    ("tr_joined", "2x1", {**SPTT, **ONCE}),
    ("tr_of_fields", "2x2", SPTT),
    ("dlrm_offsets_weights", "2x1", TOWERS),
)


@pytest.mark.parametrize(("name", "topology", "dmt"), CORE, ids=str)
def test_all_ranks_together_are_the_logical_model(name: str, topology: str, dmt: dict[str, Any]) -> None:
    placed_law(name, topology, **dmt)


@pytest.mark.campaign
@pytest.mark.parametrize("dedup", ["on", "off"])
@pytest.mark.parametrize("topology", ["2x2", "2x1"])
@pytest.mark.parametrize("towers", [SPTT, TOWERS], ids=["sptt", "towers"])
@pytest.mark.parametrize("name", list(BY_NAME))
def test_every_form_on_ranks(name: str, towers: dict[str, Any], topology: str, dedup: str) -> None:
    placed_law(name, topology, **towers, comm={"dedup": dedup})


# -- what they compute -----------------------------------------------------------------


def regroup_module_alone(**options: Any) -> tuple[nn.Module, nn.Module, Any]:
    """The model before and after torchrec's module has seen a batch, which it fills its index tensors from."""
    from torchrec.modules.regroup import KTRegroupAsDict

    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = RegroupModule(6, 8)
        groups = [model.groups[0] + ["d0", "d1", "d2"], model.groups[1][::-1]]
        model.split = KTRegroupAsDict(groups, ["user", "item"], **options)
        if options:
            model.user.half(), model.item.half()
        models.append(model)
    call = call_of(BY_NAME["tr_regroup_module"].build()[1](5, 0))[0]
    models[1](*call)
    return models[0], models[1], call


def test_the_module_need_not_have_seen_a_batch() -> None:
    fresh, used, call = regroup_module_alone()
    towers = [transform(model, call, {"dmt": SPTT}, "2x1") for model in (fresh, used)]
    expected = used(*call)
    assert all(torch.equal(model(*call), expected) for model in towers)
    assert str(towers[0].graph) == str(towers[1].graph)


def test_the_module_casts() -> None:
    from torchrec.types import DataType

    fresh, used, call = regroup_module_alone(emb_dtype=DataType.FP16)
    assert torch.equal(transform(fresh, call, {"dmt": SPTT}, "2x1")(*call), used(*call))


class HandsOn(Regroup):
    """A keyed tensor goes through a helper that is one of the user's modules, and one of them leaves the model."""

    def forward(self, dense: Any, *sparse: Any) -> Any:
        from torchrec import KeyedTensor

        pooled = self.collections[0](sparse[0])
        moved = pooled.to(dense.device)
        dense_too = KeyedTensor.from_tensor_list(["a", "b"], [dense[:, :1], dense[:, 1:]])
        assert isinstance(pooled, KeyedTensor) and pooled.key_dim() == 1 and moved.length_per_key() == [8] * 6
        return torch.cat([dense_too["b"], moved["cat_3"], dense_too.values(), pooled.values()], dim=1).sum(1)


def test_a_keyed_tensor_is_one_while_it_is_recorded() -> None:
    model, call = HandsOn(6, 8), one_jagged(6)(5, 0)
    made = transform(model, call, {"dmt": SPTT}, "2x1")
    assert torch.equal(made(*call), model(*call))
    more = one_jagged(6)(3, 1)
    assert torch.equal(pickle.loads(pickle.dumps(made))(*more), model(*more))


class Reversed(nn.Module):
    """A jagged tensor with its keys in another order; the same feature for two collections."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = collection(range(4), 8), collection([0, 1, 2], 8)
        self.top = nn.Linear(56, 1)

    def forward(self, sparse: Any) -> Tensor:
        turned = sparse.permute([3, 2, 1, 0])
        return self.top(torch.cat([self.first(turned).values(), self.second(sparse).values()], dim=1))


def test_permuted_jagged_tensors() -> None:
    model, call = Reversed(), (jagged(5, range(4), 0),)
    made = transform(model, call, {"dmt": SPTT}, "2x1")
    later = (jagged(3, range(4), 1),)
    assert torch.equal(made(*call), model(*call)) and torch.equal(copy.deepcopy(made)(*later), model(*later))
