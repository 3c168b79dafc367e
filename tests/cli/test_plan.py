"""``dmt plan``: tables, JSON, page and picture of the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmt_plugin.cli.plan import command
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.planner.paper.evaluation import evaluate
from dmt_plugin.planning.paper_models import paper_sizes
from dmt_plugin.report.plan import tables


def run(*arguments: str) -> str:
    import typer

    app = typer.Typer()
    app.command()(command)
    result = CliRunner(env={"COLUMNS": "140"}).invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_tables_page_and_picture(tmp_path: Path) -> None:
    shown = run("--paper", "--html", str(tmp_path / "a" / "plan.html"), "--picture", str(tmp_path / "plan.svg"))
    for text in ("Fig. 10 DLRM V100 16", "DMT 16T-DCN", "held out", "null model", "32 of 32", "unexplained"):
        assert text in shown
    page = (tmp_path / "a" / "plan.html").read_text()
    assert page.count("<svg") == 1 and "DMT 26T-DLRM" in page and "SimAI" in page and "var(--series-4)" in page
    picture = (tmp_path / "plan.svg").read_text()
    assert picture.startswith("<?xml") and "var(--" not in picture


def test_json_is_what_the_tables_show() -> None:
    data = json.loads(run("--paper", "--json"))
    assert data == json.loads(json.dumps(evaluate(paper_sizes())))
    cells = tables.cells_table(data)
    assert len(cells.rows) == 64
    assert [str(row["five"]).endswith("*") for row in cells.rows] == [
        row["sets"]["five"]["fitted"] for row in data["cells"]
    ]
    assert [row["cells"] for row in tables.errors_table(data).rows] == [5, 59, 1, 59, 26, 38, 22, 38, 64, 60]


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="--paper predicts"):
        command()
    with pytest.raises(ConfigError, match=r"--picture .*\.svg, \.png or \.pdf"):
        command(paper=True, picture=Path("plan.gif"))
