"""The outcome of an estimate, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmt_plugin.planner.cluster.cluster import Cluster
from dmt_plugin.planning.candidates import Misfit, Priced
from dmt_plugin.planning.rows import Row


@dataclass(frozen=True)
class Estimate:
    """The outcome.

    Attributes:
        cluster: that it is for.
        samples: per rank.
        mflops: of a sample of the flat model, forward and backward.
        features: of the model.
        tables_bytes: of all tables in fp32.
        groups: by name the rows that are shown; ``"exact"`` first, then by compression ratio.
        reference: the row that speed-ups are over: the fastest flat choice without distinct rows. None if none fits.
        best: the fastest exact row; None if none fits.
        priced: how many choices were priced.
        misfits: choices that need more memory than there is.
        findings: what else is to be said, the most important first.
        fastest: by name the fastest choice, also of names that are not shown.
    """

    cluster: Cluster
    samples: int
    mflops: float
    features: int
    tables_bytes: int
    groups: Mapping[str, Sequence[Row]]
    reference: Row | None
    best: Row | None
    priced: int
    misfits: Sequence[Misfit]
    findings: Sequence[str]
    fastest: Mapping[str, Priced] = field(default_factory=dict, repr=False)

    @property
    def fits(self) -> bool:
        """Whether any choice fits the memory."""
        return self.priced > 0

    def as_dict(self) -> dict[str, Any]:
        """As plain data; times in ms, sizes in bytes."""
        return {
            "estimate": True,
            "cluster": self.cluster.as_dict(),
            "batch_size": self.samples,
            "model": {
                "mflops_per_sample": self.mflops,
                "features": self.features,
                "table_bytes": self.tables_bytes,
            },
            "groups": {name: [row.as_dict() for row in rows] for name, rows in self.groups.items()},
            "reference": None if self.reference is None else self.reference.as_dict(),
            "best": None if self.best is None else self.best.as_dict(),
            "candidates": {"priced": self.priced, "too_large": len(self.misfits)},
            "findings": list(self.findings),
        }
