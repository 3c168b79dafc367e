"""Tower modules that may run where the samples are, so that the rows of their tables travel once.

1. On the hierarchical route a tower module runs where its tables are, and its outputs cross hosts by sample. One that
   mixes features of a sample is no function of a row: it cannot run on distinct rows. But it gives a sample the same
   numbers wherever it runs. Behind the exchange, on the samples of each rank, it is as on the flat route: what crosses
   is each row that a host needs, once and as it is; its weights are on every rank, their gradients summed over all.
2. That is fewer bytes where a host's distinct rows are narrower than the outputs for its samples, and the sums of the
   weights' gradients do not make up for it: where the share of distinct rows is well below ``1 / CR``.
3. Hosts have to hold the same number of tower modules of their own. So all towers of a group of features go one way.
4. Only modules that are known to treat samples by themselves: a user's class may see the samples of all hosts, as
   batch normalisation does, and keeps its way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import fx, nn

from dmt_plugin.config.section import CommConfig
from dmt_plugin.nn.towers import DCNTower, DLRMTower, PreserveTower
from dmt_plugin.passes.facts import Lookup

_BY_SAMPLE = (DLRMTower, DCNTower, PreserveTower)


@dataclass(frozen=True)
class AtSamples:
    """A tower module that may run where the samples are.

    Attributes:
        outputs: entries per sample that it makes: what crosses hosts where it runs at its tables.
        weights: entries of its parameters whose gradients are summed over all ranks where it runs at the samples.
    """

    outputs: int
    weights: int


class MayMove(Protocol):
    """A tower module, by where it may run."""

    @property
    def lookups(self) -> tuple[fx.Node, ...]:
        """What it reads, and what the work on single features in front of it reads."""

    @property
    def group(self) -> str:
        """The group of features of which it is one tower."""

    @property
    def at_samples(self) -> AtSamples | None:
        """What it takes to run it where the samples are; None where it may not."""


Tower = TypeVar("Tower", bound=MayMove)


def at_samples_of(module: nn.Module, outputs: int) -> AtSamples | None:
    """What it takes to run a tower module where the samples are; None where it may not.

    Args:
        module: the module.
        outputs: entries per sample that it makes.
    """
    if type(module) not in _BY_SAMPLE:
        return None
    return AtSamples(outputs, sum(p.numel() for p in module.parameters() if p.requires_grad))


def movable(
    comm: CommConfig, lookups: Sequence[Lookup], towers: Sequence[Tower], by_row: Collection[str]
) -> list[tuple[list[Tower], list[Lookup]]]:
    """The groups of towers that may run where the samples are, each with the lookups that then travel once.

    Args:
        comm: the ``"comm"`` section.
        lookups: all of the model.
        towers: all tower modules of the model.
        by_row: tables whose rows go through a tower module at their owner, each by itself.
    """
    groups: dict[str, list[Tower]] = defaultdict(list)
    for tower in towers:
        groups[tower.group].append(tower)
    found = []
    for own in groups.values():
        nodes = {node for tower in own for node in tower.lookups}
        tables = {x.table for x in lookups if x.node in nodes}
        reads = [x for x in lookups if x.table in tables]
        able = all(x.node in nodes and x.pooling != "max" and comm.dedup_of(x.feature) != "off" for x in reads)
        if able and all(tower.at_samples is not None for tower in own) and not tables.intersection(by_row):
            found.append((own, reads))
    return found
