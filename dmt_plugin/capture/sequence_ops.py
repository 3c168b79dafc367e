"""FBGEMM's operations on sequences whose result is as long as its data say, on example values.

``dense_to_jagged(dense, [offsets])`` gives a row for each id of the sequences that the offsets are of. Real offsets say
how many these are; while a model is recorded it is known from whatever else reads the same offsets.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from dmt_plugin.capture.jagged import is_of_one_key

_BY_OFFSETS = ("jagged_to_padded_dense", "jagged_dense_elementwise_add", "jagged_dense_elementwise_add_jagged_output")


def rows_again(node: fx.Node) -> Any:
    """The example value of ``dense_to_jagged`` without a length; ``NotImplemented`` for anything else.

    Args:
        node: recorded, its inputs with example values.
    """
    if getattr(node.target, "__name__", "") != "dense_to_jagged" or len(node.args) != 2 or node.kwargs:
        return NotImplemented
    dense, offsets = node.args
    if not isinstance(dense, fx.Node) or not isinstance(offsets, (list, tuple)) or len(offsets) != 1:
        return NotImplemented
    rows = _rows_of(offsets[0])
    if rows is None:
        return NotImplemented
    value: Tensor = dense.meta["val"]
    return value.new_zeros(rows, *value.shape[2:]), [offsets[0].meta["val"]]  # type: ignore[union-attr]


def _rows_of(offsets: Any) -> int | None:
    """How many ids the sequences have in the example; ``None`` if nothing says so."""
    if not isinstance(offsets, fx.Node):
        return None
    source = offsets.args[0] if offsets.args else None
    if isinstance(source, fx.Node) and getattr(offsets.target, "__name__", "") == "asynchronous_complete_cumsum":
        offsets_of, source = source, source.args[0] if source.args else None
    else:
        offsets_of = offsets
    if offsets_of.op == "call_method" and isinstance(source, fx.Node) and is_of_one_key(source.meta.get("val")):
        return int(source.meta["val"].values().shape[0])
    for user in offsets.users:
        rows = user.args[0] if user.args else None
        if getattr(user.target, "__name__", "") in _BY_OFFSETS and isinstance(rows, fx.Node):
            return int(rows.meta["val"].shape[0])
    return None
