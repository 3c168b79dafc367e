"""Encodes rows of tensors to the bytes of a wire format (fp32, bf16, fp16, int8) and decodes what arrived.

An exchange hands over blocks, each ``(rows, width)``, and gets back the blocks that arrived:

1. ``encode`` lays the blocks one after another into a flat buffer, row by row;
2. every row takes ``row_elements(width)`` elements of that buffer, so splits follow from rows and widths;
3. ``decode`` cuts the received buffer into blocks and gives them the dtype of the model again.

Every value passes through the format, also one that stays on its rank: what a model computes for a sample does not
depend on the rank that the sample is on.

========  =====================================================================================================
``fp32``  The numbers as they are (whatever their dtype). One block is sent from its own storage, and what arrives
          is cut into views: no copy.
``bf16``  2 bytes an entry, relative error at most 2^-8; the range of fp32.
``fp16``  2 bytes an entry, relative error at most 2^-11 above 6.1e-5, absolute error at most 3.0e-8 below;
          beyond 65504 it is infinite. Gradients of a mean loss are mostly below 6.1e-5: send those as ``bf16``.
``int8``  1 byte an entry and one fp32 scale for every ``GROUP`` columns of a row; absolute error at most
          1/254 of the largest entry of that group. A group with an infinite or undefined entry arrives without a
          finite entry, so that an overflow stays visible.
========  =====================================================================================================

Encoded rows travel as bytes (uint8), which every backend carries: gloo has no bf16, and NCCL no int8 rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dmt_plugin.comm.formats import FORMATS, GROUP, SCALE_BYTES, row_bytes, scale_count

Shape = tuple[int, int]


class Codec(Protocol):
    """One wire format."""

    def row_elements(self, width: int) -> int:
        """Elements of the flat buffer that a row of ``width`` entries takes."""

    def encode(self, blocks: Sequence[Tensor]) -> Tensor:
        """Blocks ``(rows, width)`` to the flat buffer ``(sum of rows * row_elements(width),)``."""

    def decode(self, received: Tensor, shapes: Sequence[Shape], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The flat buffer to blocks of these shapes, in ``dtype``."""


