"""Sets the tables' learning rate before each use so that it follows the dense optimizer's schedule.

Tables are trained inside the lookup, where no scheduler reaches them (``dmt.lookup.schedule`` = "follow"). The rate of
the tables is ``dmt.lookup.lr * lr / initial_lr``, of the first parameter group that has parameters:

1. ``initial_lr`` is the name under which torch's schedulers keep in a group what its rate was before they came; where
   none does, it is written here before a scheduler of DeepSpeed, which keeps nothing, changes ``lr``. So it is in
   checkpoints, as all options of groups are, and a resumed run follows the rate that it followed before;
2. whoever changes ``lr`` is followed: a scheduler of DeepSpeed or torch, or the training loop itself;
3. the rate is read before every forward pass (FBGEMM updates in the backward pass) and before ``step`` updates tables.
   Schedulers step behind the optimizer, so both have the rate of the dense update of the same step.
"""

from __future__ import annotations

from typing import Any

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.nn.lookup.sharded import ShardedLookup

_BEFORE = "initial_lr"


class FollowedRate:
    """Keeps the tables' learning rate in step with an optimizer's.

    Args:
        lookup: the tables of this rank.
        optimizer: has ``param_groups`` with a learning rate each, not yet changed by a scheduler of DeepSpeed.

    Raises:
        ConfigError: its first group has a rate that nothing can be a multiple of, or none.
    """

    def __init__(self, lookup: ShardedLookup, optimizer: Any) -> None:
        groups = optimizer.param_groups
        self._lookup, self._optimizer = lookup, optimizer
        self._number = next((i for i, group in enumerate(groups) if len(group["params"])), 0)
        self._full = lookup.lr
        for group in groups:
            if "lr" in group:
                group.setdefault(_BEFORE, float(group["lr"]))
        start = groups[self._number].get(_BEFORE)
        if start is None or not float(start) > 0:
            raise ConfigError(
                f'dmt.lookup.schedule = "follow": the learning rate of the dense part is {start} at first, and the '
                "tables follow by its multiples. Give the optimizer the rate that dmt.lookup.lr belongs to "
                '(optimizer.params.lr), or use "constant"'
            )

    def apply(self) -> None:
        """Give the tables their rate of now."""
        group = self._optimizer.param_groups[self._number]
        self._lookup.set_lr(self._full * float(group["lr"]) / float(group[_BEFORE]))
