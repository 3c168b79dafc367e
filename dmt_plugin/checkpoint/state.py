"""The pieces of the logical state that one rank of a placed model holds.

| name of the whole | what it is | stored as |
|---|---|---|
| ``model.<parameter>`` of a table | the shards that this rank's lookup holds | ``(rows, dim)`` |
| ``table_optimizer.<key>.<parameter>`` | what the tables' optimizer keeps | ``(rows,)`` or ``(rows, dim)`` |
| ``model.<name>`` | dense and tower parameters and buffers | a vector |

1. Names are the user's and the logical model's, whatever the placement and DeepSpeed call them.
2. A parameter that has a master copy in higher precision is stored as that, and is read into both.
3. A buffer is written by the first rank that holds it: ranks may disagree about running statistics. Each rank's own are
   in :func:`own_buffers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dmt_plugin.checkpoint.manifest import StoredByModulo, TensorEntry
from dmt_plugin.checkpoint.names import logical_name
from dmt_plugin.checkpoint.pieces import Piece, vector
from dmt_plugin.checkpoint.row_order import stored_by_modulo, stored_row
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.model.placed import PlacedModel
from dmt_plugin.plan.tables import TableShard
from dmt_plugin.plan.tower_plan import TowerPlan

MODEL, TABLE_OPTIMIZER, OPTIMIZER = "model.", "table_optimizer.", "optimizer."


@dataclass(frozen=True)
class MasterPart:
    """A range of a parameter in the precision that the optimizer works in.

    Attributes:
        start: first entry of the flattened parameter.
        values: the entries, a vector that shares its memory with the optimizer's.
    """

    start: int
    values: Tensor


Masters = Mapping[int, Sequence[MasterPart]]
"""By ``id`` of the parameter."""


class Targets:
    """Pieces to read into, also for tensors that cannot be written entry by entry."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._copies: list[tuple[Tensor, Tensor]] = []

    def add(self, name: str, kind: str, values: Tensor) -> None:
        """The whole of a tensor."""
        values = values.detach()
        if not values.is_contiguous():
            staged = torch.empty_like(values, memory_format=torch.contiguous_format)
            self._copies.append((values, staged))
            values = staged
        self.pieces.append(vector(name, kind, values))

    def finish(self) -> None:
        """Behind the reading."""
        with torch.no_grad():
            for target, staged in self._copies:
                target.copy_(staged)


@dataclass(frozen=True)
class StoredTable:
    """Where the rows of a table are that is stored.

    Attributes:
        first_row: the first, in the parameter that was stored.
        rows: their number.
        of: rows of that parameter.
    """

    first_row: int
    rows: int
    of: int


def table_pieces(
    lookup: Any, plan: TowerPlan, optimizer: bool = True, stored: Mapping[str, StoredTable] | None = None
) -> list[Piece]:
    """Pieces of this rank's tables; they share the tables' memory.

    Args:
        lookup: this rank's tables.
        plan: the plan that divided them.
        optimizer: also of their optimizer's state.
        stored: to read them from where they had other places, or fewer rows, by the tables' names: pieces are of the
            rows that are stored. Default: they are stored as they are here.
    """
    sizes, by_modulo = table_sizes(plan), stored_by_modulo(plan)
    found: list[Piece] = []
    for name in lookup.tables:
        shard = plan.shard(name)
        table = shard.table
        rows, dim = sizes[table.parameter]
        place = StoredTable(table.first_row, table.rows, rows) if stored is None else stored.get(table.name)
        if place is None or not (count := len(range(shard.first_row, place.rows, shard.step)[: shard.rows])):
            continue
        first, step = place.first_row + shard.first_row, shard.step
        modulo: tuple[StoredByModulo, ...] = ()
        if stored is None:
            first, step, modulo = stored_row(shard), 1, by_modulo.get(table.parameter, ())
        size = (place.of, dim)
        weight = Piece(
            MODEL + table.parameter, "table", size, (first, shard.first_column), lookup.table_weight(name), None, step,
            modulo,
        )  # fmt: skip
        own = [weight]
        for key, values in lookup.optimizer_state(name).items() if optimizer else ():
            own.append(_table_state(f"{TABLE_OPTIMIZER}{key}.{table.parameter}", shard, weight, values))
        found += [dataclasses.replace(piece, values=piece.values[:count]) for piece in own]
    return found


def _table_state(name: str, shard: TableShard, weight: Piece, values: Tensor) -> Piece:
    """What the optimizer keeps beside the values of a shard."""
    if values.shape == (shard.rows, shard.columns):
        return dataclasses.replace(weight, name=name, kind="table_optimizer", values=values)
    if values.shape == (shard.rows,) and shard.columns == shard.table.dim:
        size, first = weight.size[:1], weight.offsets[:1]
        return dataclasses.replace(
            weight, name=name, kind="table_optimizer", size=size, offsets=first, values=values
        )
    raise CheckpointError(
        f"{name}: a state of shape {tuple(values.shape)} for {shard.rows} rows and {shard.columns} columns of "
        f"{shard.table.dim} cannot be put together with those of other ranks"
    )


