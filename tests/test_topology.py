from __future__ import annotations

import logging
import pickle

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from dmt_plugin.core.errors import TopologyError
from dmt_plugin.topology.discovery import discover_topology, resolve_topology, verify_topology
from dmt_plugin.topology.groups import create_groups
from dmt_plugin.topology.shape import ResolvedTopology, Topology
from tests._util.ranks import run_ranks

topologies = st.builds(Topology, st.integers(1, 9), st.integers(1, 9))
wide_topologies = st.builds(
    lambda hosts, lanes, machines: Topology(hosts, lanes * machines, machines),
    *(st.integers(1, most) for most in (9, 9, 3)),
)

# ---- rank arithmetic -----------------------------------------------------------------------------


@given(wide_topologies)
def test_ranks_and_places_are_one_to_one(topology):
    places = [(h, la) for h in range(topology.hosts) for la in range(topology.ranks_per_host)]
    ranks = [topology.rank_of(h, la) for h, la in places]
    assert ranks == list(range(topology.world_size))
    assert [(topology.host_of(r), topology.lane_of(r)) for r in ranks] == places


@given(wide_topologies, st.data())
def test_machines_are_parts_of_hosts(topology, data):
    rank = data.draw(st.integers(0, topology.world_size - 1))
    machines, across = topology.by_machine, topology.across_of(rank)
    own = [machines.lanes_of(other) for other in across]
    assert sorted(r for lanes in own for r in lanes) == list(topology.lanes_of(rank))
    assert set(across) == set(machines.peers_of(rank)) & set(topology.lanes_of(rank))
    assert len(across) == topology.machines_per_host and machines.world_size == topology.world_size
    assert all(topology.across_of(other) == across for other in across)


@given(topologies, st.data())
def test_peers_and_lanes_cross_in_one_rank(topology, data):
    rank = data.draw(st.integers(0, topology.world_size - 1))
    peers, lanes = topology.peers_of(rank), topology.lanes_of(rank)
    assert set(peers) & set(lanes) == {rank}
    assert len(peers) == topology.hosts and len(lanes) == topology.ranks_per_host
    assert peers[topology.host_of(rank)] == rank == lanes[topology.lane_of(rank)]
    assert {topology.lane_of(peer) for peer in peers} == {topology.lane_of(rank)}
    assert {topology.host_of(lane) for lane in lanes} == {topology.host_of(rank)}
    for peer in peers:
        assert topology.peers_of(peer) == peers


@given(wide_topologies)
def test_text_round_trip(topology):
    assert Topology.parse(str(topology)) == topology


@pytest.mark.parametrize("text", ["2", "2x", "x2", "2x2x2x2", "0x2x2", "2x0x2", "-1x2", "axb", "0x2", "2x0", ""])
def test_bad_text(text):
    with pytest.raises(TopologyError):
        Topology.parse(text)


@pytest.mark.parametrize(
    "method, args", [("host_of", (6,)), ("lane_of", (-1,)), ("rank_of", (2, 0)), ("rank_of", (0, 3))]
)
def test_out_of_range(method, args):
    with pytest.raises(TopologyError, match="outside"):
        getattr(Topology(2, 3), method)(*args)


# ---- what launchers set --------------------------------------------------------------------------


def deepspeed_env(rank, hosts, per_host):
    return {
        "RANK": rank,
        "LOCAL_RANK": rank % per_host,
        "WORLD_SIZE": hosts * per_host,
        "LOCAL_SIZE": per_host,
        "CROSS_RANK": rank // per_host,
        "CROSS_SIZE": hosts,
    }


def torchrun_env(rank, hosts, per_host):
    return {
        "LOCAL_WORLD_SIZE": per_host,
        "GROUP_RANK": rank // per_host,
        "GROUP_WORLD_SIZE": hosts,
        "LOCAL_RANK": rank % per_host,
    }


def openmpi_env(rank, hosts, per_host):
    return {
        "OMPI_COMM_WORLD_SIZE": hosts * per_host,
        "OMPI_COMM_WORLD_LOCAL_SIZE": per_host,
        "OMPI_COMM_WORLD_LOCAL_RANK": rank % per_host,
    }


def mpich_env(rank, hosts, per_host):
    return {"MPI_LOCALNRANKS": per_host, "MPI_LOCALRANKID": rank % per_host, "PMI_SIZE": hosts * per_host}


def deepspeed_mpich_env(rank, hosts, per_host):
    return {"LOCAL_SIZE": per_host}


