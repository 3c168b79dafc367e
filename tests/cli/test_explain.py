"""``dmt explain`` as a user types it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dmt_plugin
from dmt_plugin.cli import app
from dmt_plugin.cli.explain import explained
from dmt_plugin.cli.load import load
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.memory import MemoryLimit
from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.report.explain.words import uneven_hosts
from tests.report.test_html import Checker

runner = CliRunner()

COMMAND = ["explain", "--model", "net.py:build", "--config", "ds.json", "--ranks-per-host", "2"]


def test_shows_plan_graphs_exchanges_and_findings(project: Path) -> None:
    result = runner.invoke(app, COMMAND)
    assert result.exit_code == 0, result.output
    for text in (
        "2 host(s) x 2 rank(s)",
        "towers",
        "graph around the towers, before",
        "graph around the towers, after (rank 0)",
        "dmt_exchange.peers.start",
        "(H*B, ",
        "predicted load of every rank",
        "exchanges of one step on rank 0, 64 samples",
        "index.peers.ids",
        "parameters that start anew",
        "head.weight",
        "in_features 43 -> ",
        "rows of a random rotation",
        "insert_tower_modules",
        "DMT301",
    ):
        assert text in result.output, text
    assert "head.bias" not in result.output  # it keeps its values


def test_without_a_config_the_defaults_are_explained(project: Path) -> None:
    result = runner.invoke(app, ["explain", "--model", "net.py:build"])
    assert result.exit_code == 0, result.output
    assert "module dlrm, c=1, p=0, D=4" in result.output


@pytest.mark.parametrize("given", [{}, {"ranks_per_host": 2}, {"hosts": 3}])
def test_one_configuration_has_one_plan(project: Path, given: dict[str, int]) -> None:
    """What ``dmt explain`` shows is what ``transform`` makes, ``"auto"`` or not."""
    config = {"dmt": {"towers": {"c": 1, "p": 1, "dim": 4}, "topology": given}}
    (project / "shape.json").write_text(json.dumps(config))
    data = explained("net.py:build", "shape.json").as_dict()
    loaded = load("net.py:build", None, None)
    plan = dmt_plugin.transform(loaded.model, loaded.batch, config).plan
    assert (data["topology"], data["plan_fingerprint"]) == (plan.topology, plan.fingerprint)


def test_json_holds_what_the_text_shows(project: Path) -> None:
    result = runner.invoke(app, [*COMMAND, "--hosts", "3", "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.output)
    assert data["topology"] == "3x2" and data["refused"] is None
    assert sorted(f for tower in data["towers"] for f in tower["features"]) == sorted(
        f["name"] for f in data["plan"]["features"]
    )
    assert {c["name"] for c in data["collectives"]} >= {"index.peers.ids", "lanes", "peers"}
    assert data["batch_size"] == 64
    assert [m["path"] for m in data["tower_modules"]] == [f"dmt_towers.group0.tower{t}" for t in range(3)]
    assert data["tower_modules"][0]["input"] == "(B, 2, 8)" and data["tower_modules"][0]["output"] == "(B, 12)"
    fresh = {row["name"]: row for row in data["new_parameters"]}
    assert fresh["head.weight"]["init"] == "mean and spread of the old values"
    assert fresh["dmt_towers.group0.tower1.per_tower.bias"]["why"] == "new"
    assert not {n for n in fresh if n.startswith("tables") or n == "head.bias"}
    assert [p["name"] for p in data["passes"]].count("find_joins") == 1
    assert set(data["graphs_by_host"]) == {f"host {h}, lane 0" for h in range(3)}
    for graph in (data["graph_before"], data["graph_after"], data["graph_placed"], *data["graphs_by_host"].values()):
        names = {n["id"] for n in graph["nodes"]}
        assert {end for e in graph["edges"] for end in (e["source"], e["target"])} <= names
        assert "lookup" in {n["kind"] for n in graph["nodes"]}


def test_memory_of_ranks_and_hosts(project: Path) -> None:
    """The same figures in text, page and JSON; the largest rank is named; hosts are sums."""
    page = project / "memory.html"
    text = runner.invoke(app, [*COMMAND, "--html", str(page)]).output
    need = json.loads(runner.invoke(app, [*COMMAND, "--json"]).output)["memory"]
    assert [r["rank"] for r in need["ranks"]] == [0, 1, 2, 3] and need["batch_size"] == 64
    totals = [r["total"] for r in need["ranks"]]
    assert need["hosts"] == [totals[0] + totals[1], totals[2] + totals[3]]
    assert totals[need["largest"]] == max(totals)
    parts = need["ranks"][0]
    summed = sum(parts[x] for x in ("tables", "table_states", "towers", "dense")) + sum(parts["buffers"].values())
    assert summed == parts["total"]
    assert set(parts["buffers"]) == {"ids", "rows_sent", "rows_received", "gradients", "wire", "held"}
    assert need["shortage"] is None  # two hosts: this machine is not asked
    html = page.read_text().replace("<wbr>", "")
    assert f'<tr class="emphasis"><th scope="row">{need["largest"]}</th>' in html
    for output in (text, html):
        for size in (*totals, *need["hosts"]):
            assert say_bytes(size) in output
        assert f"Rank {need['largest']} needs most" in output
        assert "could not hold" not in output


def test_the_snapshot_of_an_asynchronous_save_is_counted(project: Path) -> None:
    behind = {"dmt": {"towers": {"c": 1, "p": 1, "dim": 4}, "checkpoint": {"asynchronous": True}}}
    (project / "behind.json").write_text(json.dumps(behind))
    command = ["explain", "--model", "net.py:build", "--config", "behind.json", "--hosts", "2"]
    need = json.loads(runner.invoke(app, [*command, "--json"]).output)["memory"]
    for rank in need["ranks"]:
        assert rank["snapshot"] > rank["tables"] + rank["table_states"]
        parts = sum(rank[x] for x in ("tables", "table_states", "towers", "dense", "snapshot"))
        assert parts + sum(rank["buffers"].values()) == rank["total"]
    text = runner.invoke(app, command).output
    assert "snapshot" in text and say_bytes(need["ranks"][0]["snapshot"]) in text
    assert "snapshot of" not in runner.invoke(app, COMMAND).output.replace("\n", " ")


def test_one_host_that_this_machine_could_not_be(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning with the way out, and nothing is refused."""
    limit = MemoryLimit("this laptop", 1000, "here")
    monkeypatch.setattr("dmt_plugin.report.explain.explanation.memory_limits", lambda: [limit])
    command = ["explain", "--model", "net.py:build", "--hosts", "1", "--ranks-per-host", "2"]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    folded = re.sub(r"\s+", " ", result.output)
    assert "warning: this machine could not hold it: ranks 0 to 1 together need" in folded
    assert "this laptop has 1000 B left" in folded and '"row_wise" placement' in folded
    assert "could not hold" not in runner.invoke(app, [*command[:4], "2", *command[5:]]).output