def table_sizes(plan: TowerPlan) -> dict[str, tuple[int, int]]:
    """Rows and columns of the parameters that hold tables, by name."""
    sizes: dict[str, tuple[int, int]] = {}
    for table in plan.tables:
        rows, _ = sizes.get(table.parameter, (0, 0))
        sizes[table.parameter] = (max(rows, table.first_row + table.rows), table.dim)
    return sizes


def module_pieces(
    placed: PlacedModel, masters: Masters, *, first: bool, first_of_host: bool, left_out: Iterable[str] = ()
) -> list[Piece]:
    """What this rank writes of dense and tower modules.

    Args:
        placed: this rank's model.
        masters: what its optimizer holds of parameters in higher precision.
        first: whether this is rank 0, which writes buffers that all ranks hold.
        first_of_host: whether this is the first lane, which writes the buffers of its host's towers.
        left_out: logical names to leave out.
    """
    skipped = set(left_out)
    found: list[Piece] = []
    for name, kind, in_tower, value in members(placed):
        if name in skipped:
            continue
        if id(value) in masters:
            for part in masters[id(value)]:
                found.append(
                    Piece(MODEL + name, kind, (value.numel(),), (part.start,), part.values.detach(), tuple(value.shape))
                )
        elif kind != "buffer" or (first_of_host if in_tower else first):
            found.append(vector(MODEL + name, kind, value.detach().contiguous()))
    return found


def module_targets(placed: PlacedModel, masters: Masters, left_out: Iterable[str] = ()) -> Targets:
    """Where this rank reads dense and tower modules into; arguments as for :func:`module_pieces`."""
    skipped = set(left_out)
    targets = Targets()
    for name, kind, _, value in members(placed):
        if name in skipped:
            continue
        targets.add(MODEL + name, kind, value)
        for part in masters.get(id(value), ()):
            targets.pieces.append(
                Piece(MODEL + name, kind, (value.numel(),), (part.start,), part.values.detach(), tuple(value.shape))
            )
    return targets


def entries(placed: PlacedModel) -> dict[str, TensorEntry]:
    """What this rank holds of the model, by logical name, each as it is in the whole model."""
    sizes, lookup = table_sizes(placed.plan), placed.lookup
    found = {}
    for shard in lookup.tables:
        name, dtype = placed.plan.shard(shard).table.parameter, lookup.table_weight(shard).dtype
        found[name] = TensorEntry("table", sizes[name], str(dtype).removeprefix("torch."))
    for name, kind, _, value in members(placed):
        found[name] = TensorEntry(kind, tuple(value.shape), str(value.dtype).removeprefix("torch."))
    return found


def parameter_names(placed: PlacedModel) -> dict[int, str]:
    """Logical name of each parameter by its ``id``; the first where it has several."""
    return {id(p): logical_name(name) for name, p in placed.named_parameters()}


def frozen_names(placed: PlacedModel) -> list[str]:
    """Logical names of the parameters that are not trained."""
    named = placed.named_parameters(remove_duplicate=False)
    return sorted(logical_name(name) for name, p in named if not p.requires_grad)


def own_buffers(placed: PlacedModel) -> dict[str, Tensor]:
    """Copies of this rank's buffers by logical name."""
    return {name: value.detach().cpu().clone() for name, kind, _, value in members(placed) if kind == "buffer"}


@torch.no_grad()
def load_own_buffers(placed: PlacedModel, saved: Mapping[str, Tensor], but: Collection[str] = ()) -> None:
    """Puts back what :func:`own_buffers` gave, where it fits; those named by ``but`` stay as they are."""
    for name, kind, _, value in members(placed):
        if kind == "buffer" and name in saved and name not in but and saved[name].shape == value.shape:
            value.copy_(saved[name])


def members(placed: PlacedModel) -> list[tuple[str, str, bool, Tensor]]:
    """Logical name, kind, whether it is a tower's, and tensor of everything in the state of the placed model.

    Raises:
        CheckpointError: a module has a state that is no tensor.
    """
    found: list[tuple[str, str, bool, Tensor]] = []
    for full, value in placed.own_state(keep_vars=True).items():
        name = logical_name(full)
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"the state of the model holds {name!r}, a {type(value).__name__}, and only tensors can be stored: "
                "keep what get_extra_state returns in client_state instead"
            )
        in_tower = any(name.startswith(f"{path}.") for path in placed.tower_paths)
        in_tower = in_tower or name in placed.placement.own_parameters
        kind = "buffer" if not isinstance(value, nn.Parameter) else "tower" if in_tower else "dense"
        found.append((name, kind, in_tower, value))
    return found
