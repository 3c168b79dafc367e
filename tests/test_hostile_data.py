"""Plans, affinity files, records and names from elsewhere: nothing that they say is run, by Python or by a browser."""

from __future__ import annotations

import json
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dmt_plugin.cli import app
from dmt_plugin.core.errors import DMTError, PlanError
from dmt_plugin.nn.towers import DLRMTower
from dmt_plugin.partitioner import Affinity
from tests.passes.flat import Flat, cat, ids, towers
from tests.report.test_run_report import header, record, write

runner = CliRunner(env={"COLUMNS": "200"})

NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "`<b onclick=alert(1)>`",
    "</title></style><script>alert(1)</script>",
    "[/red] [link=javascript:alert(1)]x[/link]",
    r"$\frac{$ $^$",
    "&#60;script&#62;",
    "]]><script>alert(1)</script><![CDATA[",
)
"""Names of features, tables, parts and files that a page must show as they are."""
TAKEN = [name for name in NAMES if not set(name) & set('".\\')]
"""Those that torch and the capture take as names of layers."""


class Scripts(HTMLParser):
    """Everything of a page that a browser could run, or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "img", "base", "form", "foreignobject"):
            self.found.append(tag)
        for name, value in attrs:
            outside = name in ("src", "href", "xlink:href", "action", "data") and not (value or "").startswith(
                ("#", "data:image/png;")
            )
            if name.startswith("on") or outside or "javascript:" in (value or "").replace(" ", "").lower():
                self.found.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(path: Path, *names: str) -> None:
    page = Scripts()
    page.feed(path.read_text())
    assert page.found == []
    for name in names:
        assert name.replace("`", "") in page.text, f"the page does not show {name}"


# -- plans -----------------------------------------------------------------------------------


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A module that leaves a file when it is imported."""
    mark = tmp_path / "ran"
    (tmp_path / "trap_of_a_plan.py").write_text(f"open({str(mark)!r}, 'w')\nTower = None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trap_of_a_plan", raising=False)
    return mark


@pytest.mark.parametrize("where", ["module", "override"])
def test_a_plan_names_no_module_to_import(trap: Path, tmp_path: Path, where: str) -> None:
    file = tmp_path / "plan.json"
    towers(Flat(cat), ids(4, 5), towers={"overrides": {"1": {"seed": 3}}}).plan.save(file)
    data = json.loads(file.read_text())
    spec = data["module"] if where == "module" else data["overrides"]["1"]
    spec["kind"] = "trap_of_a_plan:Tower"
    file.write_text(json.dumps(data))
    for section in ({}, {"module": "dcn"}, {"module": "tests.nn.test_towers:Own"}):
        with pytest.raises(PlanError, match=r"dmt\.towers\.module|trap_of_a_plan:Tower"):
            towers(Flat(cat), ids(4, 5), towers=section, partition={"strategy": "file", "file": str(file)})
    assert not trap.exists()


def test_a_class_that_the_configuration_names_is_taken_from_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = types.ModuleType("own_towers")
    own.Tower = lambda features, width, dim: DLRMTower(features, width, dim, 1, 0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_towers", own)
    section: dict[str, Any] = {"module": "own_towers:Tower", "dim": 2}
    model = towers(Flat(cat), ids(4, 5), towers=section)
    model.plan.save(tmp_path / "plan.json")
    partition = {"strategy": "file", "file": str(tmp_path / "plan.json")}
    assert towers(Flat(cat), ids(4, 5), towers=section, partition=partition).plan == model.plan
    with pytest.raises(PlanError, match=r'set dmt\.towers\.module to "own_towers:Tower"'):
        towers(Flat(cat), ids(4, 5), partition=partition)


# -- affinity files --------------------------------------------------------------------------


class Runs:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("entry", ["values", "features", "about"])
def test_an_affinity_file_runs_nothing(tmp_path: Path, entry: str) -> None:
    mark, file = tmp_path / "ran", tmp_path / "a.npz"
    Affinity(("a", "b"), np.eye(2), "cosine", 10).save(file)
    with np.load(file) as found:
        content = dict(found)
    content[entry] = np.array([Runs(mark)], dtype=object)
    np.savez(file, **content)
    assert not mark.exists()
    with pytest.raises(DMTError, match=r"a\.npz"):
        Affinity.load(file)
    assert not mark.exists()


# -- pages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_page_of_a_run_shows_what_records_say(tmp_path: Path, name: str) -> None:
    first = header(0, topology="1x1", tower_hosts=[0, 0], source=name, device=name, plan=name, towers=[[name], ["c"]],
                   versions={"torch": name}, route=name)  # fmt: skip
    lines = [record(0, step, table_ids={name: 3.0}, exchanges={}) for step in (10, 20, 30)]
    for line in lines:
        line["parts_s"][name] = 0.1
    write(tmp_path, 0, first, *lines)
    page = tmp_path / f"page{name.count('<')}.html"
    shown = runner.invoke(app, ["report", str(tmp_path), "--html", str(page)])
    if page.exists():
        assert shown.exit_code == 0, shown.output
        check_page(page)
    else:  # refused by name: no page, and no traceback
        assert shown.exit_code == 2 and isinstance(shown.exception, (SystemExit, DMTError)), shown.output


MODEL = """
import torch
from torch import nn

NAMES = {names!r}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleDict({{name: nn.EmbeddingBag(20, 8) for name in NAMES}})
        self.head = nn.Linear(len(NAMES) * 8, 1)

    def forward(self, sparse):
        columns = [t(sparse[:, i:i + 1]) for i, t in enumerate(self.tables.values())]
        return self.head(torch.cat(columns, dim=1)).squeeze(1)

def build():
    return Net(), torch.randint(0, 20, (8, len(NAMES)))

def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        sparse = torch.randint(0, 20, (32, len(NAMES)), generator=generator)
        yield sparse, (sparse[:, 0] % 2).float()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop.py").write_text(MODEL.format(names=TAKEN))
    (tmp_path / "refused.py").write_text(MODEL.format(names=[name for name in NAMES if "." not in name]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_a_page_of_a_model_shows_its_names(project: Path) -> None:
    found = runner.invoke(app, ["explain", "--model", "shop.py:build", "--html", "page.html", "--svg", "graph.svg"])
    assert found.exit_code == 0, found.output
    check_page(project / "page.html", *TAKEN)
    for picture in project.glob("*.svg"):
        check_page(picture)


def test_a_page_of_a_refused_model_shows_its_names(project: Path) -> None:
    found = runner.invoke(app, ["explain", "--model", "refused.py:build", "--html", "page.html"])
    assert found.exit_code == 1 and "DMT118" in found.output, found.output
    check_page(project / "page.html", NAMES[1])


def test_a_page_of_a_partition_shows_its_names(project: Path) -> None:
    found = runner.invoke(
        app,
        ["partition", "--model", "shop.py:build", "--data", "shop.py:batches", "--towers", "3", "--report", "out"],
    )
    assert found.exit_code == 0, found.output
    check_page(project / "out/partition.html", *TAKEN)
