"""Reads the ids of a captured model out of batches, and runs nothing else of it: to count distinct rows beforehand.

1. The lookups' distinct id inputs are slots (:mod:`.slots`); what computes them becomes a graph of its own.
2. Batches of any size go through it, and are cut into the batches of the ranks of a host.
3. A counter sums up the distinct rows of some steps (:mod:`dmt_plugin.planner.row_counter`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import fx

from dmt_plugin.capture.inputs import InputBinder
from dmt_plugin.comm.distinct.step_batches import Ids, checked_streams, cut_into_steps
from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.fxtools.order import drop_unused
from dmt_plugin.passes.base import DataToCount
from dmt_plugin.passes.facts import Lookup
from dmt_plugin.passes.ops.per_sample import writes_input
from dmt_plugin.passes.placement.slots import READERS
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.planner.row_counter import CountedRead, RowCounter


@dataclass(frozen=True)
class IdReads:
    """The streams of ids of a model, and what is looked up with them.

    Attributes:
        slots: the streams; where their tables are is not known yet.
        keys: of the lookups' ids, in the order of the slots.
        reads: the lookups, in the order of the model.
    """

    slots: tuple[IdSlot, ...]
    keys: tuple[str, ...]
    reads: tuple[CountedRead, ...]

    @classmethod
    def of(cls, lookups: Sequence[Lookup]) -> IdReads:
        """Of all lookups of a model."""
        by_key: dict[str, list[Lookup]] = {}
        for lookup in lookups:
            by_key.setdefault(lookup.key, []).append(lookup)
        number = {key: i for i, key in enumerate(by_key)}
        slots = [
            IdSlot(own[0].feature, min(x.rows for x in own), own[0].hotness, own[0].weighted, 0, ())
            for own in by_key.values()
        ]
        reads = [CountedRead(number[x.key], x.feature, x.table, _padding(x)) for x in lookups]
        return cls(tuple(slots), tuple(by_key), tuple(reads))


def _padding(lookup: Lookup) -> int | None:
    return lookup.padding if lookup.pooling == "none" else None


def count_shares(
    gm: fx.GraphModule, binder: InputBinder, lookups: Sequence[Lookup], data: DataToCount, lanes: int
) -> RowShares | None:
    """Counts the distinct rows of the first steps of some data.

    Args:
        gm: the captured model, its lookups found.
        binder: maps batches to its inputs.
        lookups: those that are counted.
        data: where the batches come from.
        lanes: ranks per host.

    Returns:
        None where there are no lookups, the data are fewer than one step of a host, or time is up before one has come.

    Raises:
        IdRangeError: an id is outside its table.
    """
    if not lookups:
        return None
    reads = IdReads.of(lookups)
    counter = RowCounter(reads.reads, data.samples, lanes)
    until = time.monotonic() + data.seconds
    calls = iter(data.batches())
    try:
        ids = _read(gm, binder, lookups, reads, _until(calls, until))
        sized = ((own[0].batch_size, own) for own in ids)
        for of_lanes in islice(cut_into_steps(sized, reads.slots, data.samples, lanes), data.steps):
            counter.add([checked_streams(reads.slots, own, lane, counter.steps) for lane, own in enumerate(of_lanes)])
    finally:
        if isinstance(calls, Generator):
            calls.close()  # now, not when it is collected: it puts back what it found
    return counter.result(data.source) if counter.steps else None


def _until(batches: Iterable[Any], end: float) -> Iterator[Any]:
    for batch in batches:
        yield batch
        if time.monotonic() > end:
            return


def _read(
    gm: fx.GraphModule, binder: InputBinder, lookups: Sequence[Lookup], reads: IdReads, batches: Iterable[Any]
) -> Iterator[Ids]:
    program, changes = _program(gm, lookups, reads.keys)
    for call in batches:
        inputs = binder.inputs(call.args, call.kwargs)
        yield tuple(program(gm, *(copy.deepcopy(inputs) if changes else inputs)))


def _program(
    gm: fx.GraphModule, lookups: Sequence[Lookup], keys: Sequence[str]
) -> tuple[Callable[..., Sequence[Any]], bool]:
    """A function of the graph module and its inputs: the ids of each key; and whether it changes these inputs."""
    graph, twins = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(gm.graph, twins)
    first = {key: next(x for x in lookups if x.key == key) for key in keys}
    made = []
    for lookup in first.values():
        name, args, kwargs = fx.node.map_arg(lookup.ids, twins.__getitem__)
        made.append(graph.call_function(READERS[name], args, kwargs))
    graph.output(tuple(made))
    drop_unused(graph)
    changes = any(writes_input(gm, node) for node in graph.nodes)
    return type(fx.GraphModule(gm, graph)).forward, changes
