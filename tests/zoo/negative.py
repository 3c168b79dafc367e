"""Models that must be refused, or warned of, each with what has to be said.

A case has the finding's code, the module path that it must name, and a part of its reason. ``python -m
tests.zoo.negative`` prints what the compiler says of each.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dmt_plugin.capture import ExampleBatch
from dmt_plugin.compiler import transform
from tests.zoo.checks import TOPOLOGY, TRACE_BATCH, notes_of
from tests.zoo.negative_models import (
    AssignsItems,
    Base,
    BranchOnData,
    CountsCalls,
    FixedBatch,
    FixedPositions,
    LoopOverBatch,
    MadeInForward,
    MarkedTwice,
    NamedGraph,
    NoTable,
    NumberFromData,
    OneLookup,
    OneTable,
    PathOfMode,
    Repeated,
    SizeFromData,
    SomeFunctional,
    ThroughNumpy,
    Tied,
    TiedByFunction,
    UsedOutside,
    WritesIntoTable,
    WritesIntoVector,
    _bags,
    _behind,
    _compiled,
    _compiled_in_place,
    _compiled_inside,
    _distributed,
    _hidden,
    _hooked,
    _hooked_backward,
    _misfit,
    _padding_not_zero,
    _plain,
    _scripted,
    _scripted_inside,
)
from tests.zoo.spec import Built, call_of

TOWERS = {"dmt": {"towers": {"module": "dlrm", "c": 1, "p": 0, "dim": 4}}}
SPTT = {"dmt": {"towers": {"module": "none"}}}
FBGEMM = {"dmt": {**SPTT["dmt"], "lookup": {"backend": "fbgemm"}}}


@dataclass(frozen=True)
class Negative:
    """A model that must be refused.

    Attributes:
        name: unique.
        build: makes the model and its batches.
        code: code of the finding.
        place: what the finding must name: a module path of the model ("" for the model itself), or an input; for an
            operation behind the towers, its node (a pattern).
        reason: a part of the finding's reason; for a trace that stops, a part of the user's line.
        config: the DeepSpeed configuration it is refused under.
        severity: "error", or "warning" where the rest of the model can go on safely.
    """

    name: str
    build: Callable[[], Built]
    code: str
    place: str
    reason: str
    config: dict[str, Any] = field(default_factory=lambda: SPTT)
    severity: str = "error"


NEGATIVES = [
    Negative("branch_on_data", _behind(BranchOnData), "DMT101", "last", "if x.mean() > 0"),
    Negative("number_from_data", _behind(NumberFromData), "DMT101", "last", "x.max().item()"),
    Negative("size_from_data", _behind(SizeFromData), "DMT101", "last", "torch.masked_select(x, x > 0)"),
    Negative("loop_over_batch", _behind(LoopOverBatch), "DMT102", "last", "for i in range(x.size(0))"),
    Negative("fixed_batch", _behind(FixedBatch), "DMT102", "last", "x.view(len(x), 1)"),
    Negative("writes_into_table", _plain(WritesIntoTable), "DMT103", "tables.2", "tables.2.weight in place"),
    Negative("writes_into_vector", _plain(WritesIntoVector), "DMT103", "tables.0", "vectors[0].data[:, 0].mul_(0.5)"),
    Negative("writes_into_buffer", _behind(CountsCalls), "DMT103", "last", "last.calls in place"),
    Negative("assigns_items", _behind(AssignsItems), "DMT103", "last", "out[:, 0][:] = x[:, 0]"),
    Negative("module_made_in_forward", _behind(MadeInForward), "DMT104", "last", "nn.Linear(1, 1)"),
    Negative("compiled", _compiled, "DMT105", "", "compiled module"),
    Negative("compiled_inside", _compiled_inside, "DMT105", "deep", "compiled module"),
    Negative("compiled_in_place", _compiled_in_place, "DMT105", "deep", "compiled in place"),
    Negative("scripted", _scripted, "DMT105", "", "scripted module"),
    Negative("scripted_inside", _scripted_inside, "DMT105", "deep", "scripted module"),
    Negative("distributed", _distributed, "DMT105", "", "wraps the model for distribution"),
    Negative("path_of_mode", _behind(PathOfMode), "DMT106", "last", "x * 2 if self.training"),
    Negative("through_numpy", _behind(ThroughNumpy), "DMT107", "last", "x.detach().numpy()"),
    Negative("hidden_input", _hidden, "DMT108", "batch", "Hidden"),
    Negative("input_too_many", _misfit, "DMT109", "", "too many positional arguments"),
    Negative("hook_on_the_model", _hooked, "DMT112", "", "forward hooks"),
    Negative("hook_of_the_backward", _hooked_backward, "DMT112", "deep", "backward hooks"),
    Negative("named_graph", _plain(NamedGraph), "DMT113", "graph", "called 'graph'"),
    Negative("no_table", _plain(NoTable), "DMT200", "", "no embedding"),
    Negative("max_norm", _plain(lambda: Base(max_norm=1.0)), "DMT201", "tables.0", "max_norm"),
    Negative("max_norm_in_function", _plain(SomeFunctional), "DMT201", "extra", "F.embedding(ids[:, 0], self.extra"),
    Negative("scale_grad_by_freq", _bags(mode="sum", scale_grad_by_freq=True), "DMT202", "tables.2", "batch counts"),
    Negative("max_pooling", _bags(mode="max"), "DMT204", "tables.2", "maximum", FBGEMM),
    Negative("tied_to_a_layer", _plain(Tied), "DMT205", "tables.1", "items"),
    Negative("tied_by_function", _plain(TiedByFunction), "DMT205", "tables.1", "also used by"),
    Negative("padding_not_zero", _padding_not_zero, "DMT207", "tables.0", "not zero"),
    Negative("marked_twice", _plain(MarkedTwice), "DMT220", "tables.2", "marked twice: as item: c and as user: d"),
    Negative("one_lookup", _plain(OneLookup, 1), "DMT305", "tables.0", "alone", TOWERS),
    Negative("one_table", _plain(OneTable), "DMT305", "table", "taken for a sequence", TOWERS),
    Negative("used_outside", _plain(UsedOutside), "DMT306", "tables.3", "enter the join", TOWERS, "warning"),
    Negative("repeated_streams", _plain(Repeated), "DMT302", "tables.0", "more than once", TOWERS),
    Negative("fixed_positions", _plain(FixedPositions), "DMT401", r"getitem(_\d+)?", "takes entry 0", TOWERS),
]


def says(case: Negative) -> list[dict[str, str]]:
    """What the compiler says of a case: its error or errors; findings of any severity if it accepts the model."""
    torch.manual_seed(0)
    model, batch = case.build()
    try:
        towers = transform(model, ExampleBatch(*call_of(batch(TRACE_BATCH, 0))), case.config, TOPOLOGY)
    except Exception as error:
        return [n for n in notes_of(error, case.name) if n["severity"] == "error"]
    return [
        {"stage": case.name, "code": f.code, "severity": f.severity, "module": f.module, "reason": f.reason}
        for f in towers.findings
    ]


def verdict(case: Negative, notes: list[dict[str, str]]) -> str:
    """``as expected``; or how the answer differs: accepted, a crash, another code, another place."""
    found = {n["severity"] for n in notes}
    if case.severity not in found and "error" not in found:
        return f"accepted, with {', '.join(sorted({n['code'] for n in notes})) or 'no finding'}"
    if any(n["code"] == "CRASH" for n in notes):
        return "crash"
    right = [n for n in notes if n["code"] == case.code]
    if not right:
        return f"refused as {', '.join(sorted({n['code'] for n in notes}))}"
    there = [n for n in right if re.fullmatch(case.place, n["module"])]
    if not there:
        return f"another place: {', '.join(n['module'] or '(model)' for n in right)}"
    return "as expected" if any(case.reason in n["reason"] for n in there) else f"another reason: {there[0]['reason']}"


def main() -> int:
    """Prints a table; the exit status is 1 unless all is as expected."""
    warnings.filterwarnings("ignore")
    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table("model", "must be", "names", "verdict", "what was said", title="Models that must be refused")
    wrong = 0
    for case in NEGATIVES:
        notes = says(case)
        answer = verdict(case, notes)
        bad = answer.startswith(("accepted", "crash"))
        wrong += answer != "as expected"
        said = "; ".join(f"{n['code']} {n['module']} {n['reason']}" for n in notes)[:170].replace("[", "\\[")
        colour = "green" if answer == "as expected" else "red" if bad else "yellow"
        table.add_row(case.name, case.code, case.place, f"[{colour}]{answer}", said)
    console.print(table)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
