"""The process groups of a topology, and torch's DeviceMesh of them.

Every rank is in three groups: all ranks (``world``), the ranks of its host (``lanes``), and the ranks with its lane on
every host (``peers``). Where a host consists of several machines there are three more: the ranks of its machine
(``machine_lanes``), those at its position on every machine (``machine_peers``), and the latter of its host alone
(``across``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from dmt_plugin.core.errors import ExchangeError, TopologyError
from dmt_plugin.topology.group_names import names_of
from dmt_plugin.topology.lost_ranks import first_line
from dmt_plugin.topology.shape import Topology


@dataclass(frozen=True)
class RankGroups:
    """One rank's place and its process groups.

    Attributes:
        topology: Hosts x ranks per host.
        rank: Global rank of this process.
        host: Its host.
        lane: Its lane.
        world: All ranks, by rank.
        peers: Ranks of this lane on every host, by host.
        lanes: Ranks of this host, by lane.
        mesh: DeviceMesh with dims ("host", "lane") made of ``peers`` and ``lanes``.
        device: Where tensors must lie to travel through these groups.
        timeout_s: Time limit of every exchange in these groups, seconds.
        machine_lanes: Ranks of this machine; None where a host is one.
        machine_peers: Ranks at this position on every machine, by machine; None as well.
        across: Ranks at this position on every machine of this host, by machine; None as well.
    """

    topology: Topology
    rank: int
    host: int
    lane: int
    world: dist.ProcessGroup
    peers: dist.ProcessGroup
    lanes: dist.ProcessGroup
    mesh: DeviceMesh
    device: torch.device
    timeout_s: float
    machine_lanes: dist.ProcessGroup | None = None
    machine_peers: dist.ProcessGroup | None = None
    across: dist.ProcessGroup | None = None

    def failure(self, place: str, what: str, error: BaseException) -> ExchangeError:
        """Error of a wait for the other ranks that failed while this rank was doing ``place``."""
        del what
        return ExchangeError(
            f"rank {self.rank} (host {self.host}, lane {self.lane}): waiting for the other ranks while {place} "
            f"failed: {first_line(error)}. A rank has died, failed, or was more than "
            f"dmt.comm.timeout_s = {self.timeout_s:g} s behind; look for the first error of the other ranks, or "
            "raise dmt.comm.timeout_s."
        )


def create_groups(topology: Topology, *, timeout_s: float) -> RankGroups:
    """Create the process groups of a topology; every rank of the default group must call this.

    Args:
        topology: Must have as many ranks as the default group.
        timeout_s: Time limit of every exchange in these groups, seconds.

    Raises:
        TopologyError: If there is no default process group or it has another size.
    """
    if not dist.is_initialized():
        raise TopologyError("no process group yet: call deepspeed.init_distributed() before creating groups")
    if dist.get_world_size() != topology.world_size:
        raise TopologyError(f"topology {topology} has {topology.world_size} ranks, not {dist.get_world_size()}")
    rank = dist.get_rank()
    host, lane = topology.host_of(rank), topology.lane_of(rank)
    made: dict[str, Any] = {name: _new_group(topology, rank, name, timeout_s) for name in names_of(topology)}
    device = _device_of(made["world"])
    mesh = DeviceMesh.from_group(
        [made["peers"], made["lanes"]],
        device.type,
        mesh=torch.arange(topology.world_size, dtype=torch.int).view(topology.hosts, topology.ranks_per_host),
        mesh_dim_names=("host", "lane"),
    )
    return RankGroups(topology, rank, host, lane, mesh=mesh, device=device, timeout_s=timeout_s, **made)


def renewed(groups: RankGroups, names: Sequence[str]) -> RankGroups:
    """The same ranks with other process groups, so that exchanges of another thread do not mix with theirs.

    Every rank must call this. (Each group costs threads and connections, so only those that are needed are made.)

    Args:
        groups: A rank's groups.
        names: Which to make again. The others, and the mesh, stay.
    """
    made: dict[str, Any] = {name: _new_group(groups.topology, groups.rank, name, groups.timeout_s) for name in names}
    return dataclasses.replace(groups, **made)


def release(groups: RankGroups, names: Sequence[str]) -> None:
    """Give process groups back; every rank calls this, when nothing travels in them any more.

    Args:
        groups: A rank's groups.
        names: Which of them. What is gone already, with the default group, is passed over.
    """
    for name in names:
        with suppress(ValueError):  # torch knows it no more
            dist.destroy_process_group(getattr(groups, name))


def _new_group(topology: Topology, rank: int, name: str, timeout_s: float) -> dist.ProcessGroup:
    """This rank's group of that name. Every rank makes every group, in one order, also those it is no member of."""
    by_name: dict[str, list[Sequence[int]]] = {
        "world": [range(topology.world_size)],
        "lanes": [topology.lanes_of(topology.rank_of(host, 0)) for host in range(topology.hosts)],
        "peers": [topology.peers_of(lane) for lane in range(topology.ranks_per_host)],
    }
    if topology.machines_per_host > 1:
        machines = topology.by_machine
        first = [machines.rank_of(machine, 0) for machine in range(machines.hosts)]
        by_name["machine_lanes"] = [machines.lanes_of(rank) for rank in first]
        by_name["machine_peers"] = [machines.peers_of(lane) for lane in range(machines.ranks_per_host)]
        by_name["across"] = [*sorted({topology.across_of(member) for member in range(topology.world_size)})]
    members = by_name[name]
    limit = timedelta(seconds=timeout_s)
    made = [dist.new_group(list(ranks), timeout=limit, group_desc=f"dmt_{name}") for ranks in members]
    return next(group for ranks, group in zip(members, made, strict=True) if rank in ranks)


def _device_of(group: dist.ProcessGroup) -> torch.device:
    # An accelerator serves only if the group's backend can move its tensors: gloo on a GPU machine cannot.
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None and dist.get_default_backend_for_device(accelerator) in dist.get_backend_config(group):
        return torch.device(accelerator.type, torch.accelerator.current_device_index())
    return torch.device("cpu")
