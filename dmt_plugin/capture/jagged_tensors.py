"""torchrec's ``JaggedTensor`` while a model is recorded: an ordinary object, whose tensors are what is recorded.

A jagged tensor holds values, one behind the other, and says by lengths or offsets which are of which sample. Its
methods are plain Python on these tensors. So while a model is recorded:

1. One key of a ``KeyedJaggedTensor``, ``kjt[key]`` or an entry of ``kjt.to_dict()``, is a
   :class:`~torchrec.JaggedTensor` whose tensors are recorded when they are asked for.
2. So is one that forward makes of recorded tensors. torchrec's ``EmbeddingCollection`` does nothing else: it is traced
   through, and what stays are its tables.
3. torchrec's own methods run on that, ``to_padded_dense`` for instance, and record the operations behind them.

One that is handed on as it is, to a function that stays one node or out of the model, becomes a node there.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from dmt_plugin.capture.batch_parts import is_jagged
from dmt_plugin.capture.jagged import jagged_tensor_class, of_key
from dmt_plugin.capture.proxies import batch_path
from dmt_plugin.capture.reads import watched

ALL_KEYS = "to_dict()"
"""Of a jagged tensor in the batch, as the last entry of a path: the dict of its keys."""

_PARTS = ("values", "weights", "lengths", "offsets")


def read_of_keys(kind: str, target: Any, args: Sequence[Any]) -> Any:
    """What forward gets for ``kjt[key]`` and ``kjt.to_dict()``; ``None`` for anything else that is to be recorded.

    Args:
        kind: of the node.
        target: of the node.
        args: its arguments.

    Raises:
        KeyError: there is no such key.
    """
    owner = args[0] if args else None
    if jagged_tensor_class() is None or not isinstance(owner, fx.Proxy) or not is_jagged(owner.node.meta.get("val")):
        return None
    if kind == "call_method" and target == "to_dict":
        found = {key: _key(owner, key) for key in list(owner.node.meta["val"].keys())}
        path = batch_path(owner.node)
        return found if path is None else watched(found, owner.tracer.reads, (*path, ALL_KEYS))  # type: ignore[attr-defined]
    if target is operator.getitem and isinstance(args[1], str):
        return _key(owner, args[1])
    return None


def recorded_jagged_tensor(value: Any, whole: Callable[[], fx.Proxy]) -> Any:
    """The object that forward gets for a node that gives a jagged tensor.

    Args:
        value: an example value.
        whole: records the node.
    """

    def part(name: str) -> Any:
        proxy = whole()
        return proxy.tracer.create_proxy("call_method", name, (proxy,), {})

    found: dict[str, Callable[[], Any] | None] = {name: functools.partial(part, name) for name in _PARTS}
    if value.weights_or_none() is None:
        found["weights"] = None
    return _made(found, whole)


def _key(owner: fx.Proxy, key: str) -> Any:
    value = of_key(owner.node.meta["val"], key)

    @functools.cache
    def whole() -> fx.Proxy:
        tracer: Any = owner.tracer
        return tracer.record("call_function", operator.getitem, (owner, key), {})

    return recorded_jagged_tensor(value, whole)


def made_in_forward(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``JaggedTensor(...)`` of recorded tensors."""
    known = jagged_tensor_class()
    assert known is not None
    given = inspect.signature(vars(known)["__init__"]).bind(None, *args, **kwargs).arguments
    found: dict[str, Callable[[], Any] | None] = {}
    for name in _PARTS:
        value = given.get(name)
        found[name] = None if value is None else functools.partial(_itself, value)
    offsets, lengths = found["offsets"], found["lengths"]
    if offsets is None and lengths is not None:
        found["offsets"] = functools.partial(_offsets, lengths)
    elif lengths is None and offsets is not None:
        found["lengths"] = functools.partial(_lengths, offsets)
    return _made(found, None)


def recorded_as(value: Any) -> fx.Proxy | None:
    """The node of a recorded jagged tensor that is handed on as it is; ``None`` for anything else.

    One that forward made becomes a node now.
    """
    known = jagged_tensor_class()
    if known is None or not isinstance(value, _recorded_class(known)):
        return None
    if value.origin is None:
        tracer = value.values().tracer
        parts = (value.values(), value.weights_or_none(), value.lengths(), value.offsets())
        value.origin = functools.partial(_itself, tracer.record("call_function", known, parts, {}))
    return value.origin()


def _itself(value: Any) -> Any:
    return value


def _offsets(lengths: Callable[[], Any]) -> Any:
    return torch.ops.fbgemm.asynchronous_complete_cumsum(lengths())


def _lengths(offsets: Callable[[], Any]) -> Any:
    return torch.diff(offsets())


def _made(found: dict[str, Callable[[], Any] | None], origin: Callable[[], fx.Proxy] | None) -> Any:
    """A recorded jagged tensor; a call of the class with proxies would be recorded by fx, as torchrec has it."""
    known = jagged_tensor_class()
    assert known is not None
    kind = _recorded_class(known)
    made = kind.__new__(kind)
    kind.__init__(made, found, origin)
    return made


@functools.cache
def _recorded_class(known: type) -> Any:
    """A class of jagged tensors that record their parts; made once, as torchrec may not be there."""

    class RecordedJaggedTensor(known):
        """See the docstring of the file."""

        def __init__(self, found: dict[str, Callable[[], Any] | None], origin: Callable[[], fx.Proxy] | None) -> None:
            self._found = {name: None if part is None else functools.cache(part) for name, part in found.items()}
            self.origin = origin

        def _part(self, name: str) -> Any:
            part = self._found[name]
            return None if part is None else part()

        _values = property(lambda self: self._part("values"))
        _weights = property(lambda self: self._part("weights"))
        _lengths = property(lambda self: self._part("lengths"))
        _offsets = property(lambda self: self._part("offsets"))

        def lengths(self) -> Any:
            return self._part("lengths")

        def offsets(self) -> Any:
            return self._part("offsets")

    return RecordedJaggedTensor
