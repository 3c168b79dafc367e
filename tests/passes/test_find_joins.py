"""Groups of lookups and their joins: what can go through towers, and every reason why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.core.errors import TransformError
from tests.passes.flat import ROWS, Flat, cat, found, ids, only, towers
from tests.zoo.models import ZOO

TRANSPORT = {"transform": {"on_unsupported": "transport"}}


def two_cats(streams: list[Tensor], model: Any) -> Tensor:
    return torch.cat(streams, dim=1) + torch.cat(streams, dim=1).relu()


def other_order(streams: list[Tensor], model: Any) -> Tensor:
    return torch.cat(streams, dim=1) + torch.cat(streams[::-1], dim=1)


def repeated(streams: list[Tensor], model: Any) -> Tensor:
    return torch.cat([*streams, *streams], dim=1)


def along_the_batch(streams: list[Tensor], model: Any) -> Tensor:
    return torch.cat(streams, dim=0).view(len(streams), -1, 4).sum(0)


def stacked_last(streams: list[Tensor], model: Any) -> Tensor:
    return torch.stack(streams, dim=2).flatten(1)


def all_multiplied(streams: list[Tensor], model: Any) -> Tensor:
    first, *rest = [torch.cat(streams, 1), *(s.repeat(1, 4) for s in streams)]
    for other in rest:
        first = first * other
    return first


def added(streams: list[Tensor], model: Any) -> Tensor:
    return torch.add(torch.cat(streams[:1], 1), 0) + streams[0] + streams[1] + streams[2] + streams[3]


def one_used_elsewhere(streams: list[Tensor], model: Any) -> Tensor:
    return torch.cat(streams, 1) * streams[0].sum(1, keepdim=True)


def joined_by(model: nn.Module, **dmt: Any) -> list[tuple[str, int, str]]:
    ctx = found(model, ids(4, 5), **{"towers": {"module": "none"}, **dmt})
    return [(g.kind, len(g.lookups), g.reason) for g in ctx.facts.groups]


def mixed() -> list[nn.Module]:
    return [nn.Embedding(ROWS, 4 if f else 2) for f in range(4)]


def first_order() -> list[nn.Module]:
    return [nn.Embedding(ROWS, 1) for _ in range(4)]


def same_feature(model: Any, index: Tensor) -> list[Tensor]:
    return [table(index[:, max(f - 1, 0)]) for f, table in enumerate(model.tables)]


def unequal_shapes(model: Any, index: Tensor) -> list[Tensor]:
    return [t(index[:, f : f + 1]) if f else t(index[:, 0]).unsqueeze(1) for f, t in enumerate(model.tables)]


def cat_columns(streams: list[Tensor], model: Any) -> Tensor:
    return torch.cat(streams, dim=1).flatten(1)


@pytest.mark.parametrize(
    "join",
    [
        cat,
        two_cats,
        lambda s, m: torch.stack(s, 1).flatten(1),
        lambda s, m: torch.stack(s, -2).flatten(1),
        lambda s, m: torch.cat(tensors=s, axis=-1),
        lambda s, m: torch.concatenate(s, -1),
    ],
)
def test_joins_that_towers_understand(join: Any) -> None:
    assert joined_by(Flat(join)) == [("tower", 4, "")]


def test_a_stream_may_be_a_column_of_its_own() -> None:
    assert joined_by(Flat(cat_columns, look=unequal_shapes)) == [("tower", 4, "")]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: Flat(cat, features=2), "2 feature(s) are too few to compress"),
        (lambda: Flat(cat, first_order()), "first-order weights of width 1 cannot be compressed"),
        (lambda: Flat(cat, mixed()), "its features have the widths [2, 4]; a tower needs one width"),
        (lambda: Flat(cat, look=same_feature), "one feature enters the join through several tables"),
        (lambda: Flat(repeated), "cat holds one of its features more than once"),
        (lambda: Flat(other_order), "the joins ['cat', 'cat_1'] hold its features in different orders"),
        (lambda: Flat(along_the_batch), "cat joins along dimension 0, not side by side"),
        (lambda: Flat(stacked_last), "stack joins along dimension 2, not side by side"),
    ],
)
def test_reasons_why_not(model: Any, reason: str) -> None:
    flat = model()
    found_groups = found(flat, ids(flat.features, 5), towers={"module": "none"}).facts.groups
    assert [(g.kind, g.reason) for g in found_groups] == [("transport", reason)]
    assert all(g.joins == [] and g.streams == [x.node for x in g.lookups] for g in found_groups)


def test_a_stream_that_is_not_joined_names_its_use() -> None:
    ctx = found(Flat(all_multiplied), ids(4, 5), towers={"module": "none"})
    assert {g.kind for g in ctx.facts.groups} == {"transport"}
    assert len(ctx.facts.groups) == 4  # each has a use of its own
    ctx = found(Flat(lambda s, m: torch.add(torch.hstack(s), 0)), ids(4, 5), towers={"module": "none"})
    (group,) = ctx.facts.groups
    assert "hstack" in group.reason and "not a cat or stack" in group.reason


def test_a_feature_used_outside_the_join_is_left_out_of_the_group() -> None:
    assert joined_by(Flat(one_used_elsewhere)) == [
        ("transport", 1, "1 feature(s) are too few to compress"),
        ("tower", 3, ""),
    ]


def test_findings_say_what_moves_as_it_is() -> None:
    class TwoOrders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Flat(cat, first_order()), Flat(cat)

        def forward(self, index: Tensor) -> Tensor:
            return self.first(index) + self.second(index)

    ctx = found(TwoOrders(), ids(4, 5))
    info = only(ctx.findings, "DMT301")
    assert (info.severity, info.module) == ("info", "first.tables.0") and "first-order" in info.reason


@pytest.mark.parametrize("policy", ["error", "transport"])
def test_a_group_that_cannot_go_through_towers(policy: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bad, self.good = Flat(repeated), Flat(cat)

        def forward(self, index: Tensor) -> Tensor:
            return self.bad(index) + self.good(index + 0)

    model = Two()
    if policy == "error":
        with pytest.raises(TransformError) as caught:
            towers(model, ids(4, 5))
        findings = caught.value.findings
    else:
        result = towers(model, ids(4, 5), **TRANSPORT)
        findings = result.findings
        assert [g.kind for g in result.plan.groups] == ["transport", "tower"]
        assert "more than once" in result.group_reasons["group0"]
        assert result(ids(4, 6)).shape == (6, 1)
    finding = only(findings, "DMT302")
    assert finding.module == "bad.tables.0"
    assert finding.severity == ("error" if policy == "error" else "warning")
    assert "more than once" in finding.reason and "on_unsupported" in finding.hint


def test_no_group_at_all() -> None:
    with pytest.raises(TransformError) as caught:
        towers(Flat(repeated), ids(4, 5))
    assert only(caught.value.findings, "DMT303").severity == "error"
    model = towers(Flat(repeated), ids(4, 5), **TRANSPORT)
    assert only(model.findings, "DMT303").severity == "warning"
    assert model.semantic_preserving


def test_a_repeated_stream_is_never_towered() -> None:
    """Trap g: an inner product that lists its vectors twice."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(ROWS, 4) for _ in range(3))
            self.top = nn.Linear(3, 1)

        def forward(self, index: Tensor) -> Tensor:
            v = [t(index[:, f]) for f, t in enumerate(self.tables)]
            rows = torch.stack([v[0], v[0], v[1]], dim=1)
            columns = torch.stack([v[1], v[2], v[2]], dim=1)
            return self.top((rows * columns).sum(2))

    ctx = found(Product(), ids(3, 5), towers={"module": "none"})
    assert all(g.kind == "transport" for g in ctx.facts.groups)


def test_meeting_points() -> None:
    """Where all branches behind the streams have met: the one join they all enter, or what comes behind several."""
    model, batch = ZOO["deepfm"]()
    groups = found(model, *batch(5, 0), towers={"module": "none"}).facts.groups
    assert [g.meeting_point for g in groups if g.kind == "tower"] == ["cat_1"]
    assert found(Flat(two_cats), ids(4, 5)).facts.groups[0].meeting_point == "add"


def test_the_order_of_a_group_is_that_of_its_join() -> None:
    ctx = found(Flat(lambda s, m: torch.cat([s[2], s[0], s[3], s[1]], 1)), ids(4, 5))
    assert [x.table for x in ctx.facts.groups[0].lookups] == ["tables.2", "tables.0", "tables.3", "tables.1"]
