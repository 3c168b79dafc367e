"""Limits that can be kept, or the words that say why there are none.

1. A first assignment shows that limits and rules can be kept: done.
2. Limits that the user left to us are opened as little as the rules and the sizes of the units allow.
3. Otherwise the error names the rules that exclude each other, and the bound from which on there is an assignment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dmt_plugin.errors import PlanError
from dmt_plugin.partitioner.balance import fair_share
from dmt_plugin.partitioner.packing import Packing, first_assignment
from dmt_plugin.partitioner.units import Unit


def settled(
    packing: Packing,
    units: Sequence[Unit],
    apart: Mapping[tuple[int, int], tuple[str, str]],
    *,
    fixed: bool,
    by_cost: bool,
) -> Packing:
    """The packing with limits that some assignment keeps.

    Args:
        packing: limits and rules asked for.
        units: the packing's units, for messages.
        apart: pairs of units to keep apart, with the features that were named.
        fixed: the limits are a promise; do not open them.
        by_cost: weights are costs, for messages.

    Raises:
        PlanError: limits and rules exclude each other; names which.
    """
    if packing.plain and not apart:
        return packing
    if first_assignment(packing, np.zeros(packing.allowed.shape)) is not None:
        return packing
    from dmt_plugin.partitioner.exact import contradiction, tightest

    opened = tightest(packing, spread=not by_cost)
    if opened is not None and not fixed:
        return replace(packing, limits=opened[0])
    limits = "dmt.partition.balance and bound"
    at_fault = contradiction(
        packing,
        {
            i: (int(np.flatnonzero(packing.allowed[i])[0]), f"dmt.partition.pin of {unit.pinned_by!r}")
            for i, unit in enumerate(units)
            if unit.pin is not None
        },
        {pair: f"dmt.partition.apart of {a!r} and {b!r}" for pair, (a, b) in apart.items()},
        limits,
    )
    told = ", ".join(at_fault) or "the rules of dmt.partition"
    if opened is None:
        raise PlanError(
            f"{packing.towers} towers cannot keep these rules together: {told}. Drop one of them, or change the number "
            "of towers."
        )
    loads = packing.loads(opened[1])
    least = loads.max() / fair_share(packing.weights, packing.towers) if by_cost else loads.max() / max(1, loads.min())
    raise PlanError(
        f"{packing.towers} towers cannot keep these rules together: {told}. Set dmt.partition.bound to at least "
        f"{np.ceil(least * 1000) / 1000:g}, or drop a rule."
    )
