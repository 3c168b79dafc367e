"""A checkpoint for another topology: the same towers on other hosts, tables on other lanes.

A load reshards by itself, so nothing needs this to go on elsewhere. It is for looking before the cluster is there, and
for a checkpoint whose files follow the shards that the new ranks hold, so that each reads only what it needs:

1. towers keep their features and go to the new hosts; tables keep their kind, as far as there are lanes to divide them
   over, and are spread again; those that were on any host, or in rows by modulo, as their rows travel once, are dealt
   out again by the rows that were counted;
2. to write, tensors are read and written block by block: memory is that of a block, not of the model.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from dmt_plugin.checkpoint import folder
from dmt_plugin.checkpoint.folder import COMMON, RANKS, STATE, Found, check_content, entry_of, rank_file
from dmt_plugin.checkpoint.manifest import WIDTHS, TensorEntry
from dmt_plugin.checkpoint.pieces import Piece, blocks, quiet, stored_tensors
from dmt_plugin.checkpoint.row_order import rearranged, stored_by_modulo, stored_row
from dmt_plugin.checkpoint.rows import as_matrix
from dmt_plugin.checkpoint.single import check_whole
from dmt_plugin.checkpoint.state import MODEL, TABLE_OPTIMIZER
from dmt_plugin.checkpoint.stored import Writer, stored_rows
from dmt_plugin.checkpoint.writes import SavePlanner
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.plan.tables import Kind, TableShard
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.planner import PlacementRules, place_tables, towers_to_hosts
from dmt_plugin.planner.load import ASSUMED_IDS, CostModel, TableUse
from dmt_plugin.topology.shape import Topology


def plan_for(plan: TowerPlan, topology: Topology) -> TowerPlan:
    """The plan with its towers on another topology.

    Args:
        plan: the saved one.
        topology: hosts and lanes.

    Raises:
        ConfigError: the towers cannot be spread over so many hosts.
    """
    hosts = towers_to_hosts(len(plan.towers), topology)
    uses, host_of = [], {}
    anywhere = {name for name, split in plan.table_splits.items() if any(r.host is not None for r in split.ranges)}
    anywhere |= set(plan.table_hosts)
    by_modulo = {name for name, split in plan.table_splits.items() if not split.is_plain and name not in anywhere}
    counted = {} if plan.row_shares is None else {own.table: own.host for own in plan.row_shares.tables}
    for table in plan.tables:
        own = [feature for feature in plan.features if table.name in feature.tables]
        ids = sum(feature.hotness or ASSUMED_IDS for feature in own)
        use = TableUse(table, ids, table.dim * len(own))
        if plan.row_shares is not None and table.name in counted and table.name in anywhere | by_modulo:
            samples = plan.row_shares.samples * plan.row_shares.lanes
            use = dataclasses.replace(use, rows=counted[table.name] / samples, free=table.name in anywhere)
        uses.append(use)
        host_of[table.name] = hosts[plan.tower_of(own[0].name)]
    kinds: dict[str, Kind] = {use.table.name: "table_wise" for use in uses}
    kinds |= {name: split.kind for name, split in plan.table_splits.items()}
    rules = PlacementRules(overrides={n: kind for n, kind in kinds.items() if n not in anywhere | by_modulo})
    model = CostModel(members=topology.ranks_per_host, once_members=topology.by_machine.hosts)
    placed = place_tables(uses, host_of, topology, rules, model)
    return dataclasses.replace(
        plan,
        topology=str(topology),
        tower_hosts=hosts,
        table_lanes=placed.lanes,
        table_splits=placed.splits,
        table_hosts=placed.hosts,
    )


def table_bytes(plan: TowerPlan, manifest_tensors: Mapping[str, Any]) -> list[int]:
    """Bytes of tables and of their optimizer's state on each rank, in rank order.

    Args:
        plan: where tables are.
        manifest_tensors: the tensors of a checkpoint by name.
    """
    topology = Topology.parse(plan.topology)
    totals = [0] * topology.world_size
    states = [n for n in manifest_tensors if n.startswith(TABLE_OPTIMIZER)]
    for table in plan.tables:
        kept = [manifest_tensors[n] for n in states if n.partition(".")[2].partition(".")[2] == table.parameter]
        for shard in plan.shards_of(table.name):
            values = manifest_tensors[MODEL + table.parameter]
            size = sum(
                WIDTHS[e.dtype] * shard.rows * (shard.columns if len(e.shape) > 1 else 1) for e in (values, *kept)
            )
            totals[topology.rank_of(shard.host, shard.lane)] += size
    return totals


def reshard(found: Found, plan: TowerPlan, save_dir: str | Path) -> Path:
    """Writes a checkpoint again, for the topology of another plan.

    Args:
        found: the checkpoint.
        plan: of the same model and towers.
        save_dir: where the new one goes, under the same tag.

    Returns:
        The new checkpoint's folder. Where the number of ranks is another, what each rank had for itself is left behind,
        but for the client state of rank 0.

    Raises:
        CheckpointError: the checkpoint is not whole, something else has its tag there, or it is to go where it is.
    """
    if Path(save_dir).resolve() == found.path.resolve().parent:
        raise CheckpointError(
            f"{save_dir} is where {found.path.name} itself is, and a run may be saving there; name another folder"
        )
    old = found.manifest
    check_content(found, old.files)
    stored = stored_tensors(found.state)
    check_whole(found, stored)
    temporary = folder.begin(save_dir, old.tag)
    tensors = _entries(found, plan)
    with quiet():
        dcp.save(
            {},
            storage_writer=Writer(temporary / STATE),
            planner=_Copy(found, tensors, blocks(_pieces(tensors, plan, stored))),
            no_dist=True,
        )
    ranks = old.rank_states if old.rank_states == Topology.parse(plan.topology).world_size else 0
    for name in (COMMON, *(rank_file(rank) for rank in range(max(ranks, 1)))):
        with (found.path / name).open("rb") as source, folder.synced(temporary / name) as target:
            shutil.copyfileobj(source, target)
    written = [temporary / COMMON, *(temporary / STATE).iterdir(), *(temporary / RANKS).iterdir()]
    manifest = dataclasses.replace(
        old,
        sequence=folder.next_sequence(Path(save_dir)),
        topology=plan.topology,
        plan=plan.to_dict(),
        tensors=tensors,
        files={str(path.relative_to(temporary)): entry_of(path) for path in sorted(written)},
        rank_states=ranks,
    )
    return folder.commit(temporary, manifest)


def _entries(found: Found, plan: TowerPlan) -> dict[str, TensorEntry]:
    """The tensors of the checkpoint, as they are stored with the new plan."""
    by_modulo = stored_by_modulo(plan)
    return {
        name: dataclasses.replace(entry, by_modulo=by_modulo.get(_parameter(name, entry), ()))
        for name, entry in found.manifest.tensors.items()
    }


def _parameter(name: str, entry: TensorEntry) -> str:
    """The parameter that holds a table, of its values or of a state; empty for anything else."""
    if entry.kind == "table":
        return name.removeprefix(MODEL)
    return name.split(".", 2)[-1] if entry.kind == "table_optimizer" else ""


def _pieces(
    tensors: Mapping[str, TensorEntry], plan: TowerPlan, stored: Mapping[str, TensorStorageMetadata]
) -> list[Piece]:
    """What is to be written, without values: tables by the shards of the new plan, the rest in one piece."""
    shards: dict[str, list[TableShard]] = {}
    for table in plan.tables:
        shards.setdefault(table.parameter, []).extend(plan.shards_of(table.name))
    made: list[Piece] = []
    for name, tensor in stored.items():
        entry = tensors[name]
        for shard in shards.get(_parameter(name, entry), [None]):
            offsets, shape = _place(shard, tuple(tensor.size))
            values = torch.empty(shape, dtype=tensor.properties.dtype, device="meta")
            size = tuple(tensor.size)
            made.append(Piece(name, entry.kind, size, offsets, values, entry.shape, by_modulo=entry.by_modulo))
    return made


def _place(shard: TableShard | None, size: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where it is stored, and its shape."""
    if shard is None:
        return (0,) * len(size), size
    first = stored_row(shard)
    if len(size) == 1:
        return (first,), (shard.rows,)
    return (first, shard.first_column), (shard.rows, shard.columns)


class _Copy(SavePlanner):
    """Reads each block when it is to be written, all of them into the same memory."""

    def __init__(self, found: Found, tensors: Mapping[str, TensorEntry], pieces: list[Piece]) -> None:
        super().__init__(pieces)
        self._stored = {
            name: rearranged(rows, found.manifest.tensors.get(name), tensors.get(name))
            for name, rows in stored_rows(found.state).items()
        }
        self._memory = torch.empty(max((piece.values.nbytes for piece in pieces), default=0), dtype=torch.uint8)

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The values of a block."""
        piece = self.piece(index)
        values = self._memory[: piece.values.nbytes].view(piece.values.dtype).view(piece.values.shape)
        places = [range(first, first + length) for first, length in zip(piece.offsets, values.shape, strict=True)]
        self._stored[piece.name].fill(places[0], (*places[1:], range(1))[0], as_matrix(values))
        return values
