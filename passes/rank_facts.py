"""The results of placement for one rank: which ids and rows it exchanges, looks up, and computes on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from dmt_plugin.comm.distinct.row_groups import RowGroup
from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.comm.input_dist.input_dist import Route
from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.nn.lookup.site import LookupSite
from dmt_plugin.nn.lookup.stacks import Stack, all_names
from dmt_plugin.planner.load import HostRows, LaneLoad


@dataclass(frozen=True)
class SentColumn:
    """Columns that cross hosts: a tower's output, or a lookup that passes by.

    Attributes:
        name: of the node of the logical graph whose value it is.
        width: entries per sample.
        tower: path of the tower module, or ``""``.
        trained: whether gradients come back for it.
    """

    name: str
    width: int
    tower: str = ""
    trained: bool = True


@dataclass(frozen=True)
class RowTower:
    """A tower module that runs on distinct rows at their owners.

    Attributes:
        path: of the module.
        host: where it runs.
        features: number of its features.
        width: entries that travel for a row.
    """

    path: str
    host: int
    features: int
    width: int


@dataclass(frozen=True)
class DedupChoice:
    """How the rows of some tables travel, and why.

    Attributes:
        features: that read the tables.
        tables: a table, or those behind one tower module.
        on: whether their rows travel once.
        share: rows asked for per row that would be sent by sample; None where it was not counted, or not asked.
        by: ``"auto"``, or ``"on"`` where the configuration says it.
        mixed: whether a tower module also makes outputs of all its features together, which travel by sample.
        at_samples: whether the tower modules that read the tables run where the samples are, if it is on.
    """

    features: tuple[str, ...]
    tables: tuple[str, ...]
    on: bool
    share: float | None
    by: str
    mixed: bool = False
    at_samples: bool = False


@dataclass
class Placement:
    """What placement makes for one rank.

    Attributes:
        slots: id streams of the whole model whose rows travel once per sample.
        sites: lookups of this rank for them.
        distinct_slots: id streams whose rows travel once, however many samples need them.
        groups: the tables that these read.
        stacks: what this rank holds of each group.
        row_towers: tower modules that such rows go through, of all hosts.
        at_samples: tower modules that run where the samples are, with their weights on every rank, although the route
            is hierarchical: the rows of their tables travel once.
        once: which tables' rows travel once, for people; empty where nobody asked for it.
        choices: how the rows of tables travel that could travel once, and why.
        distinct_widths: for each rank the entries per sample that its tables in groups give, if no row comes twice.
        distinct_ids: for each rank the ids per sample that ask for them then.
        exchanges: the exchange modules by name.
        tower_paths: modules that only this host holds.
        feature_layers: layers of the user's model that run in the towers of all hosts.
        feature_parameters: parameters of the user's model that the towers of all hosts read for one feature each.
        own_parameters: those of this host.
        host_columns: for each host the columns it sends to its peers (hierarchical route).
        rank_widths: for each rank the width of the rows that it sends into the first exchange of rows: looked up, or
            what this host's tower makes of them there (of other hosts it is not known here, and does not matter).
        rank_gradients: for each rank how many of these entries gradients come back for; the others, of frozen tables,
            are last.
        looked_up: for each rank the entries per sample that it looks up.
        loads: the predicted load of each rank.
        owners: what the owners on each host send of rows that travel once; empty where these were not counted.
        route: ``"hierarchical"`` or ``"flat"``.
    """

    slots: tuple[IdSlot, ...] = ()
    sites: tuple[LookupSite, ...] = ()
    distinct_slots: tuple[IdSlot, ...] = ()
    groups: tuple[RowGroup, ...] = ()
    stacks: tuple[Stack, ...] = ()
    row_towers: tuple[RowTower, ...] = ()
    at_samples: tuple[str, ...] = ()
    distinct_widths: tuple[int, ...] = ()
    distinct_ids: tuple[int, ...] = ()
    once: str = ""
    choices: tuple[DedupChoice, ...] = ()
    exchanges: dict[str, nn.Module] = field(default_factory=dict)
    tower_paths: tuple[str, ...] = ()
    feature_layers: tuple[str, ...] = ()
    feature_parameters: tuple[str, ...] = ()
    own_parameters: tuple[str, ...] = ()
    host_columns: tuple[tuple[SentColumn, ...], ...] = ()
    rank_widths: tuple[int, ...] = ()
    rank_gradients: tuple[int, ...] = ()
    looked_up: tuple[int, ...] = ()
    loads: tuple[LaneLoad, ...] = ()
    owners: tuple[HostRows, ...] = ()
    route: Route = "hierarchical"

    @property
    def host_gradients(self) -> tuple[int, ...]:
        """For each host how many of the entries that it sends to its peers gradients come back for."""
        return tuple(sum(column.width for column in own if column.trained) for own in self.host_columns)

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the tables, and shards of tables, that this rank holds."""
        return tuple(dict.fromkeys([*(site.table for site in self.sites), *all_names(self.stacks)]))

    def compute_in(self, dtype: torch.dtype) -> None:
        """Say in which dtype rows travel between ranks, where their wire format leaves them as they are."""
        for exchange in self.exchanges.values():
            if isinstance(exchange, OutputDist):
                exchange.compute_in(dtype)
