"""Sets the tables' learning rates before each use so that they follow the dense optimizer's schedule.

Tables are trained inside the lookup, where no scheduler reaches them. The rate of a table that follows is
``its lr * lr / initial_lr`` of a parameter group: that whose rule the table has. Where that group had nothing but
tables, DeepSpeed drops it; then, and with ``dmt.lookup.schedule`` = "follow" and a rule of its own, a table follows the
first group that has parameters.

1. ``initial_lr`` is the name under which torch's schedulers keep in a group what its rate was before they came; where
   none does, it is written here before a scheduler of DeepSpeed, which keeps nothing, changes ``lr``. So it is in
   checkpoints, as all options of groups are, and a resumed run follows the rate that it followed before;
2. whoever changes ``lr`` is followed: a scheduler of DeepSpeed or torch, or the training loop itself;
3. the rate is read before every forward pass (without ``check_finite`` FBGEMM updates in the backward pass) and before
   ``step`` updates tables.
   Schedulers step behind the optimizer, so both have the rate of the dense update of the same step;
4. other options of a group that change in mid-run (betas, eps, momentum, weight decay, ...) are an error: tables keep
   theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmt_plugin.config.dense_rules import RULE_OPTIONS
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.nn.lookup.sharded import ShardedLookup

_BEFORE = "initial_lr"


class FollowedRates:
    """Keeps the tables' learning rates in step with an optimizer's.

    Args:
        lookup: the tables of this rank.
        optimizer: has ``param_groups`` with a learning rate each, not yet changed by a scheduler of DeepSpeed.
        all_tables: also tables whose rule is not that of a group.
        positions: by number of a group of the script's its number in ``optimizer``, of those that are left.

    Raises:
        ConfigError: a group that is followed has a rate that nothing can be a multiple of, or none.
    """

    def __init__(
        self, lookup: ShardedLookup, optimizer: Any, all_tables: bool, positions: Mapping[int, int] | None = None
    ) -> None:
        groups = optimizer.param_groups
        self._lookup, self._optimizer = lookup, optimizer
        self._first = next((i for i, group in enumerate(groups) if len(group["params"])), 0)
        self._all = all_tables
        self._positions = positions if positions is not None else {i: i for i in range(len(groups))}
        for group in groups:
            if "lr" in group:
                group.setdefault(_BEFORE, float(group["lr"]))
        followed = {self._group_of(rule) for rule in lookup.rules.values()} | ({self._first} if all_tables else set())
        for number in followed - {None}:
            start = groups[number].get(_BEFORE)
            if start is None or not float(start) > 0:
                raise ConfigError(
                    f"the learning rate of parameter group {number} is {start} at first, and tables follow it by its "
                    "multiples. Give the optimizer the rate that the tables' one belongs to (optimizer.params.lr), or "
                    'use "schedule": "constant" under dmt.lookup'
                )
        self._options = {number: _watched(groups[number]) for number in followed - {None}}

    def apply(self) -> None:
        """Give the tables their rates of now.

        Raises:
            ConfigError: another option of a group has changed.
        """
        groups = self._optimizer.param_groups
        for number, options in self._options.items():
            for key, value in _watched(groups[number]).items():
                if value != options.get(key):
                    raise ConfigError(
                        f"{key} of parameter group {number} has changed from {options.get(key)} to {value} in mid-run, "
                        "and the tables that are trained by this group's rule keep the old one. Leave it as it is "
                        "(cycle_momentum=False of one-cycle schedulers), or name the tables' rule "
                        "(dmt.lookup.optimizer)"
                    )
        factors = {number: float(groups[number]["lr"]) / float(groups[number][_BEFORE]) for number in self._options}
        self._lookup.set_lr(lambda rule: rule.lr * factors.get(self._group_of(rule), 1.0))

    def _group_of(self, rule: Rule) -> Any:
        if rule.group is not None:
            return self._positions.get(rule.group, self._first)
        return self._first if self._all else None


def _watched(group: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a group that are part of its rule; what else schedulers and optimizers note in it is not."""
    return {key: tuple(v) if isinstance(v := group[key], list) else v for key in RULE_OPTIONS if key in group}
