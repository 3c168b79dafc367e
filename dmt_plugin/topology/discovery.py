"""Finds out how many hosts there are and how many ranks each runs. The only file that reads the environment.

1. ``resolve_topology`` asks, in this order: the configuration, DeepSpeed's launcher, torchrun, MPI, Slurm, host
   names. The first that speaks is taken, and must agree with the world size and with this rank's place in it.
   Sources behind it that say otherwise are logged, not obeyed. ``LOCAL_RANK`` is never read as the lane:
   DeepSpeed sets it to rank modulo slots, which permutes ranks when hosts have unequal slots.
2. ``verify_topology`` gathers what every rank found, failures included, so that all ranks raise the same error.
3. ``discover_topology`` is 1 and 2 as one step that every rank of the default group takes together.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch.distributed as dist

from dmt_plugin.core.errors import TopologyError
from dmt_plugin.topology.agreement import all_values
from dmt_plugin.topology.launchers import Claim, claims_of_launchers
from dmt_plugin.topology.shape import ResolvedTopology, Topology, divisors, one_of_numbers

logger = logging.getLogger(__name__)

WAY_OUT = "set dmt.topology.hosts and dmt.topology.ranks_per_host in the configuration"

IntOrAuto = int | Literal["auto"]


def launched_as(env: Mapping[str, str] | None = None) -> tuple[int, int] | None:
    """Rank and world size that a launcher (``deepspeed``, ``torchrun``) gave this process; None if it runs alone."""
    found = os.environ if env is None else env
    rank, world_size = found.get("RANK", ""), found.get("WORLD_SIZE", "")
    return (int(rank), int(world_size)) if rank.isdigit() and world_size.isdigit() else None


def launched_run(env: Mapping[str, str] | None = None) -> str:
    """What torchrun or Slurm calls this run, the same when it is started again; empty: nobody says."""
    found = os.environ if env is None else env
    if (agent := found.get("TORCHELASTIC_RUN_ID", "")) not in ("", "none"):
        return f"torchrun {agent}"
    job = found.get("SLURM_JOB_ID", "")
    return f"slurm {job}" if job else ""


def resolve_topology(
    rank: int,
    world_size: int,
    *,
    hosts: IntOrAuto = "auto",
    ranks_per_host: IntOrAuto = "auto",
    machines_per_host: int = 1,
    env: Mapping[str, str] | None = None,
    hostnames: Callable[[], Sequence[str]] | None = None,
) -> ResolvedTopology:
    """Find out how many hosts there are and how many ranks each runs.

    Args:
        rank: Global rank of this process.
        world_size: Number of ranks.
        hosts: ``dmt.topology.hosts``.
        ranks_per_host: ``dmt.topology.ranks_per_host``.
        machines_per_host: ``dmt.topology.machines_per_host``: where the two above are "auto", so many of the machines
            that are found become one host.
        env: Environment to read, this process's own by default.
        hostnames: Gives the host name of every rank, by rank; asked only when nothing else speaks. By default an
            all-gather over the default group, so that every rank has to get here: see ``discover_topology``.

    Raises:
        TopologyError: If no source speaks, or if the one to be taken cannot be true; with the numbers.
    """
    if not 0 <= rank < world_size:
        raise TopologyError(f"rank {rank} is outside 0..{world_size - 1} of {world_size} ranks")
    chosen = _claim_of_config(hosts, ranks_per_host, world_size)
    try:
        claims = claims_of_launchers(os.environ if env is None else env, rank, world_size)
    except TopologyError:
        if chosen is None:
            raise
        claims = []  # the configuration is the way out of broken variables
    if chosen is None and claims:
        chosen, claims = claims[0], claims[1:]
    if chosen is None and world_size == 1:
        chosen = Claim(1, 1, "a single process")
    if chosen is None:
        chosen = _claim_of_names((hostnames or _gather_hostnames)(), world_size)
    found = _checked(chosen, rank, world_size)
    if (hosts, ranks_per_host) == ("auto", "auto"):
        topology = _put_together(found, machines_per_host, chosen.source)
    else:
        topology = Topology(found.hosts, found.ranks_per_host, machines_per_host)
    for other in claims if rank == 0 else ():
        if other.possible(world_size) and other.hosts != topology.by_machine.hosts:
            said = f"{other.hosts}x{other.ranks_per_host}"
            logger.warning("topology is %s by %s, although %s says %s", topology, chosen.source, other.source, said)
    return ResolvedTopology(topology, chosen.source)


def verify_topology(resolved: ResolvedTopology | TopologyError, rank: int) -> None:
    """Make sure that all ranks found the same topology; a collective over the default group.

    Args:
        resolved: What this rank found, or the error it ran into, which then reaches every rank.
        rank: Global rank of this process.

    Raises:
        TopologyError: The same on every rank, naming the ranks and what each of them found.
    """
    if isinstance(resolved, TopologyError):
        mine = (rank, "", str(resolved))
    else:
        mine = (rank, str(resolved.topology), resolved.source)
    problem = _disagreement(all_values(mine))
    if problem is not None:
        raise TopologyError(problem)


def discover_topology(
    *,
    hosts: IntOrAuto = "auto",
    ranks_per_host: IntOrAuto = "auto",
    machines_per_host: int = 1,
    env: Mapping[str, str] | None = None,
) -> ResolvedTopology:
    """Resolve and verify the topology of the default process group; every rank must call this.

    The collectives in here are the same on every rank whatever it finds, so that no rank is left waiting.

    Args:
        hosts: ``dmt.topology.hosts``.
        ranks_per_host: ``dmt.topology.ranks_per_host``.
        machines_per_host: ``dmt.topology.machines_per_host``.
        env: Environment to read, this process's own by default.

    Raises:
        TopologyError: The same on every rank.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    names = all_values(socket.gethostname())
    found: ResolvedTopology | TopologyError
    try:
        found = resolve_topology(
            rank, world_size, hosts=hosts, ranks_per_host=ranks_per_host, machines_per_host=machines_per_host, env=env,
            hostnames=lambda: names,
        )  # fmt: skip
    except TopologyError as error:
        found = error
    verify_topology(found, rank)
    if isinstance(found, TopologyError):
        raise found  # without process groups there is nobody to tell
    if rank == 0:
        topology = found.topology
        parts = "hosts x ranks per host" if topology.machines_per_host == 1 else "hosts x machines x ranks per machine"
        logger.info("topology %s (%s) by %s", topology, parts, found.source)
        _warn_of_wide_hosts(topology, names)
    return found


