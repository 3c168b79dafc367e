"""The campaign: faults of every kind, each of which must be taken rightly or refused by name.

    python -m benchmarks.faults --seed 1 --hours 0.5       # table, build/campaign/summary.json
    python -m benchmarks.faults --only plans:1000000541    # one case again
    python -m benchmarks.faults --kinds plans ids --cases 100

1. Cases are made from the seed and their number, so that the same arguments are the same cases.
2. Each is taken, and what comes of it compared with what is right; or refused by the error that the product has for it.
   Anything else is a problem: silently wrong, refused although right, another error, longer than its limit, or a
   process that died. At least 30 % of the cases of each generated kind must be right ones, and be taken.
3. With a problem the exit status is 1, and what repeats the case is printed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

import tests._util.warm  # noqa: F401 - so that workers, which are forked, have it
from benchmarks.faults.judge import Kind, Verdict
from benchmarks.faults.kinds import KINDS
from benchmarks.faults.workers import Case, run_cases
from dmt_plugin.report.parts.tables import Column, Table

APART = 10**9
"""Numbers of cases of one seed; no campaign has as many."""
RIGHT_SHARE, FEW = 0.3, 50
"""Least share of right cases, and the number of cases below which it says nothing."""


def cases_of(kinds: Sequence[str], seed: int, hours: float, cases: int | None) -> list[Case]:
    """Kind and number of every case.

    Args:
        kinds: their names.
        seed: of the campaign.
        hours: what their numbers are in proportion to.
        cases: so many of each instead.
    """
    sizes = {name: cases or max(1, round(KINDS[name].cases * 2 * hours)) for name in kinds}
    return [(name, seed * APART + number) for name in kinds for number in range(sizes[name])]


def summary_of(kind: Kind, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Counts of one kind, and its problems."""
    outcomes = [verdict.outcome for verdict in verdicts if verdict.outcome is not None]
    figures: Counter[str] = Counter()
    for outcome in outcomes:
        for name, value in outcome.figures.items():
            figures[name] = max(figures[name], value) if name.startswith("slowest") else figures[name] + value  # type: ignore[assignment]
    right = sum(outcome.must == "taken" for outcome in outcomes)
    share = right / len(verdicts)
    found = {
        "cases": len(verdicts), "taken": sum(outcome.how == "taken" for outcome in outcomes),
        "refused": sum(outcome.how == "refused" for outcome in outcomes), "right": right, "right share": share,
        "seconds": sum(verdict.seconds for verdict in verdicts),
        "slowest": max(verdict.seconds for verdict in verdicts),
        "problems": dict(Counter(verdict.problem for verdict in verdicts if verdict.problem)),
        "what": dict(sorted(Counter(f"{o.what}: {o.how}" for o in outcomes).items())), "figures": dict(figures),
    }  # fmt: skip
    if kind.generated and len(verdicts) >= FEW and share < RIGHT_SHARE:
        found["problems"]["fewer than 30 % of the cases are right ones"] = 1
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; exit status 1 if something is wrong."""
    about = "\n".join(f"  {kind.name}: {kind.about}; {kind.cases} in half an hour" for kind in KINDS.values())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nKinds:\n{about}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of all cases")
    parser.add_argument("--hours", type=float, default=0.05, help="size of the campaign, on a machine with two cores")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--cases", type=int, help="of each kind, in place of what --hours makes of them")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one case, as a problem names it")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--output", type=Path, default=Path("build/campaign/summary.json"))
    options = parser.parse_args(arguments)
    if options.hours <= 0 or options.seed < 0 or options.workers < 1 or (options.cases or 1) < 1:
        parser.error("--hours, --workers and --cases must be above 0, and --seed not below")
    if options.only:
        name, _, number = options.only.partition(":")
        if name not in KINDS or not number.isdecimal():
            parser.error(f"--only {options.only}: expected KIND:NUMBER, with a kind of {', '.join(KINDS)}")
        cases = [(name, int(number))]
    else:
        cases = cases_of(options.kinds, options.seed, options.hours, options.cases)
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="campaign-") as shared, tqdm(total=len(cases), unit="case") as bar:
        for name in dict(cases):
            prepare = KINDS[name].prepare
            if prepare is not None:
                prepare(Path(shared))

        def report(verdict: Verdict) -> None:
            bar.update()
            if verdict.problem:
                bar.write(f"{verdict.again}  {verdict.problem}: {verdict.said}")

        verdicts = run_cases(KINDS, cases, Path(shared), options.workers, report)
    by_kind = {
        name: summary_of(KINDS[name], [verdict for verdict in verdicts if verdict.kind == name]) for name in dict(cases)
    }
    wrong = sum(sum(found["problems"].values()) for found in by_kind.values())
    columns = [
        Column("kind", "kind", text=True), Column("cases", "cases"), Column("taken", "taken"),
        Column("refused", "refused"), Column("share", "right ones", ".0f", "%"),
        Column("slowest", "slowest", ".1f", "s"),
        Column("problems", "problems"),
    ]  # fmt: skip
    rows = [
        {**found, "kind": name, "share": 100 * found["right share"], "problems": sum(found["problems"].values())}
        for name, found in by_kind.items()
    ]
    console = Console()
    console.print(Table(columns, rows).to_rich("campaign"))
    seconds = time.monotonic() - began
    totals: Counter[str] = sum((Counter(found["figures"]) for found in by_kind.values()), Counter())
    console.print(
        f"{len(verdicts)} cases, {totals['kills']:g} kills, in {seconds / 60:.1f} minutes; {wrong} problem(s)"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    made = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    problems = [
        {"again": v.again, "problem": v.problem, "said": v.said, "seconds": v.seconds} for v in verdicts if v.problem
    ]
    asked = {name: getattr(options, name) for name in ("seed", "hours", "cases", "only", "workers")}
    whole = {"made": made, **asked, "seconds": seconds, "kinds": by_kind, "problems": problems}
    options.output.write_text(json.dumps(whole, indent=1))
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
