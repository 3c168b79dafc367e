"""Clusters in files: ``cluster.yaml``, which a person writes, and what ``dmt doctor --json`` measured.

::

    hosts: 16
    ranks_per_host: 8            # of one NVLink domain
    nic_GBps: 50                 # one way, per rank; or nic_GBps_per_host for one link that the ranks of a host share
    nvlink_GBps: 450
    hbm_TBps: 3.35
    tflops: {fp32: 66.9, tf32: 494.7, bf16: 989}
    memory_GB: 80
    alltoall_efficiency: {16: 0.81, 64: 0.57}   # optional, by ranks
    fixed_ms: [2, 12]            # optional: a number once measured, else a range

``preset: h100-dgx`` stands for all numbers of a preset; what else the file says goes before them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dmt_plugin.config.link import BETWEEN
from dmt_plugin.config.messages import one_of
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.planner.cluster.cluster import Cluster, Figure, name_and_hosts
from dmt_plugin.planner.cluster.presets import FIXED, preset
from dmt_plugin.planner.time.devices import GIGA, TERA, Curve

INSIDE = "inside hosts"
"""The doctor's name for links inside a host."""

_MOST = {"nic_GBps": 2e3, "nic_GBps_per_host": 2e4, "nvlink_GBps": 1e4, "hbm_TBps": 100, "memory_GB": 1e4}
"""More than any machine has: a number above was written in another unit."""

_LEAST = {"hbm_TBps": 0.01, "memory_GB": 0.1}
_TFLOPS = ("fp32", "tf32", "bf16")


class ClusterFile(BaseModel):
    """What ``cluster.yaml`` may say."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    preset: str | None = None
    name: str | None = None
    hosts: int | None = Field(default=None, ge=1)
    ranks_per_host: int | None = Field(default=None, ge=1)
    nic_GBps: float | None = Field(default=None, gt=0)
    nic_GBps_per_host: float | None = Field(default=None, gt=0)
    nvlink_GBps: float | None = Field(default=None, gt=0)
    hbm_TBps: float | None = Field(default=None, gt=0)
    tflops: dict[str, float] | None = None
    memory_GB: float | None = Field(default=None, gt=0)
    alltoall_efficiency: dict[int, float] | None = None
    fixed_ms: float | list[float] | None = None

    @field_validator("tflops")
    @classmethod
    def _kinds(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for kind, rate in (value or {}).items():
            if kind not in _TFLOPS:
                raise ValueError(one_of(kind, _TFLOPS))
            if not 0.01 <= rate <= 1e5:
                raise ValueError(f"{kind}: found {rate:g}, expected 10^12 FLOP/s of one accelerator, 0.01 to 100,000")
        return value

    @field_validator("alltoall_efficiency")
    @classmethod
    def _shares(cls, value: dict[int, float] | None) -> dict[int, float] | None:
        if value is not None and (not value or not all(n > 1 and 0 < share <= 1 for n, share in value.items())):
            raise ValueError(f"found {value}, expected numbers of ranks with the share of the line rate, 0 to 1")
        return value

    @field_validator("fixed_ms")
    @classmethod
    def _range(cls, value: float | list[float] | None) -> float | list[float] | None:
        ends = value if isinstance(value, list) else [value or 0.0] * 2
        if len(ends) != 2 or not 0 <= ends[0] <= ends[1] < 1e5:
            raise ValueError(f"found {value}, expected milliseconds of a step: a number, or [least, most]")
        return value


def cluster_of(text: str, links: str | None = None) -> Cluster:
    """The cluster that ``--cluster`` and ``--links`` name.

    Args:
        text: ``"<preset>:<hosts>"``, or the path of a file that ends in .yaml or .yml, with ``:<hosts>`` or without.
        links: path of what ``dmt doctor --json`` printed on that cluster; its rates go before those of ``text``.

    Raises:
        ConfigError: an unknown preset, a file that cannot be read or says what cannot be, or another topology.
    """
    name, hosts = name_and_hosts(text)
    if name.endswith((".yaml", ".yml")):
        found = read_cluster(name, hosts)
    else:
        found = preset(name, hosts)
    return found if links is None else probed(found, links)


def read_cluster(path: str, hosts: int | None = None) -> Cluster:
    """A cluster from a file.

    Args:
        path: of the file.
        hosts: in place of what it says.

    Raises:
        ConfigError: it cannot be read, or says what cannot be.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--cluster {path}: cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--cluster {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"--cluster {path}: found {type(data).__name__}, expected keys such as hosts and nic_GBps.")
    given = _validated(path, data)
    count = hosts or given.hosts
    if count is None:
        raise ConfigError(f'--cluster {path}: how many hosts? Write "hosts: 8" into it, or --cluster {path}:8.')
    base = preset(given.preset, count) if given.preset is not None else None
    return _made(path, given, base, count)


