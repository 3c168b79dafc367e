"""What ``dmt doctor --json`` measured on a cluster, in place of data sheets.

1. Pairs of ranks, with all links of a kind busy: what an exchange between peers, or inside a host, reaches. Its
   efficiency is in it, so that no share is taken off again.
2. An all-to-all and an all-reduce over all ranks: what the flat route, and sums of gradients, reach. The paper's Fig. 5
   then only says how that changes with the number of ranks.
3. Half of the pairs, and of the times, are within the range that each number gets.

Files of before have only the medians of pairs; they give just these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dmt_plugin.config.link import BETWEEN
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.json_text import parse
from dmt_plugin.planner.cluster.cluster import AllRanks, Cluster, Figure
from dmt_plugin.planner.time.devices import GIGA

INSIDE = "inside hosts"
"""The doctor's name for links inside a host."""

ALL = "all ranks"
"""The doctor's name for collectives over all ranks."""


def probed(cluster: Cluster, path: str) -> Cluster:
    """The cluster with the rates that ``dmt doctor --json`` measured on it.

    Args:
        cluster: the rest of the numbers.
        path: the file.

    Raises:
        ConfigError: it holds no measurement, or that of another number of ranks per host.
    """
    try:
        file = Path(path)
        found = parse(file.read_text(encoding="utf-8"))
        when = datetime.fromtimestamp(file.stat().st_mtime, tz=timezone.utc).date().isoformat()
        source = f"probe of {found.get('date') or when}: {path}"
        checks = {name: data for check in found["checks"] for name, data in (check.get("data") or {}).items()}
        rates = {kind: _pairs(checks[kind], source) for kind in (BETWEEN, INSIDE) if kind in checks}
        everyone, sums = (_all_ranks(checks.get(ALL), what, source) for what in ("all_to_all", "all_reduce"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"--links {path}: not what dmt doctor --json prints ({type(error).__name__}: {error})."
        ) from error
    if cluster.hosts > 1 and BETWEEN not in rates:
        raise ConfigError(
            f"--links {path}: holds no measurement of links {BETWEEN}, and --cluster has {cluster.hosts} hosts. Run "
            "dmt doctor --json as you start your training, on two hosts or more."
        )
    lanes = _ranks_per_host(checks)
    if lanes is not None and lanes != cluster.ranks_per_host:
        raise ConfigError(
            f"--links {path}: was measured with {lanes} rank(s) per host, and --cluster {cluster.name} has "
            f"{cluster.ranks_per_host}. Say ranks_per_host: {lanes} in a cluster.yaml, or probe that cluster."
        )
    across = BETWEEN in rates
    return replace(
        cluster,
        nic=rates.get(BETWEEN, cluster.nic),
        lanes=rates.get(INSIDE, cluster.lanes),
        everyone=everyone if across else cluster.everyone,
        sums=sums if across else cluster.sums,
        nic_share=None if across else cluster.nic_share,  # of a line rate; what was measured is no line rate
    )


def _pairs(data: Mapping[str, Any], source: str) -> Figure:
    """Of the largest block: the median of the pairs, and between what half of them are."""
    blocks: Sequence[Mapping[str, Any]] = data.get("blocks") or [data]
    last = blocks[-1]
    return _figure(data["GB_per_s"], last, source)


def _all_ranks(data: Mapping[str, Any] | None, what: str, source: str) -> AllRanks | None:
    """Of the larger size; None where a file has none, or nothing crosses hosts."""
    sizes: Sequence[Mapping[str, Any]] = data[what] if data is not None else ()
    if data is None or not sizes or "GB_per_s" not in sizes[-1]:
        return None
    ranks = data["ranks"]
    if not isinstance(ranks, int) or ranks < 2:
        raise ValueError(f"{ALL}: found {ranks!r} rank(s)")
    return AllRanks(ranks, _figure(sizes[-1]["GB_per_s"], sizes[-1], source))


def _figure(value: Any, ends: Mapping[str, Any], source: str) -> Figure:
    middle = float(value)
    low, high = (float(ends.get(f"{end}_GB_per_s", middle)) for end in ("low", "high"))
    for rate in (low, middle, high):
        if not 1e-9 <= rate <= 1e9:
            raise ValueError(f"found a rate of {rate:g} GB/s")
    return Figure(middle * GIGA, source, min(low, middle) * GIGA, max(high, middle) * GIGA, measured=True)


def _ranks_per_host(checks: Mapping[str, Any]) -> int | None:
    """What the probe says of its topology, if it does."""
    told = checks.get("ranks_per_host")
    return told if isinstance(told, int) else None
