"""Places towers on hosts and whole tables on the lanes of their host.

Table-wise placement by the longest-processing-time rule: the most expensive table goes
to the lane with the least load so far. A table's load is what it costs in every step,
the width it adds to each pooled row plus the ids it looks up, with its memory as the
tie-breaker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dmt_plugin.errors import ConfigError
from dmt_plugin.plan import FeatureSpec, TableSpec
from dmt_plugin.topology import Topology

_ASSUMED_HOTNESS = 4
"""Ids per sample assumed for a feature whose number of ids varies."""


def towers_to_hosts(towers: int, topology: Topology) -> tuple[int, ...]:
    """Host of each tower; towers of one host are neighbours.

    Raises:
        ConfigError: fewer towers than hosts, or a number that leaves hosts unequal.
    """
    if towers < topology.hosts or towers % topology.hosts:
        raise ConfigError(
            f"dmt.towers.count is {towers} on {topology.hosts} host(s); it must be a multiple of the number of hosts, "
            'so that every host runs the same number of towers. Use "auto" for one tower per host.'
        )
    return tuple(t * topology.hosts // towers for t in range(towers))


def place_tables(
    tables: Sequence[TableSpec],
    features: Sequence[FeatureSpec],
    host_of_feature: Mapping[str, int],
    topology: Topology,
) -> dict[str, int]:
    """Lane of every table on its host.

    Args:
        tables: all tables.
        features: all features.
        host_of_feature: host of each feature's tower.
        topology: hosts and lanes.

    Returns:
        Table name to lane.
    """
    homes: dict[str, int] = {}
    lookups: dict[str, int] = {}
    for feature in features:
        for name in feature.tables:
            homes[name] = host_of_feature[feature.name]
            lookups[name] = lookups.get(name, 0) + (feature.hotness or _ASSUMED_HOTNESS)
    uses = {t.name: sum(f.tables.count(t.name) for f in features) for t in tables}
    cost = {t.name: t.dim * uses[t.name] + lookups[t.name] for t in tables}
    lanes: dict[str, int] = {}
    for host in range(topology.hosts):
        mine = [t for t in tables if homes[t.name] == host]
        load = [(0, 0)] * topology.ranks_per_host
        for table in sorted(mine, key=lambda t: (-cost[t.name], -t.rows * t.dim, t.name)):
            lane = min(range(topology.ranks_per_host), key=lambda candidate: (load[candidate], candidate))
            lanes[table.name] = lane
            load[lane] = (load[lane][0] + cost[table.name], load[lane][1] + table.rows * table.dim)
    return lanes
