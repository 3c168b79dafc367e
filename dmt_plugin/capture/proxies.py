"""The stand-ins for tensors that a model's forward is called with while it is recorded as a graph.

Every operation on a proxy becomes a node; what Python itself asks of a tensor is answered from the example value of
its node:

1. ``len``, iteration, ``int``, ``bool``, ``in`` are answered from the value. What that
   bakes into the graph shows when two traces are compared. The number of dimensions is the
   same for every batch.
2. A question that only real data could answer (the truth of a tensor) is refused.
3. An item assigned to a tensor that forward made itself is a new tensor under the old name; what would be seen
   elsewhere is refused in the end (:mod:`dmt_plugin.capture.mutations`).
4. An attribute is recorded when it is used: a method call if it is called, else a read.
   A constant field of a batch object (``None``, a string, a number) is that constant; later
   calls are checked to have the same (see :class:`~dmt_plugin.capture.inputs.InputBinder`).
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from dmt_plugin.capture.batch_parts import Path, has_fields, is_constant, is_jagged
from dmt_plugin.capture.gradients import refuse_autograd
from dmt_plugin.capture.keyed_tensors import is_keyed
from dmt_plugin.capture.longest import is_longest, longest_read
from dmt_plugin.capture.source_lines import calling_line, refusal, shown
from dmt_plugin.fxtools.assigned import assigned

ONE_PATH = "a graph has one path for all data; replace the branch by torch.where or a mask, or move it out of forward"


NO_BRANCH = "keep it a tensor whose size does not depend on the data (a mask, torch.where), or do this outside forward"

DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException)
"""What fake tensors raise where only real data could answer."""

_ANSWERED = ("keys", "values", "items", "get")

SAME_KEYS = ("sync", "unsync", "to", "pin_memory")
"""Methods of a jagged tensor that give one with the same keys."""


def unknown(error: Exception) -> str:
    """What one of :data:`DATA_DEPENDENT` says is not known."""
    return "a size" if isinstance(error, DynamicOutputShapeException) else "a number"


class ValueProxy(fx.Proxy):
    """A proxy that answers Python's questions from its example value."""

    def __getattr__(self, name: str) -> Any:
        value = self._value
        if dataclasses.is_dataclass(value) and any(field.name == name for field in dataclasses.fields(value)):
            stored = getattr(value, name)
            self._note_read(name)
            if is_constant(stored):
                return stored
            if is_keyed(stored):
                return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        if value is not None and _has_not(value, name):
            raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
        if isinstance(value, Tensor):
            refuse_autograd(name, self.tracer.here)  # type: ignore[attr-defined]
            if name == "ndim":
                return value.dim()
        if name in _ANSWERED and isinstance(value, dict):
            return lambda *args: self._container(value, name, *args)
        return ValueAttribute(self, name)

    def _container(self, value: dict[Any, Any], method: str, *args: Any) -> Any:
        """What is known of a dict while tracing; its tensors are recorded as items."""
        if method == "get":
            self._note_read(args[0])
        else:
            self._note_whole()
        if method == "keys":
            return list(value)
        if method == "get" and args[0] not in value:
            return args[1] if len(args) > 1 else None
        if method == "get":
            return self._item(args[0])
        return [(key, self._item(key)) if method == "items" else self._item(key) for key in value]

    @property
    def _value(self) -> Any:
        return self.node.meta.get("val")

    @property
    def batch_path(self) -> Path | None:
        """Where in the batch this is: the name of the graph's input, then fields and items; ``None`` elsewhere."""
        return batch_path(self.node)

    def _note_read(self, key: Any) -> None:
        """Notes that a field or an item of a batch object is read."""
        path = self.batch_path
        if path is not None:
            self.tracer.reads.fields.add((*path, key))  # type: ignore[attr-defined]

    def _note_whole(self) -> None:
        """Notes that all items of a container in a batch object may be read."""
        path = self.batch_path
        if path is not None and isinstance(self._value, (dict, list, tuple)):
            self.tracer.reads.whole_fields.add(path)  # type: ignore[attr-defined]

    def _concrete(self, what: str, ask: Callable[[Any], Any]) -> Any:
        if isinstance(self._value, (Tensor, int)):
            _note_sizes(self.tracer, self.node)
        try:
            return ask(self._value)
        except DATA_DEPENDENT as error:
            if is_longest(self.node):
                raise longest_read(self.tracer.here) from error  # type: ignore[attr-defined]
            raise refusal(
                "DMT101",
                self.tracer.here,  # type: ignore[attr-defined]
                f"the control flow depends on data: {what} of a tensor at {shown(calling_line())}",
                ONE_PATH,
            ) from error

    def __getitem__(self, key: Any) -> Any:
        if isinstance(self._value, (dict, list, tuple)):
            self._note_read(key) if isinstance(key, (str, int)) else self._note_whole()
        return self._item(key)

    def _item(self, key: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        """Records a copy with other entries, which is what this name stands for from now on."""
        if isinstance(self, ValueAttribute) or not isinstance(self._value, Tensor):
            raise refusal(
                "DMT103",
                self.tracer.here,  # type: ignore[attr-defined]
                f"an item is assigned at {shown(calling_line())}; a graph has values, not places to store them",
                "use torch.cat, torch.where or torch.index_put, which return a new tensor",
            )
        self.node = self.tracer.create_proxy("call_function", assigned, (self, key, value), {}).node

    def __len__(self) -> int:
        self._note_whole()
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
        self._note_whole()
        return self._concrete("a membership test", lambda value: item in value)

    def __iter__(self) -> Iterator[Any]:
        self._note_whole()
        value = self._value
        if isinstance(value, dict):
            return iter(list(value))
        return iter([self._item(i) for i in range(len(self))])

    @property
    def keys(self) -> Any:
        """As any attribute; a property because fx has a method of this name, and a batch object may have a field."""
        return self.__getattr__("keys")


def batch_path(node: fx.Node) -> Path | None:
    """Where in the batch a node is: the name of the graph's input, then fields and items; ``None`` elsewhere."""
    path: Path = ()
    while node.op != "placeholder":
        owner = node.args[0] if node.args else None
        if not isinstance(owner, fx.Node):
            return None
        value = owner.meta.get("val")
        if is_jagged(value) and node.op == "call_method" and node.target in SAME_KEYS:
            pass
        elif node.target in (getattr, operator.getitem) and len(node.args) == 2 and _holds_parts(value):
            path = (node.args[1], *path)
        else:
            return None
        node = owner
    return (str(node.target), *path)


def _note_sizes(tracer: Any, node: fx.Node) -> None:
    """Notes the inputs whose sizes Python is told, as what it makes of them is part of the program."""
    pending = [node]
    while pending:
        here = pending.pop()
        if here not in tracer.told:
            tracer.told.add(here)
            pending.extend(here.all_input_nodes)
            if here.op == "placeholder":
                tracer.reads.sizes.add(str(here.target))


def _has_not(value: Any, name: str) -> bool:
    """Whether an object certainly has no such attribute; what makes attributes as they are asked for may have any."""
    if hasattr(type(value), "__getattr__"):
        return False
    absent = object()
    return inspect.getattr_static(value, name, absent) is absent


def _holds_parts(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple)) or has_fields(value)


class ValueAttribute(ValueProxy):
    """An attribute of a proxy, recorded when it is used. (A field of the user's may be called "name" or "owner".)"""

    def __init__(self, owner: ValueProxy, name: str) -> None:
        self._dmt_owner = owner
        self._dmt_name = name
        self.tracer = owner.tracer
        self._node: fx.Node | None = None

    @property
    def batch_path(self) -> Path | None:
        """As of any proxy; it does not record the attribute."""
        owner = self._dmt_owner.batch_path
        return None if owner is None or not has_fields(self._dmt_owner._value) else (*owner, self._dmt_name)

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """Of the attribute that was read; recorded when somebody asks for it."""
        if self._node is None:
            self._node = self.tracer.create_proxy("call_function", getattr, (self._dmt_owner, self._dmt_name), {}).node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Records the call of a method."""
        return self.tracer.create_proxy("call_method", self._dmt_name, (self._dmt_owner, *args), kwargs)
