"""Whether the towers of a checkpoint are those of a model."""

from __future__ import annotations

import dataclasses

import pytest

from dmt_plugin.checkpoint.compare import check_towers
from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import CheckpointError
from tests.checkpoint.test_folder import manifest
from tests.zoo.models import ZOO


def test_the_order_inside_a_tower_counts_where_towers_compute() -> None:
    """Weights of a tower module are by place: the same names in another order would be another function."""
    flat, batch = ZOO["dlrm"]()
    towers = {"module": "dlrm", "c": 1, "p": 1, "dim": 4}
    plan = transform(flat, batch(5, 0), {"dmt": {"towers": towers}}, "2x1").plan
    turned = dataclasses.replace(plan, towers=(plan.towers[0][::-1], *plan.towers[1:]))
    saved = dataclasses.replace(manifest("a", 1), plan=plan.to_dict(), semantic_preserving=False)
    check_towers(plan, saved, "a")
    with pytest.raises(CheckpointError, match=r"towers of a are not those of this model.*towers \[\["):
        check_towers(turned, saved, "a")
    check_towers(turned, dataclasses.replace(saved, semantic_preserving=True), "a")
