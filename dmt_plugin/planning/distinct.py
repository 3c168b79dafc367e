"""How many rows of a batch are distinct, for planning: counted on data, read from a file, or stated.

Counts belong to a number of samples per rank and of ranks per host; each pair is counted once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dmt_plugin.capture.example_call import example_of
from dmt_plugin.compiler import count_rows_of
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.passes.base import DataToCount
from dmt_plugin.plan.row_shares import FeatureShare, RowShares, TableRows
from dmt_plugin.plan.tower_plan import FeatureSpec, TableSpec
from dmt_plugin.planner.load import ASSUMED_IDS

SharesOf = Callable[[int, int], RowShares | None]
"""By samples per rank and ranks per host what was counted; None where it was for others."""

STEPS = 4
"""Steps of a host that are counted."""


def counted_on(model: nn.Module, batch: Any, data: Callable[[], Iterable[Any]], source: str) -> SharesOf:
    """Shares that are counted on real batches.

    Args:
        model: the user's model.
        batch: one call of it.
        data: starts a pass over batches, each as the model is called with it; labels behind it are left out.
        source: what the counts call the data.
    """
    known: dict[tuple[int, int], RowShares] = {}

    def shares(samples: int, lanes: int) -> RowShares:
        if (samples, lanes) not in known:
            to_count = DataToCount(
                source, lambda: (example_of(own, model, labelled=True) for own in data()), samples, STEPS
            )
            found = count_rows_of(model, batch, to_count, lanes)
            if found is None:
                raise ConfigError(
                    f"--data {source} has fewer than {samples * lanes} samples, which one step of a host needs "
                    f"({lanes} ranks with {samples} each); give more of it, or state --distinct-share."
                )
            known[samples, lanes] = found
        return known[samples, lanes]

    return shares


@dataclass(frozen=True)
class Stated:
    """Shares that a person states, the same for every feature.

    Attributes:
        rank: distinct rows of a rank's batch, per id.
        host: distinct rows of all batches of a host, per id.

    Raises:
        ConfigError: a number that is no share, or more distinct rows per id in many batches than in one.
    """

    rank: float
    host: float

    def __post_init__(self) -> None:
        if not 0 < self.host <= self.rank <= 1:
            raise ConfigError(
                f"--distinct-share: found {self.rank:g},{self.host:g}; expected shares above 0 and up to 1, of a "
                "rank's batch and of a host's, which is not larger."
            )

    def of(self, tables: Iterable[TableSpec], features: Iterable[FeatureSpec]) -> SharesOf:
        """As if counted.

        Args:
            tables: of the model.
            features: of the model.
        """
        specs, known = tuple(tables), tuple(features)

        def shares(samples: int, lanes: int) -> RowShares:
            ids: Mapping[str, float] = {
                t.name: sum(f.hotness or ASSUMED_IDS for f in known if t.name in f.tables) for t in specs
            }
            return RowShares(
                "a stated share",
                samples,
                lanes,
                1,
                tuple(FeatureShare(f.name, f.hotness or ASSUMED_IDS, self.rank, self.host) for f in known),
                tuple(
                    TableRows(
                        t.name,
                        min(t.rows, self.rank * samples * ids[t.name]),
                        min(t.rows, self.host * samples * lanes * ids[t.name]),
                    )
                    for t in specs
                ),
            )

        return shares


def stated(text: str) -> Stated:
    """``"0.4,0.2"`` for a rank's batch and a host's, or one number for both.

    Raises:
        ConfigError: something else.
    """
    parts = text.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ConfigError(f'--distinct-share: found "{text}", expected a share such as 0.3, or two such as 0.4,0.2.')
    return Stated(numbers[0], numbers[-1])
