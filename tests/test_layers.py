"""The rooms of the package, and which of them may import which.

A room is a folder of ``dmt_plugin``, or one of ``dmt_plugin.passes``, with all files below it.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from dmt_plugin.moved import MOVED
from tests._util.layout import Import, circles, files_in, files_of, imports_of

PACKAGE = "dmt_plugin"
FILES = files_of(PACKAGE, f"{PACKAGE}.passes", f"{PACKAGE}.integrations")

GRAPHS = {"capture", "plan", "config", "comm", "nn", "planner", "partitioner", "fxtools", "tables", "topology", "core"}
KNOWN = {"passes.base", "passes.facts", "passes.rank_facts"}
PASSES = GRAPHS | KNOWN
MODEL = PASSES | {"passes.pipeline", "passes.rank", "passes.logical", "passes.ops", "passes.placement", "model"}
RUNS = MODEL | {"compiler", "checkpoint", "data", "metrics", "partitioning", "planning", "verification"}
RUNS |= {"integrations", "report"}

ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "topology": {"core"},
    "plan": {"core", "topology.shape"},
    "config": {"core", "comm.formats"},
    "fxtools": {"core"},
    "capture": {"core", "fxtools"},
    "comm": {"core", "topology"},
    "nn": {"core", "comm", "plan"},
    "planner": {"core", "plan", "config", "comm", "topology"},
    "tables": {"core", "plan"},
    "partitioner": {"core", "plan", "config", "comm", "planner", "topology"},
    "passes.facts": GRAPHS,
    "passes.rank_facts": GRAPHS,
    "passes.base": GRAPHS | {"passes.facts", "passes.rank_facts"},
    "passes.ops": PASSES,
    "passes.resize": PASSES | {"passes.ops"},
    "passes.analysis": PASSES | {"passes.ops"},
    "passes.placement": PASSES | {"passes.ops", "passes.analysis"},
    "passes.logical": PASSES | {"passes.ops", "passes.resize", "passes.analysis", "passes.placement"},
    "passes.rank": PASSES | {"passes.ops", "passes.analysis", "passes.placement"},
    "passes.pipeline": PASSES | {"passes.logical", "passes.rank", "passes.placement"},
    "model": MODEL - {"model"},
    "compiler": MODEL | {"checkpoint.folder"},
    "checkpoint": MODEL,
    "data": MODEL | {"compiler"},
    "metrics": {"core"},
    "partitioning": MODEL | {"compiler"},
    "planning": MODEL | {"compiler"},
    "verification": MODEL | {"compiler"},
    "integrations": RUNS - {"report", "integrations"},
    "report": RUNS - {"report", "integrations"},
    "doctor": RUNS - {"report"} | {""},
    "api": RUNS,
    "run": RUNS,
    "cli": RUNS | {"doctor", "api"},
    "moved": RUNS | {"doctor"},
    "": RUNS | {"api", "moved"},
}
"""Room -> rooms, or single files, that it may import. A file in the root is a room of its own; "" is the package."""

LATE = {
    "dmt_plugin": "public names are imported on first use, so that the command line starts without torch",
    "dmt_plugin.checkpoint": "public names are imported on first use, so that a manifest is read without torch",
    "dmt_plugin.doctor.ranks": "an engine that cannot be imported is what a check found, not the end of the program",
}
"""Files that may import others of ours late, with the reason."""

ROOT_FILES = {"dmt_plugin": 8, "passes": 5}
LONGEST = 400


def room_of(module: str) -> str:
    """``dmt_plugin.passes.ops.views`` is in ``passes.ops``."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[:1] == ["passes"] else ".".join(parts[:1])


def strays(imports: list[Import]) -> list[str]:
    """Imports that no arrow of :data:`ALLOWED` covers."""
    found = []
    for one in imports:
        here, there = room_of(one.source), room_of(one.target)
        inside = one.target.removeprefix(f"{PACKAGE}.")
        allowed = ALLOWED.get(here, set())
        if here != there and there not in allowed and inside not in allowed:
            found.append(str(one))
    return found


def held(files: dict[str, Path]) -> list[Import]:
    """Imports that the tests judge; the table of old names counts as imports of the new ones."""
    by_name = [Import(f"{PACKAGE}.moved", f"{PACKAGE}.{new}", 0, False) for new in MOVED.values()]
    return [*imports_of(files), *by_name]


def edges(imports: list[Import], by_room: bool = False) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for one in imports:
        source, target = (room_of(one.source), room_of(one.target)) if by_room else (one.source, one.target)
        found[source].add(target)
    return found


def test_arrows_go_one_way():
    assert strays(held(FILES)) == []


def test_no_circle_of_files():
    assert circles(edges(held(FILES))) == []


def test_no_circle_of_rooms():
    assert circles(edges(held(FILES), by_room=True)) == []


def test_ours_are_not_imported_late():
    late = [str(i) for i in held(FILES) if i.late and i.source not in LATE]
    assert late == []


def test_no_circle_in_benchmarks_and_examples():
    for folder in ("benchmarks", "examples"):
        files = files_in(Path(__file__).parents[1] / folder, folder)
        assert circles(edges(imports_of(files))) == []


@pytest.mark.parametrize("folder", ROOT_FILES)
def test_few_files_in_a_root(folder):
    name = PACKAGE if folder == PACKAGE else f"{PACKAGE}.{folder}"
    here = FILES[name].parent
    assert len(list(here.glob("*.py"))) <= ROOT_FILES[folder]


def test_no_file_is_too_long():
    long = {name: n for name, file in FILES.items() if (n := len(file.read_text().splitlines())) > LONGEST}
    assert long == {}


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    from dmt_plugin.cli import main\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import dmt_plugin.cli\n",
        "import importlib\nHOMES = {'main': 'dmt_plugin.cli'}\nf = lambda: importlib.import_module(HOMES['main'])\n",
    ],
    ids=["in a function", "for types", "by a table of names"],
)
def test_a_planted_import_that_goes_up_is_found(tmp_path, text):
    planted = tmp_path / "planted.py"
    planted.write_text(text)
    imports = imports_of({**FILES, "dmt_plugin.core.planted": planted})
    assert [s.split(" -> ")[1].split(" ")[0] for s in strays(imports) if "planted" in s] == ["dmt_plugin.cli"]
    assert any("core" in circle for circle in circles(edges(imports, by_room=True)))
