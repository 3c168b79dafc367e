"""``model_parameters`` of the flat model, translated to the placed one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.integrations.deepspeed.arguments.parameters import read_parameters, remap_parameters


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList([nn.EmbeddingBag(4, 2), nn.EmbeddingBag(4, 2)])
        self.bottom = nn.Linear(3, 2)
        self.over = nn.Linear(6, 1)


class Placed(nn.Module):
    """Tables gone, ``bottom`` the user's own, ``over`` resized, one tower, one new layer."""

    def __init__(self, flat):
        super().__init__()
        self.bottom = flat.bottom
        self.over = nn.Linear(5, 1)
        self.tower = nn.Linear(4, 3)
        self.adapter = nn.Linear(2, 2)


@pytest.fixture
def models():
    flat = Flat()
    return flat, Placed(flat)


def remap(flat_model, placed, model_parameters, moe_group="ep_size_2"):
    flat = read_parameters(flat_model, model_parameters)
    towers = list(placed.tower.parameters()) if moe_group else []
    return remap_parameters(flat, placed.named_parameters(), towers, moe_group)


def same(found, expected):
    return [id(p) for p in found] == [id(p) for p in expected]


def test_none_is_all_parameters(models):
    flat, placed = models
    dense, tower = remap(flat, placed, None)
    assert same(dense["params"], [*placed.bottom.parameters(), *placed.over.parameters(), *placed.adapter.parameters()])
    assert same(tower["params"], placed.tower.parameters())
    assert tower["moe"] is True
    assert tower["name"] == "ep_size_2"
    assert "moe" not in dense
    assert remap(flat, placed, None, moe_group=None) is None


@pytest.mark.parametrize("form", [list, iter, tuple])
def test_parameters_in_any_form(models, form):
    flat, placed = models
    dense, tower = remap(flat, placed, form(list(flat.parameters())))
    expected = [*placed.bottom.parameters(), *placed.over.parameters(), *placed.adapter.parameters()]
    assert same(dense["params"], expected)
    assert same(tower["params"], placed.tower.parameters())


def test_without_towers_a_list_stays_a_list(models):
    flat, placed = models
    found = remap(flat, placed, list(flat.parameters()), moe_group=None)
    assert {id(p) for p in found} == {id(p) for p in placed.parameters()}


def test_groups_keep_their_options(models):
    flat, placed = models
    groups = [
        {"params": list(flat.tables.parameters()), "lr": 0.5},
        {"params": [flat.bottom.weight, flat.over.weight], "weight_decay": 0.1},
        {"params": [flat.bottom.bias, flat.over.bias], "weight_decay": 0.0},
    ]
    before = [{**group, "params": list(group["params"])} for group in groups]
    tables, weights, biases, tower = remap(flat, placed, groups)
    assert tables["params"] == []
    assert tables["lr"] == 0.5
    assert same(weights["params"], [placed.bottom.weight, placed.over.weight, *placed.adapter.parameters()])
    assert same(biases["params"], [placed.bottom.bias, placed.over.bias])
    assert biases["weight_decay"] == 0.0
    assert tower["weight_decay"] == 0.1, "towers take the options of the first group with dense parameters"
    assert len({group["name"] for group in (tables, weights, biases, tower)}) == 4
    for group, was in zip(groups, before, strict=True):
        assert group.keys() == was.keys()
        assert same(group["params"], was["params"]), "the user's own groups are not changed"


def test_one_group_as_a_dict(models):
    flat, placed = models
    dense, tower = remap(flat, placed, {"params": flat.parameters(), "lr": 0.3})
    assert dense["lr"] == tower["lr"] == 0.3


def test_what_was_left_out_stays_out(models):
    flat, placed = models
    dense, _ = remap(flat, placed, [flat.over.weight, flat.over.bias])
    assert same(dense["params"], [*placed.over.parameters(), *placed.adapter.parameters()])


def test_a_parameter_from_elsewhere_stays(models):
    flat, placed = models
    temperature = nn.Parameter(torch.ones(1))
    dense, _ = remap(flat, placed, [*flat.parameters(), temperature])
    assert any(p is temperature for p in dense["params"])


def test_a_placed_model_made_of_copies(models):
    flat, _ = models
    placed = Placed(Flat())
    dense, _ = remap(flat, placed, list(flat.parameters()))
    assert same(dense["params"], [*placed.bottom.parameters(), *placed.over.parameters(), *placed.adapter.parameters()])


def test_bad_input(models):
    flat, _ = models
    with pytest.raises(ConfigError, match="there is a str in it"):
        read_parameters(flat, ["weight"])
    with pytest.raises(ConfigError, match="marked 'moe'"):
        read_parameters(flat, [{"params": list(flat.parameters()), "moe": True}])
