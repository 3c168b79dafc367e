"""torchrec's ``KeyedTensor`` while a model is recorded: an ordinary object, whose tensors are what is recorded.

A keyed tensor is a wide tensor with names for its blocks. The names are constants of the model, and torchrec's own
functions (``regroup``, ``regroup_as_dict``) and its users work on them in plain Python. So while a model is recorded:

1. What an embedding collection gives, a keyed tensor among the inputs, and one that forward makes of recorded tensors
   are all a :class:`~torchrec.KeyedTensor` whose blocks are recorded one by one when they are asked for. Thus
   ``kt.to_dict() | other.to_dict()`` is a dict, and ``kt.keys()`` a list.
2. The module ``KTRegroupAsDict`` computes its places from the first batch that it sees; here it is what it computes:
   one concatenation of blocks for each of its groups.

torchrec is looked at only where the user's program has loaded it.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from dmt_plugin.capture.leaves import PooledValues


def keyed_tensor_class() -> type | None:
    """torchrec's ``KeyedTensor``; ``None`` where torchrec is not loaded."""
    found = getattr(sys.modules.get("torchrec.sparse.jagged_tensor"), "KeyedTensor", None)
    return found if isinstance(found, type) else None


def is_keyed(value: Any) -> bool:
    """Whether an example value is a keyed tensor, or stands for one."""
    known = keyed_tensor_class()
    return isinstance(value, PooledValues) or (known is not None and isinstance(value, known))


def recorded_keyed_tensor(proxy: fx.Proxy, value: Any) -> Any:
    """The object that forward gets for a node that gives a keyed tensor.

    Args:
        proxy: the node, recorded.
        value: its example value.
    """
    known = keyed_tensor_class()
    if known is None:  # an object with the interface of a collection, from elsewhere
        return proxy
    tracer = proxy.tracer

    def block(key: str) -> Any:
        return tracer.create_proxy("call_function", operator.getitem, (proxy, key), {})

    def values() -> Any:
        return tracer.create_proxy("call_method", "values", (proxy,), {})

    key_dim = 1 if isinstance(value, PooledValues) else int(value.key_dim())
    return _made(known, list(value.keys()), list(value.length_per_key()), key_dim, block, values, proxy)


def made_in_forward(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``KeyedTensor(...)`` of recorded tensors."""
    known = keyed_tensor_class()
    assert known is not None
    given = inspect.signature(vars(known)["__init__"]).bind(None, *args, **kwargs).arguments
    keys, widths = list(given["keys"]), [int(width) for width in given["length_per_key"]]
    whole, key_dim = given["values"], int(given.get("key_dim", 1))
    starts = dict(zip(keys, [0, *torch.tensor(widths).cumsum(0).tolist()], strict=False))
    width_of = dict(zip(keys, widths, strict=True))

    def block(key: str) -> Any:
        return whole.narrow(key_dim, starts[key], width_of[key])

    return _made(known, keys, widths, key_dim, block, lambda: whole, None)


def recorded_as(value: Any) -> fx.Proxy | None:
    """The node of a recorded keyed tensor that is handed on as it is; ``None`` for anything else.

    One that forward made becomes a node now.
    """
    known = keyed_tensor_class()
    if known is None or not isinstance(value, _recorded_class(known)):
        return None
    if value.origin is not None:
        return value.origin
    whole = value.values()
    arguments = (value.keys(), value.length_per_key(), whole, value.key_dim())
    return whole.tracer.record("call_function", known, arguments, {})


def regroups_as_dict(module: nn.Module) -> bool:
    """Whether a module is torchrec's ``KTRegroupAsDict``."""
    known = getattr(sys.modules.get("torchrec.modules.regroup"), "KTRegroupAsDict", None)
    return known is not None and isinstance(module, known) and type(module).forward is known.forward


def regrouped(module: Any, tensors: Sequence[Any]) -> dict[str, Any]:
    """What ``KTRegroupAsDict`` gives: for each of its keys the blocks of a group side by side.

    Raises:
        KeyError: no keyed tensor has one of the names.
    """
    blocks: dict[str, Any] = {}
    for tensor in tensors:
        blocks |= tensor.to_dict()
    dim = tensors[0].key_dim()
    found = {}
    for key, group in zip(module._keys, module._groups, strict=True):
        joined = torch.cat([blocks[name] for name in group], dim=dim)
        found[key] = module.embedding_cast([joined])[0]
    return found


def _made(known: type, *arguments: Any) -> Any:
    """A recorded keyed tensor; a call of the class with proxies would be recorded by fx, as torchrec has it."""
    kind = _recorded_class(known)
    made = kind.__new__(kind)
    kind.__init__(made, *arguments)
    return made


@functools.cache
def _recorded_class(known: type) -> Any:
    """A class of keyed tensors that record their blocks; made once, as torchrec may not be there."""

    class RecordedKeyedTensor(known):
        """See the docstring of the file."""

        def __init__(
            self,
            keys: list[str],
            widths: list[int],
            key_dim: int,
            block: Callable[[str], Any],
            values: Callable[[], Any],
            origin: fx.Proxy | None,
        ) -> None:
            self._keys, self._length_per_key, self._key_dim = keys, widths, key_dim
            self._offset_per_key = self._index_per_key = None
            self._block, self._whole = functools.cache(block), functools.cache(values)
            self.origin = origin

        @property
        def _values(self) -> Any:
            return self._whole()

        def __getitem__(self, key: str) -> Any:
            if key not in self._keys:
                raise KeyError(f"{key!r} is none of the keys {self._keys}")
            return self._block(key)

        def to_dict(self) -> dict[str, Any]:
            return {key: self._block(key) for key in self._keys}

        def to(self, *args: Any, **kwargs: Any) -> Any:
            def moved(key: str) -> Any:
                return self._block(key).to(*args, **kwargs)

            def all_moved() -> Any:
                return self._whole().to(*args, **kwargs)

            return _made(known, self._keys, self._length_per_key, self._key_dim, moved, all_moved, None)

    return RecordedKeyedTensor
