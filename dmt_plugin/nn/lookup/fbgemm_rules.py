"""Which update rules this build of FBGEMM really has on a device: it is tried out, once per process.

Builds accept options that they then ignore (weight decay of the CPU's kernels, for one), and assert on others. So
before a table is given to FBGEMM, two rows are updated by its rule there and by the reference
(:mod:`.updates`); what differs, or fails, is looked up on PyTorch.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.nn.lookup.fbgemm import FbgemmTables
from dmt_plugin.nn.lookup.plain_torch import TorchTables
from dmt_plugin.nn.lookup.site import LookupSite

_ROWS, _DIM = 3, 4


def why_not(rule: Rule, device: torch.device) -> str:
    """Why FBGEMM cannot update tables by ``rule`` on ``device``; empty if it can.

    Raises:
        PairingError: FBGEMM cannot be loaded.
    """
    return _tried(replace(rule, lr=0.5, group=None), device)


@functools.cache
def _tried(rule: Rule, device: torch.device) -> str:
    try:
        own, reference = (_after_two_updates(kind, rule, device) for kind in (FbgemmTables, TorchTables))
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        return f"FBGEMM does not run its rule ({rule}) on {device.type}: {(str(error).splitlines() or [''])[0]}"
    if torch.allclose(own, reference, rtol=1e-4, atol=1e-5):
        return ""
    off = float((own - reference).abs().max())
    return f"FBGEMM's update on {device.type} is not that of its rule ({rule}): a row is off by {off:.2g}"


def _after_two_updates(kind: type[FbgemmTables] | type[TorchTables], rule: Rule, device: torch.device) -> torch.Tensor:
    """A table of three rows after two updates of two of them."""
    site = LookupSite("probe", "probe", 0, _ROWS, _DIM, "sum", False)
    start = torch.linspace(-1.0, 1.5, _ROWS * _DIM, device=device).view(_ROWS, _DIM)
    if kind is FbgemmTables:
        tables: FbgemmTables | TorchTables = FbgemmTables([site], {"probe": start}, rule, device, "auto")
    else:
        tables = TorchTables([site], {"probe": start}, {"probe": rule}, device)
    ids = torch.tensor([0, 0, 2], dtype=torch.int32, device=device)
    factors = torch.linspace(0.5, 2.0, 3 * _DIM, device=device).view(3, _DIM)
    for _ in range(2):
        out = tables.forward(RoutedIds((ids,), (None,), (None,), BatchLayout(3, ((3,),))))
        (out[:, :_DIM] * factors).sum().backward()
        tables.step()
        tables.zero_grad()
    return tables.weight("probe").clone()
