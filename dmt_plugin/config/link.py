"""``dmt.comm.link``: how fast a host's link is, as people write it or as ``dmt doctor --json`` measured it.

1. A number is bytes per second of a host; a text such as "100 Mbit/s" or "25 GB/s" says its unit.
2. A text that ends in ".json" is the path of what ``dmt doctor --json`` printed: the median between hosts, which is
   measured per rank while all links are busy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.json_text import parse
from dmt_plugin.core.sizes import parse_rate

BETWEEN = "between hosts"
"""The doctor's name for links between hosts."""


def bytes_per_second(link: float | str, ranks_per_host: int) -> float:
    """What a host can send in a second.

    Args:
        link: the key.
        ranks_per_host: ranks that share a host's link.

    Raises:
        ConfigError: no rate, no such file, or no measurement of links between hosts in it.
    """
    if not isinstance(link, str):
        return float(link)
    if not link.endswith(".json"):
        return parse_rate(link)
    try:
        return _measured(parse(Path(link).read_text(encoding="utf-8"))) * ranks_per_host
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"dmt.comm.link: {link} holds no measurement of links {BETWEEN} ({type(error).__name__}: {error}). Write a "
            'rate such as "25 GB/s" or "100 Mbit/s", or the file of "dmt doctor --json" on two hosts or more.'
        ) from error


def _measured(found: Any) -> float:
    for check in found["checks"]:
        if BETWEEN in (check.get("data") or {}):
            rate = float(check["data"][BETWEEN]["GB_per_s"]) * 1e9
            if not 1 <= rate <= 1e18:
                raise ValueError(f"found a rate of {rate:g} bytes per second")
            return rate
    raise KeyError(BETWEEN)
