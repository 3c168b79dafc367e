"""Tables of a flat model whose memory is let go once the ranks that own their rows have them.

1. :func:`release` finds every tensor of the process that shares memory with such a parameter: the parameter under all
   its names, ``parameter.data``, views that somebody took before.
2. Each becomes a tensor without values: it keeps shape, type, device and gradient flag, holds one number that stands
   for all (so that nothing can read memory that is gone, whatever reads it), and raises
   :class:`~dmt_plugin.core.errors.TablesReleasedError` for every use of values.
3. Memory is freed when nothing else holds it. What still does is not touched and is named in a warning: other
   parameters in the same memory, arrays of NumPy, what the autograd graph of an earlier backward pass keeps.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from dmt_plugin.core.errors import TablesReleasedError

logger = logging.getLogger(__name__)

_METADATA = frozenset(
    {"shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf", "grad", "grad_fn", "itemsize", "nbytes"}
    | {"is_meta", "is_cpu", "is_cuda", "is_sparse", "is_quantized", "is_nested", "names", "_is_view", "__len__"}
    | {"size", "dim", "numel", "nelement", "ndimension", "stride", "element_size", "get_device", "__hash__"}
    | {"is_floating_point", "is_complex", "is_contiguous", "is_signed", "is_inference"}
)


_NAME = "_dmt_table"
"""Attribute of a parameter that was let go: its name."""


def _said(args: tuple[Any, ...]) -> str:
    """What a call is about, by the name of the first table among its arguments that has one."""
    names = [found for arg in args if isinstance(arg, _Released) and (found := arg.__dict__.get(_NAME))]
    return f"{names[0]}, a table of the flat model," if names else "a table of the flat model"


class _Released:
    """What tensors without values do: metadata as before, an error for everything else."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Lets through what reads no values."""
        name = _name_of(func)
        if name in ("__repr__", "__str__", "__format__"):
            return repr(args[0])
        if name in ("requires_grad_", "requires_grad.__set__"):
            asked = args[1] if len(args) > 1 else (kwargs or {}).get("requires_grad", True)
            if bool(asked) == args[0].requires_grad:
                return args[0]  # nothing changes
        clears = name == "grad.__set__" and len(args) > 1 and args[1] is None
        if name not in _METADATA and name.removesuffix(".__get__") not in _METADATA and not clears:
            what = name.removesuffix(".__get__").removesuffix(".__set__")
            raise TablesReleasedError(f"{what} of {_said(args)}")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        with torch._C.DisableTorchFunctionSubclass():
            return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise TablesReleasedError("a copy of the flat model, or of a table of it,")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TablesReleasedError("pickling the flat model, or a table of it,")


class ReleasedTable(_Released, nn.Parameter):  # type: ignore[misc]  # __repr__
    """A parameter that held tables and was let go."""


class ReleasedValues(_Released, Tensor):  # type: ignore[misc]  # __repr__
    """A tensor that shared the memory of such a parameter."""


def is_released(tensor: Tensor) -> bool:
    """Whether its values were let go."""
    return isinstance(tensor, _Released)


def released_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model that were let go, by all their names."""
    return {name: p for name, p in model.named_parameters(remove_duplicate=False) if is_released(p)}


@torch.no_grad()
def release(model: nn.Module, parameters: Iterable[str], keep: Iterable[Tensor] = ()) -> int:
    """Lets the memory of parameters go, for everybody who holds them.

    Args:
        model: the flat model.
        parameters: names of those that hold tables.
        keep: tensors that are needed on, such as the parameters of the placed model; they and what shares their
            entries stay.

    Returns:
        Bytes that were freed.

    Raises:
        AttributeError: the model has no such parameter.
    """
    needed = {id(tensor) for tensor in keep}
    let_go = {id(p): (name, p) for name in parameters if id(p := model.get_parameter(name)) not in needed}
    memory: dict[int, list[tuple[str, range]]] = {}
    watched: dict[StorageWeakRef, tuple[str, int]] = {}
    for name, p in let_go.values():
        if is_released(p):
            continue
        if p.is_meta:
            p.__dict__[_NAME] = name
            _hollow(p)
            continue
        storage = p.untyped_storage()
        if storage._cdata not in memory:
            watched[StorageWeakRef(storage)] = (name, storage.nbytes())
        memory.setdefault(storage._cdata, []).append((name, _span(p)))
        del storage
    p = None  # type: ignore[assignment]
    found = _sharing(memory)
    for key, tensors in found.items():
        kept = [_span(t) for t in tensors if id(t) in needed]
        for tensor in tensors:
            span = _span(tensor)
            spared = id(tensor) in needed or any(_meet(span, other) for other in kept)
            if id(tensor) in let_go:
                tensor.__dict__[_NAME] = let_go[id(tensor)][0]
            if id(tensor) in let_go or (not spared and any(_meet(span, other) for _, other in memory[key])):
                _hollow(tensor)
    found.clear()
    tensors = tensor = None  # type: ignore[assignment]
    freed, held = 0, []
    for storage_ref, (name, size) in watched.items():
        if storage_ref.expired():
            freed += size
        else:
            held.append(name)
    if held:
        logger.warning(
            "the memory of %s stays: something else than a tensor of this program holds it (an array of NumPy, or a "
            "graph of autograd), or other parameters lie in it",
            ", ".join(held),
        )
    return freed


def _sharing(memory: Mapping[int, Any]) -> dict[int, list[Tensor]]:
    """All tensors of the process that lie in these storages, by storage."""
    found: dict[int, list[Tensor]] = {}
    if not memory:
        return found
    kinds = _kinds(Tensor)
    with torch._C.DisableTorchFunctionSubclass():
        for thing in [thing for thing in gc.get_objects() if type(thing) in kinds]:
            if torch._C._has_storage(thing):
                key = thing.untyped_storage()._cdata if thing.layout is torch.strided else None
                if key is not None and key in memory:
                    found.setdefault(key, []).append(thing)
    return found


def _kinds(kind: type) -> set[type]:
    """A class and all that inherit from it: to look a class up in a set is several times faster than to ask it."""
    heirs: list[type] = type.__subclasses__(kind)
    return {kind}.union(*map(_kinds, heirs))


def _span(tensor: Tensor) -> range:
    """Bytes of its storage from its first entry to its last."""
    if tensor.numel() == 0:
        return range(0)
    first = tensor.storage_offset()
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return range(first * tensor.element_size(), (last + 1) * tensor.element_size())


def _meet(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)


def _hollow(tensor: Tensor) -> None:
    """Takes a tensor's values away.

    An array of NumPy may look at memory that torch calls not resizable, without holding it: it holds the tensor, which
    then keeps its memory.
    """
    kind = ReleasedTable if isinstance(tensor, nn.Parameter) else ReleasedValues
    if tensor.is_leaf:
        tensor.grad = None
    if not tensor.is_meta and (tensor.untyped_storage().resizable() or tensor.requires_grad):
        number = float("nan") if tensor.is_floating_point() else 0
        tensor.data = torch.full((), number, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    if type(tensor) in (nn.Parameter, Tensor):
        tensor.__class__ = kind


def _name_of(func: Any) -> str:
    """``shape.__get__`` for the getter of a property, else the function's own name."""
    name = getattr(func, "__name__", str(func))
    owner = getattr(func, "__self__", None)
    inner = getattr(owner, "__name__", None)
    return f"{inner}.{name}" if name in ("__get__", "__set__", "__delete__") and inner else name
