"""``dmt partition`` as a user types it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dmt_plugin.cli import app
from dmt_plugin.core.errors import ConfigError, PlanError
from dmt_plugin.partitioner import Affinity

runner = CliRunner(env={"COLUMNS": "160"})

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        names = "user item shop city hour day".split()
        self.tables = nn.ModuleDict({name: nn.EmbeddingBag(20, 8) for name in names})
        self.head = nn.Linear(6 * 8 + 3, 1)

    def forward(self, dense, sparse):
        columns = [t(sparse[:, i:i + 1]) for i, t in enumerate(self.tables.values())]
        return self.head(torch.cat([dense, *columns], dim=1)).squeeze(1)

def build():
    return Net()

def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        sparse = torch.randint(0, 20, (32, 3), generator=generator).repeat_interleave(2, dim=1)
        yield torch.randn(32, 3, generator=generator), sparse, (sparse[:, 0] % 2).float()

def one_batch():
    return next(batches())

def nothing():
    return []
"""
FEATURES = ["user", "item", "shop", "city", "hour", "day"]
BASE = ["partition", "--model", "shop.py:build", "--data", "shop.py:batches", "--towers", "3"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # what the command adds must not outlive the test
    return tmp_path


def run(*options: str) -> str:
    result = runner.invoke(app, [*BASE, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_distinct_rows_are_counted_where_the_batch_is_known(project: Path) -> None:
    options = ("--strategy", "strided", "-o", "plan.json")
    assert "distinct rows: not counted" in run(*options)
    assert "row_shares" not in json.loads((project / "plan.json").read_text())
    said = run(*options, "--batch-size", "8", "--ranks-per-host", "2")
    counted = json.loads((project / "plan.json").read_text())["row_shares"]
    assert "distinct rows: of 8 step(s) of 2 x 8 samples" in said
    assert (counted["source"], counted["samples"], counted["lanes"]) == ("shop.py:batches", 8, 2)
    assert all(0.3 < f["host"] < f["rank"] < 1 for f in counted["features"])
    run("--strategy", "strided", "-o", "plan.json", "--batch-size", "8", "--topology", "3x1")
    assert json.loads((project / "plan.json").read_text())["row_shares"]["lanes"] == 1
    assert "fewer than 400 samples" in run(*options, "--batch-size", "400")


def test_a_balance_by_cost_weighs_the_distinct_rows_that_were_counted(project: Path) -> None:
    """Of tables whose rows may travel once: under SPTT all of them."""
    (project / "sptt.json").write_text('{"dmt": {"towers": {"module": "none"}, "comm": {"dedup": "on"}}}')
    (project / "off.json").write_text('{"dmt": {"towers": {"module": "none"}, "comm": {"dedup": "off"}}}')
    loads = {}
    for name, options in {"plain": (), "on": ("--batch-size", "40"), "off": ("--batch-size", "40")}.items():
        config = "off.json" if name == "off" else "sptt.json"
        run("--strategy", "greedy_balance", "--config", config, "-o", "plan.json", *options)
        loads[name] = json.loads((project / "plan.json").read_text())["provenance"]["balance"]["loads"]
    assert loads["plain"] == loads["off"] != loads["on"]


def test_from_warm_up_to_a_transformed_model(project: Path) -> None:
    text = run(
        "--warm-up", "5", "--loss", "logits", "-o", "plan.json", "--save-affinity", "a.npz", "--report", "out",
        "--transform", "towers.pt",
    )  # fmt: skip
    assert "6 features in 3 towers, strategy learned" in " ".join(text.split()) and "user" in text
    plan = json.loads((project / "plan.json").read_text())
    assert sorted(n for t in plan["towers"] for n in t) == [f"tables.{n}" for n in sorted(FEATURES)]
    assert plan["provenance"]["warm_up_steps"] == 5 and plan["provenance"]["objective"] == "coherent"
    assert Affinity.load(project / "a.npz").model == plan["model"]
    assert (project / "out/partition.png").is_file() and "<html" in (project / "out/partition.html").read_text()
    model = torch.load(project / "towers.pt", weights_only=False)
    assert [list(t) for t in model.plan.towers] == plan["towers"]
    assert model(torch.randn(4, 3), torch.randint(0, 20, (4, 6))).shape == (4,)


def test_mutual_information_pairs_equal_columns(project: Path) -> None:
    text = run("--objective", "mutual_information", "--json")
    towers = {frozenset(n.removeprefix("tables.") for n in t) for t in json.loads(text)["towers"]}
    assert towers == {frozenset(p) for p in (("user", "item"), ("shop", "city"), ("hour", "day"))}


def test_the_same_again_and_from_a_saved_affinity(project: Path) -> None:
    first = run("--json", "--save-affinity", "a.npz")
    assert run("--json") == first
    alone = runner.invoke(app, ["partition", "--affinity", "a.npz", "--towers", "3", "--json"], catch_exceptions=False)
    assert [set(t) for t in json.loads(alone.output)["towers"]] == [set(t) for t in json.loads(first)["towers"]]
    assert json.loads(run("--json", "--affinity", "a.npz"))["provenance"]["affinity"]["file"] == "a.npz"


def test_a_whole_plan_for_a_topology(project: Path) -> None:
    plan = json.loads(run("--json", "--topology", "3x2", "--strategy", "random", "--seed", "4"))
    assert plan["topology"] == "3x2" and plan["version"] and plan["provenance"]["seed"] == 4


def test_auto_by_training(project: Path) -> None:
    (project / "ds.json").write_text(json.dumps({"dmt": {"towers": {"module": "dlrm", "c": 0, "p": 1, "dim": 4}}}))
    text = run("--objective", "auto", "--try-steps", "4", "--loss", "logits", "--config", "ds.json", "--json")
    made = json.loads(text)["provenance"]
    assert set(made["held_out_loss"]) == {"coherent", "diverse", "mutual_information"}
    assert made["objective"] == min(made["held_out_loss"], key=made["held_out_loss"].get)


def test_a_loss_that_is_no_number_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from dmt_plugin.partitioning import partition_model as partitioning

    losses = iter([0.5, float("nan")])
    monkeypatch.setattr(partitioning, "with_partition", lambda *_: None)
    monkeypatch.setattr(partitioning, "warm_up", lambda *_, **__: None)
    monkeypatch.setattr(partitioning, "mean_loss", lambda *_, **__: next(losses))
    candidates: Any = {"coherent": None, "diverse": None}
    with pytest.raises(PlanError, match=r"held-out loss of \['diverse'\] is not a number"):
        partitioning.choose_by_training(None, candidates, None, None, [], [], None, 1)  # type: ignore[arg-type]


def test_a_checkpoint_decides(project: Path) -> None:
    namespace: dict[str, object] = {}
    exec(MODEL, namespace)
    model = namespace["build"]()  # type: ignore[operator]
    torch.save(model.state_dict(), project / "state.pt")
    first = run("--checkpoint", "state.pt", "--json")
    assert json.loads(first)["provenance"]["checkpoint"] == "state.pt"
    torch.save({"head.weight": torch.zeros(1)}, project / "other.pt")
    with pytest.raises(ConfigError, match=r"other\.pt does not fit --model"):
        run("--checkpoint", "other.pt")
    with pytest.raises(ConfigError, match=r"gone\.pt: no such file"):
        run("--checkpoint", "gone.pt")
    torch.save({"epoch": 3}, project / "epoch.pt")
    with pytest.raises(ConfigError, match="expected a state dict"):
        run("--checkpoint", "epoch.pt")
    torch.save(torch.nn.Linear(1, 1), project / "module.pt")
    for name, content in (("empty.pt", ""), ("text.pt", "hello"), ("module.pt", None)):
        if content is not None:
            (project / name).write_text(content)
        with pytest.raises(ConfigError, match=rf"--checkpoint {name} cannot be read .* expected a state dict"):
            run("--checkpoint", name)


def test_rules_of_the_config(project: Path) -> None:
    rules = {"strategy": "learned", "pin": {"tables.day": 0}, "apart": [["tables.user", "tables.item"]]}
    (project / "ds.json").write_text(json.dumps({"dmt": {"partition": rules}}))
    made = json.loads(run("--config", "ds.json", "--json"))
    assert "tables.day" in made["towers"][0]
    assert not any({"tables.user", "tables.item"} <= set(t) for t in made["towers"])
    assert made["provenance"]["rules"]["pin"] == {"tables.day": 0}


def test_ids_without_a_model(project: Path) -> None:
    namespace: dict[str, object] = {}
    exec(MODEL, namespace)
    sparse = torch.cat([batch[1] for batch in namespace["batches"]()])  # type: ignore[operator]
    np.savez(project / "ids.npz", **{f"tables.{name}": sparse[:, i].numpy() for i, name in enumerate(FEATURES)})
    base = ["partition", "--ids", "ids.npz", "--towers", "3", "--json"]

    def towers(*options: str) -> tuple[set[frozenset[str]], dict[str, Any]]:
        plan = json.loads(runner.invoke(app, [*base, *options], catch_exceptions=False).output)
        return {frozenset(t) for t in plan["towers"]}, plan["provenance"]["affinity"]

    pairs = {frozenset(f"tables.{n}" for n in FEATURES[i : i + 2]) for i in (0, 2, 4)}
    found, affinity = towers("--objective", "mutual_information")
    assert found == pairs and affinity["ids"] == "ids.npz" and affinity["kind"] == "mutual_information"

    model = namespace["build"]()  # type: ignore[operator]
    with torch.no_grad():
        for name, like in zip(FEATURES[1::2], FEATURES[::2], strict=True):
            model.tables[name].weight.copy_(model.tables[like].weight)
    torch.save(model.state_dict(), project / "state.pt")
    assert towers("--checkpoint", "state.pt")[0] == pairs
    measured = json.loads(run("--checkpoint", "state.pt", "--json"))
    assert {frozenset(t) for t in measured["towers"]} == pairs  # as by the captured model

    for options, message in (
        (["--objective", "coherent"], "--ids alone has no embeddings to compare"),
        (["--objective", "mutual_information", "--checkpoint", "state.pt"], "looks at ids alone"),
        (["--strategy", "random"], "--ids would not be read: the strategy random uses no affinity"),
        (["--affinity", "a.npz"], "--ids would not be read: --model or --affinity is given"),
    ):
        with pytest.raises(ConfigError, match=message):
            runner.invoke(app, [*base, *options], catch_exceptions=False)


def test_a_diverged_checkpoint_names_the_feature(project: Path) -> None:
    namespace: dict[str, object] = {}
    exec(MODEL, namespace)
    model = namespace["build"]()  # type: ignore[operator]
    with torch.no_grad():
        model.tables["hour"].weight[3:9] = torch.nan
    torch.save(model.state_dict(), project / "state.pt")
    for objective in ("coherent", "mutual_information"):
        with pytest.raises(PlanError, match=r"'tables\.hour'.* not finite"):
            run("--checkpoint", "state.pt", "--objective", objective)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "shop.py:one_batch"], r"returned a tuple; expected an iterable of batches.*return \[batch\]"),
        (["--data", "shop.py:nothing"], "gave no batch"),
        (["--warm-up", "3"], "--warm-up trains, which needs --loss"),
        (["--strategy", "lerned"], 'dmt.partition.strategy: found "lerned".*did you mean "learned"'),
        (["--strategy", "random", "--save-affinity", "x.npz"], "measures no affinity"),
        (["--objective", "auto", "--try-steps", "40", "--loss", "logits"], "Lower it to at most 6"),
        (["--config", "gone.json"], "gone.json"),
        (["--missing", "maybe"], "--missing maybe: expected error or zero"),
        (["--try-steps", "2", "--loss", "logits"], "--try-steps would not be read: set --objective auto"),
        (["--strategy", "random", "--affinity", "x.npz"], "strategy random uses no affinity"),
        (["--loss", "logits"], "--loss would not be read: give --warm-up or --try-steps"),
        (
            ["--objective", "auto", "--try-steps", "2", "--loss", "logits", "--affinity", "x.npz"],
            "measures both kinds of affinity itself",
        ),
    ],
)
def test_options_that_do_not_work(project: Path, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(*options)


def test_options_that_need_a_model(project: Path) -> None:
    for option, value in (("--data", "shop.py:batches"), ("--warm-up", "3"), ("--checkpoint", "x.pt")):
        options = ["partition", "--affinity", "a.npz", "--towers", "3", option, value]
        with pytest.raises(ConfigError, match=f"{option} would not be read: give --model (or --ids )?too"):
            runner.invoke(app, options, catch_exceptions=False)


def test_more_towers_than_features(project: Path) -> None:
    with pytest.raises(PlanError, match="7 towers but only 6 independent features"):
        run("--towers", "7")
    with pytest.raises(ConfigError, match="how many towers"):
        runner.invoke(app, BASE[:-2], catch_exceptions=False)
    with pytest.raises(ConfigError, match="give --model and --data, a file of --ids, or"):
        runner.invoke(app, ["partition", "--towers", "2"], catch_exceptions=False)
