"""Lookups, the features behind them, and what a sharded lookup could not do exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import CaptureError, TransformError
from dmt_plugin.model.placed import place
from dmt_plugin.topology.shape import Topology
from tests.passes.flat import ROWS, Flat, cat, found, ids, only
from tests.zoo.models import ZOO

SPTT = {"towers": {"module": "none"}}


def refused(model: nn.Module, *args: Any, **dmt: Any) -> CaptureError | TransformError:
    with pytest.raises((CaptureError, TransformError)) as caught:
        found(model, *args, **dmt)
    return caught.value


def tables(odd: nn.Module) -> list[nn.Module]:
    return [nn.Embedding(ROWS, 4), odd, nn.Embedding(ROWS, 4), nn.Embedding(ROWS, 4)]


def frozen() -> nn.Module:
    table = nn.Embedding(ROWS, 4)
    table.weight.requires_grad_(False)
    return table


def padded_with_values() -> nn.Module:
    table = nn.Embedding(ROWS, 4, padding_idx=2)
    with torch.no_grad():
        table.weight[2] = 1.0
    return table


@pytest.mark.parametrize(
    ("odd", "code", "reason"),
    [
        (lambda: nn.Embedding(ROWS, 4, max_norm=1.0), "DMT201", "max_norm"),
        (lambda: nn.Embedding(ROWS, 4, scale_grad_by_freq=True), "DMT202", "scale_grad_by_freq"),
        (padded_with_values, "DMT207", "row 2"),
    ],
)
def test_layers_a_sharded_lookup_cannot_be(odd: Any, code: str, reason: str) -> None:
    error = refused(Flat(cat, tables(odd())), ids(4, 5))
    finding = only(error.findings, code)
    assert (finding.severity, finding.module) == ("error", "tables.1")
    assert reason in finding.reason and finding.hint
    assert code in str(error) and "tables.1" in str(error)


@pytest.mark.parametrize(
    ("options", "code"),
    [({"max_norm": 2.0}, "DMT201"), ({"scale_grad_by_freq": True}, "DMT202")],
)
def test_bags_a_sharded_lookup_cannot_be(options: dict[str, Any], code: str) -> None:
    bags = [nn.EmbeddingBag(ROWS, 4, **{"mode": "sum", **(options if f == 2 else {})}) for f in range(4)]
    look = lambda model, index: [t(index[:, f : f + 1]) for f, t in enumerate(model.tables)]  # noqa: E731
    assert only(refused(Flat(cat, bags, look), ids(4, 5)).findings, code).module == "tables.2"


def test_pooling_by_maximum_is_refused_where_fbgemm_is_asked_for() -> None:
    bags = [nn.EmbeddingBag(ROWS, 4, mode="max" if f == 2 else "sum") for f in range(4)]
    look = lambda model, index: [t(index[:, f : f + 1]) for f, t in enumerate(model.tables)]  # noqa: E731
    model = Flat(cat, bags, look)
    finding = only(refused(model, ids(4, 5), lookup={"backend": "fbgemm"}).findings, "DMT204")
    assert finding.module == "tables.2" and "dmt.lookup.backend" in finding.reason + finding.hint
    assert [x.pooling for x in found(model, ids(4, 5), **SPTT).facts.lookups] == ["sum", "sum", "max", "sum"]


def test_all_problems_are_reported_at_once() -> None:
    wrong = [nn.Embedding(ROWS, 4, scale_grad_by_freq=True), nn.Embedding(ROWS, 4), nn.Embedding(ROWS, 4, max_norm=1.0)]
    error = refused(Flat(cat, [*wrong, frozen()]), ids(4, 5))
    assert {f.code for f in error.findings if f.severity == "error"} == {"DMT201", "DMT202"}


def test_a_frozen_table_is_a_lookup_like_any_other() -> None:
    ctx = found(Flat(cat, tables(frozen())), ids(4, 5), **SPTT)
    assert [x.frozen for x in ctx.facts.lookups] == [False, True, False, False]
    finding = only(ctx.findings, "DMT203")
    assert (finding.severity, finding.module) == ("info", "tables.1") and "no gradients are sent" in finding.reason


def test_a_buffer_that_is_read_as_a_table_stays_where_it_is() -> None:
    def look(model: Any, index: Tensor) -> list[Tensor]:
        if not hasattr(model, "codes"):
            model.register_buffer("codes", torch.ones(ROWS, 4))
        own = [t(index[:, f]) for f, t in enumerate(model.tables[:3])]
        return [*own, nn.functional.embedding(index[:, 3], model.codes)]

    ctx = found(Flat(cat, look=look), ids(4, 5), **SPTT)
    assert [x.table for x in ctx.facts.lookups] == ["tables.0", "tables.1", "tables.2"] and not ctx.findings


def test_a_model_without_embeddings() -> None:
    finding = only(refused(nn.Linear(3, 2), torch.randn(5, 3)).findings, "DMT200")
    assert finding.module == "" and "no embedding" in finding.reason


def tied_layer(streams: list[Tensor], model: Any) -> Tensor:
    if not hasattr(model, "out"):
        model.out = nn.Linear(4, ROWS, bias=False)
        model.out.weight = model.tables[0].weight
    return torch.cat([*streams, model.out(streams[1])], dim=1)


def reads_weight(streams: list[Tensor], model: Any) -> Tensor:
    return torch.cat([*streams, streams[1] @ model.tables[2].weight.t()], dim=1)


def test_tied_weights() -> None:
    first = only(refused(Flat(tied_layer), ids(4, 5)).findings, "DMT205")
    assert first.module == "tables.0" and "out" in first.reason
    assert "untie model.out.weight = nn.Parameter(model.tables[0].weight.detach().clone());" in first.hint
    assert "self.tables[0](candidates)" in first.hint and "tables_0_out" not in first.hint
    second = only(refused(Flat(reads_weight), ids(4, 5)).findings, "DMT205")
    assert second.module == "tables.2" and "also used by ['t" in second.reason
    assert "self.tables_2_out = nn.Parameter(self.tables[2].weight.detach().clone())" in second.hint
    assert "untie" not in second.hint


def test_several_samples_in_one_dimension() -> None:
    def look(model: Any, index: Tensor) -> list[Tensor]:
        own = [t(index[:, f]) for f, t in enumerate(model.tables[:3])]
        return [*own, model.tables[3](index.flatten()).view(index.shape[0], -1)]

    lookup = found(Flat(cat, look=look), ids(4, 5), **SPTT).facts.lookups[3]
    assert lookup.by_id and (lookup.pooling, lookup.hotness, lookup.width) == ("none", None, 4)


def test_a_sequence_is_one_lookup() -> None:
    def look(model: Any, index: Tensor) -> list[Tensor]:
        return [*(t(index[:, f]) for f, t in enumerate(model.tables[:3])), model.tables[3](index).sum(1)]

    lookup = found(Flat(cat, look=look), ids(4, 5), **SPTT).facts.lookups[3]
    assert (lookup.pooling, lookup.hotness, lookup.width) == ("none", 4, 16)


def test_a_table_that_no_id_of_the_batch_reads_stays_dense() -> None:
    """One vector per position is a parameter like any other, also where there are as many as samples."""

    def with_positions(streams: list[Tensor], model: Any) -> Tensor:
        if not hasattr(model, "positions"):
            model.positions = nn.Embedding(7, 4)
        t = torch.stack(streams, dim=1)
        return (t + model.positions(torch.arange(4))).flatten(1) + model.positions(torch.arange(t.size(1))).sum()

    ctx = found(Flat(with_positions), ids(4, 7), **SPTT)
    assert [x.table for x in ctx.facts.lookups] == [f"tables.{f}" for f in range(4)]


def test_what_a_lookup_is() -> None:
    class OfTheirOwn(nn.Embedding):
        pass

    bags = [
        nn.EmbeddingBag(ROWS, 3, mode="mean"), OfTheirOwn(ROWS, 3), nn.Embedding(ROWS, 3, padding_idx=0),
        nn.EmbeddingBag(ROWS, 3, mode="sum", padding_idx=1),
    ]  # fmt: skip

    def look(model: Any, index: Tensor) -> list[Tensor]:
        t = model.tables
        weights = (index[:, :3] + 1).float()
        single = [t[0](index[:, :2]), t[1](index[:, 2]), t[2](index[:, 3:4]).squeeze(1)]
        return [*single, t[3](index[:, :3], per_sample_weights=weights)]

    lookups = found(Flat(cat, bags, look), ids(4, 5), **SPTT).facts.lookups
    assert [(x.table, x.rows, x.dim, x.pooling, x.hotness, x.weighted) for x in lookups] == [
        ("tables.0", ROWS, 3, "mean", 2, False),
        ("tables.1", ROWS, 3, "sum", 1, False),
        ("tables.2", ROWS, 3, "sum", None, False),
        ("tables.3", ROWS, 3, "sum", None, True),
    ]


# -- feature identity ------------------------------------------------------------------------


def test_one_feature_in_two_tables_is_one_feature() -> None:
    """The same ids, however the expression is written out twice, with the widest table's name."""
    pair = [nn.Embedding(ROWS, 1), nn.Embedding(ROWS, 4), nn.Embedding(ROWS, 2), nn.Embedding(ROWS, 4)]

    def look(model: Any, index: Tensor) -> list[Tensor]:
        t = model.tables
        return [t[0](index[:, 0] % 5), t[1](index[:, 0] % 5), t[2](index[:, 0] % 3), t[3](index[:, 1])]

    lookups = found(Flat(cat, pair, look), ids(4, 5), **SPTT).facts.lookups
    assert [x.feature for x in lookups] == ["tables.1", "tables.1", "tables.2", "tables.3"]


