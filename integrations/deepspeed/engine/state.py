"""The state that the plugin attaches to a DeepSpeed engine as ``engine.dmt``, and releases when that is destroyed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from dmt_plugin.comm.wire.transport import Traffic, Transport
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.integrations.deepspeed.share_watch import ShareWatch
from dmt_plugin.model.placed import PlacedModel
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.topology.groups import RankGroups
from dmt_plugin.topology.shape import Topology


@dataclass
class DMTState:
    """The plugin's part of an engine, ``engine.dmt``.

    Attributes:
        config: The "dmt" section.
        plan: The tower plan of the model.
        topology: Hosts and ranks per host.
        source: Where the topology was read.
        groups: This rank's process groups.
        transport: Carries the exchanges.
        traffic: Bytes handed to each exchange so far.
        lookup: This rank's tables.
        placed: This rank's model; the engine's ``module``.
        group_positions: By number of a parameter group of the script's its number in the engine's optimizer.
        share_watch: Counts the distinct rows of what travels once; None where nothing does.
        frozen: Tables that ``engine.freeze_tables`` has frozen.
        resources: Process groups, hooks and threads; what was taken last is given back first.
    """

    config: DMTConfig
    plan: TowerPlan
    topology: Topology
    source: str
    groups: RankGroups
    transport: Transport
    traffic: Traffic
    lookup: ShardedLookup
    placed: PlacedModel
    group_positions: Mapping[int, int]
    share_watch: ShareWatch | None = None
    frozen: frozenset[str] = frozenset()
    resources: ExitStack = field(default_factory=ExitStack, repr=False)

    def freeze(self, tables: Iterable[str]) -> None:
        """Freeze these tables, and no others but those that were frozen before ``initialize``.

        Args:
            tables: Their names; the same on all ranks.
        """
        self.frozen = frozenset(tables)
        self.lookup.freeze([shard for shard in self.lookup.tables if self.plan.shard(shard).table.name in self.frozen])
