"""Groups behind which nothing changes its shape: which streams they take, and what is said of them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import TransformError
from dmt_plugin.passes.logical.gather_streams import fallback_form
from tests.passes.flat import ROWS, Flat, cat, found, ids, only, towers

DECODER = {"transform": {"on_unsupported": "decoder"}}
PRESERVE = {"transform": {"on_unsupported": "preserve"}}


def pairs(streams: list[Tensor], model: Any) -> Tensor:
    """Products of neighbours in a ring, and of the first with all: lists with repeats that enumerate nothing known."""
    rows = torch.stack([*streams, *streams], 1)
    columns = torch.stack([*streams[1:], streams[0], *([streams[0]] * len(streams))], 1)
    return (rows * columns).sum(2)


def returned(streams: list[Tensor], model: Any) -> Tensor:
    return streams[0] + streams[1] * streams[2] - streams[3]


def one_outside(streams: list[Tensor], model: Any) -> Tensor:
    return torch.cat(streams, 1) * streams[0].sum(1, keepdim=True)


def two_tables_a_feature(model: Any, index: Tensor) -> list[Tensor]:
    return [table(index[:, f // 2]) for f, table in enumerate(model.tables)]


def two_widths() -> list[nn.Module]:
    return [nn.Embedding(ROWS, 4 if f < 3 else 2) for f in range(6)]


class Chained(nn.Module):
    """The last table is read by what the vectors of the others say."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, 4) for _ in range(5))
        self.top = nn.Linear(4, 1)

    def forward(self, index: Tensor) -> Tensor:
        v = [t(index[:, f]) for f, t in enumerate(list(self.tables)[:4])]
        best = v[0].argmax(1) + index[:, 0] * 0
        return self.top(returned(v, self) + self.tables[4](best))


def groups_of(model: nn.Module, features: int = 4, **dmt: Any) -> list[tuple[str, str, list[str]]]:
    groups = found(model, ids(features, 5), **dmt).facts.groups
    return [(g.kind, g.form, [x.table.removeprefix("tables.") for x in g.lookups]) for g in groups]


@pytest.mark.parametrize(
    ("module", "policy", "form"),
    [
        ("dlrm", "error", ""),
        ("dlrm", "transport", ""),
        ("dlrm", "decoder", "decoder"),
        ("dcn", "preserve", "preserve"),
        ("none", "decoder", ""),
        ("none", "preserve", ""),
        ("preserve", "error", "preserve"),
        ("preserve", "decoder", "preserve"),
    ],
)
def test_the_form_that_a_config_asks_for(module: str, policy: str, form: str) -> None:
    config = {"towers": {"module": module}, "transform": {"on_unsupported": policy}}
    assert fallback_form(DMTConfig.model_validate(config)) == form


@pytest.mark.parametrize("policy", [DECODER, PRESERVE], ids=["decoder", "preserve"])
@pytest.mark.parametrize("join", [pairs, returned], ids=["pairs", "arithmetic"])
def test_streams_without_a_common_join_form_one_group(join: Any, policy: dict[str, Any]) -> None:
    form = policy["transform"]["on_unsupported"]
    assert groups_of(Flat(join), **policy) == [("tower", form, ["0", "1", "2", "3"])]
    assert all(kind == "transport" for kind, _, _ in groups_of(Flat(join), transform={"on_unsupported": "transport"}))


def test_a_regular_group_stays_native() -> None:
    assert groups_of(Flat(cat), **DECODER) == [("tower", "native", ["0", "1", "2", "3"])]
    assert groups_of(Flat(one_outside), **DECODER) == [
        ("transport", "native", ["0"]),  # one stream alone is nothing to compress
        ("tower", "native", ["1", "2", "3"]),
    ]


def test_preserve_as_the_module_takes_regular_groups_as_well() -> None:
    assert groups_of(Flat(cat), towers={"module": "preserve"}) == [("tower", "preserve", ["0", "1", "2", "3"])]
    assert groups_of(Flat(pairs), towers={"module": "preserve"}) == [("tower", "preserve", ["0", "1", "2", "3"])]


