"""Ranks on an accelerator, through NCCL: what they train is the single-process graph on the CPU.

Four ranks share the one device of this machine. NCCL refuses two ranks of one host on one device, so each names a host
of its own to it, and their messages go through the loopback interface, as between hosts without shared memory.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dmt_plugin.comm.formats import FORMATS, GROUP
from dmt_plugin.comm.wire.codecs import codec_of
from tests._util.ranks import run_ranks
from tests.comm.test_codecs import allowed_error
from tests.integrations.test_checkpoints import RUNS, passed_on, resumed
from tests.test_matrix_laws import PLAIN, compare
from tests.test_placed_laws import launcher_env

ON_TORCH = {**PLAIN, "backend": "torch"}
CASES: list[dict[str, Any]] = [
    ON_TORCH,
    {**ON_TORCH, "stage": 0, "clip": 0.0, "accumulation": 1, "towers": "equal"},
    {**ON_TORCH, "stage": 2, "precision": "bf16", "placement": "row_wise"},
    {**ON_TORCH, "placement": "column_wise", "comm": {"route": "flat", "micro_blocks": 1}},
    {**ON_TORCH, "comm": {"micro_blocks": 3}, "accumulation": 1},
    {**ON_TORCH, "precision": "bf16", "comm": {"peer_dtype": "bf16", "intra_dtype": "bf16"}},
    {**ON_TORCH, "zero": {"overlap_comm": True}, "stage": 2},
    {**ON_TORCH, "scheduler": "WarmupLR", "lookup": {"schedule": "follow"}},
]


def on_one_device(topology: str, rank: int) -> dict[str, str]:
    """Variables of a rank that shares device 0 with the others."""
    return {
        **launcher_env(topology, rank),
        "DS_ACCELERATOR": "cuda", "LOCAL_RANK": "0", "NCCL_HOSTID": f"rank{rank}", "NCCL_SOCKET_IFNAME": "lo",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }  # fmt: skip


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_cuda
@pytest.mark.parametrize("name", FORMATS)
def test_codecs_on_the_device(name: str) -> None:
    """The bytes of the CPU, and within the bounds; int8's scales are quotients, which a device may round otherwise."""
    shapes = [(5, 3 * GROUP), (5, GROUP + 7), (3, 16)]
    blocks = [torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) for shape in shapes]
    codec = codec_of(name)
    sent = codec.encode([block.cuda() for block in blocks])
    assert name == "int8" or torch.equal(sent.cpu(), codec.encode(blocks))
    for block, back in zip(blocks, codec.decode(sent, shapes, torch.float32), strict=True):
        assert bool(((back.cpu() - block).abs() <= allowed_error(name, block)).all())


@pytest.mark.processes
@needs_cuda
@pytest.mark.parametrize("topology", ["2x2", "4x1"])
def test_nccl_ranks_compute_what_one_process_computes(topology: str) -> None:
    hosts, lanes = map(int, topology.split("x"))
    cases = [{**case, "topology": topology} for case in CASES]
    wrong, *_ = run_ranks(
        hosts * lanes, compare, cases, timeout=240, env=partial(on_one_device, topology), backend="nccl"
    )
    assert not wrong, "\n".join(wrong[:30])


def resumed_on_device(rank: int, world: int, folder: str) -> list[str]:
    torch.use_deterministic_algorithms(True)  # else the sums of one row's gradients differ from run to run
    runs = {name: {**run, "tables": {**run.get("tables", {}), "backend": "torch"}} for name, run in RUNS.items()}
    return resumed(rank, world, folder, runs)


@pytest.mark.processes
@needs_cuda
@pytest.mark.parametrize("function", [passed_on, resumed_on_device])
def test_checkpoints_on_the_device(function: Any, tmp_path: Path) -> None:
    env = partial(on_one_device, "2x2")
    found = run_ranks(4, function, str(tmp_path), timeout=240, env=env, backend="nccl")
    assert not any(found), "\n".join(f"rank {rank}: {line}" for rank, lines in enumerate(found) for line in lines[:8])
