"""``dmt verify``: green on a sound rewrite, red, with the node named, on a wrong one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from dmt_plugin.cli import app
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.passes.base import PassContext, PassResult
from dmt_plugin.passes.logical.insert_towers import InsertTowers
from dmt_plugin.topology.shape import Topology
from dmt_plugin.verification.laws import check_laws
from tests.zoo.models import ZOO

runner = CliRunner()
COMMAND = ["verify", "--model", "net.py:build", "--config", "ds.json"]
PRESERVING = ["verify", "--model", "net.py:build", "--config", "sptt.json"]


def failed(arguments: list[str]) -> list[dict[str, Any]]:
    """The laws that do not hold, of which there must be some."""
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 1, result.output
    data = json.loads(result.output)
    assert data["holds"] is False
    return [v for v in data["laws"] if not v["holds"]]


def after_inserting(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[PassContext], None]) -> None:
    """Makes the pass that inserts towers do ``spoil`` as well."""
    sound = InsertTowers.run

    def run(self: InsertTowers, ctx: PassContext) -> PassResult:
        result = sound(self, ctx)
        spoil(ctx)
        return result

    monkeypatch.setattr(InsertTowers, "run", run)


def two_streams_swapped(ctx: PassContext) -> None:
    join = ctx.facts.groups[0].joins[0]
    entries = list(join.args[0])  # type: ignore[arg-type]
    entries[1], entries[2] = entries[2], entries[1]
    join.args = (entries, *join.args[1:])


def test_all_laws_hold(project: Path) -> None:
    result = runner.invoke(app, COMMAND)
    assert result.exit_code == 0, result.output
    assert "9 of 9 laws hold" in result.output


def test_json(project: Path) -> None:
    result = runner.invoke(app, ["verify", "--model", "net.py:build", "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.output)
    assert data["holds"] and data["topology"] == "2x1" and data["config"] == "defaults"
    assert len(data["laws"]) == 9 and all(v["holds"] and not v["node"] for v in data["laws"])


def test_a_wrong_rewrite_is_found_and_its_node_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after_inserting(monkeypatch, two_streams_swapped)
    laws = {v["law"]: v for v in failed(COMMAND)}
    outputs = laws["pass-through towers keep outputs (eval mode)"]
    assert outputs["node"] == "cat" and "first at node cat (call_function" in outputs["detail"]
    gradients = laws["pass-through towers keep every gradient (eval mode)"]
    assert "tables" in gradients["detail"] and gradients["node"]


def test_what_differs_in_train_mode_only_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_dropout(ctx: PassContext) -> None:
        ctx.gm.add_submodule("other", nn.Dropout(0.9))
        next(n for n in ctx.gm.graph.nodes if n.target == "drop").target = "other"

    after_inserting(monkeypatch, other_dropout)
    laws = failed(PRESERVING)
    assert [v["law"].removeprefix("pass-through towers keep ") for v in laws] == [
        "outputs (train mode)",
        "every gradient (train mode)",
    ]
    assert laws[0]["node"] == "drop"


def test_a_gradient_that_differs_alone_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(ctx: PassContext) -> None:
        join = ctx.facts.groups[0].joins[0]
        stream = list(join.args[0])[2]  # type: ignore[arg-type]
        with ctx.gm.graph.inserting_before(join):
            cut = ctx.gm.graph.call_method("detach", (stream,))
        cut.meta = dict(stream.meta)
        join.replace_input_with(stream, cut)

    after_inserting(monkeypatch, stopped)
    laws = failed(PRESERVING)
    assert [v["law"].removeprefix("pass-through towers keep ") for v in laws] == [
        "every gradient (eval mode)",
        "every gradient (train mode)",
    ]
    assert all("tables.1" in v["detail"] for v in laws)


def test_a_model_that_is_refused_fails_with_its_findings(project: Path) -> None:
    (law,) = failed(["verify", "--model", "refused.py:build"])
    assert law["law"] == "the model can be rewritten as the configuration asks" and "DMT205" in law["detail"]


WHOLE = """
import torch
from net import Net, example_batch

