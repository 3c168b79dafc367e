"""Captures a model as an fx graph that computes what the model computes, bit for bit.

1. Models whose modules cannot be followed are refused first; an adapter, if one is registered for the
   model, gives it a forward that can be followed.
2. The model is traced twice: in eval mode at one batch size, in train mode at another;
   what either changes in place becomes visible in the graph.
3. The two graphs are compared node by node. A constant that differs was baked in by the
   trace: functional dropout becomes an ``nn.Dropout`` that follows train/eval, anything
   else is refused, since the graph would be wrong for every other batch. A third trace
   tells whether it was the batch size or the mode.
4. A function marked with ``torch.fx.wrap`` is traced through; where that fails, everything
   is traced again with that function as one node.
5. The graph module shares the user's parameters and buffers, under the user's names.
6. Where the trace stops, ``torch.export`` is asked what it sees: the error then lists the
   embedding calls behind the place where the capture stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from dmt_plugin.capture.adapters import adapted
from dmt_plugin.capture.batch_parts import Path, has_several_sizes, tensors
from dmt_plugin.capture.batch_sizes import Use, batch_size_of, shapes_tell, uses_of, with_batch_size
from dmt_plugin.capture.example_values import ExampleValues
from dmt_plugin.capture.export_view import what_export_sees
from dmt_plugin.capture.graph_model import GraphModel
from dmt_plugin.capture.graph_state import graph_module_over
from dmt_plugin.capture.inputs import ExampleBatch, InputBinder
from dmt_plugin.capture.jagged_keys import keys_read
from dmt_plugin.capture.reads import Reads
from dmt_plugin.capture.refusals import check_modules, hidden_tensors
from dmt_plugin.capture.source_lines import described, module_of, refusal
from dmt_plugin.capture.trace_diff import Difference, differences, drop_answers
from dmt_plugin.capture.trace_environment import WrappedName
from dmt_plugin.capture.tracer import Trace, WrappedFunctionFailed, trace_with_values
from dmt_plugin.core.errors import CaptureError
from dmt_plugin.core.findings import Finding
from dmt_plugin.core.modes import in_mode

#: Batch sizes of the two traces: primes, so that no product of widths equals them by chance, and the next ones where a
#: list of ids in the example is as long.
TRACE_BATCHES = (7, 11)
_MORE_BATCHES = (13, 17, 19, 23, 29)

_DROPOUTS: tuple[Callable[..., Any], ...] = (F.dropout, torch.dropout)


@dataclass
class CapturedModel:
    """A model as a graph.

    Attributes:
        graph_module: the graph; each node has an example value in ``meta["val"]``.
        binder: maps calls to graph inputs.
        example: the user's example batch, as given.
        batch_size: batch size of the example values in the graph.
        findings: what the capture noticed.
    """

    graph_module: fx.GraphModule
    binder: InputBinder
    example: ExampleBatch
    batch_size: int
    findings: list[Finding] = field(default_factory=list)

    def as_module(self) -> GraphModel:
        """The captured model, callable like the user's."""
        return GraphModel(self.graph_module, self.binder)


def capture(model: nn.Module, example: ExampleBatch) -> CapturedModel:
    """Captures ``model`` as called with ``example``.

    Args:
        model: a plain PyTorch, FBGEMM-free or torchrec module. It is not changed.
        example: one call of the model; only shapes matter.

    Returns:
        The captured graph. Parameters and buffers are the model's own objects.

    Raises:
        CaptureError: the model cannot be a graph (data-dependent control flow, a batch
            size that became a constant, a compiled or scripted model, ...); its findings
            name the module, the line and the way out.
    """
    findings = check_modules(model)
    followed, said = adapted(model, example)
    findings += said
    binder = InputBinder(followed.forward, example)
    inputs = binder.inputs(example.args, example.kwargs)
    for name, value in zip(binder.names, inputs, strict=True):
        if has_several_sizes(value):
            raise refusal(
                "DMT117", "",
                f"the keys of {name} have different numbers of samples (stride_per_key, inverse indices), so that it "
                "is not known which rows of one belong to which of another",
                "pass one KeyedJaggedTensor for each number of samples, and expand in forward (index_select)",
            )  # fmt: skip
    batch, uses = _samples(followed, binder, inputs)
    if batch is None:
        if unknown := binder.unknown_read(Reads()):
            raise hidden_tensors(*unknown[0])
        raise refusal(
            "DMT109", "",
            "the example batch holds no tensor, so there is nothing to capture with",
            "pass example_batch= with the arguments of one call of the model",
        )  # fmt: skip
    binder.samples = batch
    sizes = _batch_pair(batch, {t.numel() for value in inputs for t in tensors(value) if t.dim() == 1})
    resized = [with_batch_size(inputs, batch, size, binder.names, uses) for size in sizes]
    try:
        trace, other = _traces(followed, binder, resized, sizes)
    except CaptureError as error:
        raise CaptureError([*error.findings, *what_export_sees(model, example)]) from error
    dropouts = differences(trace, other)
    by_name = dict(zip(binder.names, resized[0], strict=True))
    _drop_unread(trace, other, binder)
    reads = trace.reads.and_of(other.reads)
    binder.note_keys(keys_read(trace.graph, followed, reads))
    binder.note_sizes({name: by_name[name] for name in binder.names if name in reads.sizes})
    with in_mode(followed, followed.training):  # the user's modules keep their own modes, ours take that of the whole
        graph_module = graph_module_over(followed, trace.graph, trace.constants)
        for count, difference in enumerate(dropouts):
            _replace_dropout(graph_module, difference.node, f"dmt_dropout_{count}")
        graph_module.graph.lint()
        if dropouts:
            graph_module.recompile()
        graph_module.train(followed.training)
    return CapturedModel(graph_module, binder, example, sizes[0], findings)