def test_sums_of_gradients(project: Path) -> None:
    """Text, JSON and page tell them, and for which configuration."""
    page = project / "sums.html"
    text = runner.invoke(app, [*COMMAND, "--html", str(page)]).output
    data = json.loads(runner.invoke(app, [*COMMAND, "--json"]).output)
    rows = {c["name"]: c for c in data["collectives"] if c["name"] in ("dense", "towers")}
    entries = data["parameters"]["dense"]
    assert rows["dense"]["shape"] == f"{entries:,} gradients, by way of the hosts"
    assert rows["dense"]["other_hosts"] == 2 * -(-entries // 2) * 4 // 2  # 2(H-1)/H of this lane's half
    assert rows["towers"]["other_hosts"] == 0 < rows["towers"]["same_host"]
    assert data["gradient_sums"]["by"] == "hosts"
    config = json.loads((project / "ds.json").read_text())
    config["zero_optimization"] = {"stage": 1}
    (project / "zero.json").write_text(json.dumps(config))
    zero = runner.invoke(app, [*COMMAND, "--config", "zero.json"]).output
    for output, words in (
        (text, "ZeRO stage 0 with dmt.comm.overlap"),
        (page.read_text().replace("<wbr>", ""), "ZeRO stage 0 with dmt.comm.overlap"),
        (zero, "DeepSpeed sums gradients (ZeRO stage 1)"),
    ):
        assert words in output and f"{entries:,} gradients" in output


@pytest.mark.parametrize(
    ("hosts", "sent", "longer"), [(1, [25], None), (2, [16, 13], "1.10"), (4, [12, 9, 8, 8], "1.30")]
)
def test_hosts_that_send_unequal_parts(project: Path, hosts: int, sent: list[int], longer: str | None) -> None:
    """Said where an exchange waits for one host: ``(F + 1) * 4`` entries of a tower, and one column beside them."""
    config = json.loads((project / "ds.json").read_text())
    config["dmt"]["towers"]["count"] = hosts
    (project / "uneven.json").write_text(json.dumps(config))
    page = project / "uneven.html"
    command = ["explain", "--model", "net.py:build", "--config", "uneven.json", "--hosts", str(hosts)]
    text = runner.invoke(app, [*command, "--html", str(page)]).output
    assert json.loads(runner.invoke(app, [*command, "--json"]).output)["sent_by_host"] == sent
    for output in (re.sub(r"\s+", " ", text), page.read_text().replace("<wbr>", "")):
        assert ("hosts send unequal parts of a sample" in output) == (longer is not None)
        assert longer is None or f"takes {longer} times as long" in output


def test_even_hosts_need_no_word() -> None:
    assert [uneven_hosts(sent) for sent in ([], [7], [36, 36], [100, 99, 100])] == [None] * 4


def test_frozen_tables_and_what_they_save(project: Path) -> None:
    """Two of five tables of width 8, 20 rows: both of host 1, whose lanes then send nothing back."""
    text = (project / "net.py").read_text()
    freeze = [f"net.tables[{number}].requires_grad_(False)" for number in (1, 3)]
    build = "\n    ".join(["net = Net()", *freeze, "return net"])
    (project / "net.py").write_text(text.replace("return Net()", build))
    for dtype, row in (("fp32", 4 * 8), ("bf16", 2 * 8)):
        section = {"towers": {"module": "none"}, "comm": {"peer_dtype": dtype}, "lookup": {"optimizer": "adagrad"}}
        config = {"train_micro_batch_size_per_gpu": 64, "dmt": section}
        (project / "ds.json").write_text(json.dumps(config))
        result = runner.invoke(app, [*COMMAND, "--json"])
        assert result.exit_code == 0, result.output
        data = json.loads(result.stdout)
        # Rank 0 is on host 0, which sends to its peer on host 1 the gradients of that host's columns.
        state = 4 * 2 * 20 * 8
        assert data["frozen"] == {
            "tables": ["tables.1", "tables.3"], "other_hosts": 2 * 64 * row, "same_host": 0, "state": state,
        }  # fmt: skip
        assert [t["name"] for t in data["plan"]["tables"] if t.get("frozen")] == ["tables.1", "tables.3"]
        assert sum(f["code"] == "DMT203" for f in data["findings"]) == 2
        states = sum(rank["table_states"] for rank in data["memory"]["ranks"])
        assert states == 4 * 20 * (3 * 8 + 4)  # FBGEMM pads the table of width 1
    result = runner.invoke(app, COMMAND)
    said = "2 table(s) are frozen (tables.1, tables.3): 2,048 bytes of gradients to other hosts and 0 inside the host"
    text = " ".join(result.output.split())
    assert said in text and "1.2 KiB of optimizer state are not kept" in text
    assert re.search(r"\d frozen", text)


def test_where_tables_are(project: Path) -> None:
    """One table by rows, one by columns, the rest whole: on the tower's line, and in what every rank carries."""
    config = json.loads((project / "ds.json").read_text())
    config["dmt"]["placement"] = {"overrides": {"tables.0": "row_wise", "tables.1": "column_wise"}}
    config["dmt"]["lookup"] = {"optimizer": "sgd"}
    (project / "split.json").write_text(json.dumps(config))
    command = [*COMMAND, "--config", "split.json"]
    result = runner.invoke(app, [*command, "--html", str(project / "split.html")])
    assert result.exit_code == 0, result.output
    folded = re.sub(r"\s+", " ", result.output)
    assert "(rows 0+1)" in folded and "(columns 0+1, " in folded
    page = (project / "split.html").read_text().replace("<wbr>", "")
    assert "(rows 0+1)" in page and "(columns 0+1, " in page
    data = json.loads(runner.invoke(app, [*command, "--json"]).output)
    assert [(x["host"], x["lane"]) for x in data["lanes"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    tables = {t["name"]: t for t in data["plan"]["tables"]}
    assert sum(x["bytes"] for x in data["lanes"]) == sum(4 * t["rows"] * t["dim"] for t in tables.values())
    assert sum(x["tables"] for x in data["lanes"]) == len(tables) + 2
    sent = sum(c["same_host"] for c in data["collectives"] if c["name"] == "lanes" and c["phase"] == "forward")
    arriving = data["batch_size"] * 2 * 2  # of every rank
    assert sent * 2 == data["lanes"][0]["exchange"] * arriving  # forward of its rows; backward is as much


def test_pictures_are_written(project: Path) -> None:
    result = runner.invoke(app, [*COMMAND, "--svg", str(project / "new" / "net.svg"), "--rank", "3"])
    assert result.exit_code == 0, result.output
    for when in ("before", "after", "rank3"):
        path = project / "new" / f"net-{when}.svg"
        assert ElementTree.fromstring(path.read_text()).tag.endswith("svg")
        assert f"net-{when}.svg" in result.output


def test_the_page_holds_everything(project: Path) -> None:
    result = runner.invoke(app, [*COMMAND, "--html", str(project / "net.html")])
    assert result.exit_code == 0, result.output
    text = (project / "net.html").read_text()
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == [] and len(checker.ids) == len(set(checker.ids))
    assert not checker.tags & {"script", "link", "img", "iframe", "object"}
    plain = text.replace("<wbr>", "")
    for expected in (
        "<h2>Findings</h2>", "DMT301", "<h2>Towers</h2>", "<h2>Groups of features</h2>", "branches meet at",
        "<h2>Parameters that start anew</h2>", "head.weight", "rows of a random rotation",
        "<h2>What rank 0 runs</h2>", "host 1, lane 0",
        "<h2>Predicted load of ranks</h2>", "lookups", "<h2>Bytes of every exchange</h2>", "index.peers.ids",
        "<h2>Log of passes</h2>", "insert_towers", "net.py:build",
    ):  # fmt: skip
        assert expected in plain, expected
    assert text.count("<svg") == 4


def test_a_refused_model_is_still_explained(project: Path) -> None:
    result = runner.invoke(app, ["explain", "--model", "refused.py:build", "--html", "no.html", "--svg", "no.svg"])
    assert result.exit_code == 1, result.output
    for text in ("refused", "DMT205", "tables.0", "graph around the towers, before", "find_lookups"):
        assert text in result.output, text
    page = (project / "no.html").read_text()
    assert "The model is refused" in page and "DMT205" in page and page.count("<svg") == 1
    assert [p.name for p in sorted(project.glob("*.svg"))] == ["no-before.svg"]
    result = runner.invoke(app, ["explain", "--model", "refused.py:build", "--json"])
    assert result.exit_code == 1
    data = json.loads(result.output)
    assert data["refused"] and data["plan"] is None and data["findings"][0]["code"] == "DMT205"


def test_a_model_that_cannot_be_captured_says_where(project: Path) -> None:
    text = (project / "net.py").read_text()
    (project / "branch.py").write_text(text.replace("flat = ", "if dense.sum() > 0: dense = -dense\n        flat = "))
    result = runner.invoke(app, ["explain", "--model", "branch.py:build", "--html", "no.html", "--svg", "no.svg"])
    assert result.exit_code == 1, result.output
    assert "refused" in result.output and "DMT101" in result.output and "branch.py:1" in result.output
    assert "DMT101" in (project / "no.html").read_text() and not list(project.glob("*.svg"))
    data = explained("branch.py:build", None).as_dict()
    assert data["refused"] and data["graph_before"] is None and data["findings"][0]["code"] == "DMT101"


def test_a_rank_that_is_not_there(project: Path) -> None:
    with pytest.raises(ConfigError, match="--rank 4: the topology 2x2 has the ranks 0 to 3"):
        explained("net.py:build", None, ranks_per_host=2, rank=4)


def test_the_keys_are_those_of_the_page(project: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "explain.md").read_text()
    listed = set(re.findall(r"`(\w+)`", text.split("Keys of the JSON:")[1].split("\n\n")[0])) - {"null"}
    branching = (project / "net.py").read_text().replace("flat = ", "assert dense.sum() > 0; flat = ")
    (project / "branch.py").write_text(branching)
    for model in ("net.py:build", "refused.py:build", "branch.py:build"):
        assert set(explained(model, None).as_dict()) == listed, model


def test_counts_decide_and_are_saved(project: Path) -> None:
    (project / "rows.py").write_text(
        "import torch\n"
        "def batches():\n"
        "    ids = torch.arange(16).unsqueeze(1).expand(16, 5) * torch.tensor([1, 0, 0, 0, 0])\n"
        "    return [(torch.randn(16, 3), ids.clone()) for _ in range(4)]\n"
    )
    command = ["explain", "--model", "net.py:build", "--config", "sptt.json", "--ranks-per-host", "2", "--json"]
    options = ["--batch-size", "8", "--data", "rows.py:batches", "--save-shares", "out/shares.json"]
    result = runner.invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    data = json.loads(result.output)
    assert [f["way"] for f in data["distinct_rows"]["features"]] == ["by sample", *["once"] * 4]
    assert "rows of 4 of 5 feature(s) travel once per host; by sample those of tables.0 (1.00)" in data["dedup"]
    shares = json.loads((project / "out/shares.json").read_text())
    assert shares == data["distinct_rows"]["shares"] and shares["source"] == "rows.py:batches"
    again = {"dmt": {"towers": {"module": "none"}, "comm": {"dedup_shares": "out/shares.json"}}}
    (project / "again.json").write_text(json.dumps(again))
    told = explained("net.py:build", "again.json", ranks_per_host=2, batch_size=8)
    assert told.dedup == data["dedup"] and told.plan is not None
    assert told.plan.fingerprint == data["plan_fingerprint"]
    result = runner.invoke(app, [*command, "--save-shares", "s.json"])
    assert "--save-shares: no distinct rows were counted" in str(result.exception)
