"""A torch.fx tracer whose nodes carry example values.

``torch.fx.symbolic_trace`` gives up where Python asks a proxy for something concrete: a
length, a loop, a shape in a comparison. Recommenders do that all the time. Here every
node also has an *example value*, computed on fake tensors (shapes without data) while
the graph is recorded:

1. each operation is recorded, then run on the example values of its inputs;
2. Python's questions are answered from the values (:mod:`dmt_plugin.capture.proxies`);
   a question that only real data could answer is refused with the user's line;
3. torch's factory functions are recorded too when an argument is a proxy; a tensor made
   without one is a constant of the graph (:mod:`dmt_plugin.capture.trace_environment`);
4. what an operation changed in place is noted, and made explicit once all is recorded
   (:mod:`dmt_plugin.capture.mutations`);
5. a selection by a mask that is a constant of the model has a known size
   (:mod:`dmt_plugin.capture.masks`);
6. what forward says about gradients beside its operations is kept or refused
   (:mod:`dmt_plugin.capture.gradients`).

Modules are kept as ``call_module`` nodes down to the leaves of
:mod:`dmt_plugin.capture.leaves`, so parameters stay the user's own objects.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from dmt_plugin.capture import jagged_tensors
from dmt_plugin.capture import trace_environment as environment
from dmt_plugin.capture.batch_parts import is_jagged
from dmt_plugin.capture.einops_calls import einops_followed
from dmt_plugin.capture.example_values import ExampleValues
from dmt_plugin.capture.gradients import detach_what_has_no_gradient, note_surroundings, own_backwards_refused
from dmt_plugin.capture.identities import drop_identities
from dmt_plugin.capture.inputs import InputBinder
from dmt_plugin.capture.jagged import is_of_one_key, jagged_result, jagged_tensor_class, joined, of_key
from dmt_plugin.capture.keyed_tensors import (
    is_keyed,
    keyed_tensor_class,
    made_in_forward,
    recorded_as,
    recorded_keyed_tensor,
    regrouped,
    regroups_as_dict,
)
from dmt_plugin.capture.leaves import is_leaf, leaf_value
from dmt_plugin.capture.longest import longest_read, reads_longest
from dmt_plugin.capture.masks import indices_of, selected, spell_masks_by_row
from dmt_plugin.capture.mutations import make_mutations_explicit
from dmt_plugin.capture.proxies import DATA_DEPENDENT, NO_BRANCH, ValueAttribute, ValueProxy, unknown
from dmt_plugin.capture.reads import Reads
from dmt_plugin.capture.refusals import hidden_tensors
from dmt_plugin.capture.sequence_ops import rows_again
from dmt_plugin.capture.source_lines import calling_line, raising_line, refusal, shown
from dmt_plugin.capture.spellings import spell_in_simpler_terms
from dmt_plugin.capture.trace_environment import WrappedName
from dmt_plugin.core.errors import CaptureError
from dmt_plugin.fxtools.attributes import attribute
from dmt_plugin.fxtools.names import MUTATED, SOURCE

#: Entries of a numpy array up to which it is written into the graph as a list.
_LONGEST_LITERAL = 4096

STEP_OUTSIDE = (
    "move this step out of forward, make it a torch operation, or register an adapter for the model "
    "(dmt_plugin.register_adapter)"
)


class ValueTracer(fx.Tracer):
    """Records one call of a model, with an example value in every node's ``meta["val"]``.

    Args:
        binder: maps the flat inputs to the user's call.
        inputs: one example value per graph input.
        values: makes the example values.
    """

    proxy_buffer_attributes = True

    def __init__(self, binder: InputBinder, inputs: Sequence[Any], values: ExampleValues) -> None:
        super().__init__()
        self._binder = binder
        self._inputs = list(inputs)
        self._values = values
        self.mode = values.mode
        self._state_mode: environment.StateIsRecorded | None = None
        self._evaluating = 0
        self._wrapped = environment.wrapped_code()
        self.through: dict[fx.Node, frozenset[WrappedName]] = {}
        self.reads = Reads()
        self.told: set[fx.Node] = set()  # whose sizes Python knows

    @property
    def evaluating(self) -> bool:
        """True while example values are computed, when nothing is recorded."""
        return self._evaluating > 0

    @property
    def here(self) -> str:
        """Qualified name of the module whose forward runs; "" for the model itself."""
        return str(next(reversed(self.module_stack.values()))[0]) if self.module_stack else ""

    # -- recording -------------------------------------------------------------------

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Gives the graph one placeholder per flat input and calls the model on them."""
        proxies = []
        for name, value in zip(self._binder.names, self._inputs, strict=True):
            node = self.create_node("placeholder", name, (), {})
            node.meta["val"] = self._values.of(value)
            proxy = self.proxy(node)
            proxies.append(recorded_keyed_tensor(proxy, value) if is_keyed(value) else proxy)
        root = self.root

        def call(*flat: Any) -> Any:
            return self._binder.call(lambda *a, **k: type(root).forward(root, *a, **k), flat, self.reads)

        call.__annotations__.clear()  # textual annotations in a graph's output cannot be pickled
        return call, proxies

    def proxy(self, node: fx.Node) -> ValueProxy:
        """The proxy class of this tracer."""
        return ValueProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Records a node, then computes its example value; keyed and jagged tensors are objects with recorded parts."""
        if kind == "call_function" and target is not None and target is keyed_tensor_class():
            return made_in_forward(args, kwargs)
        if kind == "call_function" and target is not None and target is jagged_tensor_class():
            return jagged_tensors.made_in_forward(args, kwargs)
        if (read := jagged_tensors.read_of_keys(kind, target, args)) is not None:
            return read
        result = self.record(kind, target, args, kwargs, *rest, **more)
        if isinstance(result, ValueProxy) and is_keyed(value := result.node.meta["val"]):
            return recorded_keyed_tensor(result, value)
        if isinstance(result, ValueProxy) and is_of_one_key(value := result.node.meta["val"]):
            return jagged_tensors.recorded_jagged_tensor(value, lambda: result)
        return result

    def record(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Records a node with its example value; ``None`` if that is what a jagged tensor has in its place."""
        result = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        node = result.node
        if "val" not in node.meta:
            node.meta["val"] = self._evaluate(node)
        owner = node.args[0] if node.args else None
        if node.meta["val"] is None and isinstance(owner, fx.Node) and is_jagged(owner.meta["val"]):
            self.graph.erase_node(node)  # "no weights" is a constant of the call, which may be asked with "is None"
            return None
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Records a node with the user's line."""
        node = super().create_node(*args, **kwargs)
        note_surroundings(node, self.here)
        source = calling_line()
        if source is not None:
            node.meta[SOURCE] = source
        if through := environment.wrapped_on_stack(self._wrapped):
            self.through[node] = through
        return node

    def _evaluate(self, node: fx.Node) -> Any:
        self._evaluating += 1
        inputs = [v for n in node.all_input_nodes if isinstance(v := n.meta["val"], Tensor)]
        versions = [value._version for value in inputs]
        try:
            with self._undisturbed(), self.mode:
                result = self._values.of(self._run(node))
            changed = [v for v, before in zip(inputs, versions, strict=True) if v._version != before]
            if changed:
                node.meta[MUTATED] = changed
            return result
        except CaptureError:
            raise
        except DATA_DEPENDENT as error:
            if reads_longest(node):
                raise longest_read(self.here) from error
            raise refusal(
                "DMT101", self.here,
                f"{unknown(error)} depends on data: {node.format_node()} at {shown(calling_line())}",
                NO_BRANCH,
            ) from error  # fmt: skip
        except Exception as error:
            raise refusal(
                "DMT107", self.here,
                f"cannot follow the model at {shown(calling_line())}: {node.format_node()} failed on example shapes "
                f"({type(error).__name__}: {error})",
                STEP_OUTSIDE,
            ) from error  # fmt: skip
        finally:
            self._evaluating -= 1

    @contextmanager
    def recording_state(self, model: nn.Module) -> Iterator[None]:
        """Records what is done to the state of ``model`` (:class:`environment.StateIsRecorded`)."""
        with environment.StateIsRecorded(self, model) as self._state_mode:
            yield

    def _undisturbed(self) -> AbstractContextManager[None]:
        return nullcontext() if self._state_mode is None else self._state_mode.aside()

    def _run(self, node: fx.Node) -> Any:
        def value_of(argument: fx.Node) -> Any:
            return argument.meta["val"]

        args = fx.node.map_arg(node.args, value_of)
        kwargs = fx.node.map_arg(node.kwargs, value_of)
        if node.op == "get_attr":
            return attribute(self.root, str(node.target))
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            value = leaf_value(module, args, kwargs)
            return self._call_leaf(module, args, kwargs) if value is NotImplemented else value
        if (picked := selected(node, self.root)) is not None:
            return picked
        if node.target is operator.getitem and is_jagged(args[0]):
            return of_key(args[0], str(args[1]))
        if node.op == "call_method" and is_jagged(args[0]):
            value = jagged_result(str(node.target), args[0], args[1:], kwargs)
            if value is not NotImplemented:
                return value
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        if (rows := rows_again(node)) is not NotImplemented:
            return rows
        if getattr(node.target, "__name__", "") == "_kjt_concat" and (parts := list(args[0])):  # type: ignore[arg-type]
            return joined(parts)
        if node.target is operator.getitem:
            return operator.getitem(args[0], self._without_masks(node.args[1], args[1]))  # type: ignore[arg-type]
        return node.target(*args, **kwargs)

    def _without_masks(self, index: Any, value: Any) -> Any:
        """Lists for the masks that are constants of the model: an example value has no entries to count."""
        if not isinstance(index, tuple):
            index, value = (index,), (value,)
        plain: list[Any] = []
        for item, example in zip(index, value, strict=True):
            picked = indices_of(item, self.root)
            plain.extend([example] if picked is None else [self.mode.from_tensor(part) for part in picked])
        return tuple(plain) if len(plain) > 1 else plain[0]

    def _call_leaf(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Calls a layer with stand-ins for its state: a BatchNorm must not count this as a batch."""
        state = self._values.of_state(module)
        return torch.func.functional_call(module, state, args, kwargs) if state else module(*args, **kwargs)

    # -- modules ---------------------------------------------------------------------

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """See :func:`dmt_plugin.capture.leaves.is_leaf`."""
        return is_leaf(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Records a module call; a module made inside forward is traced through if it has no parameters."""
        if self.evaluating:
            return forward(*args, **kwargs)
        if regroups_as_dict(m):
            return regrouped(m, *args, **kwargs)
        try:
            self.path_of_module(m)
        except NameError:
            if next(m.parameters(), None) is not None:
                raise refusal(
                    "DMT104", self.here,
                    f"{type(m).__name__} with parameters is created inside forward at {shown(calling_line())}; such "
                    "parameters are never trained",
                    "create the module in __init__",
                ) from None  # fmt: skip
            return m.forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers become nodes, except while values are computed."""
        if self.evaluating:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        """Also accepts numpy scalars and arrays, which torch functions take from users."""
        if type(a).__module__ == "numpy":
            a = _plain_numbers(a)
        for handed_on in (recorded_as(a), jagged_tensors.recorded_as(a)):
            a = a if handed_on is None else handed_on
        result = super().create_arg(a)
        if isinstance(result, fx.Node) and "val" not in result.meta:  # a constant tensor became an attribute
            result.meta["val"] = self._evaluate(result)
        return result

    def constants(self, graph: fx.Graph) -> dict[str, Tensor]:
        """Tensors that the graph reads and the model does not hold under a name, by their name in the graph."""
        made = {name: value for value, name in self.tensor_attrs.items() if isinstance(value, Tensor)}
        read = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
        return {name: value for name, value in made.items() if name in read and name.startswith("_tensor_constant")}


def _plain_numbers(value: Any) -> Any:
    """A numpy value as torch takes it: whole numbers as a list (``new_tensor`` warns of tensors), else a tensor."""
    if getattr(value, "ndim", 0) == 0 or (value.dtype == "int64" and value.size <= _LONGEST_LITERAL):
        return value.tolist()
    return torch.as_tensor(value)


@dataclass(frozen=True)
class Trace:
    """One recorded call.

    Attributes:
        graph: the operations, each node with its example value in ``meta["val"]``.
        constants: tensors made inside forward from no input, by the attribute name the graph gives them.
        through: for nodes recorded inside functions marked with ``torch.fx.wrap``, those functions.
        reads: what of the batch was read.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]
    through: dict[fx.Node, frozenset[WrappedName]]
    reads: Reads = field(default_factory=Reads)