def _put_together(found: Topology, machines_per_host: int, source: str) -> Topology:
    """So many machines as one host."""
    if found.hosts % machines_per_host:
        raise TopologyError(
            f"{found.hosts} machine(s), by {source}, cannot be put together by {machines_per_host}: "
            f"dmt.topology.machines_per_host can be {one_of_numbers(divisors(found.hosts))} here; or start as many "
            "machines as it divides"
        )
    hosts = found.hosts // machines_per_host
    return Topology(hosts, found.ranks_per_host * machines_per_host, machines_per_host)


def _warn_of_wide_hosts(topology: Topology, names: Sequence[str]) -> None:
    machines = topology.by_machine
    what = "host" if machines == topology else "machine"
    for host in range(machines.hosts):
        spanned = {names[member] for member in machines.lanes_of(machines.rank_of(host, 0))}
        if len(spanned) > 1:
            logger.warning(
                "%s %d of topology %s spans the machines %s: exchanges inside it will cross the network, and are "
                "counted as if they did not; dmt.topology.machines_per_host says how many machines a host has",
                what, host, topology, ", ".join(sorted(spanned)),
            )  # fmt: skip


def _claim_of_config(hosts: IntOrAuto, ranks_per_host: IntOrAuto, world_size: int) -> Claim | None:
    given = [(name, n) for name, n in (("hosts", hosts), ("ranks_per_host", ranks_per_host)) if n != "auto"]
    if not given:
        return None
    source = ", ".join(f"dmt.topology.{name} = {n}" for name, n in given)
    for name, n in given:
        if n < 1:
            raise TopologyError(f"dmt.topology.{name} must be at least 1, found {n}")
        if world_size % n:
            raise TopologyError(f"{source} cannot be: the number of ranks, {world_size}, is not divisible by {n}")
    return Claim(
        hosts if hosts != "auto" else world_size // int(ranks_per_host),
        ranks_per_host if ranks_per_host != "auto" else world_size // int(hosts),
        f"the configuration ({source})",
    )


