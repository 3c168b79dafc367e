"""Random bits that depend on a key and a counter alone, so that whoever needs some can make them by itself.

A key is a hash of names and numbers. Key and counter are added and mixed as splitmix64 does (Steele, Lea, Flood 2014).
All of it is arithmetic of whole numbers: the same bits on every machine and device.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


def key_of(seed: int, name: str, draw: int = 0) -> int:
    """A signed number of 64 bits.

    Args:
        seed: of the run.
        name: of what is drawn for.
        draw: which draw it is.
    """
    digest = hashlib.sha256(f"{seed}\0{draw}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def mix(bits: Tensor, scratch: Tensor) -> Tensor:
    """64 random bits for each sum of a key and a counter, in place.

    Args:
        bits: the sums, int64 of any shape; sums that are larger than int64 wrap round.
        scratch: of the same shape and type; it is written to.

    Returns:
        ``bits``.
    """
    bits.mul_(_GOLDEN)
    for shift, factor in _MIX:
        # int64 is signed, and its shift keeps the sign: what it brings in from the left is masked away.
        torch.bitwise_right_shift(bits, shift, out=scratch).bitwise_and_((1 << (64 - shift)) - 1)
        bits.bitwise_xor_(scratch).mul_(factor)
    torch.bitwise_right_shift(bits, 31, out=scratch).bitwise_and_((1 << 33) - 1)
    return bits.bitwise_xor_(scratch)