def test_a_shared_table_serves_two_features() -> None:
    def look(model: Any, index: Tensor) -> list[Tensor]:
        t = model.tables
        return [t[0](index[:, 0]), t[0](index[:, 1]), t[1](index[:, 2]), t[2](index[:, 3])]

    lookups = found(Flat(cat, look=look), ids(4, 5), **SPTT).facts.lookups
    assert [(x.table, x.feature) for x in lookups][:2] == [("tables.0", "tables.0"), ("tables.0", "tables.0#2")]


def test_jagged_features_keep_their_keys() -> None:
    model, batch = ZOO["torchrec_dlrm"]()
    lookups = found(model, *batch(5, 0)).facts.lookups
    assert [x.feature for x in lookups] == [f"cat_{f}" for f in range(6)]


def test_running_twice_finds_the_same() -> None:
    from dmt_plugin.passes.logical.find_lookups import FindLookups

    ctx = found(Flat(cat), ids(4, 5))
    before = list(ctx.facts.lookups)
    FindLookups().run(ctx)
    assert ctx.facts.lookups == before and not ctx.findings


class Functional(nn.Module):
    """``read(ids, self)`` gives the fourth of four streams."""

    def __init__(self, read: Any, **options: Any) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 4) for _ in range(3))
        self.extra = nn.Parameter(torch.randn(20, 4))
        self.head = nn.Linear(16, 1)
        self.read, self.options = read, options

    def forward(self, ids: Tensor) -> Tensor:
        columns = [t(ids[:, i]) for i, t in enumerate(self.tables)]
        return self.head(torch.cat([*columns, self.read(ids[:, 3], self.extra, **self.options)], dim=1))


