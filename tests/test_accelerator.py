"""Ranks on an accelerator, through NCCL: what they train is the single-process graph on the CPU.

Four ranks share the one device of this machine. NCCL refuses two ranks of one host on one device, so each names a host
of its own to it, and their messages go through the loopback interface, as between hosts without shared memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests._util.ranks import run_ranks
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
]


def on_one_device(topology: str, rank: int) -> dict[str, str]:
    """Variables of a rank that shares device 0 with the others."""
    return {
        **launcher_env(topology, rank),
        "DS_ACCELERATOR": "cuda", "LOCAL_RANK": "0", "NCCL_HOSTID": f"rank{rank}", "NCCL_SOCKET_IFNAME": "lo",
    }  # fmt: skip


@pytest.mark.processes
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("topology", ["2x2", "4x1"])
def test_nccl_ranks_compute_what_one_process_computes(topology: str) -> None:
    hosts, lanes = map(int, topology.split("x"))
    cases = [{**case, "topology": topology} for case in CASES]
    wrong, *_ = run_ranks(
        hosts * lanes, compare, cases, timeout=240, env=partial(on_one_device, topology), backend="nccl"
    )
    assert not wrong, "\n".join(wrong[:30])