def build():
    with torch.device("meta"):
        return Net()
"""
TABLES = """
import torch
from torch import nn
from net import build as real, example_batch

def build():
    model = real()
    for table in [*model.tables, model.first]:
        table.weight = nn.Parameter(torch.empty(10**9, table.embedding_dim, device="meta"))
        table.num_embeddings = 10**9
    return model
"""
ON_META = ["verify", "--model", "meta.py:build", "--config", "ds.json"]


def test_tables_on_meta_are_verified(project: Path) -> None:
    (project / "meta.py").write_text(TABLES)
    result = runner.invoke(app, ON_META)
    assert result.exit_code == 0, result.output
    assert "9 of 9 laws hold" in result.output


def test_a_wrong_rewrite_of_tables_on_meta_is_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "meta.py").write_text(TABLES)
    after_inserting(monkeypatch, two_streams_swapped)
    laws = {v["law"]: v for v in failed(ON_META)}
    assert laws["pass-through towers keep outputs (eval mode)"]["node"] == "cat"
    assert laws["pass-through towers keep every gradient (eval mode)"]["node"]


def test_a_batch_that_tables_on_meta_do_not_take(project: Path) -> None:
    net = project / "net.py"
    net.write_text(net.read_text().replace("randint(0, 20,", "randint(10**9, 10**10,"))
    (project / "meta.py").write_text(TABLES)
    result = runner.invoke(app, ON_META)
    assert "the model does not take the example batch" in str(result.exception)


def test_a_model_without_values_is_not_verified_and_that_is_said(project: Path) -> None:
    (project / "meta.py").write_text(WHOLE)
    result = runner.invoke(app, ["verify", "--model", "meta.py:build"])
    assert result.exit_code == 3 and "not checked" in result.output and "laws hold" not in result.output
    result = runner.invoke(app, ["verify", "--model", "meta.py:build", "--json"])
    data = json.loads(result.output)
    assert result.exit_code == 3 and data["holds"] is None
    assert [v["holds"] for v in data["laws"]] == [None]
    assert "no values for head.weight, head.bias, on the meta device" in data["laws"][0]["detail"]


def test_a_capture_that_is_not_the_model_names_the_layer() -> None:
    from dmt_plugin.capture import ExampleBatch, capture
    from dmt_plugin.verification.bisect import first_layer

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    example = ExampleBatch((torch.randn(5, 3),))
    captured = capture(model, example).as_module()
    assert first_layer(model, captured, example, True) is None
    second = next(n for n in captured.graph.nodes if n.target == "2")
    second.args = (next(n for n in captured.graph.nodes if n.target == "0"),)
    captured.__dict__["graph_module"].recompile()
    assert first_layer(model, captured, example, False) is second


def test_random_numbers_are_left_as_they_were(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU and on both of two accelerators, which are seeded with it."""
    states = {0: 0, 1: 0}
    seed = torch.manual_seed

    def seed_all(number: int) -> torch.Generator:
        states.update(dict.fromkeys(states, number))
        return seed(number)

    model, batch = ZOO["deepfm"]()
    example, states[0], states[1] = batch(4, 0), 7, 8
    device = SimpleNamespace(
        device_count=lambda: len(states), get_rng_state=states.get, set_rng_state=lambda s, i: states.update({i: s})
    )
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: len(states))
    monkeypatch.setattr(torch, "get_device_module", lambda _: device)
    monkeypatch.setattr(torch, "manual_seed", seed_all)
    before = torch.get_rng_state()
    assert all(verdict.holds for verdict in check_laws(model, example, DMTConfig(), Topology(2, 1)))
    assert states == {0: 7, 1: 8} and torch.equal(torch.get_rng_state(), before)
