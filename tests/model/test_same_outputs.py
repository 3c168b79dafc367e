"""transform() checks rewrites of models whose tables are on the meta device, or says that it did not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.capture import ExampleBatch
from dmt_plugin.compiler import transform
from dmt_plugin.config.lookup import LookupConfig
from dmt_plugin.core.errors import TransformError
from dmt_plugin.model.same_outputs import OutputsCheck
from dmt_plugin.passes.base import PassContext, PassResult
from dmt_plugin.passes.logical.insert_towers import InsertTowers
from dmt_plugin.tables.on_demand import RowsOnDemand
from tests.passes.flat import ROWS, Flat, cat, ids, only

FEATURES = 4
TABLES_ONLY = (nn.Embedding, nn.EmbeddingBag)


def on_meta(model: nn.Module, kinds: tuple[type, ...] = TABLES_ONLY) -> nn.Module:
    """The model with the weights of such layers on meta."""
    for module in model.modules():
        if isinstance(module, kinds):
            for name, p in list(module._parameters.items()):
                if p is not None:
                    setattr(module, name, nn.Parameter(torch.empty_like(p, device="meta")))
    return model


def flat(**more: Any) -> Flat:
    torch.manual_seed(0)
    return Flat(cat, features=FEATURES, **more)


def looked_up(model: nn.Module, monkeypatch: pytest.MonkeyPatch, **dmt: Any) -> tuple[list[str], list[Any]]:
    """What transforming says, and the rows that it has made."""
    made: list[Any] = []
    make = RowsOnDemand._make

    def see(self: RowsOnDemand, table: Any, rows: Tensor, what: str) -> None:
        made.append((table.name, sorted(rows.tolist())))
        make(self, table, rows, what)

    monkeypatch.setattr(RowsOnDemand, "_make", see)
    parameters = dict(model.named_parameters())
    towers = transform(model, (ids(FEATURES, 5),), {"dmt": dmt}, "2x1")
    assert {n: id(p) for n, p in model.named_parameters()} == {n: id(p) for n, p in parameters.items()}
    return [f"{f.severity} {f}" for f in towers.findings if f.code == "DMT404"], made


@pytest.mark.parametrize("towers", [{"module": "none"}, {"c": 1, "p": 0}])
def test_tables_on_meta_are_checked(monkeypatch: pytest.MonkeyPatch, towers: Mapping[str, Any]) -> None:
    said, made = looked_up(on_meta(flat()), monkeypatch, towers=dict(towers))
    assert not said
    batch = ids(FEATURES, 5)
    expected = [(f"tables.{f}.weight", sorted(set(batch[:, f].tolist()))) for f in range(FEATURES)]
    assert sorted(map(str, made)) == sorted(map(str, expected * 4))  # two models, twice


def test_the_check_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked_up(on_meta(flat()), monkeypatch, transform={"verify": False}) == ([], [])


def swapped_tables(ctx: PassContext) -> None:
    join = ctx.facts.groups[0].joins[0]
    entries = list(join.args[0])  # type: ignore[arg-type]
    entries[1], entries[2] = entries[2], entries[1]
    join.args = (entries, *join.args[1:])


def other_rows_of_one_table(ctx: PassContext) -> None:
    lookup = ctx.facts.lookups[2].node
    with ctx.gm.graph.inserting_before(lookup):
        wrong = ctx.gm.graph.call_function(torch.remainder, (lookup.args[0], ROWS - 1))
        wrong = ctx.gm.graph.call_function(torch.add, (wrong, 1))
    wrong.meta = dict(lookup.args[0].meta)  # type: ignore[union-attr]
    lookup.args = (wrong, *lookup.args[1:])


def one_sample_for_another(ctx: PassContext) -> None:
    lookup = ctx.facts.lookups[3].node
    with ctx.gm.graph.inserting_after(lookup):
        wrong = ctx.gm.graph.call_method("flip", (lookup, 0))
    wrong.meta = dict(lookup.meta)
    lookup.replace_all_uses_with(wrong, delete_user_cb=lambda user: user is not wrong)


@pytest.mark.parametrize("spoil", [swapped_tables, other_rows_of_one_table, one_sample_for_another])
def test_a_wrong_rewrite_is_found(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[PassContext], None]) -> None:
    sound = InsertTowers.run

    def run(self: InsertTowers, ctx: PassContext) -> PassResult:
        result = sound(self, ctx)
        spoil(ctx)
        return result

    monkeypatch.setattr(InsertTowers, "run", run)
    model = on_meta(flat())
    weights = list(model.parameters())
    with pytest.raises(TransformError, match=r"inserting towers changed the outputs .*largest difference") as caught:
        transform(model, (ids(FEATURES, 5),), {"dmt": {"towers": {"module": "none"}}}, "2x1")
    assert "a defect of the compiler" in only(caught.value.findings, "DMT402").hint
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))


class Also(nn.Module):
    """A model, and something beside it that is on meta."""

    def __init__(self, beside: Tensor) -> None:
        super().__init__()
        self.rest = on_meta(flat())
        if isinstance(beside, nn.Parameter):
            self.beside = beside
        else:
            self.register_buffer("beside", beside)

    def forward(self, index: Tensor) -> Tensor:
        return self.rest(index) + self.beside.mean()


def whole() -> nn.Module:
    return on_meta(flat(), (nn.Embedding, nn.Linear))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (whole, "no values for top.weight, top.bias, on the meta device"),
        (lambda: Also(torch.empty(2, 3, device="meta")), "no values for beside, on the meta device"),
        (lambda: Also(nn.Parameter(torch.empty(3, device="meta"))), "no values for beside, on the meta device"),
        (lambda: Also(nn.Parameter(torch.empty(4, 3, device="meta"))), "beside"),
    ],
)
def test_what_has_no_values_is_not_checked_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], nn.Module], words: str
) -> None:
    (said,), made = looked_up(build(), monkeypatch)
    assert said.startswith("info DMT404") and words in said
    assert "was not compared with yours on the example batch" in said
    assert "beside" not in dict(made)


def test_a_batch_that_looks_up_too_much_is_said() -> None:
    rows = torch.arange(70_000).unsqueeze(1)
    model = nn.Sequential(nn.EmbeddingBag(10**6, 1024, device="meta"), nn.Linear(1024, 1))
    check = OutputsCheck(model, ExampleBatch((rows,)), LookupConfig())
    check.run(model, "nothing")
    assert "the check would take 273.4 MiB" in check.why_not and [f.code for f in check.findings] == ["DMT404"]
    check.run(nn.Identity(), "a wrong rewrite")  # once it is known that nothing can be compared, nothing is


def test_tables_with_values_are_checked_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked_up(flat(), monkeypatch) == ([], [])


@pytest.mark.parametrize("form", ["error", "decoder"])
def test_tower_modules_of_tables_on_meta_are_beside_the_dense_layers(form: str) -> None:
    def build() -> nn.Module:
        made = flat()
        if form == "decoder":
            made.join = lambda streams, model: torch.cat(streams, 1).cumsum(1)  # takes no other streams
        return made

    def new_parameters(model: nn.Module) -> set[str]:
        towers = transform(model, (ids(FEATURES, 5),), {"dmt": {"transform": {"on_unsupported": form}}}, "2x1")
        kept = {id(p) for p in model.parameters()}
        return {p.device.type for p in towers.parameters() if id(p) not in kept}

    assert new_parameters(on_meta(build())) == {"cpu"}
    assert new_parameters(on_meta(build(), (nn.Embedding, nn.Linear))) == {"meta"}
