"""Models of sequences, whose rows travel by id, are what they were: bit for bit in one process, and trained on ranks.

As :mod:`tests.test_distinct_laws`: outputs of every step, all parameters and optimizer states after five steps against
one process, to 2e-6; and batches in which nobody has an id, or one sample has them all.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmt_plugin.capture import ExampleBatch, capture
from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import CaptureError, DMTError, PlanError, TransformError
from dmt_plugin.core.findings import Finding
from dmt_plugin.model.placed import place, place_graph
from dmt_plugin.model.row_counts import count_rows
from dmt_plugin.partitioning.feature_rows import FeatureRows
from dmt_plugin.report.explain.explanation import costs_of
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWire, SimulatedWorld
from tests.test_placed_laws import prepared
from tests.test_placement_laws import MODULES, SPTT, trained, worst
from tests.zoo.checks import check_capture, check_sptt
from tests.zoo.torchrec_sequences import LENGTH, VARIANTS, histories, rows_for

BY_NAME = {variant.name: variant for variant in VARIANTS}


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_pass_through_towers_are_the_flat_model(name: str) -> None:
    check_capture(BY_NAME[name])
    check_sptt(BY_NAME[name])


@pytest.mark.parametrize(
    ("name", "topology", "placement", "towers", "comm"),
    [
        ("seq_din", "2x2", "rows", SPTT, {}),
        ("seq_din", "2x2", "whole", MODULES, {"dedup": "off"}),
        ("seq_din", "1x1", "whole", SPTT, {}),
        ("seq_hstu", "2x2", "columns", SPTT, {"dedup": "on", "micro_blocks": 3}),
        ("seq_hstu", "1x3", "whole", SPTT, {"dedup": "off"}),
        ("seq_mean", "2x1", "rows", MODULES, {"route": "flat", "dedup": "off", "micro_blocks": 2}),
        ("seq_one_row", "2x2", "whole", SPTT, {"micro_blocks": 2}),
        ("seq_list", "3x1", "whole", SPTT, {"micro_blocks": 2, "overlap": False}),
        ("seq_list", "2x2", "rows", MODULES, {"dedup": "off", "dedup_features": {"items*": "on"}}),
        ("seq_added_by_sample", "2x2", "columns", MODULES, {"route": "flat"}),
        ("seq_candidates", "2x2", "rows", MODULES, {"micro_blocks": 2, "dedup": "off"}),
        ("seq_two_batch_sizes", "2x2", "whole", MODULES, {"micro_blocks": 2}),
        ("seq_by_position", "2x2", "rows", MODULES, {"micro_blocks": 2}),
        ("seq_by_position", "1x2", "whole", SPTT, {"route": "flat", "dedup": "off"}),
        ("seq_weighed_fields", "2x2", "columns", SPTT, {"micro_blocks": 3}),
    ],
    ids=str,
)
def test_trained_as_in_one_process(
    name: str, topology: str, placement: str, towers: dict[str, Any], comm: dict[str, Any]
) -> None:
    assert trained(name, topology, placement, "adagrad", ("torch",), towers, **comm) == []


@pytest.mark.parametrize(("name", "rule"), [("seq_added_by_sample", "adam"), ("seq_din", "rowwise_adagrad")])
def test_other_rules_and_backends(name: str, rule: str) -> None:
    """Adam moves every row that is looked up, so none may be cut off behind that: the gradient would not show it."""
    assert trained(name, "2x2", "rows", rule, ("torch", "auto"), SPTT) == []


def test_a_frozen_table_sends_no_gradients() -> None:
    assert trained("seq_din", "2x2", "rows", "sgd", ("torch",), SPTT, ["rows.embeddings.item_table.weight"]) == []


def lists(lengths: list[int], seed: int) -> tuple[Any, ...]:
    """A batch of ``seq_list`` with these lengths."""
    n, generator = len(lengths), torch.Generator().manual_seed(seed)
    dense, ids, item, *_ = BY_NAME["seq_list"].build()[1](n, seed)
    history = torch.randint(0, 23, (sum(lengths),), generator=generator)
    return dense, ids, item, history, torch.tensor(lengths, dtype=torch.long)


@pytest.mark.parametrize("comm", [{}, {"dedup": "off"}, {"micro_blocks": 2}, {"route": "flat"}], ids=str)
@pytest.mark.parametrize("name", ["seq_list", "seq_added_by_sample"])
def test_ranks_without_samples_or_without_ids(name: str, comm: dict[str, Any]) -> None:
    """No samples; samples without an id; one sample with all ids; nobody with any."""
    steps = [[[], [0, 0, 0], [9, 0], [1]], [[0], [0, 0], [], [0]]]
    flat, batch = BY_NAME[name].build()
    config = DMTConfig.model_validate({"towers": SPTT, "comm": comm, "lookup": {"optimizer": "sgd", "lr": 1.0}})
    where = Topology(2, 2)
    logical = transform(prepared(flat), batch(5, 0), config, where)
    for lengths in steps:
        batches = [lists(own, rank) for rank, own in enumerate(lengths)]
        reference = copy.deepcopy(logical)
        expected = [reference(*own) for own in batches]
        torch.cat(expected).square().sum().backward()

        def program(wire: SimulatedWire, batches: list[Any] = batches) -> Any:
            model = place(copy.deepcopy(logical), config, where, wire.rank)
            model.bind(wire)
            out = model(*batches[wire.rank])
            out.square().sum().backward()
            model.lookup.step()
            tables = {table: model.lookup.table_weight(table).clone() for table in model.lookup.tables}
            return out.detach(), tables, {n: p.grad for n, p in model.named_parameters()}

        found = SimulatedWorld(where).run(program)
        assert all(worst(out, own) <= 2e-6 for (out, _, _), own in zip(found, expected, strict=True))
        tables = {name: table for _, own, _ in found for name, table in own.items()}
        for name_, parameter in reference.named_parameters():
            table = tables.get(name_.removesuffix(".weight"))
            gradients = [own[name_] for _, _, own in found if own.get(name_) is not None]
            if table is not None:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                assert worst(table, parameter.detach() - gradient) <= 2e-6
            elif parameter.grad is not None:
                assert worst(torch.stack(gradients).sum(0), parameter.grad) <= 5e-6


@pytest.mark.parametrize("dedup", ["on", "off"])
@pytest.mark.parametrize("route", ["hierarchical", "flat"])
def test_bytes_are_those_expected_of_the_same_data(route: str, dedup: str) -> None:
    """Of every rank: what is counted on data is what its exchanges send. (Every sample has as many ids.)"""
    where, samples = Topology(2, 2), 5
    config = DMTConfig.model_validate({"towers": SPTT, "comm": {"route": route, "dedup": dedup}})
    flat, batch = BY_NAME["seq_candidates"].build()
    batches = [batch(samples, rank) for rank in range(where.world_size)]
    logical = transform(flat, batches[0], config, where)
    needs = count_rows(place_graph(logical, config, where, 0), batches, samples, 5).needs

    def program(wire: SimulatedWire) -> list[tuple[float, int]]:
        model = place(copy.deepcopy(logical), config, where, wire.rank)
        model.bind(wire)
        model(*batches[wire.rank]).sum().backward()
        costs = costs_of(model, samples, needs=needs)
        totals = [(cost, wire.traffic.totals(cost.name, cost.phase)) for cost in costs]
        return [(cost.other_hosts + cost.same_host, own.other_hosts + own.same_host) for cost, own in totals]

    for found in SimulatedWorld(where).run(program):
        assert all(expected == sent for expected, sent in found), found


def test_rows_by_id_alone_can_be_counted() -> None:
    flat, batch = BY_NAME["seq_din"].build()
    config = DMTConfig.model_validate({"towers": SPTT})
    graph = place_graph(transform(flat, batch(5, 0), config, "2x2"), config, Topology(2, 2), 0)
    batches = [batch(6, k) for k in range(7)]
    counted = count_rows(graph, batches, 4, 9)
    assert counted.steps == 42 // 16
    ids = sum(len(features.values()) - sum(features.length_per_key()[:6]) for _, features in batches)
    assert 0 < sum(counted.needs[0].rank.values()) <= ids / counted.steps


def test_what_moves_by_id_is_said() -> None:
    flat, batch = BY_NAME["seq_din"].build()
    config = DMTConfig.model_validate({"towers": MODULES})
    model = transform(flat, batch(5, 0), config, "2x2")
    said = {f.reason for f in model.findings if f.code == "DMT311"}
    assert any(reason.startswith("history moves as it is") for reason in said)
    assert any(group.kind == "tower" and len(group.features) == 6 for group in model.plan.groups)
    once = place_graph(model, config, Topology(2, 2), 0).placement.once
    assert "rows by id: rows.embeddings.item_table once per host" in once
    off = config.model_copy(update={"comm": config.comm.model_copy(update={"dedup": "off"})})
    placement = place_graph(model, off, Topology(2, 2), 0).placement
    assert "rows.embeddings.item_table for every id" in placement.once
    assert not any(group.once for group in placement.groups)


def test_other_lookups_of_its_table_move_with_it() -> None:
    flat, batch = BY_NAME["seq_list"].build()
    model = transform(flat, batch(5, 0), {"dmt": {"towers": MODULES}}, "2x2")
    reasons = [f.reason for f in model.findings if f.code == "DMT311"]
    assert len(reasons) == 2 and any("its table is read elsewhere" in reason for reason in reasons)


class Bent(nn.Module):
    """Rows of a history, bent one by one, and their sum by sample."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.top = rows_for({"item_table": ["history"]}, 4), nn.Linear(4, 1)

    def forward(self, features: Any) -> Tensor:
        history = self.rows(features)["history"]
        return self.top(torch.tanh(history.values()) * history.values())