class WrappedFunctionFailed(Exception):
    """A trace stopped inside functions marked with ``torch.fx.wrap``; they can be kept as one node each."""

    def __init__(self, names: frozenset[WrappedName]) -> None:
        super().__init__(sorted(name for _, name in names))
        self.names = names


def trace_with_values(
    model: nn.Module,
    binder: InputBinder,
    inputs: Sequence[Any],
    kept: Collection[WrappedName] = (),
    values: ExampleValues | None = None,
) -> Trace:
    """Records ``model`` called with ``inputs``; the model is left exactly as it was.

    Args:
        model: the user's model.
        binder: how the flat inputs become the call.
        inputs: one example per graph input.
        kept: functions marked with ``torch.fx.wrap`` that stay one node; the others are traced through.
        values: makes the example values, where several traces share them.

    Returns:
        The graph and its constants.

    Raises:
        CaptureError: the model does something a graph cannot hold; names the module and the user's line.
        WrappedFunctionFailed: it does so inside wrapped functions.
    """
    tracer = ValueTracer(binder, inputs, values or ExampleValues(inputs))
    with (
        environment.left_as_it_was(model),
        environment.recorded_factories(tracer),
        own_backwards_refused(tracer),
        environment.traced_through_wrapped(kept),
        einops_followed(ValueProxy, ValueAttribute),
    ):
        try:
            with torch.enable_grad(), tracer.recording_state(model):
                graph = tracer.trace(model)
            detach_what_has_no_gradient(graph)
            make_mutations_explicit(graph)
            spell_masks_by_row(graph, model)
            drop_identities(graph)
            spell_in_simpler_terms(graph)
        except Exception as error:
            if unknown_read := binder.unknown_read(tracer.reads):
                path, kind = unknown_read[0]
                raise hidden_tensors(path, kind) from error
            if through := environment.wrapped_in_error(error, tracer._wrapped) - set(kept):
                raise WrappedFunctionFailed(through) from error
            if isinstance(error, CaptureError):
                raise
            raise refusal(
                "DMT107", tracer.here,
                f"cannot follow the model at {shown(raising_line(error))}: {type(error).__name__}: {error}",
                STEP_OUTSIDE,
            ) from error  # fmt: skip
    # A custom tracer class makes unpickling trace the model again, and the origin fields of
    # the generated code cannot be pickled at all.
    graph._tracer_cls = None
    graph._co_fields = {}
    return Trace(graph, tracer.constants(graph), tracer.through, tracer.reads)
