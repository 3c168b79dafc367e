"""Once tables are with their owners, no state, copy or pickle of half a model is given, and none is taken."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from dmt_plugin.capture import ExampleBatch
from dmt_plugin.compiler import build_placed
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import TablesReleasedError
from dmt_plugin.model.guard import let_go
from dmt_plugin.topology.discovery import discover_topology


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(50, 8) for _ in range(2))
        self.top = nn.Linear(16, 1)
        self.unused = nn.Linear(3, 3)

    def forward(self, ids):
        return self.top(torch.cat([t(ids[:, i]) for i, t in enumerate(self.tables)], 1)).squeeze(1)


IDS = torch.randint(0, 50, (8, 2))


def placed_of(net):
    config = DMTConfig.model_validate({"towers": {"module": "none"}})
    return build_placed(net, config, discover_topology(hosts=1, ranks_per_host=1), 0, ExampleBatch((IDS,)))


def test_half_a_model_is_neither_given_nor_taken():
    net = Net()
    state = copy.deepcopy(net.state_dict())
    wrapped = nn.Sequential(net)
    placed = placed_of(net)
    before = set(placed.state_dict())
    copy.deepcopy(placed)
    never_run, names = placed.logical.never_run, placed.logical.state_map
    tables = [t.weight.detach().clone() for t in net.tables]

    assert let_go(placed, net) == 2 * 50 * 8 * 4

    bias = net.top.bias.detach().clone()
    changed = {name: value + 1 for name, value in state.items()}
    for use in (
        net.state_dict,
        lambda: net.load_state_dict(changed),
        lambda: wrapped.load_state_dict({f"0.{name}": value for name, value in changed.items()}),
        wrapped.state_dict,
        net.tables.state_dict,
        lambda: net.tables[0].load_state_dict({"weight": torch.zeros(50, 8)}),
        lambda: net(IDS),
        lambda: net.forward(IDS),
        lambda: copy.deepcopy(wrapped),
        lambda: pickle.dumps(net),
        lambda: torch.optim.swa_utils.AveragedModel(net),
        placed.state_dict,
        lambda: placed.load_state_dict({}),
        lambda: nn.Sequential(placed).state_dict(),
        lambda: nn.Sequential(placed).load_state_dict({}, strict=False),
        lambda: copy.deepcopy(placed),
        lambda: pickle.dumps(placed),
        lambda: torch.optim.swa_utils.AveragedModel(placed),
        placed.logical.state_dict,
    ):
        with pytest.raises(TablesReleasedError, match="to_flat"):
            use()
    assert torch.equal(net.top.bias, bias)

    assert all(torch.equal(placed.lookup.table_weight(f"tables.{i}"), t) for i, t in enumerate(tables))
    assert set(placed.own_state()) == before
    assert placed.logical.never_run == never_run == ["unused.bias", "unused.weight"]
    assert placed.logical.state_map == names
    net.top.state_dict()  # whole


def test_a_copy_made_without_hooks_has_none_and_hooks_come_back():
    net = Net()
    placed = placed_of(net)
    let_go(placed, net)
    memo = {id(p): nn.Parameter(torch.ones(p.shape)) for name, p in net.named_parameters() if "tables" in name}
    with placed.guard.lifted():
        twin = copy.deepcopy(net, memo)
    assert twin.load_state_dict(pickle.loads(pickle.dumps(twin)).state_dict())
    assert twin(IDS).shape == (8,)
    with pytest.raises(TablesReleasedError):
        net.load_state_dict(twin.state_dict())