def _validated(path: str, data: Mapping[Any, Any]) -> ClusterFile:
    unknown = [key for key in data if key not in ClusterFile.model_fields]
    if unknown:
        raise ConfigError(f"--cluster {path}: unknown key: {one_of(unknown[0], ClusterFile.model_fields)}.")
    try:
        given = ClusterFile.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"--cluster {path}: {key}: {first['msg'].removeprefix('Value error, ')}.") from error
    for key, most in _MOST.items():
        value, least = getattr(given, key), _LEAST.get(key, 1e-4)
        if value is not None and not least <= value <= most:
            raise ConfigError(
                f"--cluster {path}: {key}: found {value:g}, expected {least:g} to {most:g}; the unit is in the key's "
                "name (GBps: 10^9 bytes a second, one way; a link of 100 Gbit/s is 12.5)."
            )
    if given.nic_GBps is not None and given.nic_GBps_per_host is not None:
        raise ConfigError(f"--cluster {path}: nic_GBps and nic_GBps_per_host answer one question; keep one.")
    return given


def _made(path: str, given: ClusterFile, base: Cluster | None, hosts: int) -> Cluster:
    source = f"yours: {path}"
    lanes = given.ranks_per_host or (base.ranks_per_host if base else None)
    nic = given.nic_GBps
    if given.nic_GBps_per_host is not None and lanes:
        nic = given.nic_GBps_per_host / lanes
    needed = {
        "ranks_per_host": lanes,
        "nic_GBps (or nic_GBps_per_host)": nic,
        "nvlink_GBps": given.nvlink_GBps,
        "hbm_TBps": given.hbm_TBps,
        "tflops": given.tflops or None,
        "memory_GB": given.memory_GB,
    }
    missing = [key for key, value in needed.items() if value is None]
    if base is None and missing:
        raise ConfigError(
            f"--cluster {path}: missing {', '.join(missing)}. Say them, or say preset: h100-dgx for the rest."
        )
    if given.nic_GBps_per_host is not None:
        shared = True
    else:
        shared = base.shared_nic if base is not None and given.nic_GBps is None else False

    def own(value: float | None, unit: float, of_base: Figure | None) -> Figure:
        if value is not None:
            return Figure(value * unit, source)
        assert of_base is not None
        return of_base

    flops = {kind: Figure(value * TERA, source) for kind, value in (given.tflops or {}).items()}
    curve = base.alltoall if base else None
    if given.alltoall_efficiency is not None:
        curve = Curve(tuple(sorted((float(n), share) for n, share in given.alltoall_efficiency.items())), source)
    return Cluster(
        given.name or (base.name if base else Path(path).stem),
        hosts=hosts,
        ranks_per_host=int(lanes or 0),
        nic=own(nic, GIGA, base.nic if base else None),
        lanes=own(given.nvlink_GBps, GIGA, base.lanes if base else None),
        memory_rate=own(given.hbm_TBps, TERA, base.memory_rate if base else None),
        flops={**(base.flops if base else {}), **flops},
        memory=own(given.memory_GB, GIGA, base.memory if base else None),
        fixed=_fixed(given.fixed_ms, source, base.fixed if base else FIXED),
        shared_nic=shared,
        alltoall=curve,
    )


def _fixed(value: float | list[float] | None, source: str, default: Figure) -> Figure:
    if value is None:
        return default
    if isinstance(value, list):
        low, high = (1e-3 * end for end in value)
        return Figure(math.sqrt(low * high) if low else high / 2, source, low, high)
    return Figure(1e-3 * value, source)


def probed(cluster: Cluster, path: str) -> Cluster:
    """The cluster with the rates that ``dmt doctor --json`` measured on it.

    The probe keeps all links of a kind busy, pair by pair: what it says of a rank's link is what an exchange between
    peers reaches. Its efficiency is in it, so that none is taken off again.

    Args:
        cluster: the rest of the numbers.
        path: the file.

    Raises:
        ConfigError: it holds no measurement, or that of another number of ranks per host.
    """
    try:
        file = Path(path)
        found = json.loads(file.read_text(encoding="utf-8"))
        when = datetime.fromtimestamp(file.stat().st_mtime, tz=timezone.utc).date().isoformat()
        checks = {name: data for check in found["checks"] for name, data in (check.get("data") or {}).items()}
        rates = {kind: float(checks[kind]["GB_per_s"]) * GIGA for kind in (BETWEEN, INSIDE) if kind in checks}
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
    source = f"probe of {found.get('date', when)}: {path}"
    nic = Figure(rates[BETWEEN], source, measured=True) if BETWEEN in rates else cluster.nic
    inside = Figure(rates[INSIDE], source, measured=True) if INSIDE in rates else cluster.lanes
    return replace(cluster, nic=nic, lanes=inside)


def _ranks_per_host(checks: Mapping[str, Any]) -> int | None:
    """What the probe says of its topology, if it does."""
    told = checks.get("ranks_per_host")
    return told if isinstance(told, int) else None
