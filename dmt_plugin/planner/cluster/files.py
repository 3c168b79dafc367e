"""Clusters in files: ``cluster.yaml``, which a person or ``dmt plan --calibrate`` writes.

The keys of ``cluster.yaml`` are those of :mod:`dmt_plugin.planner.cluster.file_keys`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.planner.cluster.cluster import Cluster, Figure, Processors, name_and_hosts
from dmt_plugin.planner.cluster.file_keys import ClusterFile, validated
from dmt_plugin.planner.cluster.presets import EXCHANGE_ON_CORES, FIXED, FIXED_ON_CORES, MOVED, ROW, preset
from dmt_plugin.planner.cluster.probe import probed
from dmt_plugin.planner.time.devices import GIGA, TERA, Curve


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
    given = validated(path, _said(path))
    count = hosts or given.hosts
    if count is None:
        raise ConfigError(f'--cluster {path}: how many hosts? Write "hosts: 8" into it, or --cluster {path}:8.')
    base = preset(given.preset, count) if given.preset is not None else None
    return _made(path, given, base, count)


def _said(path: str) -> Mapping[Any, Any]:
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--cluster {path}: cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--cluster {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"--cluster {path}: found {type(data).__name__}, expected keys such as hosts and nic_GBps.")
    return data


def keys_of(text: str) -> dict[str, Any]:
    """What ``--cluster`` says, as keys of a file.

    Args:
        text: as for :func:`cluster_of`.

    Raises:
        ConfigError: a file that cannot be read.
    """
    name, hosts = name_and_hosts(text)
    found = dict(_said(name)) if name.endswith((".yaml", ".yml")) else {"preset": name}
    return {**found, **({} if hosts is None else {"hosts": hosts})}


def write_cluster(path: str, keys: Mapping[str, Any]) -> None:
    """Writes a file that ``--cluster`` reads, and that was not there.

    Args:
        path: of the file.
        keys: what it says.

    Raises:
        ConfigError: there is one already, or it cannot be written.
    """
    validated(path, keys)
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            yaml.safe_dump(dict(keys), file, sort_keys=False, default_flow_style=None, width=120)
    except FileExistsError as error:
        raise ConfigError(f"--output {path}: is there already; name a file that is not.") from error
    except OSError as error:
        raise ConfigError(f"--output {path}: cannot be written: {error}.") from error


def _made(path: str, given: ClusterFile, base: Cluster | None, hosts: int) -> Cluster:
    source = f"yours: {path}"
    lanes = given.ranks_per_host or (base.ranks_per_host if base else None)
    nic = given.nic_GBps
    if given.nic_GBps_per_host is not None and lanes:
        nic = given.nic_GBps_per_host / lanes
    needed = {
        "ranks_per_host": lanes,
        "nic_GBps (or nic_GBps_per_host)": nic,
        "tflops": given.tflops or None,
        "memory_GB": given.memory_GB,
    }
    processors = _processors(path, given)
    if processors is None:
        needed |= {"nvlink_GBps": given.nvlink_GBps, "hbm_TBps": given.hbm_TBps}
    missing = [key for key, value in needed.items() if value is None]
    if base is None and missing:
        others = "." if processors is not None else ", or say preset: h100-dgx for the rest."
        raise ConfigError(f"--cluster {path}: missing {', '.join(missing)}. Say them{others}")
    if given.nic_GBps_per_host is not None:
        shared = True
    else:
        shared = base.shared_nic if base is not None and given.nic_GBps is None else False

    def own(value: float | None, unit: float, of_base: Figure | None) -> Figure:
        if value is not None:
            return Figure(value * unit, source)
        if of_base is not None:
            return of_base
        assert processors is not None
        return processors.moved  # there are no other links, and no other memory

    flops = {kind: Figure(value * TERA, source) for kind, value in (given.tflops or {}).items()}
    curve = base.alltoall if base else None
    if given.alltoall_efficiency is not None:
        curve = Curve(tuple(sorted((float(n), share) for n, share in given.alltoall_efficiency.items())), source)
    default = FIXED if processors is None else FIXED_ON_CORES
    return Cluster(
        given.name or (base.name if base else Path(path).stem),
        hosts=hosts,
        ranks_per_host=int(lanes or 0),
        nic=own(nic, GIGA, base.nic if base else None),
        lanes=own(given.nvlink_GBps, GIGA, base.lanes if base else None),
        memory_rate=own(given.hbm_TBps, TERA, base.memory_rate if base else None),
        flops={**(base.flops if base else {}), **flops},
        memory=own(given.memory_GB, GIGA, base.memory if base else None),
        fixed=_fixed(given, source, base.fixed if base else default),
        shared_nic=shared or processors is not None,
        alltoall=curve,
        nic_share=_measured(given, "nic_share", 1.0, source, None),
        intensity=_measured(given, "intensity", 1.0, source, None),
        processors=processors,
    )


def _processors(path: str, given: ClusterFile) -> Processors | None:
    """The cores, where the file speaks of cores."""
    if given.cores_per_host is not None and given.cores_of_all_hosts is not None:
        raise ConfigError(f"--cluster {path}: cores_per_host and cores_of_all_hosts answer one question; keep one.")
    cores, source = given.cores_per_host or given.cores_of_all_hosts, f"yours: {path}"
    if cores is None:
        for key in ("moved_GBps", "exchange_ms", "row_us"):
            if getattr(given, key) is not None:
                raise ConfigError(f"--cluster {path}: {key} is of processor cores; say how many: cores_per_host: 64.")
        return None
    for key in ("preset", "nvlink_GBps", "hbm_TBps", "intensity"):
        if getattr(given, key) is not None:
            raise ConfigError(f"--cluster {path}: {key} is of accelerators, and the file speaks of cores; keep one.")
    moved = _measured(given, "moved_GBps", GIGA, source, MOVED)
    exchange = _measured(given, "exchange_ms", 1e-3, source, EXCHANGE_ON_CORES)
    row = _measured(given, "row_us", 1e-6, source, ROW)
    assert moved is not None and exchange is not None and row is not None
    return Processors(cores, given.cores_of_all_hosts is not None, moved, exchange, row)


def _measured(given: ClusterFile, key: str, unit: float, source: str, default: Figure | None) -> Figure | None:
    """A number that may have been measured, in a range of two standard errors each way."""
    value = getattr(given, key)
    if value is None:
        return default
    wide = 1 + 2 * (given.uncertainty or {}).get(key, 0.0)
    most = min(value * wide, 1.0) if key == "nic_share" else value * wide
    return Figure(value * unit, given.calibrated or source, value / wide * unit, most * unit)


def _fixed(given: ClusterFile, source: str, default: Figure) -> Figure:
    value = given.fixed_ms
    if isinstance(value, list):
        low, high = (1e-3 * end for end in value)
        return Figure(math.sqrt(low * high) if low else high / 2, source, low, high)
    found = _measured(given, "fixed_ms", 1e-3, source, default)
    assert found is not None
    return found
