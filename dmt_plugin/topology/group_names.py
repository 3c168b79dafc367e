"""The groups of ranks that exchanges run in, by name: who is in them, and which of them cross the network.

1. ``"world"``: all ranks; ``"lanes"``: those of a host; ``"peers"``: those with one lane on every host.
2. Where a host consists of several machines, two more: ``"machine_lanes"``, the ranks of one machine, and
   ``"machine_peers"``, the ranks at one position on every machine. Rows that travel once go by these, so that a row
   crosses to a machine once.

Needs no torch; the process groups themselves are made in :mod:`dmt_plugin.topology.groups`.
"""

from __future__ import annotations

from typing import Literal

from dmt_plugin.topology.shape import Topology

Group = Literal["peers", "lanes", "world", "machine_peers", "machine_lanes"]

INSIDE = ("lanes", "machine_lanes")
"""The groups in which exchanges stay inside a host."""


def group_ranks(topology: Topology, rank: int, group: str) -> tuple[int, ...]:
    """Ranks of ``rank``'s group, in group order: peers by host, lanes by lane, world by rank, machines by machine.

    Raises:
        ValueError: There is no group of that name.
    """
    if group == "peers":
        return topology.peers_of(rank)
    if group == "lanes":
        return topology.lanes_of(rank)
    if group == "world":
        return tuple(range(topology.world_size))
    if group == "machine_peers":
        return topology.by_machine.peers_of(rank)
    if group == "machine_lanes":
        return topology.by_machine.lanes_of(rank)
    raise ValueError(f"unknown group {group!r}; expected 'peers', 'lanes', 'world', 'machine_peers' or 'machine_lanes'")


def groups_of_rows_once(topology: Topology) -> tuple[Group, Group]:
    """The groups in which rows that travel once go between machines, and inside one."""
    return ("peers", "lanes") if topology.machines_per_host == 1 else ("machine_peers", "machine_lanes")


def crosses_machines(topology: Topology, group: str) -> bool:
    """Whether exchanges in a group can leave the machine."""
    return group != "machine_lanes" and (group != "lanes" or topology.machines_per_host > 1)


def names_of(topology: Topology) -> tuple[str, ...]:
    """Names of the process groups that every rank of a topology has.

    The last, ``"across"``, has the ranks at one position on the machines of one host: gradients of its tower modules
    are summed there.
    """
    every = ("world", "lanes", "peers")
    return every if topology.machines_per_host == 1 else (*every, "machine_lanes", "machine_peers", "across")


def names_on_route(topology: Topology, flat: bool) -> tuple[str, ...]:
    """Names of the process groups that ids and rows travel in.

    Args:
        topology: hosts and lanes.
        flat: whether they go from every rank to every other.
    """
    return ("world",) if flat else tuple(name for name in names_of(topology) if name not in ("world", "across"))
