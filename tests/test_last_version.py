"""What version 0.1.0 wrote is read: plans, checkpoints (flat, on ranks, for another topology), pickled models.

``tests/data/version_0_1_0`` was written by that version: a run on 2x1 with ZeRO 1 that saved after two steps and took
two more, and a small DLRM with tables in ranges of rows.
"""

from __future__ import annotations

import functools
import importlib
import json
import pickle
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from dmt_plugin.checkpoint.folder import find_checkpoint
from dmt_plugin.checkpoint.reshard import plan_for, reshard
from dmt_plugin.checkpoint.single import read_state
from dmt_plugin.moved import MOVED
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.topology.shape import Topology
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env

DATA = Path(__file__).parent / "data" / "version_0_1_0"
EXPECTED = json.loads((DATA / "expected.json").read_text())


def test_a_plan_keeps_its_text_and_its_fingerprint():
    plan = TowerPlan.load(DATA / "plan.json")
    assert plan.fingerprint == (DATA / "plan_fingerprint.txt").read_text().strip()
    assert json.loads(json.dumps(plan.to_dict())) == json.loads((DATA / "plan.json").read_text())
    other = TowerPlan.from_dict(EXPECTED["plan"])
    assert other.fingerprint == EXPECTED["fingerprint"]


def test_a_pickled_model_gives_the_same_numbers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = pickle.loads((DATA / "logical.pickle").read_bytes())
    example = torch.load(DATA / "example.pt")
    torch.testing.assert_close(model(*example["inputs"]), example["output"])
    assert model.plan.fingerprint == (DATA / "plan_fingerprint.txt").read_text().strip()
    assert {r.target for r in model.repairs} <= set(dict(model.named_modules())) | set(model.state_dict())
    pickle.loads(pickle.dumps(model))


def test_every_old_name_of_a_module_leads_to_the_new_one():
    for old, new in MOVED.items():
        with pytest.warns(DeprecationWarning, match="is dmt_plugin"):
            sys.modules.pop(f"dmt_plugin.{old}", None)
            importlib.import_module(f"dmt_plugin.{old}")
        assert importlib.import_module(f"dmt_plugin.{new}").__name__ == f"dmt_plugin.{new}"


def restored(rank: int, world: int, topology: str, stage: int, folder: str) -> tuple[Any, list[float], Any]:
    """State after loading, the losses of the next two steps, and ``client_state``."""
    from dmt_plugin.checkpoint.logical import gather_state
    from tests.integrations.runs import make, train

    towers = {"module": "dlrm", "c": 1, "p": 1, "dim": 4, "count": 2}
    engine, batch = make(topology, stage=stage, seed=7, dmt={"towers": towers})
    _, client = engine.load_checkpoint(folder)
    state = gather_state(engine.dmt.placed, engine.dmt.groups)
    return state, [float(loss) for loss in train(engine, batch, 2)], client


def different(found: dict[str, torch.Tensor]) -> list[str]:
    """Names whose values are not those that were saved, bit for bit."""
    expected = torch.load(DATA / "expected_state.pt")
    return sorted(found.keys() ^ expected.keys()) or [n for n in expected if not torch.equal(found[n], expected[n])]


@pytest.fixture
def saved(tmp_path):
    return shutil.copytree(DATA / "checkpoint", tmp_path / "checkpoint")


def test_a_checkpoint_is_read_in_one_process_and_written_for_another_topology(saved, tmp_path):
    assert different(read_state(saved)) == []
    found = find_checkpoint(saved)
    assert found is not None
    plan = plan_for(found.manifest.tower_plan, Topology(1, 2))
    reshard(found, plan, tmp_path / "resharded")
    assert different(read_state(tmp_path / "resharded")) == []


@pytest.mark.processes
@pytest.mark.parametrize(("topology", "stage"), [("2x1", 1), ("1x2", 0)])
def test_a_checkpoint_goes_on_on_ranks(saved, topology, stage):
    """On the topology it was saved on, and on another with another ZeRO stage."""
    env = functools.partial(launcher_env, topology)
    results = run_ranks(2, restored, topology, stage, str(saved), env=env)
    assert different(results[0][0]) == []
    own = [name for name in different(results[1][0]) if "running_" not in name]  # every rank has statistics of its own
    assert own == []
    losses = torch.tensor([found for _, found, _ in results]).mean(0)
    torch.testing.assert_close(losses, torch.tensor(EXPECTED["losses"]).mean(0), rtol=1e-4, atol=1e-5)
    assert results[0][2] == {"note": "kept", "of rank": 0}
