"""``dmt checkpoint`` as a user types it, on a checkpoint of one host with two ranks."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dmt_plugin.checkpoint import find_checkpoint, load_checkpoint, read_state
from dmt_plugin.checkpoint.weights import open_state
from dmt_plugin.cli import app
from dmt_plugin.core.errors import CheckpointError, ConfigError, PlanError
from tests._util.ranks import run_ranks
from tests.integrations.runs import make, train
from tests.test_placed_laws import launcher_env
from tests.zoo.models import ZOO

runner = CliRunner(env={"COLUMNS": "200"})


def saved(rank: int, world: int, folder: str) -> dict[str, Any]:
    """Two checkpoints: with tower modules and divided tables, and without tower modules."""
    from dmt_plugin.checkpoint import gather_state

    states = {}
    for name, module in (("towers", "dlrm"), ("flat", "none")):
        towers = {"module": module, "count": 2} | ({"p": 1, "dim": 4} if module == "dlrm" else {})
        engine, batch = make("1x2", "deepfm", stage=1, dmt={"towers": towers, "placement": {"strategy": "row_wise"}})
        train(engine, batch, 1)
        engine.save_checkpoint(f"{folder}/{name}", client_state={"epoch": 3})
        states[name] = gather_state(engine.dmt.placed, engine.dmt.groups)
        if name == "flat":
            train(engine, batch, 1)
            engine.save_checkpoint(f"{folder}/later")
            states["later"] = gather_state(engine.dmt.placed, engine.dmt.groups)
    return states


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    states, _ = run_ranks(2, saved, str(folder), timeout=240, env=partial(launcher_env, "1x2"))
    return folder, states


@pytest.mark.processes
def test_inspect(checkpoints: tuple[Path, dict[str, Any]]) -> None:
    folder, states = checkpoints
    said = runner.invoke(app, ["checkpoint", "inspect", str(folder / "towers"), "--check"])
    assert said.exit_code == 0, said.output
    for part in (
        "global_step1", "step 1, 8 samples", "topology 1x2", "2 tower(s) of 3+3 features on host(s) 0, 0",
        "tower module dlrm", "row_wise; rowwise_adagrad", "AdamW, ZeRO 1, fp32, scheduler WarmupLR",
        "files are as they were written", "vectors.0.weight", "host 0, lane 0, 1, row_wise", "exp_avg, exp_avg_sq",
    ):  # fmt: skip
        assert part in said.output, (part, said.output)
    data = json.loads(runner.invoke(app, ["checkpoint", "inspect", str(folder / "towers"), "--json"]).output)
    assert data["topology"] == "1x2" and data["steps"]["global_steps"] == 1 and data["plan"]["towers"]
    shapes = {name.removeprefix("model."): t["shape"] for name, t in data["tensors"].items() if name[:6] == "model."}
    assert shapes == {name: list(value.shape) for name, value in states["towers"].items()}
    with pytest.raises(CheckpointError, match="has no checkpoint 'x': there are global_step1"):
        runner.invoke(app, ["checkpoint", "inspect", str(folder / "towers"), "--tag", "x"], catch_exceptions=False)
    with pytest.raises(CheckpointError, match="has no whole checkpoint: it holds no checkpoint"):
        runner.invoke(app, ["checkpoint", "inspect", str(folder)], catch_exceptions=False)


@pytest.mark.processes
def test_to_flat(checkpoints: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, states = checkpoints
    output = tmp_path / "new" / "flat.pt"
    said = runner.invoke(app, ["checkpoint", "to-flat", str(folder / "flat"), str(output)])
    assert said.exit_code == 0 and "of the flat model after 1 steps" in said.output, said.output
    model, _ = ZOO["deepfm"]()
    model.load_state_dict(torch.load(output))
    assert all(torch.equal(value, states["flat"][name]) for name, value in model.state_dict().items())
    said = runner.invoke(app, ["checkpoint", "to-flat", str(folder / "towers"), str(tmp_path / "towers.pt")])
    assert "of the tower model" in said.output, said.output
    for output, options in (
        ("a.safetensors", ()),
        ("folder/", ("--file-size", "1KiB")),
        ("f", ("--format", "safetensors")),
    ):
        place = f"{tmp_path}/{output}"
        said = runner.invoke(app, ["checkpoint", "to-flat", str(folder / "flat"), place, *options])
        assert said.exit_code == 0 and "of the flat model after 1 steps" in said.output, said.output
        read = {name: tensor.read() for name, tensor in open_state(place).items()}
        assert all(torch.equal(value, read[name]) for name, value in model.state_dict().items())
    assert len(list(tmp_path.glob("folder/model-*-of-*.safetensors"))) > 1
    said = runner.invoke(app, ["checkpoint", "to-flat", str(folder / "flat"), str(tmp_path / "x"), "--file-size", "4"])
    assert said.exit_code == 2 and "--file-size" in said.output and not (tmp_path / "x").exists()


@pytest.mark.processes
def test_reshard(checkpoints: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, states = checkpoints
    source = str(folder / "towers")
    said = runner.invoke(app, ["checkpoint", "reshard", source, "--to", "2x1"])
    assert said.exit_code == 0 and "nothing was written" in said.output and "2x1 instead of 1x2" in said.output
    said = runner.invoke(app, ["checkpoint", "reshard", source, "--to", "2x2", "-o", str(tmp_path)])
    assert said.exit_code == 0, said.output
    found = find_checkpoint(tmp_path)
    assert found is not None and found.manifest.topology == found.manifest.tower_plan.topology == "2x2"
    assert found.manifest.tower_plan.tower_hosts == (0, 1) and found.manifest.rank_states == 0
    assert {found.manifest.tower_plan.kind_of(t.name) for t in found.manifest.tower_plan.tables} == {"row_wise"}
    assert all(torch.equal(value, states["towers"][name]) for name, value in read_state(tmp_path).items())
    with pytest.raises(CheckpointError, match="a run may be saving there; name another folder"):
        runner.invoke(app, ["checkpoint", "reshard", source, "--to", "2x2", "-o", source], catch_exceptions=False)
    with pytest.raises(ConfigError, match="multiple of the number of hosts"):
        runner.invoke(app, ["checkpoint", "reshard", source, "--to", "3x1"], catch_exceptions=False)
    plan = tmp_path / "plan.json"
    found.manifest.tower_plan.save(plan)
    said = runner.invoke(app, ["checkpoint", "reshard", source, "--to", "2x2", "--plan", str(plan)])
    assert said.exit_code == 0, said.output
    with pytest.raises(PlanError, match="made for 2x2"):
        runner.invoke(
            app, ["checkpoint", "reshard", source, "--to", "2x1", "--plan", str(plan)], catch_exceptions=False
        )


@pytest.mark.processes
def test_delta(checkpoints: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, states = checkpoints
    older, newer, file = str(folder / "flat"), str(folder / "later" / "global_step2"), str(tmp_path / "a.delta")
    said = runner.invoke(app, ["checkpoint", "delta", older, newer, "-o", file])
    assert said.exit_code == 0, said.output
    name = "vectors.0.weight"
    rows = (states["later"][name] != states["flat"][name]).any(1)
    line = next(line for line in said.output.splitlines() if name in line)
    assert re.findall(r"[\d,.]+", line.replace(name, ""))[:2] == [str(len(rows)), str(int(rows.sum()))]
    assert f"{Path(file).stat().st_size / 1024:.1f} KiB; the checkpoint has" in said.output
    said = runner.invoke(app, ["checkpoint", "apply-delta", older, file, "-o", str(tmp_path)])
    assert said.exit_code == 0 and said.output.startswith("written: "), said.output
    assert all(torch.equal(value, states["later"][name]) for name, value in read_state(tmp_path).items())
    with pytest.raises(CheckpointError, match=r"was made from the checkpoint 'global_step1'.*is another one"):
        runner.invoke(app, ["checkpoint", "apply-delta", newer, file, "-o", f"{tmp_path}/x"], catch_exceptions=False)


@pytest.mark.processes
def test_in_one_process(checkpoints: tuple[Path, dict[str, Any]]) -> None:
    """Into the flat model, into the tower model with other towers, and into one that is too small."""
    from dmt_plugin.compiler import transform

    folder, states = checkpoints
    model, batch = ZOO["deepfm"]()
    assert load_checkpoint(model, folder / "flat").name == "global_step1"
    assert all(torch.equal(value, states["flat"][name]) for name, value in model.state_dict().items())
    other = transform(model, batch(5, 0), {"dmt": {"towers": {"module": "dlrm", "p": 1, "dim": 4, "count": 3}}})
    with torch.device("meta"), pytest.raises(CheckpointError, match="on the meta device, where nothing can be loaded"):
        load_checkpoint(ZOO["deepfm"]()[0].to("meta"), folder / "flat")
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"the towers of .* are not those of this model"):
        load_checkpoint(other, folder / "towers")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    with pytest.raises(CheckpointError, match=r"0\.bias \[2\] is not in it; 0\.weight \[2, 2\] is not in it"):
        load_checkpoint(torch.nn.Sequential(torch.nn.Linear(2, 2)), folder / "flat")
