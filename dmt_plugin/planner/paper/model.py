"""What the time model says of the paper's cells, from four constants and public numbers.

Assumed, not fitted: matrix products reach 0.8 of the peak where memory is no limit; gathers and copies 0.6 of the
memory's rate; exchanges inside the host what Fig. 5's 155 GB/s are of 300; the exchange between peers what SimAI
measured; the exchange between all ranks, and the sums, Fig. 5's curves for A100, in parts of the line rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass

from dmt_plugin.planner.paper.figures import Cell, flat_efficiency, printed, sum_efficiency
from dmt_plugin.planner.paper.settings import LANES, ModelSize, flat_load, tower_load
from dmt_plugin.planner.time.devices import DEVICES, PEER_EFFICIENCY, Device
from dmt_plugin.planner.time.step import Load, Rates, StepTime, step_time

PEAK_SHARE = 0.8
MEMORY_SHARE = 0.6
MANY_RANKS = 64
"""From so many ranks on ``Constants.flat`` counts."""

FEW_HOSTS = 4
"""Up to so many hosts ``Constants.few`` counts."""

VARIANTS = ("flat", "SPTT", "DMT")


@dataclass(frozen=True)
class Constants:
    """What is fitted.

    Attributes:
        intensity: FLOPs per byte of memory traffic of the dense part: with the peak it gives the rate of each device.
        fixed_ms: milliseconds of every step that are neither FLOPs nor bytes; the same on all devices.
        flat: by how much the exchange between 64 ranks and more takes longer than Fig. 5 says.
        few: factor on a step with towers on up to 4 hosts; unexplained.
    """

    intensity: float
    fixed_ms: float
    flat: float
    few: float

    def as_tuple(self) -> tuple[float, ...]:
        """The values in the order of the fields."""
        values: tuple[float, ...] = astuple(self)
        return values


class PaperModel:
    """Step times of the paper's settings.

    Args:
        sizes: by the paper's name, what each model computes and sends.
    """

    def __init__(self, sizes: Mapping[str, ModelSize]) -> None:
        self._sizes = sizes
        self._loads: dict[tuple[str, str, int], Load] = {}

    def predict(self, cells: Iterable[Cell], constants: Constants) -> dict[Cell, float]:
        """The model's number for each cell.

        Args:
            cells: of the paper.
            constants: the fitted constants.
        """
        known: dict[tuple[str, str, str, int], StepTime] = {}

        def time(cell: Cell, variant: str) -> StepTime:
            key = (self._name(cell, variant), variant, cell.device, cell.ranks)
            if key not in known:
                known[key] = self.step(*key, constants)
            return known[key]

        found = {}
        for cell in cells:
            if cell.part is not None:
                step = time(cell, cell.part[0])
                found[cell] = 1e3 * (step.compute if cell.part[1] == "compute" else step.exposed)
            else:
                base = "flat" if cell.figure == 10 else "SPTT"
                before, after = (
                    time(cell, variant).seconds * self.factor(variant, cell.ranks, constants)
                    for variant in (base, "DMT")
                )
                found[cell] = before / after
        return found

    def step(self, model: str, variant: str, device: str, ranks: int, constants: Constants) -> StepTime:
        """One step, before :meth:`factor`.

        Args:
            model: a name of ``sizes``.
            variant: one of :data:`VARIANTS`.
            device: accelerator.
            ranks: their number.
            constants: the fitted constants.
        """
        load = self._load(model, variant, ranks)
        return step_time(load, rates_of(DEVICES[device], variant, ranks, load, constants))

    @staticmethod
    def factor(variant: str, ranks: int, constants: Constants) -> float:
        """By what a step takes longer than its parts explain."""
        return constants.few if variant != "flat" and ranks // LANES <= FEW_HOSTS else 1.0

    def _name(self, cell: Cell, variant: str) -> str:
        if variant != "DMT":
            return cell.model
        hosts = cell.ranks // LANES
        name = f"DMT {hosts if hosts <= 16 else 26}T-{cell.model}"
        return f"{name}, CR {cell.ratio}" if cell.ratio > 2 else name

    def _load(self, model: str, variant: str, ranks: int) -> Load:
        key = (model, variant, ranks)
        if key not in self._loads:
            make = flat_load if variant == "flat" else tower_load
            self._loads[key] = make(self._sizes[model], ranks)
        return self._loads[key]


def rates_of(device: Device, variant: str, ranks: int, load: Load, constants: Constants) -> Rates:
    """How fast the busiest rank of a setting is.

    Args:
        device: accelerator and links.
        variant: one of :data:`VARIANTS`.
        ranks: accelerators.
        load: of the rank; the exchange between peers depends on its size.
        constants: the fitted constants.
    """
    hosts = ranks // LANES
    line = device.nic * flat_efficiency().at(ranks)
    flat = line / (constants.flat if ranks >= MANY_RANKS else 1.0)
    peers = device.nic * PEER_EFFICIENCY.at(load.rows[0] * hosts / (hosts - 1))
    inside = printed()["fig5"]["alltoall_256MB_bus_GBps"]["8"] * 1e9 / DEVICES["A100"].lanes
    return Rates(
        flops=1 / (1 / (PEAK_SHARE * device.flops) + 1 / (constants.intensity * device.memory)),
        memory=MEMORY_SHARE * device.memory,
        rows=flat if variant == "flat" else peers,
        ids=flat,
        lanes=inside * device.lanes,
        sums=sum_efficiency().at(ranks) * device.nic,
        fixed=constants.fixed_ms * 1e-3,
    )
