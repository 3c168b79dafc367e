"""What the paper printed: its figures as cells, and the measurements that the model takes from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from dmt_plugin.planner.time.devices import GIGA, Curve

Model = Literal["DLRM", "DCN"]


@dataclass(frozen=True)
class Cell:
    """One number of the paper's Figs. 10 to 13.

    Attributes:
        figure: 10 (speed-up of DMT over the baseline), 11 (of DMT over SPTT alone), 12 (the same by compression ratio)
            or 13 (milliseconds).
        model: ``"DLRM"`` or ``"DCN"``.
        device: accelerator.
        ranks: accelerators, 8 on a host.
        paper: the number.
        ratio: compression ratio, in Fig. 12; else 0.
        part: in Fig. 13 whose time it is, ``"flat"`` or ``"DMT"``, and which, ``"compute"`` or ``"exposed"``.
    """

    figure: int
    model: Model
    device: str
    ranks: int
    paper: float
    ratio: int = 0
    part: tuple[str, str] | None = None

    @property
    def label(self) -> str:
        """For tables, e.g. ``"Fig. 10 DLRM V100 16"``."""
        if self.part is not None:
            return f"Fig. 13 {self.part[0]} {self.part[1]} ms"
        if self.ratio:
            return f"Fig. 12 {self.device} CR {self.ratio}"
        model = f"{self.model} " if self.figure == 10 else ""
        return f"Fig. {self.figure} {model}{self.device} {self.ranks}"


@cache
def printed() -> dict[str, Any]:
    """The data file as it is, with its source."""
    text = files(__package__).joinpath("figures.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


@cache
def cells() -> tuple[Cell, ...]:
    """The 64 cells in the order of the figures."""
    data = printed()
    found = [
        Cell(10, model, device, int(ranks), value)
        for model, devices in data["fig10"].items()
        for device, row in devices.items()
        for ranks, value in row.items()
    ]
    for device, row in data["fig11"].items():
        found += [Cell(11, "DLRM", device, int(ranks), value) for ranks, value in row.items()]
    for device, row in data["fig12"].items():
        found += [Cell(12, "DLRM", device, 64, value, ratio=int(ratio)) for ratio, value in row.items()]
    for who, parts in data["fig13"].items():
        found += [Cell(13, "DCN", "H100", 64, value, part=(who, part)) for part, value in parts.items()]
    return tuple(found)


@cache
def flat_efficiency() -> Curve:
    """Fig. 5: by ranks the share of the line rate that an AlltoAll between all of them reaches over their links.

    Bus bandwidth counts what stays inside hosts; of ``G - 1`` messages only ``G - L`` cross.
    """
    own, per_host, nic = printed()["fig5"], 8, 25 * GIGA
    points = [(int(g), bus) for g, bus in own["alltoall_256MB_bus_GBps"].items() if int(g) > per_host]
    shares = tuple((g, bus * GIGA * (g - per_host) / (g - 1) / nic) for g, bus in points)
    return Curve(shares, "Fig. 5 of the paper: A100, 8 ranks per host, 256 MB")


@cache
def sum_efficiency() -> Curve:
    """Fig. 5: by ranks the bus bandwidth of an all-reduce between all of them, in parts of a link's line rate."""
    points = tuple((int(g), bus / 25) for g, bus in printed()["fig5"]["allreduce_64MB_bus_GBps"].items())
    return Curve(points, "Fig. 5 of the paper: A100, 8 ranks per host, 64 MB")
