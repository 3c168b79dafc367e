"""Labels around the parts of an engine's step, for the profiler; without a trace under way they do next to nothing.

1. Nodes of the placed graph: a mark wherever the part changes. It closes the label before it and opens the next. A
   value passes through it, so that it is there as well where the graph is run without its first nodes (ids that came
   early). It also notes autograd's count of nodes: whatever the backward pass runs leads back to the part that made it.
2. The ends of every exchange, also where somebody calls them outside the graph, and the transport: what is waited for
   is labelled as idle, and every exchange is noted with its times. What a thread beside the main one does (the next
   batch's ids) is noted too, but nobody is blocked by it.
3. The engine: forward, backward, step, optimizers, sums of gradients (also those that begin in the backward pass).
4. Collectives that somebody calls directly (DeepSpeed's all-reduce), and the waits for them.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.profiler import record_function

from benchmarks.step.breakdown_parts import (
    ALL_REDUCE,
    IDLE,
    INDEX,
    OPTIMIZER,
    REST,
    Where,
    exchange_kind,
    where_in_graph,
)
from dmt_plugin.comm.wire.transport import group_ranks

PREFIX = "step-part"
STEP = "whole step"
_COLLECTIVES = (
    "all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter",
    "reduce_scatter_tensor", "all_to_all_single", "barrier",
)  # fmt: skip


@dataclass
class Flight:
    """One exchange of one step.

    Attributes:
        name: as the transport has it.
        ranks: who takes part.
        number: how many of this name, phase and ranks came before: the same on every rank.
        phase: ``"forward"`` or ``"backward"``.
        part: part of the step it belongs to.
        started: clock when it was posted, seconds of ``time.perf_counter``.
        waited: when the wait for it began; None if nobody waited.
        arrived: when the wait ended.
        sent: bytes to other ranks.
        beside: whether a thread beside the main one carries it.
    """

    name: str
    phase: str
    part: str
    ranks: tuple[int, ...]
    number: int
    started: float
    sent: int = 0
    waited: float | None = None
    arrived: float | None = None
    beside: bool = False


class Labels:
    """Labels of one engine.

    Args:
        engine: a ``DMTEngine``; it is labelled for good.

    Attributes:
        on: whether anything is labelled.
        marks: ``(count of autograd nodes, part)`` of the latest forward passes, in order.
        flights: exchanges of the latest steps; at the begin of a trace those that are still under way.
    """

    def __init__(self, engine: Any) -> None:
        self.on = False
        self.marks: list[tuple[int, Where]] = []
        self.flights: list[Flight] = []
        self._waiting = threading.local()
        self._thread = threading.get_ident()
        self._open: AbstractContextManager[Any] | None = None
        self._counts: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
        self._label_graph(engine.dmt.placed)
        self._label_exchanges(engine.dmt.placed.placement.exchanges)
        self._label_transport(engine.dmt.transport)
        self._label_engine(engine)
        self._label_ahead(engine)

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Label everything inside the ``with`` block; what was noted before is forgotten."""
        self.marks, self.flights, self.on = [], [f for f in self.flights if f.arrived is None], True
        try:
            with self._collectives():
                yield
        finally:
            self.on = False

    def mark(self, where: Where, last: bool) -> None:
        """What comes from here on in the forward pass belongs to another part, and so does its backward."""
        if threading.get_ident() != self._thread:
            return
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
        if self.on:
            self.marks.append((autograd_count(), where))
            if not last:
                self._open = self._label(where)
                self._open.__enter__()

    # -- what is labelled ----------------------------------------------------------------

    def _label_graph(self, placed: Any) -> None:
        graph_module = placed.__dict__["graph_module"]
        graph = graph_module.graph
        before: Where | None = None
        for number, (node, where) in enumerate(where_in_graph(graph).items()):
            if not node.all_input_nodes:
                continue
            if node.op == "output":
                where = Where(REST, "engine forward")
            if where == before:
                continue
            name, value = f"step_part_mark_{number}", node.all_input_nodes[0]
            graph_module.add_submodule(name, _Mark(self, where, node.op == "output"))
            with graph.inserting_before(node):
                node.replace_input_with(value, graph.call_module(name, (value,)))
            before = where
        graph_module.recompile()

    def _label_exchanges(self, exchanges: Mapping[str, Any]) -> None:
        """Ends of an exchange that are called from elsewhere than the graph, such as for the batch after this one."""
        for name, exchange in exchanges.items():
            for end in ("start", "wait"):
                self._label_call(getattr(exchange, end), "forward", Where(exchange_kind(name) or REST, end))

    def _label_transport(self, transport: Any) -> None:
        stock = transport.all_to_all

        @functools.wraps(stock)
        def all_to_all(name: str, phase: str, group: Any, *args: Any, **kwargs: Any) -> Any:
            part = exchange_kind(name) or REST
            before = _sent(transport, name, phase)
            flight = self._flight(name, phase, part, group_ranks(transport.topology, transport.rank, group))
            self._waiting.posting = True
            try:
                with self._label(Where(part, f"{phase} post")):
                    pending = stock(name, phase, group, *args, **kwargs)
            finally:
                self._waiting.posting = False
            flight.sent = _sent(transport, name, phase) - before
            return _LabelledPending(self, pending, flight)

        transport.all_to_all = all_to_all

    def _flight(self, name: str, phase: str, part: str, ranks: tuple[int, ...]) -> Flight:
        key = (name, phase, ranks)
        flight = Flight(name, phase, part, ranks, self._counts[key], time.perf_counter())
        flight.beside = threading.get_ident() != self._thread
        self._counts[key] += 1
        self.flights.append(flight)
        return flight

    def _label(self, where: Where) -> AbstractContextManager[Any]:
        return record_function(f"{PREFIX}/{where.part}/{where.detail}") if self.on else nullcontext()

    def _label_engine(self, engine: Any) -> None:
        self._label_call(engine, "forward", Where(REST, "engine forward"))
        self._label_call(engine, "backward", Where(REST, "engine backward"))
        self._label_call(engine, "step", Where(REST, "engine step"))
        self._label_call(engine, "allreduce_gradients", Where(ALL_REDUCE, "engine"))
        self._label_call(engine.optimizer, "step", Where(OPTIMIZER, "dense"))
        self._label_call(engine.optimizer, "zero_grad", Where(OPTIMIZER, "dense"))
        self._label_call(engine.dmt.lookup, "step", Where(OPTIMIZER, "tables"))
        self._label_call(engine.dmt.lookup, "zero_grad", Where(OPTIMIZER, "tables"))
        if (verdict := getattr(engine, "_bad_steps", None)) is not None:
            for name in ("bad", "begin", "_arrived"):
                self._label_call(verdict, name, Where(OPTIMIZER, "all finite"))

    def _label_ahead(self, engine: Any) -> None:
        """What an engine does ahead or in the backward pass, if it does: ids of the next batch, sums of gradients."""
        if (prefetcher := getattr(engine.dmt.placed, "prefetcher", None)) is not None:
            self._label_transport(prefetcher._transport)
            self._label_call(engine, "prefetch", Where(INDEX, "announced"))
            self._label_call(prefetcher, "begin", Where(INDEX, "begun ahead"))
            self._label_call(prefetcher, "settle", Where(IDLE, INDEX))
        if (reduction := getattr(engine, "_reduction", None)) is not None:
            for bucket in reduction._buckets:
                for name in ("begin", "_cross", "finish"):
                    self._label_call(bucket, name, Where(ALL_REDUCE, name.strip("_")))

    def _label_call(self, owner: Any, name: str, where: Where) -> None:
        setattr(owner, name, self._labelled(getattr(owner, name), where))

    def _labelled(self, call: Callable[..., Any], where: Where) -> Callable[..., Any]:
        @functools.wraps(call)
        def run(*args: Any, **kwargs: Any) -> Any:
            # What is called at the end of a wait is no part of the wait.
            inside, self._waiting.inside = getattr(self._waiting, "inside", False), False
            try:
                with self._label(where):
                    return call(*args, **kwargs)
            finally:
                self._waiting.inside = inside

        return run

    @contextmanager
    def _collectives(self) -> Iterator[None]:
        """While a trace is under way: others' collectives and the waits for them."""
        stock = {name: getattr(dist, name) for name in _COLLECTIVES if hasattr(dist, name)}
        works: Any = dist.Work
        work_wait = works.wait
        under_way: dict[int, tuple[Any, Flight]] = {}  # with the work itself: its number must not be used again

        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(self._waiting, "inside", False):
                return work_wait(work, *args, **kwargs)
            _, flight = under_way.pop(id(work), (None, getattr(self._waiting, "call", None)))
            if flight is None:  # of a call that nobody has labelled
                flight = self._flight("collective", "backward", ALL_REDUCE, ())
            return self.blocked(flight, functools.partial(work_wait, work, *args, **kwargs))

        def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(call)
            def run(*args: Any, **kwargs: Any) -> Any:
                if getattr(self._waiting, "posting", False):
                    return call(*args, **kwargs)
                given = (value for value in (*args, *kwargs.values()) if isinstance(value, dist.ProcessGroup))
                ranks = tuple(dist.get_process_group_ranks(next(given, dist.group.WORLD)))
                flight = self._flight(name, "backward", ALL_REDUCE, ranks)
                self._waiting.call = flight  # a call that blocks waits for itself, inside
                with self._label(Where(ALL_REDUCE, name)):
                    work = call(*args, **kwargs)
                self._waiting.call = None
                if work is None:
                    flight.arrived = flight.arrived or time.perf_counter()
                else:
                    under_way[id(work)] = (work, flight)
                return work

            return run

        for name, call in stock.items():
            setattr(dist, name, noted(name, call))
        works.wait = wait
        try:
            yield
        finally:
            works.wait = work_wait
            for name, call in stock.items():
                setattr(dist, name, call)

    def blocked(self, flight: Flight, wait: Callable[[], Any]) -> Any:
        """Wait for an exchange under the label of idle time."""
        flight.waited = flight.waited or time.perf_counter()
        self._waiting.inside = True
        try:
            with self._label(Where(IDLE, flight.part)):
                return wait()
        finally:
            self._waiting.inside = False
            flight.arrived = flight.arrived or time.perf_counter()


class _LabelledPending:
    """An exchange under way that notes when it is waited for."""

    def __init__(self, labels: Labels, pending: Any, flight: Flight) -> None:
        self._labels, self._pending, self._flight = labels, pending, flight

    def wait(self) -> Any:
        return self._labels.blocked(self._flight, self._pending.wait)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pending, name)


class _Mark(nn.Module):
    """Node of the graph that gives back what it gets; the last one begins no label."""

    labels: Labels
    where: Where
    last: bool

    def __init__(self, labels: Labels, where: Where, last: bool) -> None:
        super().__init__()
        # Not as members: they are no part of the model.
        self.__dict__.update(labels=labels, where=where, last=last)

    def forward(self, value: Any) -> Any:
        self.labels.mark(self.where, self.last)
        return value


def autograd_count() -> int:
    """How many autograd nodes this thread has made: the number of the next."""
    return int(torch._C._autograd._get_sequence_nr())


def _sent(transport: Any, name: str, phase: str) -> int:
    totals = transport.traffic.totals(name, phase)
    return int(totals.other_hosts + totals.same_host)
