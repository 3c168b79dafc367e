"""A model of MLPerf's size, on the meta device, is captured, rewritten and explained in seconds and without its memory.

Each case runs in a process of its own, whose peak of memory is its own. The limits of time are for the calls alone, in
seconds of this process: importing torch and torchrec is not the compiler's, and nobody else's work is.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests._util.programs import run_program

logger = logging.getLogger(__name__)

SECONDS, MEBIBYTES = 10.0, 2048.0

#: 26 tables of 1e9 rows x 128, 13 dense features, and the layers of MLPerf's DLRM-DCNv2 reference.
MODEL = """
import torch
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM, DLRM_DCN

KEYS = [f"cat_{i}" for i in range(26)]
META = torch.device("meta")

def tables():
    return EmbeddingBagCollection(
        [EmbeddingBagConfig(name=f"t_{k}", embedding_dim=128, num_embeddings=10**9, feature_names=[k]) for k in KEYS],
        device=META,
    )

def dcn():
    return DLRM_DCN(tables(), 13, [512, 256, 128], [1024, 1024, 512, 256, 1], 3, 512, dense_device=META)

def dlrm():
    return DLRM(tables(), 13, [512, 256, 128], [1024, 1024, 512, 256, 1], dense_device=META)

def example_batch():
    lengths = torch.ones(26 * 8, dtype=torch.long)
    ids = KeyedJaggedTensor(KEYS, torch.randint(0, 10**9, (26 * 8,)), lengths=lengths)
    return torch.randn(8, 13), ids
"""

TRANSFORM = """
import json, resource, sys, time
import dmt_plugin, scale_model
model, batch = getattr(scale_model, sys.argv[1])(), scale_model.example_batch()
start = time.process_time()
towers = dmt_plugin.transform(model, batch, {"dmt": {"towers": json.loads(sys.argv[2])}}, "8x8")
seconds = time.process_time() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
kinds = sorted({g.kind for g in towers.plan.groups})
print(json.dumps({"seconds": seconds, "MiB": peak, "repairs": len(towers.repairs), "kinds": kinds}))
"""

EXPLAIN = """
import json, resource, time
import torch, torchrec, scale_model
from dmt_plugin.cli.explain import explained
start = time.process_time()
data = explained("scale_model:dcn", None, 8, 8, batch_size=8192).as_dict()
seconds = time.process_time() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "MiB": peak, "refused": data["refused"]}))
"""


def run(folder: Path, code: str, *arguments: str) -> dict[str, object]:
    """What the code prints last, run in a process of its own beside the model's file."""
    (folder / "scale_model.py").write_text(MODEL)
    done = run_program("-c", code, *arguments, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    logger.info("%s %s", arguments, found)  # seen with --log-cli-level=info
    assert found["seconds"] < SECONDS and found["MiB"] < MEBIBYTES, found
    return found


@pytest.mark.parametrize("model", ["dcn", "dlrm"])
@pytest.mark.parametrize("towers", ['{"module": "none"}', '{"module": "dlrm", "c": 1, "p": 0, "dim": 64}'])
def test_transform(tmp_path: Path, model: str, towers: str) -> None:
    found = run(tmp_path, TRANSFORM, model, towers)
    assert found["kinds"] == ["tower"]
    assert bool(found["repairs"]) == ("none" not in towers)


def test_explain(tmp_path: Path) -> None:
    assert run(tmp_path, EXPLAIN)["refused"] is None
