"""Which rank runs where: hosts x lanes, how they are found, and the process groups over them."""

from dmt_plugin.topology.shape import ResolvedTopology, Topology

__all__ = ["ResolvedTopology", "Topology"]
