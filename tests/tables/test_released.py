"""Tables that were let go: the memory is free, metadata stays, and nothing reads a value, by whatever name."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from dmt_plugin.core.errors import TablesReleasedError
from dmt_plugin.tables.released import is_released, release, released_parameters

BYTES = 1000 * 8 * 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 8)
        self.same = self.table
        self.top = nn.Linear(8, 1)

    def forward(self, ids):
        return self.top(self.table(ids))


def test_memory_is_freed_whoever_holds_a_part_of_it():
    net = Net()
    net.table.weight.grad = torch.ones(1000, 8)
    data, view = net.table.weight.data, net.table.weight.detach()[3:5].t()
    other = torch.ones(4)
    assert release(net, ["table.weight"]) == BYTES
    assert net.table.weight.grad is None
    for gone in (net.table.weight, data, view):
        assert is_released(gone)
        for use in (torch.sum, torch.clone, repr_of_values, lambda t: t + 1, lambda t: t.zero_(), lambda t: t.data):
            with pytest.raises(TablesReleasedError, match="gather_state"):
                use(gone)
    assert not is_released(net.top.weight) and not is_released(other)
    assert release(net, ["table.weight"]) == 0  # once more does nothing


def repr_of_values(tensor):
    return tensor.tolist()


def test_metadata_stays():
    net = Net()
    weight = net.table.weight
    release(net, ["table.weight"])
    assert weight.shape == (1000, 8) and weight.size(0) == 1000 and weight.numel() == 8000 and weight.dim() == 2
    assert weight.dtype == torch.float32 and weight.device.type == "cpu" and not weight.is_meta and len(weight) == 1000
    assert weight.requires_grad and weight.is_leaf and weight.grad is None and isinstance(weight, nn.Parameter)
    assert "1000" in repr(weight) and "1000" in f"{weight}" and hash(weight) == hash(weight)
    assert [name for name, _ in net.named_parameters()] == ["table.weight", "top.weight", "top.bias"]
    assert set(released_parameters(net)) == {"table.weight", "same.weight"}
    net.zero_grad()
    net.train()


@pytest.mark.parametrize(
    "use",
    [
        lambda net: net(torch.tensor([1])),
        lambda net: net.state_dict(),
        lambda net: copy.deepcopy(net),
        lambda net: pickle.dumps(net),
        lambda net: net.to(torch.float64),
        lambda net: torch.optim.swa_utils.AveragedModel(net),
        lambda net: torch.optim.SGD(net.parameters(), 0.1).state_dict() and net.table.weight[0],
        lambda net: nn.functional.embedding(torch.tensor([1]), net.table.weight),
    ],
)
def test_every_use_of_values_is_an_error_that_says_what_to_call(use):
    net = Net()
    release(net, ["table.weight"])
    with pytest.raises(TablesReleasedError) as raised:
        use(net)
    for call in ("to_flat", "save_checkpoint", "engine.gather_state", "engine.load_flat_state"):
        assert call in str(raised.value)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_who_is_trained_cannot_be_changed_and_the_error_has_the_name():
    net = Net()
    release(net, ["table.weight"])
    assert net.table.requires_grad_(True) is net.table and net.table.weight.requires_grad  # as it is
    net.table.weight.requires_grad = True
    for change in (
        lambda: net.table.weight.requires_grad_(False),
        lambda: setattr(net.table.weight, "requires_grad", False),
        lambda: net.requires_grad_(False),
    ):
        with pytest.raises(TablesReleasedError, match=r"^requires_grad_? of table\.weight, a table of the flat model"):
            change()
    with pytest.raises(TablesReleasedError, match=r"of table\.weight, .*engine\.freeze_tables\(names\)"):
        (net.table.weight**2).sum()


def test_other_parameters_in_the_same_memory_stay(caplog):
    net = Net()
    whole = torch.arange(8008.0)
    net.table.weight = nn.Parameter(whole[:8000].view(1000, 8))
    net.top.weight = nn.Parameter(whole[8000:].view(1, 8))
    assert release(net, ["table.weight"]) == 0
    assert "table.weight" in caplog.text
    assert net.top.weight.detach().tolist() == [list(range(8000, 8008))]
    assert is_released(net.table.weight) and is_released(whole)


def test_what_the_placed_model_needs_stays():
    net = Net()
    assert release(net, ["table.weight"], keep=[net.table.weight]) == 0
    assert not is_released(net.table.weight)
    net.top.weight = nn.Parameter(net.table.weight.detach()[:1])
    alias = net.table.weight.data
    assert release(net, ["table.weight"], keep=[net.top.weight]) == 0
    assert is_released(net.table.weight) and not is_released(alias) and not is_released(net.top.weight)


def test_an_array_of_numpy_never_sees_freed_memory(caplog):
    net = Net()
    net.table.weight.data.fill_(3.0)
    array = net.table.weight.detach().numpy()
    frozen = nn.Embedding.from_pretrained(torch.full((1000, 8), 2.0))
    net.frozen = frozen
    direct = frozen.weight.numpy()
    assert release(net, ["table.weight", "frozen.weight"]) == 0
    gc.collect()
    torch.randn(100, 1000, 8)
    assert (array == 3.0).all() and (direct == 2.0).all()
    assert "NumPy" in caplog.text and is_released(frozen.weight)


def test_mapped_shared_and_meta_tables(tmp_path):
    torch.save({"w": torch.ones(1000, 8)}, tmp_path / "w.pt")
    net = Net()
    net.table.weight = nn.Parameter(torch.load(tmp_path / "w.pt", mmap=True)["w"])
    net.shared = nn.Embedding(1000, 8).share_memory()
    net.meta = nn.Embedding(1000, 8, device="meta")
    assert release(net, ["table.weight", "shared.weight", "meta.weight"]) >= 2 * BYTES
    assert len(released_parameters(net)) == 4
    assert net.meta.weight.is_meta