def bag(index: Tensor, weight: Tensor, **options: Any) -> Tensor:
    return nn.functional.embedding_bag(index.unsqueeze(1), weight, **options)


@pytest.mark.parametrize("read", [nn.functional.embedding, bag])
def test_a_functional_lookup_is_a_lookup(read: Any) -> None:
    ctx = found(Functional(read), torch.randint(0, 20, (5, 4)), **SPTT)
    last = ctx.facts.lookups[3]
    assert (last.table, last.weight, last.rows, last.dim) == ("extra", "extra", 20, 4)
    assert last.pooling == ("sum" if read is nn.functional.embedding else "mean") and not ctx.findings


@pytest.mark.parametrize(
    ("options", "code"), [({"max_norm": 1.0}, "DMT201"), ({"scale_grad_by_freq": True}, "DMT202")], ids=str
)
def test_options_of_a_functional_lookup(options: dict[str, Any], code: str) -> None:
    finding = only(refused(Functional(bag, mode="sum", **options), torch.randint(0, 20, (5, 4))).findings, code)
    assert finding.module == "extra"


@pytest.mark.parametrize(
    "read",
    [lambda index, weight: weight[index], lambda index, weight: nn.functional.embedding(index, weight * 2.0)],
    ids=["indexed", "computed weight"],
)
def test_rows_read_otherwise_are_named(read: Any) -> None:
    model = transform(Functional(read), (torch.randint(0, 20, (5, 4)),), {"dmt": {"towers": {"module": "none"}}}, "2x1")
    finding = only(model.findings, "DMT208")
    assert finding.severity == "warning"


