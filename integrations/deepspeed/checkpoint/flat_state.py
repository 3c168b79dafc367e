"""States of the flat model out of an engine and into it; all ranks call these together.

1. Out: the state goes block by block to the ranks that ask for it (:mod:`dmt_plugin.checkpoint.streams`), into memory
   or into files; no rank holds more than a block of what is not its own.
2. In, from files: every rank reads its own rows of the tables and its own layers. From a state dict: rank 0's is used,
   which sends each owner its rows.
3. Where the optimizer works on a copy in higher precision (bf16, ZeRO 1 and 2), that gets the values too.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_plugin.checkpoint import state
from dmt_plugin.checkpoint.compare import retyped
from dmt_plugin.checkpoint.flat_files import Format, flat_writer
from dmt_plugin.checkpoint.logical import Receivers, gather_state, receivers_of
from dmt_plugin.checkpoint.streams import StateStream
from dmt_plugin.checkpoint.weights import StoredTensor, open_state
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.integrations.deepspeed.checkpoint.load import forget_gradients
from dmt_plugin.integrations.deepspeed.checkpoint.optimizer_state import OptimizerState
from dmt_plugin.integrations.deepspeed.checkpoint.trained import Trained
from dmt_plugin.integrations.deepspeed.checkpoint.waits import waits
from dmt_plugin.integrations.deepspeed.weight_sync import sync_tables
from dmt_plugin.model.flat_state import LoadedState, check_flat_state
from dmt_plugin.topology.agreement import gather, together
from dmt_plugin.topology.groups import RankGroups
from dmt_plugin.topology.lost_ranks import reporting

logger = logging.getLogger(__name__)

_OF_TORCH = (".pt", ".pth", ".bin")


def gather_flat(
    engine: Trained, out: str | Path | None, format: Format | None, ranks: Receivers, max_file_bytes: int
) -> dict[str, Tensor] | Path | None:
    """See :meth:`.FlatAccess.gather_state`."""
    placed, groups = engine.dmt.placed, engine.dmt.groups
    with waits(engine, "gather_state"):
        if out is None:
            return gather_state(placed, groups, ranks)
        receivers = receivers_of(ranks, groups)
        if len(receivers) > 1:
            raise CheckpointError(f"gather_state(out={str(out)!r}, ranks={list(receivers)}): one rank writes the files")
        chosen: Format = "torch" if Path(out).suffix in _OF_TORCH else "safetensors"
        write_files(engine, Path(out), format or chosen, receivers[0], max_file_bytes)
        return Path(out)


def write_files(
    engine: Trained, path: Path, format: Format, rank: int, max_file_bytes: int, skip: Iterable[str] = ()
) -> None:
    """Writes the state of the whole model, on one rank; see :func:`dmt_plugin.checkpoint.flat_files.flat_writer`.

    Args:
        engine: this rank's.
        path: where to.
        format: of the files.
        rank: the one that writes.
        max_file_bytes: of one of several files.
        skip: names to leave out, the same on all ranks.
    """
    placed, groups = engine.dmt.placed, engine.dmt.groups
    doing = f"writing the model to {path}"
    stream = StateStream(placed, groups, doing)
    left_out = set(skip)
    entries = {name: entry for name, entry in stream.entries.items() if name not in left_out}
    with ExitStack() as files:
        writer = None
        with together(groups, doing):
            if groups.rank == rank:
                writer = files.enter_context(flat_writer(path, format, entries, max_file_bytes))
        stream.send([rank], None if writer is None else writer.write, entries)
        with together(groups, doing):
            files.close()


def write_model(engine: Trained, save_dir: str, save_filename: str, exclude_frozen: bool) -> None:
    """See ``DMTEngine.save_16bit_model``."""
    if not save_dir:
        raise CheckpointError(f"save_dir must be a non-empty string, got {save_dir!r}")
    groups = engine.dmt.groups
    with waits(engine, "save_16bit_model"):
        frozen = gather(groups, state.frozen_names(engine.dmt.placed))  # each rank knows of its own towers
        skipped = set().union(*frozen) if exclude_frozen else set()
        write_files(engine, Path(save_dir) / save_filename, "torch", 0, 1 << 62, skipped)


def load_flat(engine: Trained, given: Any) -> LoadedState:
    """See :meth:`.FlatAccess.load_flat_state`."""
    groups = engine.dmt.groups
    with waits(engine, "load_flat_state"):
        found: dict[str, StoredTensor] = {}
        path = gather(groups, str(given) if isinstance(given, (str, Path)) else None)
        with together(groups, "opening the state of the flat model"):
            if len(set(path)) > 1:
                raise CheckpointError(f"load_flat_state got {path} on ranks 0, 1, ...; expected the same on all ranks")
            if path[0] is not None:
                found = open_state(path[0], (groups.rank, groups.topology.world_size))
            elif groups.rank == 0:
                if not isinstance(given, Mapping):
                    raise CheckpointError(
                        f"load_flat_state takes a state dict or a path; found a {type(given).__name__} on rank 0"
                    )
                found = open_state(given)
        kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()}
        kinds = gather(groups, kinds if groups.rank == 0 else None)[0] or {}
        with together(groups, "comparing the state with this model"):
            logical = engine.dmt.placed.logical
            own = logical.own_entries
            shapes = {name: shape for name, (shape, _) in own.items()}
            done = check_flat_state(shapes, logical.state_map, {name: shape for name, (shape, _) in kinds.items()})
            whole = {name: kinds[name][1] for name in done.loaded if not kinds[name][1].is_floating_point}
            odd = {name: dtype for name, dtype in whole.items() if own[name][1] != dtype}
            if odd:
                raise CheckpointError(f"of another type than in this model, and no floating-point numbers: {odd}")
            view = OptimizerState(engine.optimizer, state.parameter_names(engine.dmt.placed))
        engine.dmt.lookup.settle()
        _say_types(engine, {name: dtype for name, (_, dtype) in kinds.items() if name in done.loaded})
        _load_tables(engine, found, done, sent=path[0] is None)
        _load_layers(engine, found, done, kinds, view.masters(), sent=path[0] is None)
        forget_gradients(engine)
        gather(groups, None)
    return done


def _say_types(engine: Trained, given: Mapping[str, torch.dtype]) -> None:
    """Says which tables are given in another type than they are kept in; a collective."""
    plan, lookup = engine.dmt.plan, engine.dmt.lookup
    own = {plan.shard(name).table.parameter: lookup.table_weight(name).dtype for name in lookup.tables}
    here = {name: dtype for of_rank in gather(engine.dmt.groups, own) for name, dtype in of_rank.items()}
    if engine.dmt.groups.rank == 0:
        types = ({name: str(dtype).removeprefix("torch.") for name, dtype in of.items()} for of in (given, here))
        for line in retyped(*types):
            logger.warning("load_flat_state: %s", line)


@torch.no_grad()
def _load_tables(engine: Trained, found: Mapping[str, StoredTensor], done: LoadedState, sent: bool) -> None:
    dmt = engine.dmt
    loaded = set(done.loaded)
    shards = {name: dmt.plan.shard(name) for name in dmt.lookup.tables}
    shards = {name: shard for name, shard in shards.items() if shard.table.parameter in loaded}
    with together(dmt.groups, "reading its rows of the tables"):
        for name, shard in shards.items():
            if shard.table.parameter in found:
                tensor, target = found[shard.table.parameter], dmt.lookup.table_weight(name)
                tensor.fill(shard.parameter_rows, shard.parameter_columns, target)
    if sent:
        sync_tables(dmt.lookup, functools.partial(_rows_of, engine, found), dmt.groups, only=set(shards))


def _rows_of(engine: Trained, found: Mapping[str, StoredTensor], name: str) -> Tensor:
    """The values of a shard of a table in rank 0's state."""
    shard = engine.dmt.plan.shard(name)
    values = cast(Any, found[shard.table.parameter].rows).tensor
    rows, columns = shard.parameter_rows, shard.parameter_columns
    return values[rows.start : rows.stop : rows.step, columns.start : columns.stop]


@torch.no_grad()
def _load_layers(
    engine: Trained,
    found: Mapping[str, StoredTensor],
    done: LoadedState,
    kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    masters: state.Masters,
    sent: bool,
) -> None:
    groups = engine.dmt.groups
    tables = {table.parameter for table in engine.dmt.plan.tables}
    own: dict[str, list[Tensor]] = {}
    for name, _, _, tensor in state.members(engine.dmt.placed):
        own.setdefault(name, []).append(tensor)
    for name in done.loaded:
        if name in tables:
            continue
        if sent:
            values = _from_rank_0(groups, name, found.get(name), *kinds[name])
        elif name in own:
            values = found[name].read()
        for tensor in own.get(name, ()):
            tensor.copy_(values)
            for part in masters.get(id(tensor), ()):
                part.values.copy_(values.reshape(-1)[part.start : part.start + part.values.numel()])


def _from_rank_0(
    groups: RankGroups, name: str, tensor: StoredTensor | None, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    values = torch.empty(shape, dtype=dtype) if tensor is None else tensor.read()
    values = values.to(groups.device)
    if prod(shape):
        with reporting(groups, f"sending {name} of the flat state"):
            dist.broadcast(values.view(-1).view(torch.uint8), 0, group=groups.world)
    return values
