"""What cannot be adapted with certainty is refused by name, and nothing has been changed by then."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin import compiler
from dmt_plugin.capture import capture
from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import TransformError
from tests.passes import heads
from tests.passes.flat import only
from tests.passes.heads import DENSE, Recommender, Refused, batch

HALF = {"c": 1, "p": 0, "dim": 4}
SAME_FLAT = {"c": 2, "p": 0, "dim": 4}  # F*N == F'*D
MORE = {"c": 1, "p": 1, "dim": 8}
WIDE = {"c": 1, "p": 0, "dim": 16}
SAME = {"c": 1, "p": 0, "dim": 8}

# name: (use of the stacked streams (B, 6, 8), tower letters, node, reason)
REFUSED: dict[str, tuple[Any, dict[str, int], str, str]] = {
    "slice": (lambda t, m: t[:, :2], HALF, "getitem", r"takes the slice slice\(None, 2, None\)"),
    "slice of the width": (lambda t, m: t[..., 4:], HALF, "getitem", "takes the slice"),
    "fixed position": (lambda t, m: t[:, 0], MORE, "getitem", "takes entry 0"),
    "fixed position, same sizes": (lambda t, m: t[:, 0], SAME, "getitem", "takes entry 0"),
    "per feature layers": (
        lambda t, m: torch.stack([layer(t[:, i]) for i, layer in enumerate(m.each)], 1), MORE, "getitem", "takes entry",
    ),
    "chunk": (lambda t, m: t.chunk(2, dim=1)[1], HALF, "chunk", "cuts a dimension whose features changed"),
    "split": (lambda t, m: torch.split(t, 3, dim=1)[0], SAME_FLAT, "split", "cuts a dimension"),
    "unbind": (lambda t, m: sum(t.unbind(1)), SAME, "unbind", "cuts a dimension"),
    "sort": (lambda t, m: torch.sort(t, dim=1)[0], SAME, "sort", "takes positions along a dimension"),
    "var_mean": (lambda t, m: torch.var_mean(t, dim=2)[1], SAME, "var_mean", "var_mean is not known"),
    "cumsum": (lambda t, m: t.cumsum(1), SAME, "cumsum", "cumsum is not known"),
    "recurrent": (lambda t, m: m.recurrent(t)[0], HALF, "head_recurrent", "reads the features one after"),
    "computed size": (lambda t, m: t.view(-1, t.shape[1] * 8), HALF, "view", "does not work on the new shapes"),
    "computed size that fits": (
        lambda t, m: t.view(-1, t.shape[1] * 8), WIDE, "view", r"would have the shape \(14, 48\), expected \(7",
    ),
    "view across vectors": (lambda t, m: t.flatten(1).view(-1, 12, 4), HALF, "view", "48 entries into vectors of 4"),
    "view across, same total": (lambda t, m: t.view(-1, 12, 4), SAME_FLAT, "view", "mixes changed dimensions"),
    "buffer of the old size": (lambda t, m: t.flatten(1) * m.wide, SAME_FLAT, "mul", "nothing that produces it"),
    "buffer per feature": (lambda t, m: t + m.table, SAME, "add", "nothing that produces it"),
    "pairs of vectors": (
        lambda t, m: t[:, m.odd_pairs[0]] * t[:, m.odd_pairs[1]], MORE, "getitem", "do not enumerate the pairs of 6",
    ),
    "unknown pairs": (
        lambda t, m: torch.bmm(t, t.mT)[:, m.odd_pairs[0], m.odd_pairs[1]], MORE, "getitem", "not a triangle of 6 x 6",
    ),
    "computed pairs": (
        lambda t, m: torch.bmm(t, t.mT)[:, (m.odd_pairs + 0)[0], m.odd_pairs[1]], MORE, "getitem", "not a triangle of",
    ),
    "multiplied by a buffer": (lambda t, m: torch.matmul(t, m.table[0]), SAME, "matmul", "nothing that produces it"),
    "frozen layer": (lambda t, m: m.frozen(t.flatten(1)), HALF, "head_frozen", "head.frozen.bias is frozen"),
    "tied layer": (
        lambda t, m: m.layer(t.flatten(1)) + m.twin(t.flatten(1)), HALF, "head_layer", "also used by head.twin.weight",
    ),
    "layer with hooks": (lambda t, m: m.hooked(t.flatten(1)), HALF, "head_hooked", "has hooks or parametrizations"),
    "layer read as a parameter": (
        lambda t, m: m.other(t.flatten(1)) + m.other.weight.sum(), HALF, "head_other", "used by head_other_weight",
    ),
    "layer called elsewhere": (
        lambda t, m: m.plain(t.flatten(1)) + m.plain(m.wide), SAME_FLAT, "head_plain_1", "did not change",
    ),
    "computed reduction": (lambda t, m: t.sum(dim=t.dim() - 1), SAME, "sum", "computed dimension"),
    "attribute": (lambda t, m: t.data.flatten(1), HALF, "getattr", "the attribute data"),
}  # fmt: skip


def flat_model(use: Any) -> Recommender:
    torch.manual_seed(0)
    return Recommender(Refused(6, 8, use), 6, 8)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused(name: str) -> None:
    use, letters, node, reason = REFUSED[name]
    flat = flat_model(use)
    before = {k: (id(v), v.clone()) for k, v in flat.state_dict(keep_vars=True).items()}
    layers = {path: type(module) for path, module in flat.named_modules()}
    config = {"dmt": {"towers": {"module": "dlrm", **letters}}}
    with pytest.raises(TransformError) as caught:
        transform(flat, batch(6, 5), config, "2x1")
    finding = only(caught.value.findings, "DMT401")
    assert finding.severity == "error"
    assert finding.module.startswith(node), str(finding)
    assert re.search(reason, finding.reason), str(finding)  # the whole text also holds the line of this file
    assert "on_unsupported" in finding.hint
    assert {path: type(module) for path, module in flat.named_modules()} == layers
    for key, value in flat.state_dict(keep_vars=True).items():
        assert id(value) == before[key][0] and torch.equal(value, before[key][1])


@pytest.mark.parametrize("name", ["slice", "per feature layers", "chunk", "tied layer"])
def test_moved_unchanged_instead(name: str) -> None:
    use, letters, _, _ = REFUSED[name]
    flat = flat_model(use).eval()
    config = {"dmt": {"towers": {"module": "dlrm", **letters}, "transform": {"on_unsupported": "transport"}}}
    model = transform(flat, batch(6, 5), config, "2x1")
    assert model.semantic_preserving and model.repairs == ()
    assert torch.equal(model(*batch(6, 4)), flat(*batch(6, 4)))
    assert model.group_reasons["group0"]


def test_the_model_returns_a_changed_tensor() -> None:
    class ReturnsVectors(heads.Head):
        def build(self, n: int, d: int) -> None:
            self.top = nn.Linear(n * d, 1)

        def forward(self, x: Tensor, streams: list[Tensor]) -> tuple[Tensor, Tensor]:
            flat = torch.cat(streams, 1)
            return self.top(flat), flat

    for letters in (HALF, SAME):
        with pytest.raises(TransformError) as caught:
            transform(Recommender(ReturnsVectors(6, 8), 6, 8), batch(6, 5), {"dmt": {"towers": letters}}, "2x1")
        finding = only(caught.value.findings, "DMT401")
        assert finding.module == "output" and "the model returns cat" in finding.reason


class TwoGroups(nn.Module):
    """Two groups of tables: the first one's head can be adapted, the second one's cannot."""

    def __init__(self, swapped: bool = False) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10, 8) for _ in range(8))
        self.good, self.bad = nn.Linear(32, 1), nn.Linear(20, 1)
        self.swapped = swapped

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        v = [t(ids[:, f]) for f, t in enumerate(self.tables)]
        if self.swapped:
            v = v[4:] + v[:4]
        good = self.good(torch.cat(v[:4], 1))
        return good + self.bad(torch.cat(v[4:], 1)[:, 12:]) + x.sum(1, keepdim=True)


@pytest.mark.parametrize("swapped", [False, True])
def test_only_the_group_at_fault_moves_unchanged(swapped: bool) -> None:
    config = {"dmt": {"towers": HALF, "transform": {"on_unsupported": "transport"}}}
    model = transform(TwoGroups(swapped), batch(8, 5), config, "2x1")
    by_table = {g.features[0]: g.kind for g in model.plan.groups}
    kinds = ["transport", "tower"] if swapped else ["tower", "transport"]
    assert by_table == {"tables.0": kinds[0], "tables.4": kinds[1]}
    assert {r.target for r in model.repairs} == {"good"}
    finding = only(model.findings, "DMT302")
    assert finding.severity == "warning" and "takes the slice" in finding.reason
    assert model(*batch(8, 4)).shape == (4, 1)


class SomeGuilty(nn.Module):
    """Running sums over the join of ``flats``: those of ``absorbed`` groups passed a layer, which can be resized."""

    def __init__(self, groups: int, absorbed: tuple[int, ...]) -> None:
        super().__init__()
        self.groups = groups
        self.tables = nn.ModuleList(nn.Embedding(10, 8) for _ in range(4 * groups))
        self.layers = nn.ModuleDict({str(g): nn.Linear(32, 32) for g in absorbed})
        self.top = nn.Linear(4, 1)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        v = [t(ids[:, f]) for f, t in enumerate(self.tables)]
        flats = [torch.cat(v[4 * g : 4 * g + 4], 1) for g in range(self.groups)]
        flats = [self.layers[str(g)](flat) if str(g) in self.layers else flat for g, flat in enumerate(flats)]
        return self.top(torch.cat(flats, 1).cumsum(1)[:, -4:]) + x.sum(1, keepdim=True)


@pytest.mark.parametrize(("groups", "absorbed"), [(2, (0,)), (3, (0, 2)), (3, (1,)), (2, (1,))])
def test_a_group_that_only_passes_the_operation_at_fault_keeps_its_towers(
    groups: int, absorbed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    captures: list[Any] = []
    monkeypatch.setattr(compiler, "capture", lambda *args: captures.append(args) or capture(*args))
    config = {"dmt": {"towers": HALF, "transform": {"on_unsupported": "transport"}}}
    model = transform(SomeGuilty(groups, absorbed), batch(4 * groups, 5), config, "2x1")
    assert [g.kind for g in model.plan.groups] == ["tower" if g in absorbed else "transport" for g in range(groups)]
    assert {r.target for r in model.repairs} == {f"layers.{g}" for g in absorbed}
    assert len(captures) == 1


@pytest.mark.parametrize("hidden", [DENSE, 8])
def test_a_shared_dense_layer_is_resized_only_if_all_its_uses_agree(hidden: int) -> None:
    class Shared(heads.Head):
        def build(self, n: int, d: int) -> None:
            self.project = nn.Linear(DENSE, d)
            self.top = nn.Linear((n + 2) * d + 1, 1)

        def forward(self, x: Tensor, streams: list[Tensor]) -> Tensor:
            pair = torch.stack([self.project(x), self.project(x * 2), *streams], dim=1)
            extra = self.project(x * 3).sum(1, keepdim=True) if hidden == 8 else x.sum(1, keepdim=True)
            return self.top(torch.cat([pair.flatten(1), extra], 1))

    flat = Recommender(Shared(6, 8), 6, 8)
    config = {"dmt": {"towers": HALF}}
    if hidden == 8:
        with pytest.raises(TransformError, match="would have to give several sizes"):
            transform(flat, batch(6, 5), config, "2x1")
    else:
        model = transform(flat, batch(6, 5), config, "2x1")
        assert model.get_parameter("head.project.weight").shape == (4, DENSE)
        assert model(*batch(6, 4)).shape == (4, 1)


def test_an_unused_lookup_does_not_disturb() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rest = Recommender(heads.Dot(6, 8), 6, 8)
            self.spare = nn.Embedding(10, 8)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            self.spare(ids[:, 0] % 5)
            return self.rest(x, ids)

    flat = Unused()
    model = transform(copy.deepcopy(flat), batch(6, 5), {"dmt": {"towers": HALF}}, "2x1")
    assert "spare" not in model.table_names
    finding = only(model.findings, "DMT211")
    assert finding.module == "spare" and "does not use its rows" in finding.reason
    assert "self.spare(ids[:, 0] % 5)" in finding.source
    assert "spare.weight" in model.state_dict()
