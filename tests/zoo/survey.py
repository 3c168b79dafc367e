"""Runs the whole zoo through the compiler and says what it makes of each model: ``python -m tests.zoo.survey``.

1. Capture: the graph computes what the model computes, in both modes, at other batch sizes, copied and pickled.
2. SPTT: with pass-through towers outputs, every gradient and four steps of training are equal bit for bit.
3. Tower modules: one output per feature at half the width first, then one more output per tower at full width;
   what is refused in both is tried with each fallback.
4. Oracle: the rewritten model equals the same architecture from its author's own constructor.

Prints a table, says why of every model that is not native or not equal, and writes ``build/zoo.json``:
``{model: {"capture", "sptt_equal", "tm": "native|decoder|transport|refused", "oracle": "equal|n/a", "findings"}}``
and some more keys. Two more words stand for defects: ``wrong`` in ``tm`` if a rewrite went through and fails a check
behind it, ``different`` in ``oracle``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dmt_plugin.core.errors import DMTError
from tests.zoo.catalogue import CATALOGUE
from tests.zoo.checks import (
    Note,
    check_capture,
    check_sptt,
    check_towers,
    covered,
    fallbacks,
    has_towers,
    notes_of,
    tower_config,
)  # fmt: skip
from tests.zoo.oracle import SETTINGS, check_oracle
from tests.zoo.spec import WIDTH, Variant

CONFIGS = {"c1 p0 D=N/2": (1, 0, WIDTH // 2), "c1 p1 D=N": (1, 1, WIDTH)}
OUTPUT = Path(__file__).resolve().parents[2] / "build" / "zoo.json"
NATIVE = 0.88


def survey(variant: Variant) -> dict[str, Any]:
    """All checks of one variant."""
    start = time.perf_counter()
    findings: list[Note] = []
    row: dict[str, Any] = {"capture": False, "sptt_equal": False, "tm": "refused", "oracle": "n/a"}
    try:
        check_capture(variant)
        row["capture"] = True
    except Exception as error:
        findings += notes_of(error, "capture")
    try:
        check_sptt(variant)
        row["sptt_equal"] = True
    except Exception as error:
        findings += notes_of(error, "sptt")
    row |= {"config": "", "covered": ""}
    row |= _towers(variant, findings)
    if variant.oracle is not None and row["tm"] == "native":
        row |= _oracle(variant, findings)
    row |= {"family": variant.family, "seconds": round(time.perf_counter() - start, 2), "findings": findings}
    if variant.why_no_oracle:
        row["why_no_oracle"] = variant.why_no_oracle
    return row


def _towers(variant: Variant, findings: list[Note]) -> dict[str, Any]:
    for name, (c, p, dim) in CONFIGS.items():
        try:
            model = check_towers(variant, tower_config(c, p, dim))
            return {"tm": "native", "config": name, "covered": covered(model)}
        except Exception as error:
            findings += notes_of(error, f"towers {name}")
            if not isinstance(error, DMTError):
                return {"tm": "wrong", "config": name}
    for way in fallbacks():
        try:
            model = check_towers(variant, tower_config(*next(iter(CONFIGS.values())), way))
            kind = "decoder" if way == "decoder" and has_towers(model) else "transport"
            return {"tm": kind, "config": way, "covered": covered(model)}
        except Exception as error:
            findings += [note for note in notes_of(error, way) if note not in findings]
            if not isinstance(error, DMTError):
                return {"tm": "wrong", "config": way}
    return {"tm": "refused"}


def _oracle(variant: Variant, findings: list[Note]) -> dict[str, Any]:
    compared, different = 0, 0
    for setting in SETTINGS:
        try:
            check_oracle(variant, setting)
            compared += 1
        except DMTError as error:
            findings += notes_of(error, f"oracle {setting}")
        except Exception as error:
            different += 1
            findings += notes_of(error, f"oracle {setting}")
    verdict = "different" if different else "equal" if compared else "n/a"
    return {"oracle": verdict, "oracle_settings": f"{compared}/{len(SETTINGS)}"}


def table_of(rows: dict[str, dict[str, Any]]) -> Table:
    """The survey for a person; fits a terminal of 100 characters."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("model", "captured", "SPTT equal", "tower modules", "setting", "features", "oracle", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for name, row in rows.items():
        colour = {"native": "green", "refused": "red", "wrong": "red"}.get(row["tm"], "yellow")
        oracle = f"{row['oracle']} {row.get('oracle_settings', '')}".strip()
        table.add_row(
            name, _flag(row["capture"]), _flag(row["sptt_equal"]), f"[{colour}]{row['tm']}", row["config"],
            row["covered"], f"[red]{oracle}" if row["oracle"] == "different" else oracle, f"{row['seconds']:.1f}",
        )  # fmt: skip
    return table


