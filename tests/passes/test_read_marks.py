"""Markers are read into names of groups and features, and leave the graph as it was without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin import ExampleBatch, mark_embeddings
from dmt_plugin.capture import capture
from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import TransformError
from dmt_plugin.model.placed import place
from dmt_plugin.nn.graph_ops import field_streams
from dmt_plugin.passes.analysis.marked_names import feature_name, group_name
from dmt_plugin.passes.base import GraphPass, PassContext, run_passes
from dmt_plugin.passes.logical.dissolve_collections import DissolveCollections
from dmt_plugin.passes.logical.read_marks import ReadMarks
from dmt_plugin.passes.logical.split_joint_tables import SplitJointTables
from dmt_plugin.topology.shape import Topology

KEYS = ["user", "item", "shop"]
IDS = torch.arange(15).view(5, 3) % 9


class Model(nn.Module):
    """Three tables, one table of three fields, and what ``use`` makes of them."""

    def __init__(self, use: Callable[[Any, list[Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use
        self.tables = nn.ModuleList(nn.Embedding(10, 4) for _ in range(3))
        self.joint = nn.Embedding(30, 4)
        self.mix = nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        vectors = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        return self.use(self, vectors, ids)


PASSES: list[GraphPass] = [DissolveCollections(), ReadMarks(), SplitJointTables()]


def read(use: Callable[[Any, list[Tensor], Tensor], Tensor]) -> PassContext:
    ctx = PassContext(capture(Model(use), ExampleBatch((IDS,))), DMTConfig(), Topology(2, 1))
    return run_passes(PASSES, ctx)


def names(ctx: PassContext) -> dict[str, tuple[str | None, str | None]]:
    """Group and feature by table; the fields of the joint table by number."""
    found = {}
    for node in ctx.gm.graph.nodes:
        if node.op == "call_module" and isinstance(ctx.module(node), nn.Embedding):
            fields = [user for cut in node.users if cut.target is field_streams for user in cut.users]
            for i, lookup in enumerate(fields or [node]):
                name = f"{node.target}[{i}]" if fields else str(node.target)
                found[name] = (group_name(ctx, lookup), feature_name(ctx, lookup))
    return found


OFFSETS = torch.tensor([0, 10, 20])
FORMS: dict[str, Callable[[Any, list[Tensor], Tensor], Tensor]] = {
    "list": lambda m, v, ids: torch.cat(mark_embeddings("deep", v, KEYS), 1),
    "tuple": lambda m, v, ids: torch.stack(mark_embeddings("deep", tuple(v), KEYS), 1),
    "stacked": lambda m, v, ids: mark_embeddings("deep", torch.stack(v, 1), KEYS),
    "side by side": lambda m, v, ids: mark_embeddings("deep", torch.cat([x.unsqueeze(1) for x in v], 1), KEYS),
    "behind a layer": lambda m, v, ids: torch.cat(mark_embeddings("deep", [m.mix(x) * 2 for x in v], KEYS), 1),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_streams_get_the_names_that_the_user_gave(form: str) -> None:
    torch.manual_seed(0)
    ctx = read(FORMS[form])
    assert names(ctx) == {f"tables.{i}": ("deep", key) for i, key in enumerate(KEYS)}
    assert mark_embeddings not in {n.target for n in ctx.gm.graph.nodes} and not ctx.findings
    torch.manual_seed(0)
    assert torch.equal(ctx.gm(IDS), Model(FORMS[form])(IDS))
    assert ctx.results[1].matched == 1 and len(ctx.marks) == 1


JOINT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "whole": lambda m, rows: mark_embeddings("deep", rows, KEYS).flatten(1),
    "behind a layer": lambda m, rows: mark_embeddings("deep", torch.relu(m.mix(rows)), KEYS).flatten(1),
    "picked": lambda m, rows: torch.cat(mark_embeddings("deep", [rows[:, i] for i in range(3)], KEYS), 1),
    "picked behind": lambda m, rows: torch.cat([mark_embeddings("deep", rows, KEYS)[:, i] for i in range(3)], 1),
    "selected": lambda m, rows: torch.stack(mark_embeddings("deep", [rows.select(1, i) for i in (0, 1, 2)], KEYS)),
}


@pytest.mark.parametrize("form", list(JOINT))
def test_the_fields_of_a_joint_table_are_named(form: str) -> None:
    ctx = read(lambda m, v, ids: JOINT[form](m, m.joint(ids + OFFSETS)))
    assert [names(ctx)[f"joint[{i}]"] for i in range(3)] == [("deep", key) for key in KEYS]
    assert not ctx.findings


def test_a_sum_over_fields_is_no_field() -> None:
    ctx = read(lambda m, v, ids: mark_embeddings("deep", m.joint(ids + OFFSETS).sum(1), ["all"]))
    assert [names(ctx)[f"joint[{i}]"] for i in range(3)] == [("deep", None)] * 3


def test_without_keys_there_is_only_a_group() -> None:
    ctx = read(lambda m, v, ids: torch.cat([*mark_embeddings("a", v[:2]), *mark_embeddings("b", v[2:])], 1))
    assert [g for g, _ in names(ctx).values()] == ["a", "a", "b"]
    assert {f for _, f in names(ctx).values()} == {None}


def test_a_table_behind_several_keys_has_no_name() -> None:
    ctx = read(lambda m, v, ids: torch.cat(mark_embeddings("deep", [v[0], v[0] * v[1], v[2]], KEYS), 1))
    assert [f for _, f in names(ctx).values()] == [None, "item", "shop"]


def test_two_groups_may_hold_one_feature() -> None:
    def use(m: Any, v: list[Tensor], ids: Tensor) -> Tensor:
        deep = mark_embeddings("deep", v, KEYS)
        return torch.cat([*deep, *mark_embeddings("mixed", [m.mix(x) for x in deep], KEYS)], 1)

    ctx = read(use)
    assert names(ctx) == {f"tables.{i}": (None, key) for i, key in enumerate(KEYS)} and not ctx.findings


def test_contradictions_are_errors() -> None:
    def use(m: Any, v: list[Tensor], ids: Tensor) -> Tensor:
        mark_embeddings("item", v[:2], ["a", "b"])
        return torch.cat(mark_embeddings("user", v, KEYS), 1)

    with pytest.raises(TransformError) as caught:
        read(use)
    assert [(f.code, f.severity, f.module) for f in caught.value.findings] == [
        ("DMT220", "error", "tables.0"), ("DMT220", "error", "tables.1")
    ]  # fmt: skip


def test_what_no_table_feeds_is_a_warning() -> None:
    ctx = read(lambda m, v, ids: torch.cat([*v, mark_embeddings("dense", ids.float(), ["numbers"])], 1))
    (found,) = ctx.findings
    assert (found.code, found.severity) == ("DMT221", "warning") and "dense: numbers" in found.reason


@pytest.mark.parametrize("joint", [False, True])
def test_plans_speak_of_features_by_their_keys(joint: bool) -> None:
    def use(m: Any, v: list[Tensor], ids: Tensor) -> Tensor:
        vectors = m.joint(ids + OFFSETS) if joint else v
        marked = mark_embeddings("deep", vectors, KEYS)
        return m.mix(torch.cat([marked[:, i] for i in range(3)] if joint else marked, 1)[:, :4])

    towers = transform(Model(use), (IDS,), {"dmt": {"towers": {"module": "none"}}}, "2x1")
    assert {f.name for f in towers.plan.features if not f.name.startswith("tables")} == set(KEYS)


@pytest.mark.parametrize("joint", [False, True])
def test_ranks_find_the_names_again(joint: bool) -> None:
    """The markers are gone from the graph that is placed; the names are not."""

    def use(m: Any, v: list[Tensor], ids: Tensor) -> Tensor:
        marked = mark_embeddings("deep", m.joint(ids + OFFSETS) if joint else v, KEYS)
        return m.mix(torch.cat([marked[:, i] for i in range(3)] if joint else marked, 1)[:, :4])

    config = DMTConfig.model_validate({"towers": {"module": "none"}})
    towers = transform(Model(use), (IDS,), config, "2x1")
    placed = place(towers, config, Topology(2, 1), 0)
    assert set(KEYS) <= {slot.name for slot in placed.placement.slots}
    assert "deep" in {group.name for group in towers.plan.groups}
