"""What launchers say about hosts and ranks per host, read from the environment variables they set.

1. One function per launcher turns an environment (a mapping handed in; none is read here) into a ``Claim`` or None.
2. ``claims_of_launchers`` lists them in the order in which they are to be believed. A claim is not checked here
   against the world: that is the resolver's work, which can name the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dmt_plugin.core.errors import TopologyError


@dataclass(frozen=True)
class Claim:
    """What one source says: ``hosts`` x ``ranks_per_host``, and where this rank is if it says that too."""

    hosts: int
    ranks_per_host: int
    source: str
    host: int | None = None
    lane: int | None = None

    def possible(self, world_size: int) -> bool:
        """Whether the claim makes exactly ``world_size`` ranks."""
        return min(self.hosts, self.ranks_per_host) >= 1 and self.hosts * self.ranks_per_host == world_size


def claims_of_launchers(env: Mapping[str, str], rank: int, world_size: int) -> list[Claim]:
    """All claims found in ``env``, most trusted first: DeepSpeed, torchrun, MPI, Slurm.

    Raises:
        TopologyError: If a variable that should hold a number does not.
    """
    readers: list[Callable[[Mapping[str, str], int, int], Claim | None]] = [_deepspeed, _torchrun, _mpi, _slurm]
    found = (reader(env, rank, world_size) for reader in readers)
    return [claim for claim in found if claim is not None]


def _deepspeed(env: Mapping[str, str], rank: int, world_size: int) -> Claim | None:
    # LOCAL_RANK is left alone: DeepSpeed sets it to rank % LOCAL_SIZE, which is no lane when slots are unequal.
    per_host, host, hosts = (_number(env, name) for name in ("LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE"))
    if per_host is None:
        return None
    names = [name for name in ("CROSS_RANK", "CROSS_SIZE") if name in env]
    who = "DeepSpeed's launcher" if names else "the launcher"
    source = _source(who, env, ["LOCAL_SIZE", *names])
    return Claim(hosts if hosts is not None else _ceil(world_size, per_host), per_host, source, host)


def _torchrun(env: Mapping[str, str], rank: int, world_size: int) -> Claim | None:
    per_host, host, hosts = (_number(env, n) for n in ("LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"))
    if per_host is None:
        return None
    names = [name for name in ("GROUP_RANK", "GROUP_WORLD_SIZE") if name in env]
    source = _source("torchrun", env, ["LOCAL_WORLD_SIZE", *names])
    return Claim(hosts if hosts is not None else _ceil(world_size, per_host), per_host, source, host)


def _mpi(env: Mapping[str, str], rank: int, world_size: int) -> Claim | None:
    for who, size, local, world in (
        ("OpenMPI", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("MPICH", "MPI_LOCALNRANKS", "MPI_LOCALRANKID", "PMI_SIZE"),
        ("MVAPICH", "MV2_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_SIZE"),
    ):
        per_host, started = _number(env, size), _number(env, world)
        if per_host is None or started not in (None, world_size):
            continue  # not set, or MPI started something that started these ranks
        names = [size, *([local] if local in env else [])]
        return Claim(_ceil(world_size, per_host), per_host, _source(who, env, names), None, _number(env, local))
    return None


def _slurm(env: Mapping[str, str], rank: int, world_size: int) -> Claim | None:
    # Slurm may have started the ranks themselves, or one agent per node that started them, or only the shell
    # that did: in the last case (no step) its numbers say nothing about these ranks.
    nodes_name, nodes = _first_number(env, "SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    tasks_name, tasks = _first_number(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    host, procid = _number(env, "SLURM_NODEID"), _number(env, "SLURM_PROCID")
    if nodes is None or tasks is None or host is None or procid is None or nodes < 1:
        return None
    names = [nodes_name, tasks_name, "SLURM_NODEID"]
    if tasks == world_size and procid == rank:
        per_node = _ceil(world_size, nodes)
        lane = _number(env, "SLURM_LOCALID")
        source = _source("Slurm", env, names + (["SLURM_LOCALID"] if lane is not None else []))
        return Claim(nodes, per_node, source, host, lane)
    if tasks == nodes < world_size and "SLURM_STEP_NUM_TASKS" in env:
        return Claim(nodes, _ceil(world_size, nodes), _source("Slurm (one task per node)", env, names), host)
    return None


def _source(who: str, env: Mapping[str, str], names: list[str]) -> str:
    return f"{who} ({', '.join(f'{name}={env[name]}' for name in names)})"


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "").strip()
    if not text:
        return None
    if not re.fullmatch(r"\d+", text):
        raise TopologyError(f'the variable {name} should be a number, found "{text}"')
    return int(text)


def _first_number(env: Mapping[str, str], *names: str) -> tuple[str, int | None]:
    for name in names:
        value = _number(env, name)
        if value is not None:
            return name, value
    return names[0], None


def _ceil(world_size: int, parts: int) -> int:
    # Rounded up, so that an indivisible world shows as hosts x ranks != world.
    return -(-world_size // max(parts, 1))
