"""Numbers of bytes as people write and read them."""

from __future__ import annotations

import math
import re

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_BY_NAME = {name.lower(): size for name, size in _UNITS.items()}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Bytes that a text such as ``"16GiB"``, ``"1.5 GB"`` or ``"512 mib"`` means.

    Raises:
        ValueError: it means none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2].lower() not in _BY_NAME or not math.isfinite(float(found[1]) * _BY_NAME["tib"]):
        raise ValueError(f'found "{text}", expected a number with a unit out of {", ".join(_UNITS)}, such as "16GiB"')
    return int(float(found[1]) * _BY_NAME[found[2].lower()])


def say_bytes(count: float) -> str:
    """A number of bytes with a binary unit, e.g. ``"1.5 GiB"``; whole bytes below 1 KiB."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count >= _UNITS[unit]:
            return f"{count / _UNITS[unit]:.1f} {unit}"
    return f"{count:g} B"


_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(bit|B)/s")
_BY_PREFIX = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_rate(text: str) -> float:
    """Bytes per second that a text such as ``"100 Mbit/s"`` or ``"25 GB/s"`` means.

    Raises:
        ValueError: it means none.
    """
    found = _RATE.fullmatch(text.strip())
    if found is None or not 0 < float(found[1]) < 1e18:
        raise ValueError(f'found "{text}", expected a rate such as "100 Mbit/s" or "25 GB/s"')
    return float(found[1]) * _BY_PREFIX[found[2]] / (8 if found[3] == "bit" else 1)


def say_rate(bytes_per_s: float) -> str:
    """Bytes per second for a person."""
    return f"{bytes_per_s / 1e9:,.2f} GB/s" if bytes_per_s >= 1e8 else f"{bytes_per_s / 1e6:,.2f} MB/s"
