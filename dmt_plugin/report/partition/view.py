"""What there is to see of a partition, as plain values: the tables and pictures show this and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmt_plugin.partitioner import Partition
from dmt_plugin.report.parts.tables import Column, Table


@dataclass(frozen=True)
class PartitionView:
    """A partition, ready to be shown.

    Attributes:
        names: short names of the features, tower by tower.
        tower: tower of each, in the same order.
        sizes: features per tower.
        loads: weight per tower.
        unit: what a load is counted in.
        fair: load of a tower in an even partition.
        limit: most that a tower may weigh, if there is a limit and no groups.
        affinity: ``(F, F)`` in the order of ``names``, or ``None``.
        kind: what the affinity is, in words.
        points: ``(F, 2)`` in the order of ``names``, or ``None``; of more dimensions the first two.
        provenance: as in the plan.
    """

    names: tuple[str, ...]
    tower: NDArray[np.int64]
    sizes: tuple[int, ...]
    loads: tuple[float, ...]
    unit: str
    fair: float
    limit: float | None
    affinity: NDArray[np.float64] | None
    kind: str
    points: NDArray[np.float64] | None
    provenance: Mapping[str, Any]

    @property
    def headline(self) -> str:
        """The partition in one line."""
        source = self.provenance.get("made", self.provenance)
        parts = [f"{len(self.names)} features in {len(self.sizes)} towers", f"strategy {source['strategy']}"]
        if "objective" in source:
            parts += [f"objective {source['objective']}", f"stress-1 {source['layout']['stress_1']:.3f}"]
        if "balance" in source:
            parts.append(f"balance by {source['balance']['by']}")
        if "seed" in source:
            parts.append(f"seed {source['seed']}")
        return ", ".join(parts)


def view_of(partition: Partition) -> PartitionView:
    """Collects what there is to see of a partition."""
    listed = [(name, t) for t, names in enumerate(partition.towers) for name in names]
    names = [name for name, _ in listed]
    sizes = tuple(len(names) for names in partition.towers)
    loads = partition.loads or tuple(float(size) for size in sizes)
    balance = partition.provenance.get("balance", {})
    by_cost = balance.get("by") == "cost"
    groups = balance.get("groups", [])
    scale = 1_000_000 if by_cost else 1
    points = None
    if partition.layout is not None:
        place = {name: i for i, name in enumerate(partition.features)}
        points = partition.layout.points[[place[name] for name in names]][:, :2]
        if points.shape[1] < 2:
            points = np.column_stack([points, np.zeros(len(points))])
    kinds = {"cosine": "mean |cos| of embeddings", "mutual_information": "mutual information of ids"}
    return PartitionView(
        tuple(_short(names)),
        np.array([t for _, t in listed], dtype=np.int64),
        sizes,
        loads,
        "share of the cost" if by_cost else "features",
        sum(loads) / len(loads),
        groups[0]["high"] / scale if len(groups) == 1 and "high" in groups[0] else None,
        None if partition.affinity is None else partition.affinity.select(names),
        kinds[partition.affinity.kind] if partition.affinity is not None else "",
        points,
        partition.provenance,
    )


def table_of(view: PartitionView) -> Table:
    """Towers with their load and their features."""
    inside = _mean_inside(view)
    rows = [
        {
            "tower": str(t),
            "features": size,
            "load": load,
            "inside": inside[t],
            "names": ", ".join(name for name, at in zip(view.names, view.tower, strict=True) if at == t),
        }
        for t, (size, load) in enumerate(zip(view.sizes, view.loads, strict=True))
    ]
    columns = [Column("tower", "tower"), Column("features", "features", "d")]
    if view.unit != "features":
        columns.append(Column("load", "cost", ".3f", "share"))
    if view.affinity is not None:
        columns.append(Column("inside", "affinity", ".3f", "inside"))
    columns.append(Column("names", "members", text=True))
    notes = []
    if view.affinity is not None:
        pairs = ~np.eye(len(view.names), dtype=bool)
        if pairs.any():
            notes.append(f"Mean affinity of all pairs: {view.affinity[pairs].mean():.3f} ({view.kind}).")
    return Table(columns, rows, notes)


def _mean_inside(view: PartitionView) -> list[float | None]:
    """Mean affinity of the pairs of each tower; nothing for a tower of one feature."""
    found: list[float | None] = []
    for t, size in enumerate(view.sizes):
        own = np.flatnonzero(view.tower == t)
        if view.affinity is None or size < 2:
            found.append(None)
        else:
            block = view.affinity[np.ix_(own, own)]
            found.append(float((block.sum() - np.trace(block)) / (size * (size - 1))))
    return found


def _short(names: Sequence[str]) -> list[str]:
    """Names without the dotted path that all of them begin with."""
    paths = [name.split(".") for name in names]
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return [".".join(path[shared:]) for path in paths]
