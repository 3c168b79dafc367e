"""What must be different around a model while it is traced, and be as before afterwards.

1. torch's factory functions (``torch.zeros(x.size(0), 4)``) are recorded when an argument
   is a proxy: they take plain numbers, so no proxy would be asked.
2. Operations on parameters and buffers that are not read as attributes are recorded too.
3. What forward stores on its modules (``self.seen = x``) is undone, or proxies would stay
   in the user's model.
4. Functions marked with ``torch.fx.wrap`` are ordinary functions for this tracer: a join
   inside one must be seen. Those named in ``kept`` stay one node, as they would be under
   ``torch.fx.symbolic_trace``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, TracebackType
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

_TENSORS_OF_TENSORS = ("H", "T", "data", "mH", "mT")
_QUESTIONS = (
    "__bool__", "__float__", "__format__", "__hash__", "__int__", "__len__", "__repr__", "data_ptr", "dim",
    "element_size", "get_device", "is_complex", "is_contiguous", "is_floating_point", "item", "ndimension", "nelement",
    "numel", "numpy", "size", "stride", "tolist", "type", "untyped_storage",
)  # fmt: skip

WrappedName = tuple[int, str]
"""How fx names a wrapped function: the identity of its globals, and its name there."""

WrappedCode = Mapping[CodeType, frozenset[WrappedName]]
"""The code of wrapped functions, with fx's names of each."""

_FACTORIES = (
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm",
    "tensor", "tril_indices", "triu_indices", "zeros",
)  # fmt: skip


class Recorder(Protocol):
    """What a tracer offers here."""

    @property
    def evaluating(self) -> bool:
        """True while example values are computed, when nothing is recorded."""

    @property
    def here(self) -> str:
        """Qualified name of the module whose forward runs."""

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """Records one operation."""


def contains_proxy(value: Any) -> bool:
    """Whether something recorded is among arguments."""
    found: list[bool] = []
    map_aggregate(value, lambda item: found.append(True) if isinstance(item, fx.Proxy) else None)
    return bool(found)


@contextmanager
def recorded_factories(tracer: Recorder) -> Iterator[None]:
    """Records factory functions that are called with a proxy."""

    def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not tracer.evaluating and contains_proxy((args, kwargs)):
                return tracer.create_proxy("call_function", original, args, kwargs)
            return original(*args, **kwargs)

        return call

    originals = {name: getattr(torch, name) for name in _FACTORIES}
    try:
        for name, original in originals.items():
            setattr(torch, name, recorded(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


class StateIsRecorded(TorchFunctionMode):
    """Records what is done to parameters and buffers that forward reads past their names (``self.parameters()``).

    fx sees a parameter when it is read as an attribute. One that is not would be computed with at once, and the graph
    would hold the result: a number of today, without a gradient to what it was made from.
    """

    def __init__(self, tracer: Recorder, model: nn.Module) -> None:
        super().__init__()
        self._tracer = tracer
        self._names = {id(v): n for n, v in [*model.named_buffers(), *model.named_parameters()]}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hands an operation on such a tensor to the tracer; what is asked of its shape or place is answered."""
        kwargs = kwargs or {}
        name = func.__name__
        if name == "__get__":
            name = func.__self__.__name__
            if name not in _TENSORS_OF_TENSORS or not self._held(args[:1]):
                return func(*args, **kwargs)
            return self._tracer.create_proxy("call_function", getattr, (self._recorded(args[0]), name), {})
        if self._tracer.evaluating or name in _QUESTIONS or not self._held((args, kwargs)):
            return func(*args, **kwargs)
        args, kwargs = map_aggregate(args, self._recorded), map_aggregate(kwargs, self._recorded)
        return fx.Proxy.__torch_function__(func, types, args, kwargs)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Not asked while example values are computed, when nothing is recorded.

        Where forward has entered a mode of its own meanwhile, both stay.
        """
        depth = torch._C._len_torch_function_stack()
        if not depth or torch._C._get_function_stack_at(depth - 1) is not self:
            yield
            return
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    def _held(self, values: Any) -> bool:
        found: list[bool] = []
        map_aggregate(values, lambda item: found.append(True) if id(item) in self._names else None)
        return bool(found)

    def _recorded(self, value: Any) -> Any:
        name = self._names.get(id(value))
        return value if name is None else self._tracer.create_proxy("get_attr", name, (), {})


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Undoes what is stored on the modules of ``model`` meanwhile."""
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


def wrapped_code() -> WrappedCode:
    """The code of every function that is marked with ``torch.fx.wrap``, with fx's names of it.

    One function may have several: the code of a graph that calls it marks it again, in its own globals.
    """
    found: dict[CodeType, frozenset[WrappedName]] = {}
    for name, names in _symbolic_trace._wrapped_fns_to_patch.items():
        function = names.get(name[1])
        if inspect.isfunction(function):
            code = inspect.unwrap(function).__code__
            found[code] = found.get(code, frozenset()) | {name}
    return found


@contextmanager
def traced_through_wrapped(kept: Collection[WrappedName]) -> Iterator[None]:
    """Has fx treat wrapped functions, except those in ``kept``, as ordinary ones."""
    registry = _symbolic_trace._wrapped_fns_to_patch
    removed = {name: registry.pop(name) for name in list(registry) if name not in kept}
    try:
        yield
    finally:
        registry.update(removed)


def wrapped_on_stack(code: WrappedCode) -> frozenset[WrappedName]:
    """The wrapped functions that are running now."""
    found: set[WrappedName] = set()
    frame = sys._getframe(1) if code else None
    while frame is not None:
        if frame.f_code in code:
            found |= code[frame.f_code]
        frame = frame.f_back
    return frozenset(found)


def wrapped_in_error(error: BaseException | None, code: WrappedCode) -> frozenset[WrappedName]:
    """The wrapped functions that ``error``, or what caused it, came through."""
    found: set[WrappedName] = set()
    while error is not None:
        step: TracebackType | None = error.__traceback__
        while step is not None:
            if step.tb_frame.f_code in code:
                found |= code[step.tb_frame.f_code]
            step = step.tb_next
        error = error.__cause__
    return frozenset(found)
