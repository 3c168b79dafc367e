"""Which update rules and types of rows this build of FBGEMM really has on a device: it is tried out, once per process.

Builds accept options that they then ignore (weight decay and stochastic rounding of the CPU's kernels, for two), and
assert on others. So before a table is given to FBGEMM,

1. two rows in fp32 are updated by its rule there and by the reference (:mod:`.updates`);
2. rows in 16 bits likewise, where the table is kept in them;
3. where they are rounded stochastically, rows are updated by a quarter of a step of their type: a quarter of the
   entries has to move, by a whole step.

What differs, or what FBGEMM refuses, is looked up on PyTorch. Any other error is one, and not an answer.
"""

from __future__ import annotations

import functools
import traceback
from dataclasses import replace

import torch

from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.nn.lookup.fbgemm import FbgemmTables
from dmt_plugin.nn.lookup.plain_torch import TorchTables
from dmt_plugin.nn.lookup.rounding import TORCH_TYPES
from dmt_plugin.nn.lookup.site import LookupSite

_ROWS, _MANY, _DIM = 3, 128, 4


def why_not(rule: Rule, device: torch.device) -> str:
    """Why FBGEMM cannot keep and update tables by ``rule`` on ``device``; empty if it can.

    Raises:
        PairingError: FBGEMM cannot be loaded.
    """
    rule = replace(rule, lr=0.5, group=None)
    why = _tried(replace(rule, dtype="fp32", stochastic_rounding=False), device)
    if not why and rule.dtype != "fp32":
        why = _tried(replace(rule, stochastic_rounding=False), device)
    if not why and rule.stochastic_rounding:
        why = _rounding_tried(rule, device)
    return why


@functools.cache
def _tried(rule: Rule, device: torch.device) -> str:
    key, said = "" if rule.dtype == "fp32" else "dmt.lookup.dtype: ", f"its rule (tried: {rule})"
    reference = _after_two_updates(TorchTables, rule, device)
    try:
        own = _after_two_updates(FbgemmTables, rule, device)
    except (AssertionError, NotImplementedError) as error:
        if not _raised_by_fbgemm(error):
            raise
        return f"{key}FBGEMM does not run {said} on {device.type}: {(str(error).splitlines() or [''])[0]}"
    # Of 16 bits, a number close to the middle of two may become either of them in each of the two updates.
    rtol, atol = (1e-4, 1e-5) if rule.dtype == "fp32" else [4 * torch.finfo(TORCH_TYPES[rule.dtype]).eps] * 2
    for kept, expected in zip(own, reference, strict=True):
        if kept.dtype != expected.dtype:
            return f"{key}FBGEMM keeps {kept.dtype} on {device.type} for {expected.dtype} of {said}"
        if not torch.allclose(kept.float(), expected.float(), rtol=rtol, atol=atol):
            off = float((kept.float() - expected.float()).abs().max())
            return f"{key}FBGEMM's update on {device.type} is not that of {said}: a row is off by {off:.2g}"
    return ""


def _raised_by_fbgemm(error: Exception) -> bool:
    """Whether FBGEMM refused: asserted on an option, or PyTorch found that a kernel of it lacks a type or a device."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].split(".")[0] in ("fbgemm_gpu", "torch")


def _after_two_updates(
    kind: type[FbgemmTables] | type[TorchTables], rule: Rule, device: torch.device
) -> list[torch.Tensor]:
    """A table of three rows after two updates of two of them, and what its rule keeps."""
    start = torch.linspace(-1.0, 1.5, _ROWS * _DIM, device=device).view(_ROWS, _DIM)
    tables = _tables(kind, start, rule)
    for _ in range(2):
        _update(tables, torch.tensor([0, 0, 2], device=device), torch.linspace(0.5, 2.0, 3 * _DIM, device=device))
    return [tables.weight("probe").clone(), *(state.clone() for state in tables.state("probe").values())]


@functools.cache
def _rounding_tried(rule: Rule, device: torch.device) -> str:
    step = torch.finfo(TORCH_TYPES[rule.dtype]).eps
    start = torch.full((_MANY, _DIM), 1.5, device=device)
    exact = _tables(TorchTables, start, replace(rule, lr=1.0, dtype="fp32", stochastic_rounding=False))
    _update(exact, torch.arange(_MANY, device=device), torch.ones(_MANY * _DIM, device=device))
    small = step / 4 / float((exact.weight("probe") - start).abs().max())  # what is added grows with the rate
    tables = _tables(FbgemmTables, start, replace(rule, lr=small))
    _update(tables, torch.arange(_MANY, device=device), torch.ones(_MANY * _DIM, device=device))
    moved = (tables.weight("probe").float() - start).abs()
    share = float((moved > 0).float().mean())
    if 0.1 < share < 0.4 and float(moved.max()) <= 1.5 * step:
        return ""
    return (
        f"dmt.lookup.stochastic_rounding: FBGEMM on {device.type} does not round {rule.dtype} by chance; of entries "
        f"that {rule.name} updates by a quarter of a step, {share:.0%} moved"
    )


def _tables(
    kind: type[FbgemmTables] | type[TorchTables], start: torch.Tensor, rule: Rule
) -> FbgemmTables | TorchTables:
    site = LookupSite("probe", "probe", 0, len(start), _DIM, "sum", False)
    if kind is FbgemmTables:
        return FbgemmTables([site], {"probe": start}, rule, start.device, "auto")
    return TorchTables([site], {"probe": start}, {"probe": rule}, start.device)


def _update(tables: FbgemmTables | TorchTables, ids: torch.Tensor, gradient: torch.Tensor) -> None:
    """One update by a gradient of each looked-up row."""
    rows = len(ids)
    out = tables.forward(RoutedIds((ids.int(),), (None,), (None,), BatchLayout(rows, ((rows,),))))
    (out[:, :_DIM] * gradient.view(rows, _DIM)).sum().backward()
    tables.step()
    tables.zero_grad()