def _samples(model: nn.Module, binder: InputBinder, inputs: Sequence[Any]) -> tuple[int | None, Mapping[Path, Use]]:
    """The number of samples in the example batch, and what its flat tensors are for."""
    if not shapes_tell(inputs):
        try:
            with in_mode(model, training=False):
                uses = uses_of(trace_with_values(model, binder, inputs).graph, model)
            return (batch_size_of(inputs) if uses.samples is None else uses.samples), uses.of
        except (CaptureError, WrappedFunctionFailed):
            pass  # if it is not because of the shapes, the traces that follow say it
    return batch_size_of(inputs), {}


def _drop_unread(trace: Trace, other: Trace, binder: InputBinder) -> None:
    """Takes inputs that forward reads in neither mode out of the graph.

    Raises:
        CaptureError: it reads one whose tensors cannot be found.
    """
    reads = trace.reads.and_of(other.reads)
    placeholders = [n for n in trace.graph.nodes if n.op == "placeholder"]
    users = {name: node.users for name, node in zip(binder.names, placeholders, strict=True)}
    for path, kind in binder.unknown_read(reads):
        name = path.partition(".")[0]
        if "." in path or users[name]:
            raise hidden_tensors(path, kind)
    left = set(binder.forget_unread(reads))
    for place, node in enumerate(placeholders):
        if place not in left and not node.users:
            trace.graph.erase_node(node)
        else:
            assert place in left, f"{node.name} is read"


def _batch_pair(example_batch: int, lists: set[int]) -> tuple[int, int]:
    """Two batch sizes, neither of which is the length of a list in the example, other than its own batch size."""
    free = [size for size in (*TRACE_BATCHES, *_MORE_BATCHES) if size == example_batch or size not in lists]
    first, second = free[:2] if len(free) > 1 else TRACE_BATCHES
    return (first, second) if example_batch != second else (second, first)


def _traces(
    model: nn.Module, binder: InputBinder, inputs: Sequence[list[Any]], sizes: tuple[int, int]
) -> tuple[Trace, Trace]:
    """Two traces that differ in dropouts only, with as few wrapped functions as leaves as it takes.

    Raises:
        CaptureError: the model cannot be traced, or the traces differ.
    """
    kept: frozenset[WrappedName] = frozenset()
    inside: BaseException | None = None
    values = ExampleValues(inputs[0])

    def traced(which: int, *, training: bool) -> Trace:
        with in_mode(model, training=training):
            trace = trace_with_values(model, binder, inputs[which], kept, values)
        drop_answers(trace.graph)
        return trace

    while True:
        try:
            trace, other = traced(0, training=False), traced(1, training=True)
            wrong = _beside_dropout(differences(trace, other))
            if not wrong:
                return trace, other
            through = trace.through.get(wrong[0].node, frozenset()) | other.through.get(wrong[0].twin, frozenset())
            if not through:
                by_batch = differences(trace, traced(1, training=False))
                raise _baked(by_batch[0], sizes) if by_batch else _by_mode(wrong[0])
            kept |= through
        except WrappedFunctionFailed as error:
            kept |= error.names
            inside = inside or error.__cause__
        except CaptureError as error:
            # As a leaf it fails for the same reason: the line inside the function tells more than that of its call.
            if isinstance(inside, CaptureError) and inside.findings[0].code == error.findings[0].code:
                raise inside from None
            raise


def _beside_dropout(found: list[Difference]) -> list[Difference]:
    return [d for d in found if not (d.same_operation and d.node.target in _DROPOUTS)]


def _baked(difference: Difference, sizes: tuple[int, int]) -> CaptureError:
    return refusal(
        "DMT102", module_of(difference.node),
        f"the trace of {described(difference.node)} holds for one batch size only: at batch {sizes[0]} it has "
        f"{difference.found}, at batch {sizes[1]} {difference.instead}",
        "write the size as x.size(0) or -1, and do not loop over the batch",
    )  # fmt: skip


def _by_mode(difference: Difference) -> CaptureError:
    return refusal(
        "DMT106", module_of(difference.node),
        f"the model takes another path in train mode: at {described(difference.node)} it has {difference.found} in "
        f"eval mode, {difference.instead} in train mode",
        "branches on self.training belong inside layers such as nn.Dropout",
    )  # fmt: skip


def _replace_dropout(module: fx.GraphModule, node: fx.Node, name: str) -> None:
    arguments: dict[str, Any] = dict(zip(("input", "p", "training", "inplace"), node.args, strict=False))
    arguments |= node.kwargs
    module.add_submodule(name, nn.Dropout(float(arguments.get("p", 0.5)), bool(arguments.get("inplace", False))))
    with module.graph.inserting_before(node):
        replacement = module.graph.call_module(name, (arguments["input"],))
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    module.graph.erase_node(node)
