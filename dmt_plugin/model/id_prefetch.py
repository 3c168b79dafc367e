"""Runs the input distribution of the next batch (its ids travel to the ranks that hold the rows) during this one.

1. The caller announces the next batch before the step of this one (``announce``).
2. When this batch's forward pass has returned and the rank next waits for an exchange (``begin``), the announced ids
   are read and distributed in a thread, over process groups of their own: the cores have little to do then, and the
   thread's waits do not hold up the backward pass.
3. When the announced batch comes (``run``), its ids are there; the rest of the graph runs with them. A batch that was
   not announced takes the ordinary way, and what was announced is kept until it comes or another one is announced.

Announcing is part of the order in which all ranks run: each does it in the same steps, or none.
On an accelerator the ids are distributed at ``begin`` itself, without a thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from dmt_plugin.comm.id_exchange import IdExchange
from dmt_plugin.comm.wire.transport import Transport
from dmt_plugin.core.errors import DMTError, ExchangeError, IdRangeError
from dmt_plugin.fxtools.names import EXCHANGE_META, EXCHANGES, carries_ids, is_start
from dmt_plugin.fxtools.order import drop_unused
from dmt_plugin.passes.ops.per_sample import writes_input

logger = logging.getLogger(__name__)

Inputs = Sequence[Any]


def _arrived(exchange: str) -> str:
    return f"{EXCHANGES}.{exchange}.arrived"


class IdPrefetcher:
    """Next batch's ids for one rank's model.

    Args:
        graph_module: the placed graph.
        exchanges: its exchanges that need ids only, by name: input distribution, requests for distinct rows, or both.
        transport: a wire that nothing else uses.

    Attributes:
        possible: False where reading the ids changes the batch in place, so that it cannot be done early.
    """

    def __init__(self, graph_module: fx.GraphModule, exchanges: Mapping[str, IdExchange], transport: Transport) -> None:
        for name, exchange in exchanges.items():
            graph_module.add_submodule(_arrived(name), exchange.arrived)
        self._exchanges, self._transport = dict(exchanges), transport
        self._graph_module = graph_module
        self.possible = not any(writes_input(graph_module, n) for n in _leads(graph_module))
        self._programs: tuple[Callable[..., Any], Callable[..., Any]] | None = None
        self._announced: _Announced | None = None
        self._job: _Job | None = None
        self._warned = False

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of a model has no groups to send ids over, so it has no prefetcher."""

    @property
    def busy(self) -> bool:
        """Whether the ids of a batch are there or on their way."""
        return self._job is not None

    def announce(self, inputs: Inputs, step: int) -> None:
        """Name the graph inputs of the next batch.

        Args:
            inputs: they stay as they are until the model is called with them.
            step: number of the step that the batch is for, for messages.
        """
        if self.possible:
            self._announced = _Announced(inputs, step)

    def begin(self) -> None:
        """Start to distribute what was announced, if anything was.

        Raises:
            ExchangeError: a rank was gone, or the time was up, on the way of a batch that never came.
        """
        if self._announced is None:
            return
        announced, self._announced = self._announced, None
        if self._job is not None:
            self._drop(self._job)
        self._transport.step = announced.step
        read = self._both()[0]

        def distribute() -> dict[str, Any]:
            try:
                ids = read(self._graph_module, *announced.inputs)
            except Exception:
                self._tell()
                raise
            return {name: self._exchanges[name].distribute(own, self._transport) for name, own in ids.items()}

        self._job = _Job(announced, distribute)
        if self._transport.device.type == "cpu":
            threading.Thread(target=self._job.run, name="dmt-prefetch", daemon=True).start()
        else:
            self._job.run()

    def _tell(self) -> None:
        """The other ranks distribute ids that this one could not read: they raise at the first exchange."""
        first = next(iter(_starts(list(self._graph_module.graph.nodes))))
        try:
            self._exchanges[first].tell(self._transport)
        except IdRangeError:
            return  # so have the others
        except DMTError as error:
            logger.warning("the other ranks could not be told that ids announced on this one cannot be read: %s", error)

    def run(self, inputs: Inputs) -> tuple[bool, Any]:
        """Run the graph on a batch whose ids are here or on the way.

        Returns:
            Whether they are, and what the graph gives.

        Raises:
            IdRangeError: on every rank, where an id of the batch is outside its table.
            ExchangeError: a rank is gone, or the time is up.
        """
        if self._announced is not None and self._announced.are(inputs):
            self._announced = None  # too late: it is here
        if self._job is None or not self._job.announced.are(inputs):
            return False, None
        job, self._job = self._job, None
        for name, arrived in job.result().items():
            self._exchanges[name].hand_over(arrived)
        return True, self._both()[1](self._graph_module, *inputs)

    def compile(self, compiled: Callable[[Any], Any]) -> None:
        """Let what runs on the ids be compiled; reading them is not."""
        read, rest = self._both()
        self._programs = read, compiled(rest)

    def settle(self) -> None:
        """Wait until what has begun is done; an error of it is kept for the batch."""
        if self._job is not None:
            self._job.done.wait()

    def close(self) -> None:
        """Nothing is under way any more, nor will be: behind this the groups can go."""
        self.possible, self._announced = False, None
        self.settle()

    def _drop(self, job: _Job) -> None:
        """A batch that was announced and never came; what failed on its way is not lost with it."""
        job.done.wait()
        if isinstance(job.error, ExchangeError):
            raise job.error
        if job.error is not None:
            logger.warning("an announced batch never came, and its ids failed: %s", job.error, exc_info=job.error)
        if not self._warned:
            self._warned = True
            logger.warning(
                "a batch was announced by prefetch() and never came; its ids were distributed for nothing. Pass the "
                "very tensors that the model is then called with."
            )

    def _both(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """What reads the ids, and what does the rest."""
        if self._programs is None:
            self._programs = _program(self._graph_module, _reading), _program(self._graph_module, _rest)
        return self._programs


class _Announced:
    """The inputs of a batch to come, as they were when they were announced."""

    def __init__(self, inputs: Inputs, step: int) -> None:
        self.inputs = list(inputs)
        self.step = step
        self._marks = [_mark(value) for value in inputs]

    def are(self, inputs: Inputs) -> bool:
        """Whether these are the same memory, unchanged since."""
        return [_mark(value) for value in inputs] == self._marks


class _Job:
    """One batch's ids under way."""

    def __init__(self, announced: _Announced, work: Callable[[], dict[str, Any]]) -> None:
        self.announced = announced
        self.done = threading.Event()
        self._work = work
        self._arrived: dict[str, Any] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._arrived = self._work()
        except BaseException as error:  # belongs to the batch: raised where it is asked for
            self.error = error
        finally:
            self.done.set()

    def result(self) -> dict[str, Any]:
        self.done.wait()  # the exchanges inside have their limits
        if self.error is not None:
            raise self.error
        return self._arrived


def _mark(value: Any) -> Any:
    """What tells an input from others, and from what becomes of it when it is changed in place."""
    if not isinstance(value, Tensor):
        held = [item for item in getattr(value, "__dict__", {}).values() if isinstance(item, Tensor)]
        return id(value), [_mark(item) for item in held]
    version = None if value.is_inference() else value._version  # the version of an inference tensor is not counted
    return value.data_ptr(), value.shape, value.stride(), value.dtype, value.device, version


def _starts(nodes: Sequence[fx.Node]) -> dict[str, fx.Node]:
    """What starts each exchange of ids, by its name, in the order in which all ranks run them."""
    return {str(n.meta[EXCHANGE_META]): n for n in nodes if carries_ids(n) and is_start(n)}


def _leads(graph_module: fx.GraphModule) -> list[fx.Node]:
    """Nodes that the ids are made by."""
    nodes = list(graph_module.graph.nodes)
    wanted = {n for start in _starts(nodes).values() for n in start.all_input_nodes}
    for node in reversed(nodes):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    return [n for n in nodes if n in wanted]


def _program(graph_module: fx.GraphModule, cut: Callable[[fx.Graph], None]) -> Callable[..., Any]:
    """Another graph over the state of a graph module: a function of the module and its inputs."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(graph_module.graph, values))
    cut(graph)
    drop_unused(graph)
    return type(fx.GraphModule(graph_module, graph)).forward


def reading_program(graph_module: fx.GraphModule) -> Callable[..., dict[str, Any]]:
    """A function of a placed graph module and its inputs: what enters its exchanges of ids, by their names."""
    return _program(graph_module, _reading)


def _reading(graph: fx.Graph) -> None:
    starts = _starts(list(graph.nodes))
    output = next(n for n in graph.nodes if n.op == "output")
    output.args = ({name: tuple(start.args) for name, start in starts.items()},)


def _rest(graph: fx.Graph) -> None:
    for wait in [n for n in graph.nodes if carries_ids(n) and not is_start(n)]:
        with graph.inserting_before(wait):
            wait.replace_all_uses_with(graph.call_module(_arrived(wait.meta[EXCHANGE_META])))
