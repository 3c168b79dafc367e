"""Wire formats: sizes, error bounds, and what happens to numbers that do not fit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_plugin.comm.formats import FORMATS, GROUP, gradient_format, row_bytes
from dmt_plugin.comm.wire.codecs import JointInt8Codec, RowwiseInt8Codec, codec_of

SHAPES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3 * GROUP + 1)), min_size=1, max_size=4)
LOSSY = ("bf16", "fp16", "int8")


def random_block(rows: int, width: int, seed: int, scale: float) -> torch.Tensor:
    """Entries over several orders of magnitude, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(rows, width, generator=generator) * 10 ** torch.empty(rows, width).uniform_(
        -4, 0, generator=generator
    )
    return block.masked_fill(torch.rand(rows, width, generator=generator) < 0.1, 0.0) * scale


def there_and_back(name: str, blocks: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    codec = codec_of(name)
    return codec.decode(codec.encode(blocks), [(b.shape[0], b.shape[1]) for b in blocks], blocks[0].dtype)


def allowed_error(name: str, block: torch.Tensor) -> torch.Tensor:
    """The bound that the module states, entry by entry; a ten-thousandth more for the arithmetic itself."""
    size = block.abs()
    if name == "fp32":
        return torch.zeros_like(size)
    if name == "bf16":
        return size * 2**-8
    if name == "fp16":
        return torch.where(size >= 2**-14, size * 2**-11, torch.full_like(size, 2**-25))
    padded = torch.nn.functional.pad(size, (0, -size.shape[1] % GROUP))
    largest = padded.unflatten(1, (-1, GROUP)).amax(2) if padded.shape[1] else padded
    return largest.repeat_interleave(GROUP, 1)[:, : size.shape[1]] / 254 * 1.0001


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), SHAPES, st.integers(0, 10**6), st.sampled_from([1e-6, 1.0, 300.0]))
def test_error_bounds(name: str, shapes: list[tuple[int, int]], seed: int, scale: float) -> None:
    blocks = [random_block(rows, width, seed + i, scale) for i, (rows, width) in enumerate(shapes)]
    for block, back in zip(blocks, there_and_back(name, blocks), strict=True):
        assert back.shape == block.shape and back.dtype == block.dtype
        assert bool(((back - block).abs() <= allowed_error(name, block)).all())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), SHAPES, st.integers(0, 10**6))
def test_sizes_are_the_formula(name: str, shapes: list[tuple[int, int]], seed: int) -> None:
    codec = codec_of(name)
    blocks = [random_block(rows, width, seed, 1.0) for rows, width in shapes]
    sent = codec.encode(blocks)
    assert sent.dim() == 1 and sent.is_contiguous()
    assert sent.numel() == sum(rows * codec.row_elements(width) for rows, width in shapes)
    assert sent.numel() * sent.element_size() == sum(rows * row_bytes(name, width) for rows, width in shapes)


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.integers(0, 10**6), st.sampled_from([1e-40, 1.0, math.inf, math.nan]))
def test_int8_of_all_blocks_together_is_that_of_each(shapes: list[tuple[int, int]], seed: int, odd: float) -> None:
    """The form for accelerators, on the CPU: the same bytes, and the same entries from them."""
    blocks = [random_block(rows, width, seed + i, 1.0) for i, (rows, width) in enumerate(shapes)]
    for block in blocks:
        block[:1, :3] = odd
    sent = RowwiseInt8Codec().encode(blocks)
    # An undefined entry has no byte of its own that has to be the same.
    if math.isfinite(odd):
        assert torch.equal(JointInt8Codec().encode(blocks), sent)
    for sender in (RowwiseInt8Codec(), JointInt8Codec()):
        given_back = [
            codec.decode(sender.encode(blocks), shapes, torch.float32)
            for codec in (RowwiseInt8Codec(), JointInt8Codec())
        ]
        for first, second in zip(*given_back, strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(LOSSY), st.integers(1, 6), st.integers(1, 2 * GROUP + 5), st.integers(0, 10**6))
def test_rows_are_independent(name: str, rows: int, width: int, seed: int) -> None:
    """What arrives of a row depends on that row alone, wherever it lies in the buffer; a second trip changes nothing.

    (int8: the largest entry of a group may come back one rounding away, and with it the scale; not the bytes.)
    """
    block = random_block(rows, width, seed, 1.0)
    (whole,) = there_and_back(name, [block])
    pieces = there_and_back(name, [block[i : i + 1] for i in range(rows)])
    assert torch.equal(whole, torch.cat(pieces))
    (again,) = there_and_back(name, [whole])
    torch.testing.assert_close(again, whole, rtol=2e-7 if name == "int8" else 0, atol=0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_of_the_model_comes_back(name: str, dtype: torch.dtype) -> None:
    block = random_block(3, 70, 1, 1.0).to(dtype)
    (back,) = there_and_back(name, [block])
    assert back.dtype == dtype
    torch.testing.assert_close(back, block, rtol=2**-7, atol=0.02)


def test_fp32_copies_nothing() -> None:
    block = torch.randn(4, 6)
    codec = codec_of("fp32")
    sent = codec.encode([block])
    assert sent.data_ptr() == block.data_ptr()
    first, second = codec.decode(sent, [(1, 6), (3, 6)], torch.float32)
    assert first.data_ptr() == block.data_ptr() and second.data_ptr() == block[1:].data_ptr()


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(name: str, bad: float) -> None:
    block = torch.ones(2, GROUP + 3)
    block[1, 5] = bad
    (back,) = there_and_back(name, [block])
    assert not back[1, 5].isfinite()
    assert torch.equal(back[0], block[0]) and torch.equal(back[1, GROUP:], block[1, GROUP:])


@pytest.mark.parametrize("codec", [RowwiseInt8Codec(), JointInt8Codec()], ids=lambda codec: type(codec).__name__)
def test_int8_groups_whose_scale_is_not_normal_are_zeros(codec: RowwiseInt8Codec) -> None:
    """The reciprocal of such a scale may be infinite; the groups beside it are as ever."""
    block = torch.zeros(2, 2 * GROUP)
    block[0, 0] = 50 * torch.finfo(torch.float32).tiny
    block[0, GROUP], block[1, 0] = 1.0, 200 * torch.finfo(torch.float32).tiny
    (back,) = codec.decode(codec.encode([block]), [(2, 2 * GROUP)], torch.float32)
    assert not back[0, :GROUP].any() and back[0, GROUP] == pytest.approx(1.0) and back[1, 0] > 0
    assert int(back.count_nonzero()) == 2


def test_beyond_the_range() -> None:
    assert there_and_back("fp16", [torch.tensor([[1e5, -1e5]])])[0].tolist() == [[math.inf, -math.inf]]
    wide = torch.tensor([[3.3e38, -3.3e38], [1e-38, -1e-38], [1e-45, 0.0]])
    for name in ("bf16", "int8"):
        (back,) = there_and_back(name, [wide])
        assert bool(back.isfinite().all())
        torch.testing.assert_close(back, wide, rtol=0.01, atol=2e-38)


def test_gradient_formats() -> None:
    assert [gradient_format(name, "auto") for name in FORMATS] == ["fp32", "bf16", "bf16", "int8"]
    assert gradient_format("fp32", "fp16") == "fp16"


def test_unknown_format() -> None:
    with pytest.raises(ValueError, match="unknown wire format 'fp8'; expected one of fp32, bf16"):
        codec_of("fp8")
