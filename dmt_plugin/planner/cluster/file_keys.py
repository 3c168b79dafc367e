"""What ``cluster.yaml`` may say, and what of it can be.

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
    nic_share: 0.86              # optional: share of the line rate that exchanges reach, once measured
    intensity: 30                # optional: FLOPs per byte of the dense part, once measured

Ranks that compute on processor cores have, in place of ``nvlink_GBps`` and ``hbm_TBps``::

    cores_per_host: 64           # or cores_of_all_hosts: of a cluster that is emulated on one machine
    moved_GBps: 10               # bytes that a core reads, writes, sends or receives in a second
    exchange_ms: 0.4             # of a core, for an exchange, beside its bytes
    row_us: 0.3                  # of a core, for each id, and each distinct row, of rows that travel once

``uncertainty: {fixed_ms: 0.05}`` makes a range of a number, of one standard error that is 5 % of it; ``calibrated``
says where the numbers are from. ``dmt plan --calibrate`` writes all of these.

``preset: h100-dgx`` stands for all numbers of a preset; what else the file says goes before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dmt_plugin.config.messages import one_of
from dmt_plugin.core.errors import ConfigError

_MOST = {"nic_GBps": 2e3, "nic_GBps_per_host": 2e4, "nvlink_GBps": 1e4, "hbm_TBps": 100, "memory_GB": 1e4}
"""More than any machine has: a number above was written in another unit."""

MEASURED = ("fixed_ms", "nic_share", "intensity", "moved_GBps", "exchange_ms", "row_us")
"""Keys of what ``dmt plan --calibrate`` finds."""

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
    nic_share: float | None = Field(default=None, gt=0, le=1)
    intensity: float | None = Field(default=None, gt=0, le=1e4)
    cores_per_host: int | None = Field(default=None, ge=1, le=4096)
    cores_of_all_hosts: int | None = Field(default=None, ge=1, le=4096)
    moved_GBps: float | None = Field(default=None, gt=0, le=1e4)
    exchange_ms: float | None = Field(default=None, ge=0, le=1e3)
    row_us: float | None = Field(default=None, ge=0, le=1e3)
    uncertainty: dict[str, float] | None = None
    calibrated: str | None = None

    @field_validator("tflops")
    @classmethod
    def _kinds(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for kind, rate in (value or {}).items():
            if kind not in _TFLOPS:
                raise ValueError(one_of(kind, _TFLOPS))
            if not 1e-3 <= rate <= 1e5:
                raise ValueError(f"{kind}: found {rate:g}, expected 10^12 FLOP/s of one rank, 0.001 to 100,000")
        return value

    @field_validator("uncertainty")
    @classmethod
    def _errors(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key, error in (value or {}).items():
            if key not in MEASURED:
                raise ValueError(one_of(key, MEASURED))
            if not 0 <= error < 10:
                raise ValueError(f"{key}: found {error:g}, expected a standard error as a part of the number, 0 to 10")
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


def validated(path: str, data: Mapping[Any, Any]) -> ClusterFile:
    """The keys of a file, each with a value that can be.

    Args:
        path: of the file, for messages.
        data: what it says.

    Raises:
        ConfigError: naming the key.
    """
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
