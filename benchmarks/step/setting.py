"""What is measured: cluster, model and repeats."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.step import ids


@dataclass(frozen=True)
class Setting:
    """One measurement.

    Attributes:
        hosts: hosts ``H``.
        lanes: ranks on each ``L``.
        rate: of each host's link.
        batch: samples per rank ``B``.
        features: features ``F``, each with a table of its own.
        bag: ids ``K`` of each sample and feature, which are summed.
        rows: of each table with uniform ids; else see :func:`rows_of`.
        ids: how ids are distributed, see :mod:`benchmarks.step.ids`: ``"uniform"``, ``"kaggle"`` or
            ``"flights"``.
        width: of each table ``N``.
        dense: dense features.
        top: width of the first layer behind the interaction; the second has half of it.
        repeats: how often every variant is timed, in turn with the others.
        few: how often those are timed that are there to be ruled out.
        settle: steps before each timing that are not timed. Where many variants take turns, nothing of this one is in
            any cache after the others' steps, as it would be in training.
        iterations: steps of one timing.
        checked: steps before the first timing, to compare losses and warm up.
        lr: learning rate of plain SGD, dense part.
        label: what tells rows apart beside ids and batch, where a profile has several with the same.
    """

    hosts: int = 2
    lanes: int = 2
    rate: str = "100mbit"
    batch: int = 512
    features: int = 26
    bag: int = 1
    rows: int = 10_000
    ids: str = "uniform"
    width: int = 64
    dense: int = 13
    top: int = 128
    repeats: int = 7
    few: int = 2
    settle: int = 0
    iterations: int = 1
    checked: int = 3
    lr: float = 0.05
    label: str = ""

    def __post_init__(self) -> None:
        if self.ids not in ids.TABLE_LR:
            raise ValueError(f"ids are {', '.join(ids.TABLE_LR)}, not {self.ids!r}")
        if min(self.repeats, self.few, self.iterations, self.checked, self.bag) < 1:
            raise ValueError("repeats, few, iterations, checked and bag must be at least 1")
        if self.settle < 0:
            raise ValueError("settle must be at least 0")

    def rows_of(self, feature: int) -> int:
        """Rows of a feature's table."""
        return ids.rows_of(self.ids, feature, self.rows)

    @property
    def table_lr(self) -> float:
        """Learning rate of plain SGD, tables: the ``K`` rows of a bag all move, and their sum ``K`` times as far."""
        return ids.TABLE_LR[self.ids] / self.bag**2

    @property
    def tables_apart(self) -> float:
        """How far apart changes of a table may be in any case, relative; a table that is another one is 1.4 away.

        With 4,096 samples in a step or more, one of millions of inputs of a ReLU may lie so near to zero that rounding
        decides its side, and with it a part of one sample's gradient (seen up to 3e-3, of 4,096 samples 9e-4, with
        equal losses; with other ids 3e-6). A whole sample of 4,096 that is left out makes 0.016. With the smaller rate
        of tables whose rows repeat, what rounding does to a stored row is more of what a step does to it.
        """
        if self.batch * self.world_size >= 4096:
            return 0.01
        return 0.0 if self.ids == "uniform" else 3e-5

    @property
    def tag(self) -> str:
        """Which ids and how many: what tells the rows of a summary apart."""
        return f"{self.ids}_b{self.batch}" + (f"_{self.label}" if self.label else "")

    @property
    def world_size(self) -> int:
        """Ranks of all hosts."""
        return self.hosts * self.lanes

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "table_lr": self.table_lr, "tag": self.tag}