def _claim_of_names(names: Sequence[str], world_size: int) -> Claim:
    if len(names) != world_size:
        raise TopologyError(f"{len(names)} host names for {world_size} ranks; {WAY_OUT}")
    runs: list[tuple[str, int]] = []
    for name in names:
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1] + 1)
        else:
            runs.append((name, 1))
    shown = ", ".join(f"{name}: {count}" for name, count in runs[:8]) + (", ..." if len(runs) > 8 else "")
    if len({name for name, _ in runs}) != len(runs):
        raise TopologyError(
            f"ranks of one host must be neighbours, but by rank the host names run {shown}; "
            "start the ranks host by host (mpirun: --map-by slot; srun: --distribution=block)"
        )
    if len({count for _, count in runs}) != 1:
        raise TopologyError(f"every host must run as many ranks as any other, but the host names count {shown}")
    return Claim(len(runs), runs[0][1], f"host names ({shown})")


def _checked(claim: Claim, rank: int, world_size: int) -> Topology:
    if not claim.possible(world_size):
        raise TopologyError(
            f"{claim.source} means {claim.hosts} hosts x {claim.ranks_per_host} ranks = "
            f"{claim.hosts * claim.ranks_per_host} ranks, but there are {world_size}; every host must run as many "
            f"ranks as any other; start it so, or {WAY_OUT}"
        )
    topology = Topology(claim.hosts, claim.ranks_per_host)
    for what, said, is_by_rank in (
        ("host", claim.host, topology.host_of(rank)),
        ("lane", claim.lane, topology.lane_of(rank)),
    ):
        if said is not None and said != is_by_rank:
            raise TopologyError(
                f"rank {rank} should be on {what} {is_by_rank} of topology {topology}, but {claim.source} puts it on "
                f"{what} {said}: ranks of one host must be neighbours (mpirun: --map-by slot; srun: "
                f"--distribution=block), or {WAY_OUT}"
            )
    return topology


def _disagreement(found: Sequence[tuple[int, str, str]]) -> str | None:
    failed: dict[str, list[int]] = {}
    said: dict[str, dict[str, list[int]]] = {}
    for rank, topology, source in found:
        if not topology:
            failed.setdefault(source, []).append(rank)
        else:
            said.setdefault(topology, {}).setdefault(source, []).append(rank)
    if failed and not said and len(failed) == 1:
        return next(iter(failed))
    if failed:
        shown = [f"{_ranks(ranks)}: {text}" for text, ranks in failed.items()]
        return "the topology cannot be told on every rank: " + "; ".join(shown)
    if len(said) > 1:
        shown = [
            f"{_ranks(ranks)} found {topology} by {source}"
            for topology, sources in said.items()
            for source, ranks in sources.items()
        ]
        return f"ranks disagree about the topology: {'; '.join(shown)}; {WAY_OUT}, the same on every rank"
    return None


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"


def _gather_hostnames() -> list[str]:
    if not dist.is_initialized():
        raise TopologyError(f"no launcher variable tells the topology and no process group exists yet; {WAY_OUT}")
    return all_values(socket.gethostname())