def slurm_env(rank, hosts, per_host):
    return {
        "SLURM_PROCID": rank,
        "SLURM_NODEID": rank // per_host,
        "SLURM_LOCALID": rank % per_host,
        "SLURM_STEP_NUM_NODES": hosts,
        "SLURM_STEP_NUM_TASKS": hosts * per_host,
        "SLURM_NNODES": hosts,
        "SLURM_NTASKS": hosts * per_host,
    }


def slurm_agents_env(rank, hosts, per_host):
    node = rank // per_host
    return {"SLURM_PROCID": node, "SLURM_NODEID": node, "SLURM_STEP_NUM_NODES": hosts, "SLURM_STEP_NUM_TASKS": hosts}


LAUNCHERS = {
    "DeepSpeed": deepspeed_env,
    "torchrun": torchrun_env,
    "OpenMPI": openmpi_env,
    "MPICH": mpich_env,
    "LOCAL_SIZE": deepspeed_mpich_env,
    "Slurm": slurm_env,
}


def texts(env):
    return {name: str(value) for name, value in env.items()}


def no_names():
    raise AssertionError("host names must not be asked for")


@pytest.mark.parametrize("name", LAUNCHERS)
@given(topology=topologies, data=st.data())
def test_every_launcher_on_every_rank(name, topology, data):
    rank = data.draw(st.integers(0, topology.world_size - 1))
    env = texts(LAUNCHERS[name](rank, topology.hosts, topology.ranks_per_host))
    found = resolve_topology(rank, topology.world_size, env=env, hostnames=no_names)
    assert found.topology == topology and name in found.source


@pytest.mark.parametrize("rank", range(6))
def test_slurm_with_one_task_per_node(rank):
    found = resolve_topology(rank, 6, env=texts(slurm_agents_env(rank, 2, 3)), hostnames=no_names)
    assert found.topology == Topology(2, 3) and "Slurm" in found.source


def test_slurm_allocation_that_started_only_a_shell_says_nothing():
    env = {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "4", "SLURM_NTASKS": "4"}
    assert resolve_topology(1, 2, env=env, hostnames=lambda: ["a", "a"]).topology == Topology(1, 2)


def test_mpi_that_started_only_a_launcher_says_nothing():
    env = texts(openmpi_env(0, 1, 1))
    assert resolve_topology(0, 2, env=env, hostnames=lambda: ["a", "a"]).topology == Topology(1, 2)


def test_deepspeed_local_rank_is_not_the_lane():
    env = texts(deepspeed_env(1, 2, 2)) | {"LOCAL_RANK": "0"}
    assert resolve_topology(1, 4, env=env).topology.lane_of(1) == 1


def test_single_process_needs_no_launcher():
    found = resolve_topology(0, 1, env={}, hostnames=no_names)
    assert found == ResolvedTopology(Topology(1, 1), "a single process")


def test_this_process_environment_is_the_default(monkeypatch):
    for name, value in texts(deepspeed_env(3, 2, 2)).items():
        monkeypatch.setenv(name, value)
    assert resolve_topology(3, 4, hostnames=no_names).topology == Topology(2, 2)


# ---- host names ----------------------------------------------------------------------------------


@given(topologies.filter(lambda t: t.world_size > 1))
def test_host_names(topology):
    names = [f"box{topology.host_of(rank)}" for rank in range(topology.world_size)]
    found = resolve_topology(0, topology.world_size, env={}, hostnames=lambda: names)
    assert found.topology == topology and "box0" in found.source


@pytest.mark.parametrize(
    "names, words",
    [(["a", "b", "a", "b"], "neighbours"), (["a", "a", "a", "b"], "a: 3, b: 1"), (["a", "a"], "2 host names for 4")],
)
def test_bad_host_names(names, words):
    with pytest.raises(TopologyError, match=words):
        resolve_topology(0, 4, env={}, hostnames=lambda: names)


def test_nothing_speaks():
    with pytest.raises(TopologyError, match=r"dmt\.topology\.hosts"):
        resolve_topology(0, 4, env={})


# ---- configuration and disagreement --------------------------------------------------------------


@pytest.mark.parametrize(
    "given_keys, expected",
    [
        ({"hosts": 2}, Topology(2, 4)),
        ({"ranks_per_host": 2}, Topology(4, 2)),
        ({"hosts": 8, "ranks_per_host": 1}, Topology(8, 1)),
    ],
)
def test_configuration(given_keys, expected):
    found = resolve_topology(5, 8, env={}, hostnames=no_names, **given_keys)
    assert found.topology == expected
    assert all(f"dmt.topology.{key} = {value}" in found.source for key, value in given_keys.items())