LEGEND = """\
captured       the graph computes what the model computes: both modes, other batch sizes, copied, pickled
SPTT equal     pass-through towers: outputs, all gradients and four training steps are equal bit for bit
tower modules  native: the layers behind the towers were adapted; decoder, transport: they were kept, by that fallback
setting        the DLRM tower module that was tried, or the fallback: c outputs of width D per feature, p per tower
features       how many of the model's features go through towers
oracle         settings in which the result equals the author's own constructor; n/a: it has no such constructor"""


def _flag(value: bool) -> str:
    return "[green]yes" if value else "[red]no"


def reasons_of(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Why, for every model that is not captured, equal and native: the first thing that each stage says."""
    said = []
    for name, row in rows.items():
        if row["capture"] and row["sptt_equal"] and row["tm"] == "native" and row["oracle"] != "different":
            continue
        for stage in dict.fromkeys(f["stage"].split()[0] for f in row["findings"]):
            own = [f for f in row["findings"] if f["stage"].split()[0] == stage and f["severity"] == "error"]
            if own:
                reason = own[0]["reason"].split("\n", 1)[0]
                said.append(f"{name}, {stage}: {own[0]['code']} {own[0]['module']}: {reason}".replace(" :", ":"))
    return said


def summary_of(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The counts, one line each."""
    count = len(rows)
    towers, oracles = Counter(r["tm"] for r in rows.values()), Counter(r["oracle"] for r in rows.values())
    kinds = ", ".join(f"{k} {v}" for k, v in towers.most_common())
    return [
        f"{count} models: captured {sum(r['capture'] for r in rows.values())}, "
        f"SPTT equal {sum(r['sptt_equal'] for r in rows.values())}",
        f"tower modules: {kinds} (native: {towers['native'] / count:.0%}, asked for: at least {NATIVE:.0%}); native "
        f"with some features left out: {sum(_partial(r) for r in rows.values())}",
        "oracle: " + ", ".join(f"{k} {v}" for k, v in oracles.most_common()),
    ]


def _partial(row: dict[str, Any]) -> bool:
    inside, _, total = row["covered"].partition("/")
    return bool(row["tm"] == "native" and inside != total)


def falls_short(rows: dict[str, dict[str, Any]]) -> bool:
    """Whether anything is below what the zoo must show."""
    native = sum(r["tm"] == "native" for r in rows.values())
    bad = [r for r in rows.values() if not r["capture"] or not r["sptt_equal"] or r["tm"] in ("refused", "wrong")]
    return bool(bad) or native < NATIVE * len(rows) or any(r["oracle"] == "different" for r in rows.values())


def main(argv: list[str] | None = None) -> int:
    """Runs the survey; with ``--check`` the exit status says whether all is as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", help="variants, or parts of their names; all by default")
    parser.add_argument("--check", action="store_true", help="exit with 1 unless all is as it must be")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the JSON goes")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)  # what falls back is in the table
    wanted = [v for v in CATALOGUE.values() if not options.names or any(n in v.name for n in options.names)]
    if not wanted:
        parser.error(f"no variant has {' or '.join(options.names)} in its name; there are: {', '.join(CATALOGUE)}")
    console = Console(width=None if sys.stdout.isatty() else 140)
    rows = {}
    for place, variant in enumerate(track(wanted, "models", console=console, disable=not sys.stdout.isatty()), 1):
        rows[variant.name] = survey(variant)
        if not sys.stdout.isatty():  # minutes without a word look like a hang
            console.print(f"{place:3}/{len(wanted)} {variant.name}: {rows[variant.name]['tm']}", highlight=False)
    console.print(table_of(rows))
    console.print(LEGEND, highlight=False)
    if reasons := reasons_of(rows):
        console.print("\nWhy not native, or not equal:", style="bold")
        for line in reasons:
            console.print(f"  {line}", markup=False, highlight=False)
    console.print()
    for line in summary_of(rows):
        console.print(line, highlight=False)
    if not options.names or options.output != OUTPUT:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
        console.print(f"wrote {options.output}", highlight=False, soft_wrap=True)
    else:
        console.print("nothing written: only some models were asked for (name a file with --output)", highlight=False)
    return int(options.check and falls_short(rows))


if __name__ == "__main__":
    sys.exit(main())
