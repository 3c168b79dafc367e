"""Wraps tower modules as experts of an MoE layer, so that DeepSpeed trains them on the ranks that hold them.

DeepSpeed trains parameters that only some ranks hold if they look like the experts of an MoE layer: parameters
marked ``allreduce = False`` with the name of their group. It then broadcasts them inside the expert-data-parallel
group only, sums their gradients there and divides by the *world* size, partitions their optimizer state over that
group at ZeRO 1 and 2, and adds their part to the global gradient norm. With one "expert" per host and "data before
expert" parallelism these groups are the lanes of a host and the peers of a lane: what towers need, no override.

1. :class:`TowerShell` is an ``MoE`` in name (DeepSpeed finds such layers with ``isinstance``) with the tower in the
   place of its local expert, and no gate.
2. :func:`wrap_towers` puts one around each tower module of a placed model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from deepspeed.moe.layer import MoE
from torch import nn

from dmt_plugin.core.errors import TopologyError
from dmt_plugin.integrations.deepspeed import private
from dmt_plugin.topology.shape import Topology


class TowerShell(MoE):
    """One tower module of this host, wrapped as the single local expert of an MoE layer.

    Args:
        tower: The tower module; its parameters are marked as this host's.
        topology: Hosts and ranks per host; ``topology.hosts`` is the expert-parallel size.
        rank: This rank.
    """

    def __init__(self, tower: nn.Module, topology: Topology, rank: int) -> None:
        nn.Module.__init__(self)
        self.ep_size = topology.hosts
        self.num_experts = topology.hosts
        self.num_local_experts = 1
        self.expert_group_name = f"ep_size_{topology.hosts}"
        self.use_residual = False
        self.enable_expert_tensor_parallelism = False
        self._topology = topology
        self._rank = rank
        # The path is the one under which DeepSpeed looks for experts.
        experts, layer = nn.Module(), nn.Module()
        experts.add_module("deepspeed_experts", nn.ModuleList([tower]))
        layer.add_module("experts", experts)
        self.deepspeed_moe = layer
        mark_as_hosts(tower.parameters(), topology)

    @property
    def tower(self) -> nn.Module:
        """The tower module inside."""
        experts: Any = self.deepspeed_moe.experts
        return experts.deepspeed_experts[0]

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Called by the engine before it reads the groups; makes them and checks that they are ours.

        Raises:
            TopologyError: If groups of this size were made before in another order, for example by an MoE model
                in the same process: tower gradients would be summed over the wrong ranks.
        """
        topology, rank = self._topology, self._rank
        found = private.expert_groups(self.ep_size)
        expected = (tuple(topology.lanes_of(rank)), tuple(topology.peers_of(rank)))
        if found != expected:
            raise TopologyError(
                f"rank {rank}: DeepSpeed's groups '{self.expert_group_name}' are {found[0]} (same tower) and "
                f"{found[1]} (one per host), but topology {topology} needs {expected[0]} and {expected[1]}. Another "
                'model in this process made them without "use_data_before_expert_parallelism": true; initialize this '
                "model first, or in a process of its own."
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the tower module."""
        return self.tower(*args, **kwargs)


def mark_as_hosts(parameters: Iterable[nn.Parameter], topology: Topology) -> None:
    """Tell DeepSpeed that parameters are of this host alone, inside a tower module or read beside it."""
    for parameter in parameters:
        parameter.allreduce = False  # type: ignore[attr-defined]
        parameter.group_name = f"ep_size_{topology.hosts}"  # type: ignore[attr-defined]


def wrap_towers(model: nn.Module, paths: Sequence[str], topology: Topology, rank: int) -> list[TowerShell]:
    """Put a :class:`TowerShell` around the modules of ``model`` at ``paths``, in place.

    Args:
        model: The placed model of this rank.
        paths: Paths of its tower modules; none of them inside another.
        topology: Hosts and ranks per host.
        rank: This rank.

    Returns:
        The shells, in the order of ``paths``.
    """
    shells = []
    for path in paths:
        shell = TowerShell(model.get_submodule(path), topology, rank)
        model.set_submodule(path, shell)
        shells.append(shell)
    return shells
