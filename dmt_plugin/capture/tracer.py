"""A torch.fx tracer whose proxies know the value they stand for.

``torch.fx.symbolic_trace`` gives up where Python asks a proxy for something concrete: a
length, a loop, a shape in a comparison. Recommenders do that all the time. Here every
node also has an *example value*, computed on fake tensors (shapes without data) while
the graph is recorded:

1. each operation is recorded, then run on the example values of its inputs;
2. ``len``, iteration, ``int`` and ``bool`` of a proxy are answered from its value (what
   this bakes into the program shows when two traces are compared);
3. a question that only real data could answer (the truth of a tensor) is an error that
   names the line of the user's code;
4. torch's factory functions (``torch.zeros(x.size(0), 4)``) are recorded too when an
   argument is a proxy; a tensor made without one is a constant of the graph;
5. what an operation changed in place is noted in ``meta[MUTATED]``.

Modules are kept as ``call_module`` nodes down to the leaves of
:mod:`dmt_plugin.capture.leaves`, so parameters stay the user's own objects.
"""

from __future__ import annotations

import operator
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.fx.node import map_aggregate

from dmt_plugin.capture.inputs import InputBinder
from dmt_plugin.capture.leaves import PooledValues, is_leaf, leaf_value
from dmt_plugin.errors import CaptureError

_FACTORIES = (
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm",
    "tensor", "tril_indices", "triu_indices", "zeros",
)  # fmt: skip
_LIBRARY = tuple(os.path.dirname(os.path.abspath(file or "")) for file in (torch.__file__, __file__, mock.__file__))

MUTATED = "dmt_mutated"
"""Node meta: the example values of the inputs that the node changed in place."""


def user_line(error: BaseException | None = None) -> str:
    """The innermost line of the user's code on the stack (or where ``error`` rose), for messages."""
    frames = traceback.extract_stack() if error is None else traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if not frame.filename.startswith(_LIBRARY):
            return f'{frame.filename}:{frame.lineno}, in {frame.name}: "{frame.line}"'
    return "unknown line"


