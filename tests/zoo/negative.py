"""Models that must be refused, or warned of, each with what has to be said.

A case has the finding's code (or the class of the error, where there is no finding), the module path or the text that
it must name, and where it differs from today's, the code that is proposed. ``python -m tests.zoo.negative`` prints what
the compiler says of each. The codes of ``Proposed`` are only proposals: nothing raises them yet.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dmt_plugin.api import transform
from dmt_plugin.capture import ExampleBatch
from tests.zoo.checks import TOPOLOGY, TRACE_BATCH, notes_of
from tests.zoo.negative_models import (
    Base,
    BranchOnData,
    FixedBatch,
    FixedPositions,
    LoopOverBatch,
    LoopOverIds,
    MadeInForward,
    NoTable,
    OneLookup,
    Repeated,
    SomeFunctional,
    Tied,
    TiedByFunction,
    UsedOutside,
    WritesIntoTable,
    WritesIntoVector,
    _bags,
    _compiled,
    _frozen,
    _padding_not_zero,
    _plain,
    _scripted,
)
from tests.zoo.spec import Built, call_of

TOWERS = {"dmt": {"towers": {"module": "dlrm", "c": 1, "p": 0, "dim": 4}}}
SPTT = {"dmt": {"towers": {"module": "none"}}}


@dataclass(frozen=True)
class Negative:
    """A model that must be refused.

    Attributes:
        name: unique.
        build: makes the model and its batches.
        code: code of the finding.
        place: module path or graph node that the finding must name, or a part of it; for a trace that stops, a part
            of the user's line.
        config: the DeepSpeed configuration it is refused under.
        proposed: True where the code does not exist yet, or is not yet given in this case.
        severity: "error", or "warning" where the rest of the model can go on safely.
    """

    name: str
    build: Callable[[], Built]
    code: str
    place: str
    config: dict[str, Any]
    proposed: bool = False
    severity: str = "error"


NEGATIVES = [
    Negative("branch_on_data", _plain(BranchOnData), "DMT101", "if out.mean() > 0", SPTT, True),
    Negative("number_from_data", _plain(LoopOverIds), "DMT101", "ids.max().item()", SPTT, True),
    Negative("loop_over_batch", _plain(LoopOverBatch), "DMT102", "", SPTT, True),
    Negative("fixed_batch", _plain(FixedBatch), "DMT102", "", SPTT, True),
    Negative("writes_into_table", _plain(WritesIntoTable), "DMT103", "tables.2", SPTT, True),
    Negative("writes_into_vector", _plain(WritesIntoVector), "DMT103", "mul_", SPTT, True),
    Negative("module_made_in_forward", _plain(MadeInForward), "DMT104", "nn.Linear(1, 1)", SPTT, True),
    Negative("compiled", _compiled, "DMT105", "Base", SPTT, True),
    Negative("scripted", _scripted, "DMT105", "", SPTT, True),
    Negative("no_table", _plain(NoTable), "DMT200", "", SPTT),
    Negative("max_norm", _plain(lambda: Base(max_norm=1.0)), "DMT201", "tables.0", SPTT),
    Negative("max_norm_in_function", _plain(SomeFunctional), "DMT201", "extra", SPTT, True),
    Negative("scale_grad_by_freq", _bags(mode="sum", scale_grad_by_freq=True), "DMT202", "tables.2", SPTT),
    Negative("frozen", _frozen, "DMT203", "tables.4", SPTT),
    Negative("max_pooling", _bags(mode="max"), "DMT204", "tables.2", SPTT),
    Negative("tied_to_a_layer", _plain(Tied), "DMT205", "tables.1", SPTT),
    Negative("tied_by_function", _plain(TiedByFunction), "DMT205", "tables.1", SPTT),
    Negative("padding_not_zero", _padding_not_zero, "DMT207", "tables.0", SPTT),
    Negative("one_lookup", _plain(OneLookup, 1), "DMT305", "tables.0", TOWERS, True),
    Negative("used_outside", _plain(UsedOutside), "DMT306", "tables.3", TOWERS, True, "warning"),
    Negative("repeated_streams", _plain(Repeated), "DMT302", "more than once", TOWERS),
    Negative("fixed_positions", _plain(FixedPositions), "DMT401", "getitem", TOWERS),
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
    return "as expected" if any(case.place in n["module"] + n["reason"] for n in right) else "another place"


def main() -> int:
    """Prints a table; the exit status is 1 if any case is accepted or crashes."""
    warnings.filterwarnings("ignore")
    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table("model", "must be", "names", "verdict", "what was said", title="Models that must be refused")
    wrong = 0
    for case in NEGATIVES:
        notes = says(case)
        answer = verdict(case, notes)
        bad = answer.startswith(("accepted", "crash"))
        wrong += bad
        said = "; ".join(f"{n['code']} {n['module']} {n['reason']}" for n in notes)[:170].replace("[", "\\[")
        colour = "green" if answer == "as expected" else "red" if bad else "yellow"
        mark = " (proposed)" if case.proposed else ""
        table.add_row(case.name, case.code + mark, case.place, f"[{colour}]{answer}", said)
    console.print(table)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