@pytest.mark.parametrize(
    "given_keys, words",
    [
        ({"hosts": 3}, "dmt.topology.hosts = 3.*8.*3"),
        ({"ranks_per_host": 5}, "dmt.topology.ranks_per_host = 5.*8.*5"),
        ({"hosts": 2, "ranks_per_host": 2}, "2 hosts x 2 ranks = 4 ranks, but there are 8"),
        ({"hosts": 0}, "at least 1, found 0"),
    ],
)
def test_impossible_configuration(given_keys, words):
    with pytest.raises(TopologyError, match=words):
        resolve_topology(0, 8, env={}, **given_keys)


def test_configuration_wins_with_a_warning(caplog):
    env = texts(deepspeed_env(0, 4, 2))
    with caplog.at_level(logging.WARNING):
        assert resolve_topology(0, 8, ranks_per_host=4, env=env).topology == Topology(2, 4)
    assert "2x4" in caplog.text and "4x2" in caplog.text and "LOCAL_SIZE=2" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        resolve_topology(1, 8, ranks_per_host=4, env=texts(deepspeed_env(1, 4, 2)))
        resolve_topology(0, 8, ranks_per_host=2, env=env)
    assert not caplog.text


def test_configuration_is_the_way_out_of_broken_variables():
    found = resolve_topology(0, 4, hosts=2, env={"LOCAL_SIZE": "many", "CROSS_RANK": "7"})
    assert found.topology == Topology(2, 2)


def test_first_launcher_wins_with_a_warning(caplog):
    env = texts(deepspeed_env(0, 2, 2) | torchrun_env(0, 1, 4))
    with caplog.at_level(logging.WARNING):
        assert resolve_topology(0, 4, env=env).topology == Topology(2, 2)
    assert "torchrun" in caplog.text and "1x4" in caplog.text


