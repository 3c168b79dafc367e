"""Which topology a command that starts no process should assume."""

from __future__ import annotations

from dmt_plugin.config.section import DMTConfig


def topology_shape(section: DMTConfig, hosts: int | None, ranks_per_host: int | None) -> tuple[int, int]:
    """Hosts and ranks per host: as given, else the config's, else the number of towers, else 2."""
    given, towers = section.topology, section.towers.count
    found_hosts = hosts or (given.hosts if given.hosts != "auto" else towers if towers != "auto" else 2)
    found_lanes = ranks_per_host or (given.ranks_per_host if given.ranks_per_host != "auto" else 2)
    return int(found_hosts), int(found_lanes)
