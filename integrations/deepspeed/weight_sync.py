"""Every table with values, and every layer of the user's that runs in a tower, starts from rank 0's copy of it.

DeepSpeed broadcasts rank 0's dense parameters before training, so that ranks may build their models from different
random states. Tables are no parameters of the placed model and each has one owner (or several, where it is
replicated), so the same is done here; a shard of a divided table counts as a table of its own name:

1. all ranks say which tables they own and of what size, rank 0 says what it has by those names; if these differ,
   the ranks have built different models, and every rank says so;
2. table after table, in the same order everywhere, rank 0 sends its own copy, in blocks of rows of bounded size, to
   every owner other than itself, which puts them straight into its table;
3. layers in towers are broadcast from rank 0 to all: DeepSpeed would only make them equal inside each host.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.model.placed import PlacedModel
from dmt_plugin.topology.agreement import gather
from dmt_plugin.topology.groups import RankGroups
from dmt_plugin.topology.lost_ranks import reporting

CHUNK_ELEMENTS = 4 * 1024 * 1024


def owned_tables(lookup: Any) -> dict[str, tuple[int, int]]:
    """Rows and columns of the tables, or shards of tables, a rank's lookup holds, by name."""
    return dict(lookup.shapes)


def sync_tables(
    lookup: Any,
    weight_of: Callable[[str], Tensor],
    groups: RankGroups,
    chunk_elements: int = CHUNK_ELEMENTS,
    only: Collection[str] | None = None,
) -> int:
    """Load rank 0's copy of every table where its owner is another rank.

    Args:
        lookup: This rank's tables (``shapes`` and ``table_weight``).
        weight_of: The ``(rows, dim)`` weight of a table, or shard of one, in this rank's flat model, by its name;
            only used on rank 0.
        groups: This rank's groups.
        only: Names of the tables and shards that are sent; None: all.
        chunk_elements: Largest number of elements of one message.

    Returns:
        Number of tables this rank received.

    Raises:
        ConfigError: On every rank, if a table is of another size on rank 0.
    """
    own = owned_tables(lookup)
    owners = gather(groups, {name: size for name, size in own.items() if only is None or name in only})
    names = sorted({name for tables in owners for name in tables})
    source = gather(groups, {name: _shape(weight_of, name) for name in names} if groups.rank == 0 else None)[0]
    assert source is not None
    for owner, tables in enumerate(owners):
        for name, shape in tables.items():
            if source[name] != shape:
                raise ConfigError(
                    f"table {name} has rows and columns {shape} on its owner, rank {owner}, and {source[name]} on rank "
                    "0. Build the same model on every rank: look for table sizes that come from each rank's own data."
                )
    received = 0
    for name in names:
        for owner, tables in enumerate(owners):
            if owner == 0 or name not in tables:
                continue
            if groups.rank == 0:
                weight = weight_of(name)
                with reporting(groups, f"sending table {name} to rank {owner}"):
                    _send(weight, owner, groups, chunk_elements)
            elif groups.rank == owner:
                with reporting(groups, f"getting table {name} from rank 0"):
                    _receive(lookup.table_weight(name), groups, chunk_elements)
                received += 1
    return received


@torch.no_grad()
def sync_feature_layers(placed: PlacedModel, flat: nn.Module, groups: RankGroups) -> None:
    """Load rank 0's copy of the layers and parameters that towers use for one feature each.

    Args:
        placed: This rank's model; it holds the layers of its own host.
        flat: This rank's flat model, which holds all of them.
        groups: This rank's groups.
    """
    for name in placed.placement.feature_parameters:
        values = flat.get_parameter(name).detach().to(groups.device, torch.float32, copy=True).contiguous()
        with reporting(groups, f"sending {name}"):
            dist.broadcast(values, 0, group=groups.world)
        if name in placed.placement.own_parameters:
            placed.get_parameter(name).copy_(values)
    for path in placed.placement.feature_layers:
        for name, parameter in sorted(flat.get_submodule(path).named_parameters()):
            values = parameter.detach().to(groups.device, torch.float32, copy=True).contiguous()
            with reporting(groups, f"sending the layers of {path}"):
                dist.broadcast(values, 0, group=groups.world)
            if path in placed.tower_paths:
                placed.get_submodule(path).get_parameter(name).copy_(values)


def _shape(weight_of: Callable[[str], Tensor], name: str) -> tuple[int, ...] | None:
    try:
        return tuple(weight_of(name).shape)
    except AttributeError:
        return None


def _send(weight: Tensor, owner: int, groups: RankGroups, chunk_elements: int) -> None:
    for rows in _blocks(weight.detach(), chunk_elements):
        _message(dist.isend, rows.to(groups.device, torch.float32).contiguous(), owner, groups)


@torch.no_grad()
def _receive(table: Tensor, groups: RankGroups, chunk_elements: int) -> None:
    for rows in _blocks(table, chunk_elements):
        buffer = torch.empty(rows.shape, dtype=torch.float32, device=groups.device)
        _message(dist.irecv, buffer, 0, groups)
        rows.copy_(buffer)


def _blocks(table: Tensor, elements: int) -> tuple[Tensor, ...]:
    return table.split(max(1, elements // max(table.shape[1], 1)))


def _message(direction: Callable[..., Any], tensor: Tensor, peer: int, groups: RankGroups) -> None:
    """One message; as a batch, for which NCCL uses the group's communicator instead of making one for each pair."""
    for work in dist.batch_isend_irecv([dist.P2POp(direction, tensor, peer, groups.world)]):
        work.wait()