@pytest.mark.parametrize(
    "rank, world, env, words",
    [
        (0, 8, {"LOCAL_SIZE": 2, "CROSS_RANK": 0, "CROSS_SIZE": 2}, "2 hosts x 2 ranks = 4 ranks, but there are 8"),
        (3, 4, {"LOCAL_SIZE": 1, "CROSS_RANK": 1}, "rank 3 .* host 3 .* host 1"),
        (0, 3, {"LOCAL_SIZE": 2, "CROSS_RANK": 0}, "2 hosts x 2 ranks = 4 ranks, but there are 3"),
        (0, 3, {"LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}, "but there are 3"),
        (2, 4, {"LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}, "rank 2 .* host 1 .* host 0"),
        (1, 4, {"OMPI_COMM_WORLD_LOCAL_SIZE": 2, "OMPI_COMM_WORLD_LOCAL_RANK": 0}, "lane 1 .* lane 0.*map-by slot"),
        (0, 4, {"LOCAL_SIZE": "two", "CROSS_RANK": 0}, 'LOCAL_SIZE should be a number, found "two"'),
        (0, 4, {"LOCAL_SIZE": 0, "CROSS_RANK": 0}, "0 ranks"),
        (0, 3, slurm_env(0, 2, 2) | {"SLURM_STEP_NUM_TASKS": 3}, "2 hosts x 2 ranks = 4 ranks, but there are 3"),
    ],
)
def test_impossible_variables(rank, world, env, words):
    with pytest.raises(TopologyError, match=words):
        resolve_topology(rank, world, env=texts(env))


def test_unequal_slots_fail_on_every_rank():
    for rank in range(4):
        host, size = (0, 3) if rank < 3 else (1, 1)
        env = texts({"LOCAL_SIZE": size, "CROSS_RANK": host, "CROSS_SIZE": 2})
        with pytest.raises(TopologyError, match="as many ranks as any other"):
            resolve_topology(rank, 4, env=env)


def test_rank_outside_the_world():
    with pytest.raises(TopologyError, match="rank 4"):
        resolve_topology(4, 4, env={})


# ---- between processes ---------------------------------------------------------------------------


def test_verify_without_process_groups():
    verify_topology(ResolvedTopology(Topology(1, 1), "a single process"), 0)
    with pytest.raises(TopologyError, match="went wrong"):
        verify_topology(TopologyError("went wrong"), 0)
    assert discover_topology(env={}).topology == Topology(1, 1)


def test_create_groups_needs_a_process_group():
    with pytest.raises(TopologyError, match="init_distributed"):
        create_groups(Topology(1, 1), timeout_s=10)


def _message(**keys):
    try:
        return str(discover_topology(**keys).topology)
    except TopologyError as error:
        return f"TopologyError: {error}"


def _disagree(rank, world_size):
    half = texts(deepspeed_env(rank, 2, 2) if rank < 2 else torchrun_env(rank, 1, 4))
    odd = {} if rank else {"LOCAL_SIZE": "3", "CROSS_RANK": "0", "CROSS_SIZE": "2"}
    return [
        _message(env=half),
        _message(env=odd),
        _message(env=texts(deepspeed_env(rank, 2, 2))),
        _message(env={}),
        _message(env={}, hosts=2 if rank != 3 else 4),
    ]


def _fill_groups(rank, world_size):
    groups = create_groups(Topology(2, 2), timeout_s=17)
    told = {}
    for name in ("world", "peers", "lanes"):
        group = getattr(groups, name)
        members = [torch.empty(1, dtype=torch.int64, device=groups.device) for _ in range(group.size())]
        dist.all_gather(members, torch.tensor([rank], device=groups.device), group=group)
        told[name] = [int(member) for member in members]
        assert group is not dist.group.WORLD
    mesh = groups.mesh
    assert mesh.mesh_dim_names == ("host", "lane") and tuple(mesh.get_coordinate()) == (groups.host, groups.lane)
    assert mesh.get_group("host") is groups.peers and mesh.get_group("lane") is groups.lanes
    with pytest.raises(TopologyError, match="2x3 has 6 ranks, not 4"):
        create_groups(Topology(2, 3), timeout_s=17)
    return told | {"place": (groups.rank, groups.host, groups.lane), "device": groups.device.type}


def _stall(rank, world_size):
    groups = create_groups(Topology(1, 2), timeout_s=2)
    if rank == 0:
        with pytest.raises(RuntimeError):
            dist.all_reduce(torch.ones(1), group=groups.lanes)
    dist.barrier()
    return True


@pytest.mark.processes
def test_all_ranks_raise_the_same_error():
    by_rank = run_ranks(4, _disagree)
    assert all(messages == by_rank[0] for messages in by_rank)
    differ, broken, equal, names, config = by_rank[0]
    assert "ranks disagree" in differ and "ranks 0, 1 found 2x2 by DeepSpeed" in differ
    assert "ranks 2, 3 found 1x4 by torchrun" in differ and "GROUP_RANK=0" in differ
    assert "cannot be told on every rank" in broken and "rank 0: " in broken and "LOCAL_SIZE=3" in broken
    assert (equal, names) == ("2x2", "1x4")
    assert "rank 3 found 4x1" in config


@pytest.mark.processes
def test_groups_on_two_by_two():
    by_rank = run_ranks(4, _fill_groups)
    topology = Topology(2, 2)
    for rank, told in enumerate(by_rank):
        assert told["world"] == [0, 1, 2, 3]
        assert told["peers"] == list(topology.peers_of(rank)) == [rank % 2, rank % 2 + 2]
        assert told["lanes"] == list(topology.lanes_of(rank))
        assert told["place"] == (rank, rank // 2, rank % 2)
        assert told["device"] == "cpu"


@pytest.mark.processes
def test_time_limit_reaches_the_groups():
    assert run_ranks(2, _stall) == [True, True]


def env_of(rank: int, machines: int, lanes: int) -> dict[str, str]:
    return {"LOCAL_SIZE": str(lanes), "CROSS_RANK": str(rank // lanes), "CROSS_SIZE": str(machines)}


@pytest.mark.parametrize("rank", [0, 5, 7])
def test_machines_are_put_together_to_hosts(rank):
    found = resolve_topology(rank, 8, machines_per_host=2, env=env_of(rank, 4, 2))
    assert found.topology == Topology(2, 4, 2) and str(found.topology) == "2x2x2"
    assert found.topology.by_machine == Topology(4, 2)
    assert found.topology.across_of(rank) == {0: (0, 2), 5: (5, 7), 7: (5, 7)}[rank]


def test_whole_hosts_are_counted_where_the_configuration_says():
    assert resolve_topology(0, 8, hosts=2, machines_per_host=4, env={}).topology == Topology(2, 4, 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"machines_per_host": 3}, r"4 machine\(s\), by .*LOCAL_SIZE.* by 3: .*can be 1, 2 or 4 here"),
        ({"hosts": 2, "machines_per_host": 3}, r"the 4 rank\(s\) of a host .* 3 machine\(s\): .* can be 1, 2 or 4"),
    ],
)
def test_machines_that_do_not_divide(given, said):
    with pytest.raises(TopologyError, match=said):
        resolve_topology(0, 8, **given, env=env_of(0, 4, 2))


def test_topologies_of_before_have_one_machine_per_host():
    old = Topology.__new__(Topology)
    old.__setstate__({"hosts": 2, "ranks_per_host": 2})
    assert old == Topology(2, 2) and pickle.loads(pickle.dumps(old)) == old
