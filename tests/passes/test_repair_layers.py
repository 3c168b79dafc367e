"""Layers, parameters and attention behind the streams: what follows them, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import TransformError
from dmt_plugin.fxtools.names import SEED, SEED_VALUE
from dmt_plugin.passes.resize.sweep import Sweep, UnsupportedAt
from tests.passes import heads, heads_layers
from tests.passes.flat import only
from tests.passes.heads import DENSE, Recommender, batch
from tests.passes.test_repair_oracle import SIZES, assert_is_the_oracle, repaired
from tests.passes.test_repair_refusals import HALF, MORE, SAME, SAME_FLAT

ANY_WIDTH = (
    heads_layers.GeneratedVectors, heads_layers.FieldGate, heads_layers.FlatGate, heads_layers.TransposedVectors,
    heads_layers.RegroupedLayer, heads_layers.CountedVectors, heads_layers.LayersInOneParameter,
    heads_layers.OwnParameters, heads_layers.ParameterReadTwice, heads_layers.ProjectedAttention,
    heads_layers.NormsOverFields, heads_layers.BilinearForms,
)  # fmt: skip
CASES = [(head, size) for head in ANY_WIDTH for size in sorted(SIZES)] + [
    (head, size)
    for head in (heads_layers.AttentionOverStreams, heads_layers.HeadsApart)
    for size in ("more", "same sizes")
]


@pytest.mark.parametrize(("head", "size"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_repair_builds_what_the_constructor_builds(head: type[heads.Head], size: str) -> None:
    model, oracle, streams, dim = repaired(head, size)
    assert_is_the_oracle(model, oracle, streams, dim, SIZES[size][0])


class Uses(heads.Head):
    """``use(x, t, self)`` on the dense input and the stacked streams ``(B, 6, 8)``; the result is summed."""

    def __init__(self, use: Any) -> None:
        self.use = use
        super().__init__(6, 8)

    def build(self, n: int, d: int) -> None:
        self.attend = nn.MultiheadAttention(d, 2, batch_first=True)
        self.biased = nn.MultiheadAttention(d, 2, batch_first=True, add_bias_kv=True)
        self.encode = nn.TransformerEncoderLayer(d, 2, 7, batch_first=True)
        self.decode = nn.TransformerDecoderLayer(d, 2, 7, batch_first=True)
        self.form_of_both = nn.Bilinear(d, d, 2)
        self.gru, self.lstm = nn.GRU(d, 2, batch_first=True), nn.LSTM(d, 2, batch_first=True)
        self.register_buffer("mask", torch.zeros(n, n, dtype=torch.bool))
        self.make, self.three, self.gate = nn.Linear(DENSE, 4 * d), nn.Linear(DENSE, 3 * d), nn.Linear(DENSE, n * d)
        self.small, self.form = nn.Linear(DENSE, 4 * 3), nn.Parameter(torch.randn(d, 3))
        self.frozen = nn.Parameter(torch.randn(n, d), requires_grad=False)
        self.per_field = nn.Parameter(torch.randn(n))
        self.top = nn.Linear(3 * d, 1)

    def forward(self, x: Tensor, streams: heads.Streams) -> Tensor:
        return self.use(x, torch.stack(streams, dim=1), self).flatten(1).sum(1)


def raw(x: Tensor, size: int) -> Tensor:
    """Entries that no layer gives: dense inputs, over and over."""
    return torch.cat([x] * 10, dim=1)[:, :size]


def by_position(made: Tensor, t: Tensor) -> Tensor:
    return torch.cat([made.view(-1, 3, 8), t], 1).sum(1) + made[:, :4].sum(1, keepdim=True)


WIDE = {"c": 1, "p": 0, "dim": 16}

# name: (use, tower letters, reason)
REFUSED: dict[str, tuple[Any, dict[str, int], str]] = {
    "attention of another width": (
        lambda x, t, m: m.attend(t, t, t)[0], HALF, "its embed_dim is 8.*streams of width 4.*set dmt.towers.dim to 8",
    ),
    "attention with a mask": (
        lambda x, t, m: m.attend(t, t, t, attn_mask=m.mask)[0], MORE, "its attn_mask counts features",
    ),
    "attention with a mask, as many fields": (
        lambda x, t, m: m.attend(t, t, t, None, False, m.mask)[0], SAME, "its attn_mask counts features",
    ),
    "attention with padding": (
        lambda x, t, m: m.attend(t, t, t, raw(x, 6) > 9)[0], MORE, "its key_padding_mask counts features",
    ),
    "attention with one more key": (lambda x, t, m: m.biased(t, t, t)[0], MORE, "one more vector"),
    "attention with vectors of another kind": (
        lambda x, t, m: m.attend(t, t, raw(x, 48).view(-1, 6, 8))[0], SAME, "nothing that produces it",
    ),
    "encoder of another width": (lambda x, t, m: m.encode(t), HALF, "its d_model is 8.*set dmt.towers.dim to 8"),
    "encoder with a mask": (lambda x, t, m: m.encode(t, m.mask), SAME, "its src_mask counts features"),
    "decoder": (lambda x, t, m: m.decode(t, t), SAME, "head.decode is not known"),
    "bilinear layer with vectors of another kind": (
        lambda x, t, m: m.form_of_both(t, raw(x, 48).view(-1, 6, 8)), SAME, "nothing that produces it",
    ),
    "gru": (lambda x, t, m: m.gru(t)[0], SAME, "reads the features one after the other"),
    "lstm": (lambda x, t, m: m.lstm(t)[0], MORE, "reads the features one after the other"),
    "part of what lies beside as many streams stays": (
        lambda x, t, m: torch.cat([m.small(x).view(-1, 4, 3), raw(x, 6).view(-1, 2, 3)], 1) + torch.matmul(t, m.form),
        SAME, "still 6.*nothing that produces it",
    ),
    "several parts beside more streams": (
        lambda x, t, m: torch.cat([m.three(x).view(-1, 3, 8), m.three(x).view(-1, 3, 8)], 1) + t, MORE,
        "which of the parts joined there should change is not known",
    ),
    "given vectors cut by the new width": (
        lambda x, t, m: torch.matmul(raw(x, 8).view(x.size(0), -1, t.size(2)), t.mT), HALF, "nothing that produces it",
    ),
    "a layer cut by the new width": (
        lambda x, t, m: torch.matmul(m.three(x).view(x.size(0), -1, t.size(2)), t.mT), WIDE,
        "24 entries by a size that became 16",
    ),
    "a layer cut into more dimensions": (
        lambda x, t, m: m.make(x).view(x.size(0), 2, -1, t.size(2)).sum(1) + t.mean((1, 2), True), HALF,
        "reads a size that changed",
    ),
    "two layouts of one size": (
        lambda x, t, m: t.flatten(1) + t.transpose(1, 2).flatten(1), SAME_FLAT, "made of different parts",
    ),
    "flat vectors beside given ones": (
        lambda x, t, m: torch.stack([t.flatten(1), raw(x, 48)], 1), SAME_FLAT, "nothing that produces it",
    ),
    "a frozen parameter": (lambda x, t, m: t + m.frozen, MORE, "head.frozen is frozen"),
    "a parameter that something else needs as it is": (
        lambda x, t, m: (t * m.per_field[None, :, None]).sum(1) + (raw(x, 6) * m.per_field).sum(1, keepdim=True), MORE,
        "nothing that produces it",
    ),
    "a layer that is also called elsewhere": (
        lambda x, t, m: t.flatten(1) * m.gate(x) + m.gate(x * 2).sum(1, keepdim=True), HALF,
        "would have to give several sizes",
    ),
    "a layer whose entries are taken by position": (
        lambda x, t, m: by_position(m.three(x), t), HALF, "takes the slice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused(name: str) -> None:
    use, letters, reason = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(TransformError) as caught:
        transform(Recommender(Uses(use), 6, 8), batch(6, 5), {"dmt": {"towers": {"module": "dlrm", **letters}}}, "2x1")
    finding = only(caught.value.findings, "DMT401")
    assert finding.module
    assert re.search(reason, finding.reason), str(finding)  # the whole text also holds the line of this file


def outcome(use: Any, letters: dict[str, int]) -> Any:
    torch.manual_seed(0)
    flat = Recommender(Uses(use), 6, 8)
    return flat, transform(flat, batch(6, 5), {"dmt": {"towers": {"module": "dlrm", **letters}}}, "2x1")


def test_attention_whose_entries_mean_something_else_starts_anew() -> None:
    for path, use in (("attend", lambda x, t, m: m.attend(t, t, t)[0] + t), ("encode", lambda x, t, m: m.encode(t))):
        flat, model = outcome(use, MORE)
        (repair,) = (r for r in model.repairs if r.target == f"head.{path}")
        assert "mean something else" in repair.what
        before, after = flat.state_dict(), model.state_dict()
        weights = [k for k in before if k.startswith(f"head.{path}.") and before[k].dim() > 1]
        assert weights and not any(torch.equal(before[k], after[k]) for k in weights)
        assert model(*batch(6, 3)).shape == (3,)


def test_attention_at_a_width_of_its_own_stays() -> None:
    flat = Recommender(heads_layers.ProjectedAttention(6, 8), 6, 8)
    model = transform(flat, batch(6, 5), {"dmt": {"towers": {"module": "dlrm", **HALF}}}, "2x1")
    assert not any("attend" in repair.target for repair in model.repairs)
    before, after = flat.state_dict(), model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if "attend" in k)


def test_a_residual_without_a_layer_needs_as_many_streams() -> None:
    flat = Recommender(heads_layers.SameNumberResidual(6, 8), 6, 8)
    model = transform(flat, batch(6, 5), {"dmt": {"towers": {"module": "dlrm", **HALF}}}, "2x1")
    changed = {repair.target for repair in model.repairs}
    assert changed == {"head.number", "head.make", "head.compress", "head.top"}
    with pytest.raises(TransformError, match="which of the parts joined there should change is not known"):
        transform(flat, batch(6, 5), {"dmt": {"towers": {"module": "dlrm", **MORE}}}, "2x1")


class ContextBeside(heads.Head):
    """The first streams do not go through towers: they are used by a gate as well as by the stack."""

    def build(self, n: int, d: int) -> None:
        self.gate = nn.Linear(d, n * d)
        self.top = nn.Linear(n * d, 1)

    def forward(self, x: Tensor, streams: list[Tensor]) -> Tensor:
        flat = torch.stack(streams, dim=1).flatten(1)
        return self.top(flat * self.gate(streams[0]).sigmoid())


def test_a_table_beside_the_towers_keeps_its_width() -> None:
    flat = Recommender(ContextBeside(6, 8), 6, 8)
    model = transform(flat, batch(6, 5), {"dmt": {"towers": {"module": "dlrm", **MORE}}}, "2x1")
    assert {repair.target for repair in model.repairs} == {"head.gate", "head.top"}
    assert model.get_parameter("head.gate.weight").shape == (8 * 8, 8)  # 1 + 5 + one per tower
    with pytest.raises(TransformError, match=r"does not go through these towers.*set dmt.towers.dim to 8"):
        transform(flat, batch(6, 5), {"dmt": {"towers": {"module": "dlrm", **HALF}}}, "2x1")


def test_a_parameter_has_one_size_wherever_it_is_read() -> None:
    root = nn.Module()
    root.form = nn.Parameter(torch.randn(8, 3))
    graph = fx.Graph()
    stream, other = graph.placeholder("stream"), graph.placeholder("other")
    stream.meta |= {"val": torch.empty(5, 8), SEED: ("group0", 6, 8, 4), SEED_VALUE: torch.empty(5, 4)}
    other.meta["val"] = torch.empty(5, 8)
    reads = [graph.get_attr("form") for _ in range(2)]
    products = [graph.call_function(torch.matmul, (x, read)) for x, read in zip((stream, other), reads, strict=True)]
    graph.output(tuple(products))
    for node, shape in [*((read, (8, 3)) for read in reads), *((product, (5, 3)) for product in products)]:
        node.meta["val"] = torch.empty(shape)
    with pytest.raises(UnsupportedAt, match="4 entries instead of 8 in dimension 1 of other"):
        Sweep(fx.GraphModule(root, graph)).run()


def test_a_layer_cut_into_other_vectors_starts_anew() -> None:
    """Also where its size stays: its outputs lie in other vectors now."""
    flat = Recommender(heads_layers.RegroupedLayer(6, 8), 6, 8)
    model = transform(flat, batch(6, 5), {"dmt": {"towers": {"module": "dlrm", **HALF}}}, "2x1")
    what = {repair.target: repair.what for repair in model.repairs}
    assert "out_features 48 -> 48 (outputs mean something else)" in what["head.rows"]
    assert F.cosine_similarity(flat.head.rows.bias, model.get_parameter("head.rows.bias"), dim=0) < 0.9
