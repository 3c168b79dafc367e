"""``dmt plan``: tables, JSON, page and picture of the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmt_plugin.cli.plan import command
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.planner.paper.evaluation import evaluate
from dmt_plugin.planning import simulation
from dmt_plugin.planning.paper_models import paper_sizes
from dmt_plugin.report.plan import tables
from tests.planning.models import narrow

MODEL = "tests.planning.models:build"


@pytest.fixture(autouse=True)
def few_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch)


def run(*arguments: str, status: int = 0) -> str:
    import typer

    app = typer.Typer()
    app.command()(command)
    result = CliRunner(env={"COLUMNS": "140"}).invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == status
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
    with pytest.raises(ConfigError, match="keep one of them"):
        command(paper=True, model=MODEL)
    with pytest.raises(ConfigError, match="--cluster, --batch-size goes with --model"):
        command(paper=True, cluster="h100-dgx:2", batch_size=8)
    with pytest.raises(ConfigError, match=r"--picture .*\.svg, \.png or \.pdf"):
        command(paper=True, picture=Path("plan.gif"))


PLAN = ("--model", MODEL, "--cluster", "h100-dgx:2", "--batch-size", "256", "--ratios", "2")


def test_a_model_on_a_cluster(tmp_path: Path) -> None:
    shown = run(*PLAN, "--html", str(tmp_path / "plan.html"))
    for text in ("Estimate, not a measurement", "exact: the same model", "CR 2: tower modules", "replicated"):
        assert text in shown
    assert '"zero_optimization"' in shown and "NVIDIA's data sheet" in shown and "Do not use towers here" in shown
    page = (tmp_path / "plan.html").read_text()
    assert "exact: the same model" in page and "zero_optimization" in page and "Do not use towers here" in page


def test_json_of_a_model(tmp_path: Path) -> None:
    data = json.loads(run(*PLAN, "--data", "tests.planning.models:batches", "--batch-size", "32", "--json"))
    assert data["best"]["section"] and data["candidates"]["priced"] > 30 and data["cluster"]["hosts"] == 2
    names = {row["name"] for row in data["groups"]["exact"]}
    assert any(name.endswith("+ dedup") for name in names)


def test_a_sweep_with_its_picture(tmp_path: Path) -> None:
    picture, page = tmp_path / "sweep.svg", tmp_path / "sweep.html"
    files = ("--picture", str(picture), "--html", str(page))
    shown = run("--model", MODEL, "--cluster", "h100-dgx", "--batch-size", "64", "--sweep", "hosts=2,4", *files)
    assert "by hosts" in shown and "hosts 4: " in shown and picture.read_text().startswith("<?xml")
    assert page.read_text().count("<svg") == 1
    data = json.loads(run(*PLAN, "--sweep", "batch=64,128", "--json"))
    assert [own["value"] for own in data["estimates"]] == [64, 128] and data["sweep"] == "batch=64,128"


def test_a_simulation(tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    shown = run(*PLAN, "--simulate", "SPTT", "--html", str(page))
    assert "Simulated SPTT" in shown and "the graphs of all 16 ranks" in shown and "Each rank, in this order" in shown
    assert "Simulated SPTT" in page.read_text() and "pairs compared" in page.read_text()
    data = json.loads(run(*PLAN, "--simulate", "best", "--json"))["simulation"]
    assert data["ranks"] == 16 and data["differences"] == [] and {own["pairs"] for own in data["exchanges"]} != {0}


def test_exit_status_where_ranks_do_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "other_orders", lambda ran: ["rank 1 waits for nobody"])
    assert "They do not agree: 1 difference" in run(*PLAN, "--simulate", "flat", status=1)


def test_exit_status_where_nothing_fits(tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("preset: v100-hgx\nhosts: 2\nmemory_GB: 0.1\n")
    asked = ("--model", MODEL, "--cluster", str(cluster), "--batch-size", "100000")
    assert "Nothing fits" in run(*asked, status=1)
    assert "Nothing fits" in run(*asked, "--sweep", "hosts=2,4", status=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cluster": None}, "on which cluster"),
        ({"cluster": "h100-dgz:2"}, r'did you mean "h100-dgx"'),
        ({"batch_size": None}, "how many samples per rank"),
        ({"ratios": "1"}, "compression ratios above 1"),
        ({"towers": "dlmr"}, r'did you mean "dlrm"'),
        ({"sweep": "hots=2"}, r'did you mean "hosts"'),
        ({"distinct_share": "7"}, "expected shares above 0"),
        ({"distinct_share": "0.5", "data": "tests.planning.models:batches"}, "keep one"),
        ({"picture": Path("a.svg")}, "--picture shows a sweep"),
        ({"links": "nothing.json"}, "--links nothing.json"),
        ({"simulate": "SPT"}, r'--simulate: .*did you mean "SPTT"'),
        ({"simulate": "best", "sweep": "hosts=2,4"}, "--simulate looks at one cluster, and --sweep at several"),
        ({"model": "tests.planning.models:biuld"}, "has no function 'biuld'"),
    ],
)
def test_bad_input_of_a_model(given: dict[str, object], message: str) -> None:
    asked: dict[str, object] = {"model": MODEL, "cluster": "h100-dgx:2", "batch_size": 64, "ratios": "2", **given}
    with pytest.raises(ConfigError, match=message):
        command(**asked)  # type: ignore[arg-type]