def test_one_id_each_in_the_example_is_no_promise() -> None:
    """Shapes do not tell such a list from one id per sample; where it comes from does."""
    from torchrec import KeyedJaggedTensor

    ones = KeyedJaggedTensor(["history"], torch.arange(5), lengths=torch.ones(5, dtype=torch.long))
    flat, config = Bent(), DMTConfig.model_validate({"towers": SPTT})
    logical = transform(flat, (ones,), config, "1x1")
    facts = logical.stored_facts.over(logical.graph_module.graph)
    assert [lookup.by_id for lookup in facts.lookups] == [True] and not facts.regions

    def program(wire: SimulatedWire) -> Tensor:
        model = place(copy.deepcopy(logical), config, Topology(1, 1), 0)
        model.bind(wire)
        return model(keyed(6)).detach()

    (found,) = SimulatedWorld(Topology(1, 1)).run(program)
    assert torch.equal(found, flat(keyed(6)))


# -- refusals ----------------------------------------------------------------------------


def refused(model: nn.Module, *batch: Any, **towers: Any) -> Finding:
    with pytest.raises(DMTError) as caught:
        transform(model, batch, {"dmt": {"towers": {"module": "none", **towers}}}, "1x1")
    assert isinstance(caught.value, (CaptureError, TransformError))
    return caught.value.findings[0]


