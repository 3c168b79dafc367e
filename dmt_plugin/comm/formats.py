"""Names and sizes of the wire formats: the type in which a row travels between ranks, and its bytes.

:mod:`dmt_plugin.comm.wire.codecs` encodes and decodes tensors. Names and sizes are apart from that because the
configuration and the cost formula need no torch.
"""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal["fp32", "bf16", "fp16", "int8"]
FormatOrAuto = Literal["auto", "fp32", "bf16", "fp16", "int8"]
FORMATS: tuple[Format, ...] = get_args(Format)

GROUP = 64
"""Columns of a row that share one scale in ``int8``."""

SCALE_BYTES = 4
"""Bytes of such a scale (fp32)."""


def scale_count(width: int) -> int:
    """Scales of an ``int8`` row of ``width`` entries."""
    return -(-width // GROUP)


def row_bytes(name: Format, width: int) -> int:
    """Bytes that a row of ``width`` fp32 entries takes on the wire."""
    if name == "int8":
        return SCALE_BYTES * scale_count(width) + width
    return (4 if name == "fp32" else 2) * width


def bytes_per_entry(name: Format) -> float:
    """Bytes per entry of a long row."""
    return 1 + SCALE_BYTES / GROUP if name == "int8" else row_bytes(name, 1)


def gradient_format(forward: Format, asked: FormatOrAuto) -> Format:
    """Format of the backward direction: as asked, with ``"auto"`` as the forward direction, but bf16 for fp16.

    The gradient of a mean loss over thousands of samples has entries around 1e-6: in fp16 they would lose most of
    their digits or vanish; bf16 costs the same bytes and has the range of fp32.
    """
    if asked != "auto":
        return asked
    return "bf16" if forward == "fp16" else forward
