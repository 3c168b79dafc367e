"""Tables that follow a learning rate. That training follows is in the matrix laws, resuming with the checkpoints."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from deepspeed.runtime.lr_schedules import WarmupLR
from torch import nn

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.integrations.deepspeed.engine.table_rate import FollowedRates
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.nn.lookup.site import LookupSite


def tables(lr: float = 0.5) -> ShardedLookup:
    site = LookupSite("a", "a", 0, 4, 2, "sum", False)
    return ShardedLookup([site], {"a": torch.ones(4, 2)}, backend="torch", optimizer="sgd", lr=lr)


def optimizer(*rates: float, empty: bool = False) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD([{"params": [], "lr": 7.0}, *groups] if empty else groups)


@pytest.mark.parametrize("empty", [False, True])
def test_the_first_group_that_has_parameters_is_followed(empty: bool) -> None:
    lookup, dense = tables(), optimizer(0.2, 1.0, empty=empty)
    rate = FollowedRates(lookup, dense, True)
    dense.param_groups[0]["lr"] = 5.0 if empty else 0.1
    dense.param_groups[1]["lr"] = 0.1 if empty else 5.0
    rate.apply()
    assert lookup.lr == pytest.approx(0.25)


def test_a_scheduler_of_deepspeed_is_followed_from_the_rate_before_it() -> None:
    lookup, dense = tables(), optimizer(0.2)
    rate = FollowedRates(lookup, dense, True)
    scheduler = WarmupLR(dense, warmup_min_lr=0.02, warmup_max_lr=0.2, warmup_num_steps=3, warmup_type="linear")
    found = []
    for _ in range(5):
        rate.apply()
        found.append(lookup.lr)
        scheduler.step()
    assert found[0] == pytest.approx(0.05) and found[-1] == pytest.approx(0.5) and found == sorted(found)


def test_a_scheduler_of_torch_that_came_first_has_kept_its_start() -> None:
    lookup, dense = tables(), optimizer(0.2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(dense, lambda done: 0.1 * (1 + done))
    rate = FollowedRates(lookup, dense, True)
    rate.apply()
    assert lookup.lr == pytest.approx(0.05)
    dense.step()
    scheduler.step()
    rate.apply()
    assert lookup.lr == pytest.approx(0.1)


def test_what_a_checkpoint_says_of_the_start_counts() -> None:
    lookup, dense = tables(), optimizer(0.4)  # the file has 0.4 now; the run that is resumed began with 0.2
    rate = FollowedRates(lookup, dense, True)
    before = optimizer(0.2)
    FollowedRates(tables(), before, True)
    before.param_groups[0]["lr"] = 0.1
    dense.load_state_dict(before.state_dict())
    rate.apply()
    assert lookup.lr == pytest.approx(0.25)


@pytest.mark.parametrize("start", [0.0, -0.1, float("nan")])
def test_a_rate_without_multiples_is_refused(start: float) -> None:
    dense = optimizer(0.1)
    dense.param_groups[0]["lr"] = start
    with pytest.raises(ConfigError, match=r'parameter group 0 is -?(0\.0|0\.1|nan) at first.*"schedule": "constant"'):
        FollowedRates(tables(), dense, True)


def test_an_optimizer_without_rates_is_refused() -> None:
    dense = optimizer(0.1)
    del dense.param_groups[0]["lr"]
    with pytest.raises(ConfigError, match="is None at first"):
        FollowedRates(tables(), dense, True)


def of_groups(*groups: int) -> ShardedLookup:
    sites = [LookupSite(f"t{i}", f"t{i}", i, 4, 2, "sum", False) for i in range(len(groups))]
    rules = {f"t{i}": Rule("sgd", 0.5, group=group if group >= 0 else None) for i, group in enumerate(groups)}
    return ShardedLookup(sites, {name: torch.ones(4, 2) for name in rules}, backend="torch", rules=rules)


def test_each_table_follows_the_group_that_its_rule_is_of() -> None:
    lookup, dense = of_groups(1, 0, -1), optimizer(0.2, 1.0)
    rates = FollowedRates(lookup, dense, False)
    dense.param_groups[0]["lr"], dense.param_groups[1]["lr"] = 0.1, 0.2
    rates.apply()
    assert lookup.rates == {"t0": pytest.approx(0.1), "t1": pytest.approx(0.25), "t2": 0.5}
    assert lookup.lr == 0.5


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (torch.optim.SGD, "momentum", 0.85),
        (torch.optim.SGD, "dampening", 0.5),
        (torch.optim.SGD, "nesterov", True),
        (torch.optim.SGD, "maximize", True),
        (torch.optim.SGD, "weight_decay", 0.1),
        (torch.optim.Adam, "betas", (0.5, 0.9)),
        (torch.optim.Adam, "eps", 1e-3),
        (torch.optim.Adam, "amsgrad", True),
        (torch.optim.AdamW, "weight_decay", 0.0),
        (torch.optim.Adagrad, "lr_decay", 0.1),
    ],
)
def test_other_options_of_a_group_that_change_are_an_error(kind: Any, option: str, value: Any) -> None:
    dense = kind([nn.Parameter(torch.ones(1))], lr=0.1)
    rates = FollowedRates(of_groups(0), dense, False)
    dense.param_groups[0] |= {"step": 1, "max_lr": 0.2, "foreach": True}  # notes of schedulers and optimizers
    rates.apply()
    before = dense.param_groups[0][option]
    dense.param_groups[0][option] = value
    text = rf"{option} of parameter group 0 has changed from {before} to {value} in mid-run"
    with pytest.raises(ConfigError, match=re.escape(text)):
        rates.apply()