def test_a_group_has_one_width_and_one_stream_per_feature() -> None:
    model = Flat(lambda s, m: s[0] * s[1] + s[2] + (s[3] * s[4] + s[5]).repeat(1, 2), two_widths(), features=6)
    assert groups_of(model, 6, **DECODER) == [
        ("tower", "decoder", ["0", "1", "2"]),
        ("tower", "decoder", ["3", "4", "5"]),
    ]
    tables: list[nn.Module] = [nn.Embedding(ROWS, 4) for _ in range(8)]
    model = Flat(lambda s, m: s[0] * s[3] + s[2] * s[5] + s[4] * s[7] + s[6] * s[1], tables, two_tables_a_feature)
    assert groups_of(model, 4, **DECODER) == [
        ("tower", "decoder", ["0", "2", "4", "6"]),
        ("tower", "decoder", ["1", "3", "5", "7"]),
    ]


def test_too_few_and_first_order_streams_only_move() -> None:
    assert groups_of(Flat(lambda s, m: s[0] * s[1], features=2), 2, **DECODER) == [
        ("transport", "native", ["0", "1"]),
    ]
    first: list[nn.Module] = [nn.Embedding(ROWS, 1) for _ in range(4)]
    assert {kind for kind, _, _ in groups_of(Flat(returned, first), **DECODER)} == {"transport"}


def test_a_table_read_by_what_other_rows_give_is_in_no_group() -> None:
    ctx = found(Chained(), ids(4, 5), **DECODER)
    assert [(g.kind, [x.table for x in g.lookups]) for g in ctx.facts.groups] == [
        ("tower", [f"tables.{f}" for f in range(4)])
    ]
    assert only(ctx.findings, "DMT209").module == "tables.4"


# -- findings ------------------------------------------------------------------------------


def test_lookups_that_are_not_used_are_in_no_group() -> None:
    flat = Flat(lambda s, m: cat(s[:4], m), features=6)
    ctx = found(flat, ids(6, 5))
    assert [(g.kind, len(g.lookups)) for g in ctx.facts.groups] == [("tower", 4)]
    left_out = [finding for finding in ctx.findings if finding.code == "DMT211"]
    assert [finding.module for finding in left_out] == ["tables.4", "tables.5"]
    assert {finding.severity for finding in left_out} == {"info"}
    model = towers(flat, ids(6, 5))
    assert [g.features for g in model.plan.groups] == [tuple(f"tables.{f}" for f in range(4))]
    assert {t.name for t in model.plan.tables} == {f"tables.{f}" for f in range(4)}
    assert model.never_run == ["tables.4.weight", "tables.5.weight"]
    assert set(model.state_dict()) >= set(flat.state_dict())
    assert model(ids(6, 3)).shape == (3, 1)


def test_a_lookup_that_is_read_for_its_shape_alone_is_left_out() -> None:
    def shaped(streams: list[Tensor], model: Any) -> Tensor:
        return cat(streams[:4], model) + streams[5].new_zeros(streams[5].shape[0], 1)

    flat = Flat(shaped, features=6)
    model = towers(flat, ids(6, 5))
    assert {t.name for t in model.plan.tables} == {f"tables.{f}" for f in range(4)}
    said = {f.module: f.reason for f in model.findings if f.code == "DMT211"}
    assert "does not use its rows" in said["tables.4"] and "only the shape of its rows" in said["tables.5"]


@pytest.mark.parametrize("last", [False, True])
def test_shapes_of_lookups_that_are_left_out_are_those_of_their_bags(last: bool) -> None:
    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.ModuleList(nn.EmbeddingBag(9, 4, mode="sum", include_last_offset=last) for _ in range(4))
            self.shaped = nn.EmbeddingBag(9, 3, mode="sum", include_last_offset=last)
            self.top = nn.Linear(19, 1)

        def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
            rows = [bag(ids[f], offsets) for f, bag in enumerate(self.read)]
            shape = self.shaped(ids[0], offsets).shape
            return self.top(torch.cat([*rows, rows[0].new_ones(shape)], 1))

    def batch(n: int) -> tuple[Tensor, Tensor]:
        return torch.arange(2 * n).expand(4, -1) % 9, torch.arange(0, 2 * n + last, 2)

    flat = Shaped()
    made = transform(flat, batch(5), {"dmt": {"towers": {"module": "none"}}}, "2x1")
    assert [f.module for f in made.findings if f.code == "DMT211"] == ["shaped"]
    for n in (1, 5, 7):
        assert torch.equal(made(*batch(n)), flat(*batch(n)))


