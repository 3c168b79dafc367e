"""Product networks behind towers: repaired as their constructors build them, or refused.

The traps here: index lists, masks, sizes of pieces and numbers of copies for the old features are all still valid
for more of them, and nothing crashes when some are missed.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import TransformError
from tests.passes import heads, product_heads
from tests.passes.flat import only
from tests.passes.heads import Recommender, batch
from tests.passes.product_heads import HEADS, pair_lists
from tests.passes.test_repair_oracle import SIZES, assert_is_the_oracle, repaired

HALF = {"c": 1, "p": 0, "dim": 4}
MORE = {"c": 1, "p": 1, "dim": 8}
SAME_FLAT = {"c": 2, "p": 0, "dim": 4}
SAME = {"c": 1, "p": 0, "dim": 8}


@pytest.mark.parametrize("size", sorted(SIZES))
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_repair_builds_what_the_constructor_builds(head: type[heads.Head], size: str) -> None:
    model, oracle, streams, dim = repaired(head, size)
    assert_is_the_oracle(model, oracle, streams, dim, SIZES[size][0])


ROWS, COLUMNS = pair_lists(6)
TRIL_ROWS, TRIL_COLUMNS = (part.tolist() for part in torch.tril_indices(6, 6, -1))


class Using(heads.Head):
    """``use(t, self)`` on the stacked streams ``(B, 6, 8)``, with odd things at hand."""

    def __init__(self, use: Any) -> None:
        self.use = use
        super().__init__(6, 8)

    def build(self, n: int, d: int) -> None:
        self.wide, self.strided = nn.Conv1d(n, 4, 3, padding=1), nn.Conv1d(n, 4, 1, stride=2)
        self.grouped = nn.Conv1d(n, n, 1, groups=2)
        self.each = nn.Linear(d, 6)
        self.plane, self.groups = nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(2, n)
        self.frozen = nn.Parameter(torch.randn(d, d), requires_grad=False)
        self.matrix = nn.Parameter(torch.randn(n, n, 3))
        self.register_buffer("odd_mask", torch.rand(n, n) > 0.5)
        self.register_buffer("ones", torch.ones(n, n))
        self.register_buffer("order", torch.arange(n))

    def forward(self, x: Tensor, streams: list[Tensor]) -> Tensor:
        return self.use(torch.stack(streams, dim=1), self).flatten(1).float().sum(1) + self.bottom(x).sum(1)


def _gram(t: Tensor) -> Tensor:
    return torch.bmm(t, t.mT)


# name: (use of the stacked streams (B, 6, 8), tower letters, node, reason)
REFUSED: dict[str, tuple[Any, dict[str, int], str, str]] = {
    "one list": (lambda t, m: t[:, ROWS], MORE, "getitem", r"1 index list\(s\) over it"),
    "one list, same sizes": (lambda t, m: t[:, ROWS], SAME, "getitem", r"1 index list\(s\)"),
    "the same list twice": (lambda t, m: t[:, ROWS] * t[:, ROWS], MORE, "getitem", r"1 index list\(s\)"),
    "three lists": (
        lambda t, m: t[:, ROWS] * t[:, COLUMNS] * t[:, TRIL_COLUMNS], MORE, "getitem", r"3 index list\(s\)",
    ),
    "halves of two enumerations": (
        lambda t, m: t[:, ROWS] * t[:, TRIL_ROWS], MORE, "getitem", "do not enumerate the pairs of 6 features",
    ),
    "lists over two tensors": (lambda t, m: t[:, ROWS] * (t * 2)[:, COLUMNS], MORE, "getitem", r"1 index list\(s\)"),
    "pairs without the last": (
        lambda t, m: t[:, ROWS[:-1]] * t[:, COLUMNS[:-1]], MORE, "getitem", "do not enumerate the pairs",
    ),
    "an order": (lambda t, m: t[:, m.order], MORE, "getitem", r"1 index list\(s\)"),
    "a selection": (lambda t, m: t.index_select(1, m.order), SAME, "index_select", r"1 index list\(s\)"),
    "a computed selection": (
        lambda t, m: t.index_select(1, (t[0, :, 0] * 0).long()), SAME, "getitem", "takes entry 0",
    ),
    "a triangle of the samples": (
        lambda t, m: _gram(t)[:, torch.triu_indices(t.shape[0], t.shape[0], 1).clamp(max=5)[0], 0], SAME,
        "getitem", "takes entry 0",
    ),
    "pairs of another number": (
        lambda t, m: _gram(t)[(slice(None), *torch.triu_indices(t.shape[2] - 2, t.shape[1], 1))], MORE,
        "getitem", "is computed",
    ),
    "lists apart": (
        lambda t, m: _gram(t).unsqueeze(2)[:, ROWS, :, COLUMNS].transpose(0, 1), MORE, "getitem", "not side by side",
    ),
    "an entry by name": (lambda t, m: t.select(1, 2), MORE, "select", "takes entry 2"),
    "a range by name": (lambda t, m: t.narrow(1, 0, 3), MORE, "narrow", "takes the slice"),
    "reversed": (lambda t, m: t.flip(1), SAME, "flip", "reverses the order"),
    "a diagonal by einsum": (lambda t, m: torch.einsum("bii->bi", _gram(t)), MORE, "einsum", "takes a diagonal"),
    "einsum with a frozen matrix": (
        lambda t, m: torch.einsum("bnd,de->bne", t, m.frozen), HALF, "einsum", "head.frozen is frozen",
    ),
    "einsum with a constant": (
        lambda t, m: torch.einsum("bnd,nm->bmd", t, m.ones), SAME, "einsum", "nothing that produces it",
    ),
    "attention with a mask": (
        lambda t, m: F.scaled_dot_product_attention(t, t, t, attn_mask=m.odd_mask), SAME,
        "scaled_dot_product_attention", "attention with a mask",
    ),
    "window over entries": (lambda t, m: m.wide(t), HALF, "head_wide", "slides a window over features"),
    "window over entries, same sizes": (lambda t, m: m.wide(t), SAME, "head_wide", "slides a window"),
    "every second entry": (lambda t, m: m.strided(t), HALF, "head_strided", "slides a window"),
    "groups of channels": (lambda t, m: m.grouped(t), SAME, "head_grouped", "convolves groups of channels"),
    "convolution over the plane": (
        lambda t, m: m.plane(t.unsqueeze(1)), SAME, "head_plane", "slides a window over features",
    ),
    "norm of groups": (lambda t, m: m.groups(t), SAME, "head_groups", "call_module head.groups is not known"),
    "functional norm over both": (
        lambda t, m: F.layer_norm(t, (6, 8)), SAME, "layer_norm", "a norm over several dimensions",
    ),
    "running sum": (lambda t, m: t.cumsum(1), MORE, "cumsum", "cumsum is not known"),
    "running product": (lambda t, m: t.cumprod(2), SAME, "cumprod", "cumprod is not known"),
    "an unknown mask": (lambda t, m: _gram(t) * m.odd_mask, MORE, "mul", "nothing that produces it"),
    "an unknown mask, same sizes": (
        lambda t, m: _gram(t).masked_fill(m.odd_mask, 0.0), SAME, "masked_fill", "nothing that produces it",
    ),
    "a mask of one value": (lambda t, m: _gram(t) * m.ones, SAME, "mul", "nothing that produces it"),
    "copies counted elsewhere": (
        lambda t, m: t * m.matrix.sum().view(1, 1, 1).expand(1, m.ones.shape[0], 1), MORE, "expand", "makes 6 copies",
    ),
    "a mask on one side": (lambda t, m: t.sum(2, keepdim=True) * m.ones, SAME, "mul", "nothing that produces it"),
    "all pairs by copies": (
        lambda t, m: t.repeat(1, 6, 1) * t.repeat_interleave(6, dim=1), MORE, "repeat", "repeats a dimension",
    ),
    "copies, same sizes": (lambda t, m: torch.tile(t, (2, 1)), SAME, "tile", "repeats a dimension"),
    "an entry of a piece": (lambda t, m: m.each(t).chunk(2, -1)[0][:, 0], SAME, "getitem", "takes entry 0"),
    "an entry of joined pieces": (
        lambda t, m: torch.cat(m.each(t).split(2, dim=-1), -1)[:, :2], SAME, "getitem", "takes the slice",
    ),
    "a piece of the width": (lambda t, m: t.chunk(2, dim=2)[0], HALF, "chunk", "cuts a dimension"),
    "pieces by size": (lambda t, m: torch.cat(t.split([2, 4], dim=1), 1), MORE, "split", "cuts a dimension"),
    "taken apart": (lambda t, m: torch.stack(t.unbind(1), 1), SAME, "unbind", "cuts a dimension"),
    "the largest few": (lambda t, m: t.topk(2, dim=1)[0], MORE, "topk", "takes positions along a dimension"),
    "where the largest is": (lambda t, m: t.max(dim=1)[1], MORE, "max", "takes positions along a dimension"),
    "where the largest is, by name": (lambda t, m: t.max(dim=1).indices, SAME, "max", "takes positions"),
    "picked by position": (
        lambda t, m: t.gather(1, t.argmax(1, keepdim=True)), SAME, "argmax", "argmax is not known",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused(name: str) -> None:
    use, letters, node, reason = REFUSED[name]
    torch.manual_seed(0)
    flat = Recommender(Using(use), 6, 8)
    with pytest.raises(TransformError) as caught:
        transform(flat, batch(6, 5), {"dmt": {"towers": {"module": "dlrm", **letters}}}, "2x1")
    finding = only(caught.value.findings, "DMT401")
    assert finding.module.startswith(node), str(finding)
    assert re.search(reason, finding.reason), str(finding)  # the whole text also holds the line of this file


def test_every_pair_of_a_longer_list_counts() -> None:
    """Lists for six features are in range for eight: none of the new pairs may be missed."""
    model, _, streams, _ = repaired(product_heads.PairProducts, "more")
    assert streams == 8
    linear = model.get_submodule("head.top")
    assert isinstance(linear, nn.Linear) and linear.in_features == 8 * 8 + 8 * 7 // 2
    lists = {k: v for k, v in model.named_buffers() if v.dtype == torch.int64 and v.dim() == 1 and len(v) == 28}
    assert sorted(lists) == sorted(k for k in lists if "dmt_index" in k) and len(lists) == 2
    rows, columns = lists.values()
    assert sorted(tuple(sorted(p)) for p in zip(rows.tolist(), columns.tolist(), strict=True)) == sorted(
        (i, j) for i in range(8) for j in range(i + 1, 8)
    )


def test_a_parameter_of_one_size_for_two_meanings() -> None:
    """A kernel that is contracted with the width and, elsewhere, with the features cannot follow both."""

    class Both(heads.Head):
        def build(self, n: int, d: int) -> None:
            self.kernel = nn.Parameter(torch.randn(d, 3))
            self.top = nn.Linear(6, 1)

        def forward(self, x: Tensor, streams: list[Tensor]) -> Tensor:
            t = torch.stack(streams, dim=1)
            by_width = torch.tensordot(t, self.kernel, dims=([2], [0])).sum(1)
            by_feature = torch.tensordot(t, self.kernel, dims=([1], [0])).sum(1)
            return self.top(torch.cat([by_width, by_feature], dim=1))

    with pytest.raises(TransformError, match="DMT401"):
        transform(Recommender(Both(8, 8), 8, 8), batch(8, 5), {"dmt": {"towers": HALF}}, "2x1")


@pytest.mark.parametrize(
    ("use", "letters", "said"),
    [
        (lambda t: t.sum(1) / 6, MORE, "6, which is 6, and 6 entries became 8"),
        (lambda t: (t @ t.mT * 8**-0.5).sum(1), HALF, "0.353553, which is 1/root of 8, and 8 entries became 4"),
        (lambda t: F.scaled_dot_product_attention(t, t, t, scale=0.125).sum(1), HALF, "0.125, which is 1/8"),
        (lambda t: t.sum(1) / 6, SAME, None),
        (lambda t: t.sum(1) / t.shape[1], MORE, None),
        (lambda t: (t.sum(1) ** 2 - (t**2).sum(1)) * 0.5, HALF, None),
    ],
    ids=["mean", "scaled scores", "scale", "same sizes", "size read off", "halves"],
)
def test_a_number_that_may_be_a_size_is_reported(use: Any, letters: dict[str, int], said: str | None) -> None:
    flat = Recommender(Using(lambda t, m: use(t)), 6, 8)
    model = transform(flat, batch(6, 5), {"dmt": {"towers": {"module": "dlrm", **letters}}}, "2x1")
    found = [f for f in model.findings if f.code == "DMT403"]
    assert len(found) == (said is not None)
    if said is not None:
        assert found[0].severity == "warning" and said in found[0].reason


class NamedAsOperations(nn.Module):
    """A model whose own names are those of operations."""

    def __init__(self, use: Any) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10, 8) for _ in range(6))
        self.expand, self.relu = nn.GroupNorm(2, 6), nn.GRU(8, 8, batch_first=True)
        self.register_buffer("zeros", torch.zeros(6, 1))
        self.use = use

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        t = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        return self.use(t, self).flatten(1).sum(1)


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda t, m: t + m.zeros, "of zeros .*nothing that produces it"),
        (lambda t, m: m.expand(t), "call_module expand is not known"),
        (lambda t, m: m.relu(t)[0], "reads the features one after the other"),
    ],
    ids=["buffer", "layer", "sequence layer"],
)
def test_names_of_the_user_decide_nothing(use: Any, reason: str) -> None:
    with pytest.raises(TransformError) as caught:
        transform(NamedAsOperations(use), batch(6, 5), {"dmt": {"towers": {"module": "dlrm", **SAME}}}, "2x1")
    assert re.search(reason, only(caught.value.findings, "DMT401").reason)


def test_two_features_whose_pairs_may_mean_several_kinds() -> None:
    from dmt_plugin.passes.ops.axes import Axis, Unsupported
    from dmt_plugin.passes.ops.index_patterns import enumerated_anew

    with pytest.raises(Unsupported, match="several kinds of pairs"):
        enumerated_anew(torch.cartesian_prod(torch.arange(2), torch.arange(2)).t(), Axis.of(2, 4))
    three = torch.triu_indices(3, 3, 1)  # also the columns-first order of the lower triangle
    found = enumerated_anew(three, Axis.of(3, 4))
    assert found is not None and {tuple(sorted(p)) for p in found.t().tolist()} == {
        (i, j) for i in range(4) for j in range(i + 1, 4)
    }
