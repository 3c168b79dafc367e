"""Rows that are kept in 16 bits: their types, and how rows that were computed in fp32 become rows of 16 bits again.

1. To nearest, an update of less than half a step of the type is lost, however often it comes. So rows are rounded
   stochastically: up with the probability of what is cut off, so that the mean over many updates is that of fp32.
2. The random bits of an entry depend on the seed, the name of the parameter, the entry's row and column in it, and the
   number of the update, and on nothing else: the same bits on any rank, whatever it holds of the table, and again when
   a run goes on from a checkpoint.
3. Four neighbouring columns of a row share one counter, 16 bits for each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_plugin.core.counter_hash import key_of, mix
from dmt_plugin.core.update_rule import Rule, WeightType
from dmt_plugin.plan.tables import TableShard

TORCH_TYPES: dict[WeightType, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_COLUMNS, _BITS = 4, 16
_TINY, _STEP = 2.0**-14, 2.0**-24
"""Below the first, numbers of fp16 lie the second apart."""


def type_of(dtype: torch.dtype) -> WeightType | None:
    """The name of a type that tables can be kept in; None for any other."""
    return next((name for name, known in TORCH_TYPES.items() if known == dtype), None)


@dataclass(frozen=True)
class Place:
    """Where in a parameter the entries are that a rank holds.

    Attributes:
        parameter: its name.
        first_row: number of the first row there.
        step: distance of neighbouring rows.
        columns: columns there.
        dim: all columns of the parameter.
    """

    parameter: str
    first_row: int
    step: int
    columns: range
    dim: int

    @classmethod
    def of(cls, shard: TableShard) -> Place:
        """That of a shard of a table."""
        rows = shard.parameter_rows
        return cls(shard.table.parameter, rows.start, rows.step, shard.parameter_columns, shard.table.dim)


def written(rule: Rule, rows: Tensor, numbers: Tensor, place: Place, seed: int, step: int) -> Tensor:
    """Updated rows in the type that the rule keeps them in.

    Args:
        rule: of the table.
        rows: ``(n, columns)`` fp32.
        numbers: ``(n,)`` int64, of the rows, counted from the first that is held.
        place: of what is held.
        seed: of the random bits.
        step: number of the update.
    """
    dtype = TORCH_TYPES[rule.dtype]
    if not rule.stochastic_rounding:
        return rows.to(dtype)
    bits = random_bits(key_of(seed, place.parameter, step), numbers * place.step + place.first_row, place)
    return stochastically(rows, bits, dtype)


def random_bits(key: int, rows: Tensor, place: Place) -> Tensor:
    """``(n, columns)`` int32 in 0 .. 2**16 - 1.

    Args:
        key: of all of them.
        rows: ``(n,)`` int64 row numbers in the parameter.
        place: says which columns.
    """
    first, end = place.columns.start // _COLUMNS, -(-place.columns.stop // _COLUMNS)
    numbers = torch.arange(first, end, device=rows.device)
    bits = (rows * -(-place.dim // _COLUMNS)).unsqueeze(1) + (numbers + key)
    mix(bits, torch.empty_like(bits))
    cut = bits.view(torch.int16)[:, place.columns.start - first * _COLUMNS :][:, : len(place.columns)]
    return cut.to(torch.int32).bitwise_and_((1 << _BITS) - 1)


def stochastically(rows: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows in ``dtype``: each entry becomes one of the two numbers beside it, the nearer one more often.

    Numbers that the type has stay as they are, and so do infinities and NaN.

    Args:
        rows: fp32.
        bits: of the same shape, int32 in 0 .. 2**16 - 1.
        dtype: bfloat16 or float16.
    """
    cut = 16 if dtype == torch.bfloat16 else 13  # bits of fp32's mantissa that the type does not have
    raised = rows.contiguous().view(torch.int32) + (bits >> (_BITS - cut))
    found = raised.bitwise_and_(-(1 << cut)).view(torch.float32)
    if dtype == torch.float16:
        scaled = rows.abs() / _STEP
        low = scaled.floor()
        up = (scaled - low) * (1 << _BITS) > bits + 0.5
        found = torch.where(rows.abs() < _TINY, ((low + up) * _STEP).copysign(rows), found)
    return torch.where(rows.isfinite(), found, rows).to(dtype)