def four_of_six(streams: list[Tensor], model: Any) -> Tensor:
    return cat(streams[:4], model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "file"])
def test_copies_keep_what_forward_never_reads(copied: Any) -> None:
    model = towers(Flat(four_of_six, features=6), ids(6, 5))
    other = copied(model)
    assert other.never_run == model.never_run == ["tables.4.weight", "tables.5.weight"]
    assert other.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(other.state_dict()[name], value) for name, value in model.state_dict().items())


def test_the_refusal_names_every_way_out() -> None:
    def repeated(streams: list[Tensor], model: Any) -> Tensor:
        return torch.cat([*streams, *streams], 1)

    def picked(streams: list[Tensor], model: Any) -> Tensor:
        return torch.stack(streams, 1)[:, 0] * 1

    for join, code in ((repeated, "DMT302"), (repeated, "DMT303"), (picked, "DMT401")):
        with pytest.raises(TransformError) as caught:
            towers(Flat(join), ids(4, 5))
        finding = only(caught.value.findings, code)
        assert finding.severity == "error" and finding.module == {"DMT302": "tables.0"}.get(code, finding.module)
        assert all(f'"{way}"' in finding.hint for way in ("decoder", "preserve", "transport"))


def test_small_leftovers_are_told_of_the_ways_out() -> None:
    ctx = found(Flat(lambda s, m: torch.cat([cat(s[:3], m), s[3] * s[4] + s[5] * 2 - s[4]], 1), features=6), ids(6, 5))
    hints = [f.hint for f in ctx.findings if f.code == "DMT301"]
    assert hints and all('"decoder"' in hint for hint in hints)
    flat = Flat(lambda s, m: torch.cat([cat(s[:3], m), s[3] * s[4]], 1), features=5)
    assert {f.hint for f in found(flat, ids(5, 5)).findings if f.code == "DMT301"} == {""}  # two are too few for any


@pytest.mark.parametrize("policy", [DECODER, PRESERVE])
def test_what_cannot_keep_its_shapes_moves_with_a_warning(policy: dict[str, Any]) -> None:
    tables: list[nn.Module] = [nn.Embedding(ROWS, 4 + 2 * (f // 2)) for f in range(4)]
    model = towers(Flat(lambda s, m: torch.cat(s, 1), tables), ids(4, 5), **policy)
    assert [g.kind for g in model.plan.groups] == ["transport"] and model.semantic_preserving
    assert only(model.findings, "DMT302").severity == only(model.findings, "DMT303").severity == "warning"


def test_a_feature_that_is_used_outside_its_join_is_named() -> None:
    finding = only(towers(Flat(one_outside), ids(4, 5)).findings, "DMT306")
    assert (finding.severity, finding.module) == ("warning", "tables.0")
    assert "['tables.0']" in finding.reason and "group1" in finding.reason and "['sum_1']" in finding.reason
    assert not [f for f in found(Flat(cat), ids(4, 5)).findings if f.code == "DMT306"]


def test_a_single_feature() -> None:
    flat = Flat(lambda s, m: s[0] * 1, features=1)
    with pytest.raises(TransformError) as caught:
        towers(flat, ids(1, 5))
    assert [(f.code, f.module) for f in caught.value.findings if f.severity == "error"] == [("DMT305", "tables.0")]
    model = towers(flat, ids(1, 5), topology="1x2", **DECODER)
    assert only(model.findings, "DMT305").severity == "warning" and model.semantic_preserving