def test_a_weight_of_two_names_is_one_table() -> None:
    model = Flat(cat)
    model.tables[2].weight = model.tables[1].weight
    ctx = found(model, ids(4, 5), **SPTT)
    assert [x.table for x in ctx.facts.lookups] == ["tables.0", "tables.1", "tables.1", "tables.3"]


@pytest.mark.parametrize(
    "positions",
    [
        lambda ids: torch.arange(4, device=ids.device).expand(ids.shape[0], 4),
        lambda ids: torch.arange(4).unsqueeze(0).expand_as(ids),
        lambda ids: torch.ones_like(ids).cumsum(1) - 1,
        lambda ids: torch.arange(ids.size(1)).repeat(ids.size(0), 1).to(ids.device),
    ],
    ids=["device", "expand_as", "ones_like", "repeat"],
)
def test_learned_positions_stay_dense(positions: Any) -> None:
    def with_positions(streams: list[Tensor], model: Any) -> Tensor:
        if not hasattr(model, "positions"):
            model.positions = nn.Embedding(4, 4)
        stacked = torch.stack(streams, dim=1)
        return (stacked + model.positions(positions(stacked[:, :, 0].long()))).flatten(1)

    ctx = found(Flat(with_positions), ids(4, 7), **SPTT)
    assert [x.table for x in ctx.facts.lookups] == [f"tables.{f}" for f in range(4)] and not ctx.findings


def test_ids_made_of_rows_are_not_sent() -> None:
    """Codes of a vector: the owner of the code table would wait for ids that wait for rows."""

    def with_codes(streams: list[Tensor], model: Any) -> Tensor:
        if not hasattr(model, "codes"):
            model.codes = nn.Embedding(4, 4)
        return torch.cat([*streams, model.codes(streams[0].argmax(dim=1))], dim=1)

    flat = Flat(with_codes)
    ctx = found(flat, ids(4, 7), **SPTT)
    assert [x.table for x in ctx.facts.lookups] == [f"tables.{f}" for f in range(4)]
    assert only(ctx.findings, "DMT209").module == "codes"
    logical = transform(flat, (ids(4, 7),), {"dmt": SPTT}, "2x1")
    placed = place(logical, DMTConfig.model_validate(SPTT), Topology(2, 1), 0)
    assert [t.name for t in placed.plan.tables] == [f"tables.{f}" for f in range(4)]
