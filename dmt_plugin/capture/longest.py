"""Refuses a length that forward reads off a batch, such as that of its longest sequence.

A graph has one shape for all batches of a size. Code for sequences often pads them to the longest of the batch, which
is another shape every time; it computes the same if it pads to a constant, where it masks what it padded.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from dmt_plugin.capture.source_lines import calling_line, refusal, shown
from dmt_plugin.core.errors import CaptureError

_MAXIMA = ("max", "amax")


def is_longest(node: fx.Node) -> bool:
    """Whether a node is the largest of whole numbers, as the longest of the lengths of sequences is."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    value = node.meta.get("val")
    if name not in _MAXIMA or not isinstance(value, Tensor) or value.dim():
        return False
    return not value.is_floating_point() and value.dtype != torch.bool


def reads_longest(node: fx.Node) -> bool:
    """Whether a node reads such a number, ``lengths.max().item()``."""
    source = node.args[0] if node.args else None
    return node.target == "item" and isinstance(source, fx.Node) and is_longest(source)


def longest_read(module: str) -> CaptureError:
    """The refusal, at the line of the user's code that runs.

    Args:
        module: whose forward runs.
    """
    return refusal(
        "DMT116", module,
        f"a size is the largest of numbers of the batch, as the longest of its sequences is, at "
        f"{shown(calling_line())}; it is another one in every batch, and a graph has one shape for all",
        "pad to a constant length, jagged.to_padded_dense(50) or jagged_to_padded_dense(values, [offsets], [50]); "
        "sequences that are longer are cut to it",
    )  # fmt: skip
