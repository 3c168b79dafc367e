"""Training with rows that travel once is training with a row per sample: simulated ranks against one process.

As :mod:`tests.test_placement_laws`: outputs of every step, all parameters and the tables' optimizer states after five
steps, over routes, placements, wire order, update rules and both backends; tolerance 2e-6 on values of order one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dmt_plugin.capture.example_call import example_of
from dmt_plugin.cli.explain import explained
from dmt_plugin.compiler import count_rows_of, transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError, IdRangeError
from dmt_plugin.model.placed import PlacedModel, place, place_graph
from dmt_plugin.model.row_counts import count_rows
from dmt_plugin.passes.base import DataToCount
from dmt_plugin.plan.row_shares import RowShares, TableRows
from dmt_plugin.report.explain.explanation import costs_of
from dmt_plugin.report.explain.words import notes_on_distinct_rows
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWire, SimulatedWorld
from tests.test_placed_laws import loss_of, prepared
from tests.test_placement_laws import FROZEN, MODELS, MODULES, OPTIONS, SPTT, trained

ONCE = {"dedup": "on"}
DCN = {"module": "dcn", "dim": 4}
"""A tower module that mixes features, and does nothing else."""
BY_ROW = {"module": "dlrm", "c": 1, "p": 0, "dim": 4}
"""A tower module that is a function of the row."""


ON_BOTH = ("adagrad that begins", "by table")
RULES = [(rule, ("torch", "auto") if rule in ON_BOTH else ("torch",)) for rule in OPTIONS]


@pytest.mark.parametrize(
    ("placement", "rule", "backends"),
    [*(("rows", *own) for own in RULES), ("mixed", "adam", ("torch",)), ("whole", "sgd", ("auto",))],
    ids=str,
)
def test_every_rule(placement: str, rule: str, backends: tuple[str, ...]) -> None:
    assert trained("multi_hot_dlrm", "2x2", placement, rule, backends, SPTT, **ONCE) == []


def test_what_counts_decide(tmp_path: Path) -> None:
    """Some tables on, some off, as a file of counts says it."""
    flat, batch = MODELS["multi_hot_dlrm"]()
    sptt = DMTConfig.model_validate({"towers": SPTT})
    plan = transform(flat, batch(5, 0), sptt, WHERE).plan
    tables = [{"table": t.name, "rank": 4.0, "host": 8.0 * (0.2 if i % 2 else 0.9)} for i, t in enumerate(plan.tables)]
    file = tmp_path / "shares.json"
    file.write_text(
        json.dumps({"source": "a test", "samples": 4, "lanes": 2, "steps": 1, "features": [], "tables": tables})
    )
    comm = {"dedup": "auto", "dedup_shares": str(file)}
    config = DMTConfig.model_validate({"towers": SPTT, "comm": comm})
    chosen = place_graph(transform(flat, batch(5, 0), config, WHERE), config, WHERE, 0).placement
    assert chosen.groups and chosen.slots, "both ways are taken"
    assert trained("multi_hot_dlrm", "2x2", "mixed", "adam", ("torch",), SPTT, **comm) == []


@pytest.mark.parametrize(
    ("name", "topology", "placement", "towers", "comm"),
    [
        ("dlrm", "2x2", "rows", SPTT, {"micro_blocks": 1}),
        ("dlrm", "4x1", "whole", SPTT, {"overlap": False}),
        ("dlrm", "1x4", "columns", MODULES, {"route": "flat"}),
        ("dlrm", "2x2", "whole", MODULES, {"dedup": "off", "dedup_features": {"*": "off"}}),
        ("deepfm", "2x2", "rows", MODULES, {"route": "flat", "micro_blocks": 3}),
        ("deepfm", "2x3", "columns", SPTT, {"micro_blocks": 3}),
        ("deepfm", "3x2", "whole", SPTT, {}),
        ("joint", "2x2", "rows", MODULES, {}),
        ("joint", "1x4", "columns", SPTT, {"micro_blocks": 3}),
        ("sequence", "2x2", "rows", SPTT, {}),
        ("sequence", "2x2", "whole", SPTT, {"route": "flat", "micro_blocks": 3}),
        ("sequence", "2x2", "columns", SPTT, {}),
        ("dlrm", "2x2", "rows", BY_ROW, {}),
        ("dlrm", "3x1", "whole", BY_ROW, {"overlap": False}),
        ("dlrm", "2x2", "columns", BY_ROW, {"micro_blocks": 2}),
        ("deepfm", "2x2", "whole", {**BY_ROW, "c": 2}, {}),
        ("dlrm", "2x2", "rows", {**BY_ROW, "count": 4}, {"micro_blocks": 3}),
        ("dlrm", "2x2", "whole", {**BY_ROW, "overrides": {"1": {"p": 1}}}, {}),
        ("joint", "2x2", "rows", BY_ROW, {"micro_blocks": 1}),
        ("multi_hot_dlrm", "2x2", "rows", BY_ROW, {"micro_blocks": 2}),
        ("multi_hot_dlrm", "3x2", "mixed", SPTT, {"dedup_features": {"*1": "off"}, "micro_blocks": 3}),
        ("multi_hot_dlrm", "2x2", "mixed", SPTT, {"dedup": "off", "dedup_features": {"*1": "on"}, "micro_blocks": 2}),
    ],
    ids=str,
)
def test_models(name: str, topology: str, placement: str, towers: dict[str, Any], comm: dict[str, Any]) -> None:
    assert trained(name, topology, placement, "adagrad", ("torch",), towers, **{**ONCE, **comm}) == []


def counted(name: str, heavy: int = 1) -> RowShares:
    """By hand: one table needs more rows than all others together."""
    shapes = {"multi_hot_dlrm": "bags.field_{}", "dlrm": "tables.{}", "deepfm": "vectors.{}"}
    names = [shapes[name].format(i) for i in range(6)] + [f"first.{i}" for i in range(6)]
    rows = [4.0 if i == heavy else 0.4 for i in range(len(names))]
    tables = [TableRows(table, n / 2, n) for table, n in zip(names, rows, strict=True)]
    return RowShares("a test", 5, 2, 1, (), tuple(tables))


@pytest.mark.parametrize("rule", OPTIONS)
def test_every_rule_with_rows_by_modulo(rule: str) -> None:
    """Heavy tables over all ranks, the others whole on any host."""
    rows, backends = counted("multi_hot_dlrm"), ("torch", "auto") if rule == "by table" else ("torch",)
    assert trained("multi_hot_dlrm", "2x2", "ranks", rule, backends, SPTT, counted=rows, **ONCE) == []


@pytest.mark.parametrize(
    ("name", "topology", "placement", "rule", "towers", "comm"),
    [
        ("deepfm", "3x2", "ranks", "adagrad", SPTT, {"overlap": False}),
        ("deepfm", "2x2", "ranks", "adam", MODULES, {"route": "flat"}),
        ("dlrm", "4x1", "ranks", "sgd", SPTT, {"micro_blocks": 2}),
        ("dlrm", "2x2", "lanes", "adagrad", BY_ROW, {}),
        ("dlrm", "2x3", "lanes", "partial_rowwise_adam", {**BY_ROW, "count": 4}, {"micro_blocks": 2}),
        ("multi_hot_dlrm", "1x3", "lanes", "rowwise_adagrad", SPTT, {"route": "flat"}),
    ],
    ids=str,
)
def test_models_with_rows_by_modulo(
    name: str, topology: str, placement: str, rule: str, towers: dict[str, Any], comm: dict[str, Any]
) -> None:
    rows = counted(name)
    assert trained(name, topology, placement, rule, ("torch",), towers, counted=rows, **{**ONCE, **comm}) == []


def test_frozen_tables_with_rows_by_modulo() -> None:
    frozen = ["bags.field_1.weight", "bags.field_2.weight"]
    rows = counted("multi_hot_dlrm")
    assert trained("multi_hot_dlrm", "2x2", "ranks", "adam", ("torch",), SPTT, frozen, rows, **ONCE) == []


def test_frozen_tables() -> None:
    """Rows of some come in blocks without a gradient beside those of others."""
    assert trained("multi_hot_dlrm", "2x2", "mixed", "adagrad", ("auto",), SPTT, FROZEN["some"], **ONCE) == []


WHERE = Topology(2, 2)


def models_of(
    name: str,
    comm: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    rows: RowShares | None = None,
    **section: Any,
) -> list[PlacedModel]:
    """The model of every rank, from the same weights; ``rows`` are what was counted."""
    torch.manual_seed(0)
    flat, batch = MODELS[name]()
    lookup = {"optimizer": "adagrad", "lr": 0.1, "backend": "torch"}
    config = DMTConfig.model_validate({"towers": SPTT, "lookup": lookup, "comm": comm, **section})
    logical = transform(prepared(flat), batch(5, 0), config, WHERE, row_shares=rows)
    models = [place(logical, config, WHERE, rank) for rank in range(WHERE.world_size)]
    for model in models:
        if dtype != torch.float32:
            model.to(dtype)
            model.compute_in(dtype)
    return models


def outputs(models: list[PlacedModel], name: str, train: bool, batches: int = 1) -> list[Tensor]:
    """Of every rank and batch; with a step behind each where they train."""
    _, batch = MODELS[name]()
    found: list[Tensor] = []
    for k in range(batches):

        def program(wire: SimulatedWire, k: int = k) -> Tensor:
            model = models[wire.rank].train(train)
            model.bind(wire)
            inputs = batch(6 + wire.rank, 10 * k + wire.rank)
            cast = next(model.parameters()).dtype
            inputs = [x.to(cast) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
            with torch.set_grad_enabled(train):
                out: Tensor = model(*inputs)
                if train:
                    loss_of(out.float(), k).backward()
                    model.lookup.step()
                    model.lookup.zero_grad()
            return out.detach()

        found += SimulatedWorld(WHERE).run(program)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["fp32", "bf16", "fp16"])
def test_rows_arrive_as_without(form: str, dtype: torch.dtype) -> None:
    """Bit for bit, whatever they are rounded to on the way; in evaluation as well as in training."""
    plain = {"peer_dtype": form, "intra_dtype": form, "micro_blocks": 1}
    for train in (True, False):
        expected = outputs(models_of("dlrm", plain, dtype), "dlrm", train)
        for rows in (None, counted("dlrm")):  # with counts a table is in rows by modulo, and others are elsewhere
            models = models_of("dlrm", {**plain, **ONCE}, dtype, rows)
            assert bool(models[0].plan.table_hosts and models[0].plan.table_splits) == (rows is not None)
            found = outputs(models, "dlrm", train)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_int8_is_no_further_off() -> None:
    """A scale of its own for every row, in place of one for the columns of several features."""
    eight = {"peer_dtype": "int8", "intra_dtype": "int8", "micro_blocks": 1}
    exact, plain, once = (outputs(models_of("dlrm", comm), "dlrm", False) for comm in ({}, eight, {**eight, **ONCE}))
    off = [sum(float((a - b).norm()) for a, b in zip(found, exact, strict=True)) for found in (plain, once)]
    assert 0 < off[1] <= off[0]


def test_the_same_steps_give_the_same_bits() -> None:
    first, second = (outputs(models_of("multi_hot_dlrm", ONCE), "multi_hot_dlrm", True, 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_bad_id_is_said_on_every_rank() -> None:
    models, (_, batch) = models_of("dlrm", ONCE), MODELS["dlrm"]()
    messages: list[str] = []

    def program(wire: SimulatedWire) -> None:
        models[wire.rank].bind(wire)
        inputs = [x.clone() if isinstance(x, Tensor) else x for x in batch(4, wire.rank)]
        if wire.rank == 2:
            ids = next(x for x in inputs if isinstance(x, Tensor) and not x.is_floating_point())
            ids.view(-1)[0] = 10**6
        try:
            models[wire.rank](*inputs)
        except IdRangeError as error:
            messages.append(str(error))

    SimulatedWorld(WHERE).run(program)
    assert len(messages) == WHERE.world_size and len(set(messages)) == 1
    assert "rank 2" in messages[0] and "1000000" in messages[0]


def test_bytes_are_at_most_what_is_foretold() -> None:
    """Of ids that are all distinct, exactly."""
    torch.manual_seed(0)
    flat, _ = MODELS["dlrm"]()
    rows = min(m.num_embeddings for m in flat.modules() if isinstance(m, torch.nn.Embedding | torch.nn.EmbeddingBag))
    assert rows >= 4, "four ranks with ids of their own"
    models = models_of("dlrm", ONCE)
    traffic: dict[int, Any] = {}

    def program(wire: SimulatedWire) -> None:
        model = models[wire.rank].train()
        model.bind(wire)
        _, batch = MODELS["dlrm"]()
        inputs = [x.clone() if isinstance(x, Tensor) else x for x in batch(1, wire.rank)]
        ids = next(x for x in inputs if isinstance(x, Tensor) and not x.is_floating_point())
        ids.fill_(wire.rank)
        loss_of(model(*inputs), 0).backward()
        traffic[wire.rank] = wire.traffic

    SimulatedWorld(WHERE).run(program)
    for rank, model in enumerate(models):
        for cost in costs_of(model, 1):
            counted = traffic[rank].totals(cost.name, cost.phase)
            assert (counted.other_hosts, counted.same_host) == (cost.other_hosts, cost.same_host), (rank, cost)


@pytest.mark.parametrize("route", ["hierarchical", "flat"])
@pytest.mark.parametrize("name", ["dlrm", "multi_hot_dlrm", "deepfm"])
def test_bytes_are_those_expected_of_the_same_data(name: str, route: str) -> None:
    """Of every rank: what is counted on data is what its exchanges send."""
    comm, steps, samples = {**ONCE, "route": route}, 3, 5
    models, (_, batch) = models_of(name, comm), MODELS[name]()
    batches = [batch(samples, k) for k in range(steps * WHERE.world_size)]
    sent = {(rank, phase): 0 for rank in range(WHERE.world_size) for phase in ("forward", "backward")}
    for step in range(steps):

        def program(wire: SimulatedWire, step: int = step) -> None:
            model = models[wire.rank].train()
            model.bind(wire)
            loss_of(model(*batches[step * WHERE.world_size + wire.rank]), 0).backward()
            for phase in ("forward", "backward"):
                totals = wire.traffic.totals(phase=phase)
                sent[wire.rank, phase] += totals.other_hosts + totals.same_host

        SimulatedWorld(WHERE).run(program)
    config = DMTConfig.model_validate({"towers": SPTT, "comm": comm})
    graph = place_graph(models[0].logical, config, WHERE, 0)
    data: list[Any] = batches
    if all(isinstance(x, Tensor) for x in batches[0]):  # as a loader gives them: of another size than a rank's batch
        whole = [torch.cat([own[i] for own in batches]) for i in range(len(batches[0]))]
        data = [tuple(x[k : k + 10] for x in whole) for k in range(0, len(whole[0]), 10)]
    counted = count_rows(graph, data, samples, steps + 5)
    assert (counted.samples, counted.steps) == (samples, steps)
    flat = models[0].logical.flat
    calls = [example_of(batch, flat) for batch in data]
    of_hosts = DataToCount("", lambda: calls, samples, 2 * steps)
    shares = count_rows_of(flat, batches[0], of_hosts, WHERE.ranks_per_host)
    assert shares is not None and (shares.samples, shares.steps) == (samples, steps * WHERE.hosts)
    assert all(0 < f.host <= f.rank <= 1 for f in shares.features)
    asked = [sum(sum(own.values()) for own in (need.host, need.rank)) for need in counted.needs]
    whole = sum(t.host * WHERE.hosts + t.rank * WHERE.world_size for t in shares.tables)
    assert sum(asked) == pytest.approx(whole), "whoever owns them"
    for (rank, phase), found in sent.items():
        costs = [cost for cost in costs_of(models[rank], samples, needs=counted.needs) if cost.phase == phase]
        expected = sum(cost.other_hosts + cost.same_host for cost in costs)
        assert found / steps == pytest.approx(expected, abs=len(costs)), (rank, phase)  # each is rounded to a byte
    with pytest.raises(ConfigError, match="fewer than 20 samples"):
        count_rows(graph, data[:1], samples, steps)


def test_explain_tells_what_it_would_bring(tmp_path: Path) -> None:
    module = tmp_path / "model.py"
    module.write_text(
        "import torch\nfrom tests.zoo.models import ZOO\n"
        "def build():\n    model, batch = ZOO['dlrm']()\n    return model, batch(5, 0)\n"
        "def data():\n    _, batch = ZOO['dlrm']()\n    return [batch(8, k) for k in range(9)]\n"
    )
    options = {"hosts": 2, "ranks_per_host": 2, "batch_size": 4}
    found = explained(f"{module}:build", None, data=f"{module}:data", data_steps=3, **options)
    rows = found.distinct_rows
    assert rows is not None and not rows.on and rows.steps == 3
    assert 0 < rows.once[0] < rows.by_sample[0]
    assert "Counted on 3 step(s) with 4 samples per rank" in notes_on_distinct_rows(rows)[0]
    assert "switches it on" in notes_on_distinct_rows(rows)[1]
    config = tmp_path / "ds.json"
    config.write_text('{"dmt": {"towers": {"module": "none"}, "comm": {"dedup": "on"}}}')
    on = explained(f"{module}:build", str(config), data=f"{module}:data", data_steps=3, **options)
    assert on.distinct_rows is not None and on.distinct_rows.on
    exchanges = [cost for cost in on.collectives if cost.name.startswith(("requests", "rows"))]
    assert sum(cost.other_hosts for cost in exchanges) == on.distinct_rows.once[0]
    assert explained(f"{module}:build", str(config), **options).distinct_rows is None


def test_features_by_name() -> None:
    torch.manual_seed(0)
    flat, batch = MODELS["dlrm"]()

    def exchanges(towers: dict[str, Any], **comm: Any) -> set[str]:
        config = DMTConfig.model_validate({"towers": towers, "comm": comm})
        logical = transform(prepared(flat), batch(5, 0), config, WHERE)
        return set(place_graph(logical, config, WHERE, 0).placement.exchanges)

    sptt = DMTConfig.model_validate({"towers": SPTT})
    name = transform(prepared(flat), batch(5, 0), sptt, WHERE).plan.features[0].name
    ordinary, once = {"index", "lanes", "peers"}, {"requests", "rows0.peers", "rows0.lanes"}
    assert exchanges(SPTT) == ordinary
    assert exchanges(SPTT, dedup="on") == once
    assert exchanges(SPTT, dedup="on", dedup_features={name: "off"}) == ordinary | once
    assert exchanges(DCN, dedup="on") == ordinary, "tower modules mix features"
    assert exchanges(BY_ROW, dedup="on") == once, "what is a function of the row runs at its owner"
    assert exchanges(BY_ROW, dedup="on", dedup_features={name: "off"}) == ordinary | once, "but for one tower"
    assert exchanges({**BY_ROW, "count": 4}, dedup="on") == once | {"rows1.peers", "rows1.lanes"}
    assert exchanges(MODULES, dedup="on", route="flat") == {"requests", "rows0.world"}

    def said(towers: dict[str, Any], **comm: Any) -> str:
        config = DMTConfig.model_validate({"towers": towers, "comm": comm})
        return place_graph(transform(prepared(flat), batch(5, 0), config, WHERE), config, WHERE, 0).placement.once

    assert said(SPTT, dedup="off") == "" and said(SPTT, dedup="on").endswith("table(s) travel once per host")
    assert "travel once per host; by sample those of " in said(SPTT, dedup="on", dedup_features={name: "off"})
    assert said(DCN, dedup="on").startswith("dmt.comm.dedup is on, but no table")
    assert said(SPTT).startswith("comm.dedup auto: off: nobody counted distinct rows")
    with pytest.raises(ConfigError, match=r"dmt\.comm\.dedup_features.*a tower module reads them by sample"):
        exchanges(DCN, dedup_features={name: "on"})
    with pytest.raises(ConfigError, match=r"dmt\.comm\.dedup_features\['nobody'\]"):
        exchanges(SPTT, dedup_features={"nobody": "on"})