class ValueProxy(fx.Proxy):
    """A proxy that answers Python's questions from its example value."""

    def __getattr__(self, name: str) -> Any:
        return _ValueAttribute(self, name)

    @property
    def _value(self) -> Any:
        return self.node.meta["val"]

    def _concrete(self, what: str, ask: Callable[[Any], Any]) -> Any:
        try:
            return ask(self._value)
        except DataDependentOutputException as error:
            raise CaptureError(
                f"the model's control flow depends on data: {what} of a tensor at {user_line()}. A graph has one "
                "path for all data. Replace the branch by torch.where or a mask, or move it out of forward."
            ) from error

    def _call(self, method: str) -> Any:
        return _ValueAttribute(self, method)()

    def _item(self, key: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def __len__(self) -> int:
        return self._concrete("len()", len)

    def __int__(self) -> int:
        return self._concrete("int()", int)

    def __index__(self) -> int:
        return self._concrete("an index", operator.index)

    def __float__(self) -> float:
        return self._concrete("float()", float)

    def __bool__(self) -> bool:
        return self._concrete("the truth value", bool)

    def __contains__(self, item: Any) -> bool:
        return self._concrete("a membership test", lambda value: item in value)

    def __iter__(self) -> Iterator[Any]:
        value = self._value
        if isinstance(value, dict):
            return iter(list(value))
        return iter([self._item(i) for i in range(len(self))])

    def keys(self) -> Any:
        """The keys of a proxied dict or pooled output; recorded as a method call for anything else."""
        value = self._value
        return list(value.keys()) if isinstance(value, (dict, PooledValues)) else self._call("keys")

    def length_per_key(self) -> Any:
        """The widths of a proxied pooled output; recorded as a method call for anything else."""
        value = self._value
        if isinstance(value, PooledValues):
            return value.length_per_key()
        return self._call("length_per_key")

    def items(self) -> Any:
        """The items of a proxied dict; recorded as a method call for anything else."""
        value = self._value
        return [(k, self._item(k)) for k in value] if isinstance(value, dict) else self._call("items")

    def values(self) -> Any:
        """The values of a proxied dict; recorded as a method call for anything else."""
        value = self._value
        return [self._item(k) for k in value] if isinstance(value, dict) else self._call("values")


class _ValueAttribute(ValueProxy):
    """An attribute of a proxy, recorded when it is used: a method call if it is called, else a read."""

    def __init__(self, owner: ValueProxy, name: str) -> None:
        self.owner = owner
        self.name = name
        self.tracer = owner.tracer
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        if self._node is None:
            self._node = self.tracer.create_proxy("call_function", getattr, (self.owner, self.name), {}).node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", self.name, (self.owner, *args), kwargs)


class ValueTracer(fx.Tracer):
    """Records one call of a model, with an example value in every node's ``meta["val"]``.

    Args:
        binder: maps the flat inputs to the user's call.
        inputs: one example value per graph input.
    """

    proxy_buffer_attributes = True

    def __init__(self, binder: InputBinder, inputs: Sequence[Any]) -> None:
        super().__init__()
        self._binder = binder
        self._inputs = list(inputs)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._device = next((t.device for t in inputs if isinstance(t, Tensor) and not t.is_meta), torch.device("cpu"))
        self._evaluating = 0

    # -- recording -------------------------------------------------------------------

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Gives the graph one placeholder per flat input and calls the model on them."""
        proxies = []
        for name, value in zip(self._binder.names, self._inputs, strict=True):
            node = self.create_node("placeholder", name, (), {})
            node.meta["val"] = self._fake(value)
            proxies.append(self.proxy(node))
        root = self.root

        def call(*flat: Any) -> Any:
            return self._binder.call(lambda *a, **k: type(root).forward(root, *a, **k), flat)

        call.__annotations__.clear()  # textual annotations in a graph's output cannot be pickled
        return call, proxies

    def proxy(self, node: fx.Node) -> ValueProxy:
        """The proxy class of this tracer."""
        return ValueProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """Records a node, then computes its example value."""
        result = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        node = result.node
        if "val" not in node.meta:
            node.meta["val"] = self._evaluate(node)
        return result

    def _evaluate(self, node: fx.Node) -> Any:
        self._evaluating += 1
        inputs = [v for n in node.all_input_nodes if isinstance(v := n.meta["val"], Tensor)]
        versions = [value._version for value in inputs]
        try:
            with self.mode:
                result = self._fake(self._run(node))
            changed = [v for v, before in zip(inputs, versions, strict=True) if v._version != before]
            if changed:
                node.meta[MUTATED] = changed
            return result
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(
                f"cannot follow the model at {user_line()}: {node.format_node()} failed on example shapes "
                f"({type(error).__name__}: {error}). Move this step out of forward, or make it a torch operation."
            ) from error
        finally:
            self._evaluating -= 1

    def _run(self, node: fx.Node) -> Any:
        def value_of(argument: fx.Node) -> Any:
            return argument.meta["val"]

        args = fx.node.map_arg(node.args, value_of)
        kwargs = fx.node.map_arg(node.kwargs, value_of)
        if node.op == "get_attr":
            return _attribute(self.root, str(node.target))
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            value = leaf_value(module, args, kwargs)
            return self._call_leaf(module, args, kwargs) if value is NotImplemented else value
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        if node.target is operator.getitem:
            return operator.getitem(args[0], self._without_masks(node.args[1], args[1]))  # type: ignore[arg-type]
        return node.target(*args, **kwargs)

    def _without_masks(self, index: Any, value: Any) -> Any:
        """Lists for the masks that are attributes of the model: an example value has no entries to count."""
        if not isinstance(index, tuple):
            index, value = (index,), (value,)
        plain: list[Any] = []
        for item, example in zip(index, value, strict=True):
            if isinstance(item, fx.Node) and item.op == "get_attr" and example.dtype == torch.bool:
                with unset_fake_temporarily():
                    picked = _attribute(self.root, str(item.target)).nonzero(as_tuple=True)
                plain.extend(self.mode.from_tensor(part) for part in picked)
            else:
                plain.append(example)
        return tuple(plain) if len(plain) > 1 else plain[0]

    def _call_leaf(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Calls a layer with stand-ins for its state: a BatchNorm must not count this as a batch."""
        state: dict[str, Tensor] = {
            name: self._fake(value)
            for name, value in [*module.named_parameters(), *module.named_buffers()]
        }
        return torch.func.functional_call(module, state, args, kwargs)

    def _fake(self, value: Any) -> Any:
        def convert(item: Any) -> Any:
            if not isinstance(item, Tensor):
                return item
            fake = item if isinstance(item, FakeTensor) else self.mode.from_tensor(item.detach())
            if fake.device.type != "meta":
                return fake
            # Weights without data are often beside others that have some: all are followed as if they were where the
            # batch is.
            with self.mode:
                return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=self._device)

        return map_aggregate(value, convert)

    # -- modules ---------------------------------------------------------------------

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """See :func:`dmt_plugin.capture.leaves.is_leaf`."""
        return is_leaf(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Records a module call; a module made inside forward is traced through if it has no parameters."""
        if self._evaluating:
            return forward(*args, **kwargs)
        try:
            self.path_of_module(m)
        except NameError:
            if next(m.parameters(), None) is not None:
                raise CaptureError(
                    f"{type(m).__name__} with parameters is created inside forward at {user_line()}; such parameters "
                    "are never trained. Create the module in __init__."
                ) from None
            return m.forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers become nodes, except while values are computed."""
        if self._evaluating:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        """Also accepts numpy scalars and arrays, which torch functions take from users."""
        if type(a).__module__ == "numpy":
            a = a.item() if getattr(a, "ndim", 1) == 0 else torch.as_tensor(a)
        result = super().create_arg(a)
        if isinstance(result, fx.Node) and "val" not in result.meta:  # a constant tensor became an attribute
            result.meta["val"] = self._evaluate(result)
        return result

    def constants(self, graph: fx.Graph) -> dict[str, Tensor]:
        """Tensors that the graph reads and the model does not hold under a name, by their name in the graph."""
        made = {name: value for value, name in self.tensor_attrs.items() if isinstance(value, Tensor)}
        read = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
        return {name: value for name, value in made.items() if name in read and name.startswith("_tensor_constant")}


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for atom in path.split("."):
        value = getattr(value, atom)
    return value


@contextmanager
def _recorded_factories(tracer: ValueTracer) -> Iterator[None]:
    def contains_proxy(value: Any) -> bool:
        found: list[bool] = []
        map_aggregate(value, lambda item: found.append(True) if isinstance(item, fx.Proxy) else None)
        return bool(found)

    def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not tracer._evaluating and contains_proxy((args, kwargs)):
                return tracer.create_proxy("call_function", original, args, kwargs)
            return original(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for name in _FACTORIES:
            stack.enter_context(mock.patch.object(torch, name, recorded(getattr(torch, name))))
        yield


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Undoes what the model's forward stores on its modules while proxies flow through it."""
    tables = ("_parameters", "_buffers", "_modules")
    before = [(m, dict(m.__dict__), [dict(m.__dict__[t]) for t in tables]) for m in model.modules()]
    try:
        yield
    finally:
        for module, attributes, contents in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for table, content in zip(tables, contents, strict=True):
                module.__dict__[table].clear()
                module.__dict__[table].update(content)


@dataclass(frozen=True)
class Trace:
    """One recorded call.

    Attributes:
        graph: the operations, each node with its example value in ``meta["val"]``.
        constants: tensors made inside forward from no input, by the attribute name the graph gives them.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]


def trace_with_values(model: nn.Module, binder: InputBinder, inputs: Sequence[Any]) -> Trace:
    """Records ``model`` called with ``inputs``; the model is left exactly as it was.

    Args:
        model: the user's model.
        binder: how the flat inputs become the call.
        inputs: one example per graph input.

    Returns:
        The graph and its constants.

    Raises:
        CaptureError: the model does something a graph cannot hold; names the user's line.
    """
    tracer = ValueTracer(binder, inputs)
    with _left_as_it_was(model), _recorded_factories(tracer):
        try:
            graph = tracer.trace(model)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(
                f"cannot capture {type(model).__name__}: {type(error).__name__}: {error} "
                f"(at {user_line(error)})."
            ) from error
    # A custom tracer class makes unpickling trace the model again, and the origin fields of
    # the generated code cannot be pickled at all.
    graph._tracer_cls = None
    graph._co_fields = {}
    return Trace(graph, tracer.constants(graph))