class Padded(nn.Module):
    """A history padded to the length that ``longest`` gives."""

    def __init__(self, longest: Any) -> None:
        super().__init__()
        self.rows, self.longest, self.top = rows_for({"item_table": ["history"]}, 4), longest, nn.Linear(4, 1)

    def forward(self, features: Any) -> Tensor:
        history = self.rows(features)["history"]
        return self.top(history.to_padded_dense(self.longest(history)).sum(1))


def keyed(n: int) -> Any:
    from torchrec import KeyedJaggedTensor

    values, lengths = histories(n, 0)
    return KeyedJaggedTensor(["history"], values, lengths=lengths)


@pytest.mark.parametrize(
    "longest",
    [
        lambda history: None,
        lambda history: int(history.lengths().max()),
        lambda history: torch.max(history.lengths()).item(),
        lambda history: int(history.offsets().diff().amax()),
    ],
)
def test_the_longest_of_a_batch_is_no_size(longest: Any) -> None:
    found = refused(Padded(longest), keyed(5))
    assert found.code == "DMT116" and "the longest of its sequences" in found.reason


def test_a_constant_length_is_one() -> None:
    model = Padded(lambda history: LENGTH)
    graph = capture(model, ExampleBatch((keyed(5),))).as_module()
    assert torch.equal(graph(keyed(8)), model(keyed(8)))


def test_a_maximum_over_a_table_whose_rows_go_by_id_is_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.top = nn.EmbeddingBag(9, 4, mode="max"), nn.Linear(4, 1)

        def forward(self, ids: Tensor, cards: Tensor) -> Tensor:
            return self.top(self.bag(ids) + F.embedding(cards, self.bag.weight).sum((1, 2)))

    found = refused(Model(), torch.randint(0, 9, (5, 3)), torch.randint(0, 9, (5, 2, 2)))
    assert (found.code, found.module) == ("DMT212", "bag")


def test_partitions_by_data_refuse_rows_by_id() -> None:
    flat, batch = BY_NAME["seq_list"].build()
    with pytest.raises(PlanError, match=r"\['items.*'\] give a row for each"):
        FeatureRows(flat, batch(5, 0))


def test_keys_with_their_own_numbers_of_samples_are_refused() -> None:
    from torchrec import KeyedJaggedTensor

    features = KeyedJaggedTensor(
        ["history", "item"], torch.arange(5), lengths=torch.tensor([2, 1, 2]), stride_per_key_per_rank=[[2], [1]]
    )
    found = refused(Padded(lambda history: LENGTH), features)
    assert found.code == "DMT117" and "the keys of features" in found.reason