class PlainCodec:
    """``fp32``: the entries themselves."""

    def row_elements(self, width: int) -> int:
        """One each."""
        return width

    def encode(self, blocks: Sequence[Tensor]) -> Tensor:
        """One contiguous block is not copied."""
        flat = [block.reshape(-1) for block in blocks]
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def decode(self, received: Tensor, shapes: Sequence[Shape], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Views on the buffer."""
        return _cut(received, shapes)


class ShortFloatCodec:
    """``bf16`` and ``fp16``: every entry rounded to two bytes."""

    def __init__(self, wire: torch.dtype) -> None:
        self._wire = wire

    def row_elements(self, width: int) -> int:
        """In bytes."""
        return self._wire.itemsize * width

    def encode(self, blocks: Sequence[Tensor]) -> Tensor:
        """Rounds to nearest even while copying."""
        buffer = blocks[0].new_empty(sum(block.numel() for block in blocks), dtype=self._wire)
        for target, block in zip(_cut(buffer, [_shape(b) for b in blocks]), blocks, strict=True):
            target.copy_(block)
        return buffer.view(torch.uint8)

    def decode(self, received: Tensor, shapes: Sequence[Shape], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Exact; all blocks are views on one buffer."""
        return _cut(received.view(self._wire).to(dtype), shapes)


class RowwiseInt8Codec:
    """``int8``: a row is its scales (fp32, one for every ``GROUP`` columns), then one signed byte an entry."""

    def row_elements(self, width: int) -> int:
        """In bytes."""
        return row_bytes("int8", width)

    def encode(self, blocks: Sequence[Tensor]) -> Tensor:
        """Rounds every entry to the nearest multiple of its group's scale, which is its largest entry / 127."""
        shapes = [(block.shape[0], self.row_elements(block.shape[1])) for block in blocks]
        buffer = blocks[0].new_empty(sum(rows * size for rows, size in shapes), dtype=torch.uint8)
        for target, block in zip(_cut(buffer, shapes), blocks, strict=True):
            scales, entries = self._parts(target, block.shape[1])
            own = torch.empty(block.shape[0], scale_count(block.shape[1]), device=block.device)
            for group, columns in _runs(block.shape[1]):
                values = _grouped(block[:, columns].float(), group)
                scale = values.abs().amax(dim=2) / 127
                # Below the smallest normal number the quotient could overflow; such a group is sent as zeros.
                # Written so that an undefined scale stays undefined.
                tiny = scale < torch.finfo(torch.float32).tiny
                inverse = scale.reciprocal().masked_fill_(tiny, 0.0)
                rounded = values.mul(inverse.unsqueeze(2)).round_()
                _grouped(entries[:, columns], group).copy_(rounded)
                own[:, group] = scale
            scales.copy_(own.view(torch.uint8))
        return buffer

    def decode(self, received: Tensor, shapes: Sequence[Shape], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Each block is a tensor of its own."""
        encoded = _cut(received, [(rows, self.row_elements(width)) for rows, width in shapes])
        return tuple(self._decode(block, width, dtype) for block, (_, width) in zip(encoded, shapes, strict=True))

    def _decode(self, encoded: Tensor, width: int, dtype: torch.dtype) -> Tensor:
        scales, entries = self._parts(encoded, width)
        # A copy: four bytes somewhere in a buffer are not aligned as fp32 has to be.
        own = scales.clone(memory_format=torch.contiguous_format).view(-1).view(torch.float32)
        own = own.view(encoded.shape[0], scale_count(width))
        decoded = torch.empty(encoded.shape[0], width, dtype=dtype, device=encoded.device)
        for group, columns in _runs(width):
            target = _grouped(decoded[:, columns], group)
            torch.mul(_grouped(entries[:, columns], group), own[:, group].unsqueeze(2), out=target)
        return decoded

    @staticmethod
    def _parts(encoded: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Scales as bytes ``(rows, 4 * groups)``, entries as int8 ``(rows, width)``: views."""
        start = SCALE_BYTES * scale_count(width)
        return encoded[:, :start], encoded[:, start:].view(torch.int8)


class JointInt8Codec(RowwiseInt8Codec):
    """The same bytes, by few operations: on an accelerator each is a kernel, and their number is what takes time.

    All groups of all blocks are rows of one matrix, the last group of a block's row filled up with zeros.
    """

    def encode(self, blocks: Sequence[Tensor]) -> Tensor:
        """As for one block after the other."""
        shapes = [_shape(block) for block in blocks]
        values = torch.zeros(_groups(shapes), GROUP, device=blocks[0].device)
        for target, block in zip(_rows_of(values, shapes), blocks, strict=True):
            target.copy_(block)
        scales = values.abs().amax(dim=1) / 127
        # Below the smallest normal number the quotient could overflow; such a group is sent as zeros.
        # Written so that an undefined scale stays undefined.
        inverse = scales.reciprocal().masked_fill_(scales < torch.finfo(torch.float32).tiny, 0.0)
        entries = _rows_of(values.mul_(inverse.unsqueeze(1)).round_().to(torch.int8), shapes)
        buffer = values.new_empty(sum(rows * self.row_elements(width) for rows, width in shapes), dtype=torch.uint8)
        bytes_of_scales = scales.view(torch.uint8)
        for parts, own, scale in zip(
            self._all_parts(buffer, shapes), entries, _cut_groups(bytes_of_scales, shapes), strict=True
        ):
            parts[0].copy_(scale)
            parts[1].copy_(own)
        return buffer

    def decode(self, received: Tensor, shapes: Sequence[Shape], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """All blocks are views on one buffer, their rows apart where ``GROUP`` does not divide their width."""
        groups = _groups(shapes)
        # Copied: four bytes somewhere in a buffer are not aligned as fp32 has to be.
        bytes_of_scales = received.new_empty(groups * SCALE_BYTES)
        values = received.new_zeros(groups, GROUP, dtype=torch.float32)
        decoded = _rows_of(values, shapes)
        for source, own, scale in zip(
            self._all_parts(received, shapes), decoded, _cut_groups(bytes_of_scales, shapes), strict=True
        ):
            scale.copy_(source[0])
            own.copy_(source[1])
        values.mul_(bytes_of_scales.view(torch.float32).unsqueeze(1))
        return decoded if dtype == torch.float32 else _rows_of(values.to(dtype), shapes)

    def _all_parts(self, encoded: Tensor, shapes: Sequence[Shape]) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each block: scales as bytes ``(rows, 4 * groups)``, entries as int8 ``(rows, width)``; views."""
        cut = _cut(encoded, [(rows, self.row_elements(width)) for rows, width in shapes])
        for block, (_, width) in zip(cut, shapes, strict=True):
            yield self._parts(block, width)


class Int8Codec:
    """``int8``: block by block on the CPU, where copies cost most; all together on accelerators."""

    def __init__(self) -> None:
        self._by_block, self._together = RowwiseInt8Codec(), JointInt8Codec()

    def row_elements(self, width: int) -> int:
        """In bytes."""
        return row_bytes("int8", width)

    def encode(self, blocks: Sequence[Tensor]) -> Tensor:
        """See the module."""
        return self._of(blocks[0]).encode(blocks)

    def decode(self, received: Tensor, shapes: Sequence[Shape], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """See the module."""
        return self._of(received).decode(received, shapes, dtype)

    def _of(self, tensor: Tensor) -> RowwiseInt8Codec:
        return self._by_block if tensor.device.type == "cpu" else self._together


_CODECS: dict[str, Codec] = {
    "fp32": PlainCodec(),
    "bf16": ShortFloatCodec(torch.bfloat16),
    "fp16": ShortFloatCodec(torch.float16),
    "int8": Int8Codec(),
}


def codec_of(name: str) -> Codec:
    """The codec of a wire format.

    Raises:
        ValueError: there is no such format.
    """
    if name not in _CODECS:
        raise ValueError(f"unknown wire format {name!r}; expected one of {', '.join(FORMATS)}")
    return _CODECS[name]


def _shape(block: Tensor) -> Shape:
    return block.shape[0], block.shape[1]


def _cut(buffer: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    parts = buffer.split([rows * width for rows, width in shapes])
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))


def _runs(width: int) -> Iterator[tuple[slice, slice]]:
    """The groups of a row as (groups, columns): all full ones at once, then the short one."""
    full, rest = divmod(width, GROUP)
    if full:
        yield slice(0, full), slice(0, full * GROUP)
    if rest:
        yield slice(full, full + 1), slice(full * GROUP, width)


def _grouped(columns: Tensor, groups: slice) -> Tensor:
    """``(rows, n)`` as ``(rows, groups, n / groups)``: a view."""
    return columns.unflatten(1, (groups.stop - groups.start, -1))


def _groups(shapes: Sequence[Shape]) -> int:
    """Groups of all rows of all blocks."""
    return sum(rows * scale_count(width) for rows, width in shapes)


def _rows_of(groups: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """``(groups, GROUP)`` as blocks ``(rows, width)``, without what fills up a row's last group: views."""
    padded = _cut(groups.view(-1), [(rows, scale_count(width) * GROUP) for rows, width in shapes])
    return tuple(block[:, :width] for block, (_, width) in zip(padded, shapes, strict=True))


def _cut_groups(bytes_of_scales: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """Bytes of one scale per group as ``(rows, bytes)`` of each block: views."""
    return _cut(bytes_of_scales, [(rows, SCALE_BYTES * scale_count(width)) for rows, width in shapes])
