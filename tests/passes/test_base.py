"""Contracts of passes, and running a list of them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dmt_plugin.capture import ExampleBatch, capture
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import TransformError
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult, run_passes, validate
from dmt_plugin.passes.logical.insert_towers import InsertTowers
from dmt_plugin.passes.pipeline import KNOWN_OF_A_RANK, modules_passes, rank_passes, towers_passes
from dmt_plugin.topology.shape import Topology
from tests.passes.flat import Flat, cat, ids


def step(name: str, provides: str = "", requires: str = "", conflicts: str = "", finding: str = "") -> GraphPass:
    contract = Contract(*(frozenset(tags.split()) for tags in (provides, requires, conflicts)))

    class Step(GraphPass):
        def run(self, ctx: PassContext) -> PassResult:
            if finding:
                ctx.find("DMT999", finding, "here", "because")  # type: ignore[arg-type]
            return self.result(1, 2, "done")

    Step.name, Step.contract = name, contract
    return Step()


def context(model: nn.Module | None = None, topology: Topology | None = None) -> PassContext:
    captured = capture(model or nn.Linear(3, 2), ExampleBatch((ids(4, 5) if model else torch.randn(5, 3),)))
    return PassContext(captured, DMTConfig(), topology or Topology(2, 1))


def test_the_pipelines_are_valid_and_only_in_their_order() -> None:
    whole = [*towers_passes(), *modules_passes()]
    validate(whole)
    validate(rank_passes(), KNOWN_OF_A_RANK)
    validate([*towers_passes(), *rank_passes()])
    for i in range(len(whole) - 1):
        turned = [*whole[:i], whole[i + 1], whole[i], *whole[i + 2 :]]
        with pytest.raises(ValueError, match="cannot run after"):
            validate(turned)


def test_what_is_missing_and_what_is_in_the_way_is_named() -> None:
    with pytest.raises(ValueError, match=r"'b' cannot run after \['a'\]: missing \['y'\], in conflict with \['x'\]"):
        validate([step("a", "x"), step("b", requires="y", conflicts="x")])
    with pytest.raises(ValueError, match="after nothing"):
        validate([step("b", requires="y")])
    validate([step("b", requires="y")], frozenset({"y"}))


@given(st.permutations(list(range(6))))
def test_a_chain_runs_in_its_own_order_only(order: list[int]) -> None:
    chain = [step(f"p{i}", f"t{i}", f"t{i - 1}" if i else "") for i in range(6)]
    if order == sorted(order):
        validate([chain[i] for i in order])
    else:
        with pytest.raises(ValueError, match="missing"):
            validate([chain[i] for i in order])


def test_nothing_runs_if_the_list_is_invalid() -> None:
    ctx = context()
    with pytest.raises(ValueError, match="cannot run"):
        run_passes([step("a", finding="info"), step("b", requires="y")], ctx)
    assert not ctx.results and not ctx.findings


def test_results_tags_and_findings_are_kept_and_errors_stop() -> None:
    ctx = context()
    run_passes([step("a", "x", finding="warning")], ctx)
    assert ctx.results == [PassResult("a", 1, 2, "done")] and ctx.tags == {"x"}
    with pytest.raises(TransformError) as caught:
        run_passes([step("b", finding="error"), step("c")], ctx)
    assert [f.severity for f in caught.value.findings] == ["error", "warning"]
    assert [r.name for r in ctx.results] == ["a", "b"]


def test_a_pass_that_has_run_is_not_run_again() -> None:
    """Inserting towers or tower modules twice would nest them; the contract forbids it."""
    ctx = run_passes(towers_passes(), context(Flat(cat)))
    for again in (towers_passes(), [InsertTowers()]):
        with pytest.raises(ValueError, match="in conflict with"):
            run_passes(again, ctx)
    run_passes(modules_passes(), ctx)
    with pytest.raises(ValueError, match="in conflict with"):
        run_passes(modules_passes(), ctx)


def test_towers_before_and_after() -> None:
    ctx = context(Flat(cat))
    flat = copy.deepcopy(ctx.gm)
    run_passes(towers_passes(), ctx)
    names = [str(getattr(n.target, "__name__", n.target)) for n in ctx.gm.graph.nodes]
    assert names.count("pack_streams") == 2 and names.count("split_streams") == 1
    assert [n for n in names if n.startswith("dmt_towers")] == [f"dmt_towers.group0.tower{t}" for t in (0, 1)]
    (join,) = [n for n in ctx.gm.graph.nodes if n.target is torch.cat]
    packed = [list(n.args[0]) for n in ctx.gm.graph.nodes if str(n.name).startswith("pack")]
    assert [[s.target for s in own] for own in packed] == [["tables.0", "tables.2"], ["tables.1", "tables.3"]]
    # The join has its streams back in the model's order, whatever the towers' order.
    assert [n.args[1] for n in join.args[0]] == [0, 2, 1, 3]
    assert torch.equal(ctx.gm(ids(4, 6)), flat(ids(4, 6)))


def test_tower_modules_before_and_after() -> None:
    ctx = run_passes(towers_passes(), context(Flat(cat)))
    run_passes(modules_passes(), ctx)
    (join,) = [n for n in ctx.gm.graph.nodes if n.target is torch.cat]
    assert [n.args[1] for n in join.args[0]] == [0, 1, 2, 3]
    assert [tuple(n.meta["val"].shape) for n in join.args[0]] == [(7, 2)] * 4
    assert [r.target for r in ctx.facts.changes] == ["top"]
    assert ctx.gm.top.in_features == 8
