"""Which entries of which parameter an optimizer holds, and what goes by parameter or by group, without processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from dmt_plugin.checkpoint.manifest import Manifest
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.integrations.deepspeed import private
from dmt_plugin.integrations.deepspeed.checkpoint.optimizer_state import OptimizerState, scheduler_state, shared_state
from dmt_plugin.integrations.deepspeed.checkpoint.rank_state import Registered


def trained(rule: type, **options: object) -> tuple[torch.optim.Optimizer, dict[int, str], list[nn.Parameter]]:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(1))]
    optimizer = rule(parameters, lr=0.1, **options)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer, {id(p): name for p, name in zip(parameters, "ab", strict=True)}, parameters


def manifest_of(view: OptimizerState) -> Manifest:
    tensors = {piece.name: piece.entry for piece in view.pieces()}
    return Manifest("", 1, True, "", {}, "1x1", {}, True, {}, {"optimizer": view.name}, tensors)


def test_states_of_a_plain_optimizer() -> None:
    view = OptimizerState(*trained(torch.optim.Adam)[:2])
    assert sorted(piece.name for piece in view.pieces()) == [
        "optimizer.exp_avg.a", "optimizer.exp_avg.b", "optimizer.exp_avg_sq.a", "optimizer.exp_avg_sq.b",
    ]  # fmt: skip
    assert {name: dict(values) for name, values in view.scalars().items()} == {
        "a": {"step": torch.tensor(2.0)}, "b": {"step": torch.tensor(2.0)},
    }  # fmt: skip
    assert view.options()[0]["names"] == ["a", "b"] and view.options()[0]["options"]["lr"] == 0.1


def test_into_an_optimizer_that_has_not_begun() -> None:
    optimizer, names, _ = trained(torch.optim.Adam)
    view = OptimizerState(optimizer, names)
    shared = shared_state([(view.scalars(), view.options())])
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(1))]
    fresh = torch.optim.Adam(parameters, lr=7.0)
    other = OptimizerState(fresh, {id(p): name for p, name in zip(parameters, "ab", strict=True)})
    groups_alone = other.plan_load(manifest_of(view), shared, states=False)
    load = other.plan_load(manifest_of(view), shared)
    assert groups_alone.of_groups == load.of_groups and not groups_alone.pieces and load.pieces
    assert load.problems == [] and not fresh.state and fresh.param_groups[0]["lr"] == 7.0
    by_name = {piece.name: piece.values for piece in view.pieces()}
    for piece in load.pieces:
        piece.values.copy_(by_name[piece.name])
    load.finish()
    assert fresh.param_groups[0]["lr"] == 0.1
    for (_, a), (_, b) in zip(optimizer.state.items(), fresh.state.items(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a) and set(a) == set(b)


def test_parameters_that_are_new_keep_their_state_and_groups_of_them_their_options() -> None:
    optimizer, names, _ = trained(torch.optim.Adagrad)
    view = OptimizerState(optimizer, names)
    shared = shared_state([(view.scalars(), view.options())])
    parameters = [nn.Parameter(torch.zeros(size)) for size in ((2, 3), (4,), (5,))]
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 5.0}]
    now = torch.optim.Adagrad(groups, lr=7.0, initial_accumulator_value=0.5)
    other = OptimizerState(now, {id(p): name for p, name in zip(parameters, "abc", strict=True)})
    load = other.plan_load(manifest_of(view), shared, fresh={"b", "c"})
    assert load.problems == [] and load.of_groups == [0, None] and load.shared_steps == []
    assert [piece.name for piece in load.pieces] == ["optimizer.sum.a"]
    load.finish()
    assert [group["lr"] for group in now.param_groups] == [0.1, 5.0]
    assert now.state[parameters[0]]["step"] == 2 and now.state[parameters[1]]["step"] == 0
    assert now.state[parameters[1]]["sum"].eq(0.5).all() and now.state[parameters[2]]["sum"].eq(0.5).all()


def test_what_cannot_be_loaded_is_said() -> None:
    view = OptimizerState(*trained(torch.optim.Adam)[:2])
    shared = shared_state([(view.scalars(), view.options())])
    sgd = OptimizerState(*trained(torch.optim.SGD)[:2])
    assert "of the optimizer Adam, this engine has SGD" in sgd.plan_load(manifest_of(view), shared).problems[0]
    less = {**shared, "scalars": {"a": shared["scalars"]["a"]}}
    assert view.plan_load(manifest_of(view), less).problems == ["nothing is stored of the optimizer of b"]
    split = {**shared, "groups": [{"names": ["a"], "options": {"lr": 1}}, {"names": ["b"], "options": {"lr": 2}}]}
    assert "was 2 groups with other options" in view.plan_load(manifest_of(view), split).problems[0]


def test_a_state_of_another_shape_is_refused() -> None:
    optimizer, names, parameters = trained(torch.optim.SGD, momentum=0.9)
    optimizer.state[parameters[0]]["rows"] = torch.zeros(2)
    with pytest.raises(CheckpointError, match=r"SGD keeps 'rows' of shape \(2,\) for the parameters \['a'\]"):
        OptimizerState(optimizer, names).pieces()


def test_an_optimizer_of_another_kind_is_refused() -> None:
    class Own:
        optimizer = None

    with pytest.raises(CheckpointError, match="the state of the optimizer Own around NoneType cannot be stored"):
        OptimizerState(Own(), {})


def test_ranges_of_a_vector() -> None:
    """Three parameters of 6, 1 and 4 entries with a gap before the last, in ranges of five."""
    sizes, starts = (6, 1, 4), [0, 6, 8]
    members = [nn.Parameter(torch.zeros(size)) for size in sizes]
    found: dict[int, list[int]] = {}
    for rank in range(3):
        own = torch.arange(5 * rank, 5 * rank + 5)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "get_rank", lambda group, rank=rank: rank)
            (held,) = private._range_of_vector({}, members, starts, own, "a group").held
        for part in held.parts:
            values = own[part.offset : part.offset + part.size].tolist()
            index = [part.parameter is p for p in members].index(True)
            assert values == list(range(starts[index] + part.start, starts[index] + part.start + part.size))
            found.setdefault(index, []).extend(range(part.start, part.start + part.size))
    assert found == {index: list(range(size)) for index, size in enumerate(sizes)}


def test_groups_of_all_ranks_and_schedulers_for_another_number_of_them() -> None:
    ranks = []
    for tower in ("t0", "t1"):
        groups = [{"names": [name], "options": {"lr": 1}} for name in ("a", tower)]
        ranks.append(({"a": {}, tower: {}}, groups))
    shared = shared_state(ranks)
    assert [group["names"] for group in shared["groups"]] == [["a"], ["t0", "t1"]]
    state = {"base_lrs": [0.1, 0.2], "last_epoch": 5, "other": [1, 2, 3]}
    assert scheduler_state(state, 2, [0, 1]) is state
    assert scheduler_state(state, 2, [1]) == {"base_lrs": [0.2], "last_epoch": 5, "other": [1, 2, 3]}
    parts = {"_schedulers": [{"base_lrs": [1, 2]}, {"base_lrs": [3, 4]}], "_milestones": [7, 8], "_last_lr": [5, 6]}
    inner = [{"base_lrs": [2]}, {"base_lrs": [4]}]
    own = {"base_lrs": [7, 8, 9], "last_epoch": 0}
    assert scheduler_state(state, 2, [1, None, 0], own)["base_lrs"] == [0.2, 8, 0.1]
    assert scheduler_state(parts, 2, [1]) == {"_schedulers": inner, "_milestones": [7, 8], "_last_lr": [6]}


@pytest.mark.parametrize("before", [1, 2])
def test_a_sequence_of_schedulers_goes_on_with_another_number_of_groups(before: int) -> None:
    def made(groups: int) -> Any:
        optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))]} for _ in range(groups)], lr=1.0)
        parts = [lr_scheduler.LinearLR(optimizer, 0.5, total_iters=3), lr_scheduler.CosineAnnealingLR(optimizer, 4)]
        return optimizer, lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])

    def rates(optimizer: Any, scheduler: Any, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            found.append(optimizer.param_groups[-1]["lr"])
        return found

    optimizer, scheduler = made(before)
    rates(optimizer, scheduler, 4)
    after, goes_on = made(3 - before)
    goes_on.load_state_dict(scheduler_state(scheduler.state_dict(), before, [0] * (3 - before)))
    for own, saved in zip(after.param_groups, [optimizer.param_groups[0]] * 2, strict=False):
        own.update(lr=saved["lr"], initial_lr=saved["initial_lr"])
    assert rates(after, goes_on, 3) == pytest.approx(rates(optimizer, scheduler, 3))


def test_registered_objects() -> None:
    registered = Registered()
    with pytest.raises(ValueError, match=r"'x': a dict has no state_dict and no load_state_dict"):
        registered.add("x", {})  # type: ignore[arg-type]
    layer = nn.Linear(1, 1)
    registered.add("layer", layer)
    with pytest.raises(ValueError, match="is registered already"):
        registered.add("layer", nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match=r"no state of \['layer'\]"):
        registered.check({}, "here")
    waiting = Registered()
    waiting.load({"later": {"a": 1}})
    assert waiting.states() == {"later": {"a": 1}}  # a save before it is registered keeps it
    waiting.forget()
    assert waiting.states() == {}
