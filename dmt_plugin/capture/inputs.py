"""How a model is called: from the user's arguments to a flat list of graph inputs and back.

A model's forward may take tensors, nested lists, tuples and dicts of them, and objects
such as a ``KeyedJaggedTensor`` or a dataclass batch. The graph behind it takes a flat
list. :class:`InputBinder` is the bridge:

1. bind the call to ``forward``'s signature and apply its defaults;
2. flatten the built-in containers; anything else is one leaf;
3. leaves that are plain constants (``None``, numbers, strings) are part of the captured
   program: a later call with another constant is refused, not ignored;
4. the other leaves are the graph's inputs, in order.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from dmt_plugin.capture.source_lines import refusal
from dmt_plugin.core.errors import CaptureError
from dmt_plugin.core.findings import Finding

_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, enum.Enum)


@dataclasses.dataclass(frozen=True)
class ExampleBatch:
    """One call of the model: the arguments of ``forward``.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


_CALL = "the call does not fit the captured model"
_VALUE = "no constant"
_AGAIN = "call it as in the example batch, or transform the model again with a batch like this one"


def _misfit(reason: str, hint: str, summary: str = "the example batch does not fit the model") -> CaptureError:
    return CaptureError([Finding("DMT109", "error", "", reason, hint)], summary)


def _is_leaf(value: Any) -> bool:
    return not isinstance(value, (list, tuple, dict))


def is_constant(value: Any) -> bool:
    """True for values that become part of the captured program."""
    return isinstance(value, _CONSTANTS)


def is_jagged(value: Any) -> bool:
    """True for objects with the interface of a torchrec ``KeyedJaggedTensor``."""
    return all(callable(getattr(value, name, None)) for name in ("keys", "values", "lengths", "stride"))


class InputBinder:
    """Maps calls of one model to the flat inputs of its graph.

    Args:
        forward: the bound ``forward`` of the user's model.
        example: a call that works.

    Attributes:
        names: a readable name for each graph input, in order.

    Raises:
        CaptureError: if ``example`` does not fit the signature of ``forward``, or holds an
            object whose tensors cannot be found.
    """

    def __init__(self, forward: Callable[..., Any], example: ExampleBatch) -> None:
        signature = inspect.signature(forward)
        # Annotations may name types that cannot be pickled, and say nothing about a call.
        plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        self.signature = signature.replace(parameters=plain, return_annotation=signature.empty)
        bound = self._bind(example.args, example.kwargs)
        leaves, self._spec = _flatten(bound)
        self._constants = {i: leaf for i, leaf in enumerate(leaves) if is_constant(leaf)}
        self._positions = [i for i in range(len(leaves)) if i not in self._constants]
        paths = [path for path, _ in pytree.tree_flatten_with_path(bound, is_leaf=_is_leaf)[0]]
        self.names = [_readable(paths[i]) for i in self._positions]
        self._fixed: dict[str, dict[str, Any]] = {}
        for name, position in zip(self.names, self._positions, strict=True):
            if (unknown := _unknown_part(leaves[position], name)) is not None:
                path, kind = unknown
                raise refusal(
                    "DMT108", path,
                    f"the input {path} is a {kind.__module__}.{kind.__qualname__}, whose tensors cannot be found",
                    "pass tensors, lists, tuples, dicts or dataclasses of them, or a KeyedJaggedTensor",
                )  # fmt: skip
            if fixed := _fixed_parts(leaves[position]):
                self._fixed[name] = fixed

    def _bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by the names of ``forward``'s parameters, with its defaults."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise _misfit(
                f"the batch does not fit the model: forward{self.signature} cannot be called with "
                f"{len(args)} positional argument(s) and the keywords {sorted(kwargs)}: {error}",
                "pass example_batch=(args...) or a dict whose keys are forward's parameters",
            ) from error
        bound.apply_defaults()
        return dict(bound.arguments)

    def inputs(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """Returns the graph's inputs for one call.

        Raises:
            CaptureError: the call has another structure, or another constant, than the
                one the model was captured with.
        """
        # Nothing of a call is kept here: another thread may be in a call of its own.
        bound = self._bind(args, kwargs)
        leaves, spec = _flatten(bound)
        found = leaves if spec == self._spec else self._reordered(bound)
        if found is None:
            raise _misfit(
                f"the model was captured with inputs structured as {self._spec}, this call has {spec}", _AGAIN, _CALL
            )
        leaves = found
        for position, constant in self._constants.items():
            leaf = leaves[position]
            if leaf is not constant and (type(leaf) is not type(constant) or leaf != constant):
                raise _misfit(
                    f"input {position} was the constant {constant!r} when the model was captured and is "
                    f"{leaf!r} now; constants are part of the captured program",
                    "transform the model again with this value, or make it a tensor",
                    _CALL,
                )
        for name, position in zip(self.names, self._positions, strict=True):
            if is_constant(leaves[position]):
                raise _misfit(
                    f"the input {name} was a tensor or batch object when the model was captured and is "
                    f"{leaves[position]!r} now",
                    _AGAIN,
                    _CALL,
                )
            if (fixed := self._fixed.get(name)) is not None and (now := _fixed_parts(leaves[position])) != fixed:
                changed = sorted(k for k in fixed.keys() | now.keys() if fixed.get(k, _VALUE) != now.get(k, _VALUE))
                raise _misfit(
                    f"in the input {name} {changed} were {[fixed.get(k, _VALUE) for k in changed]} when the model was "
                    f"captured and are {[now.get(k, _VALUE) for k in changed]} now; constants are part of the "
                    "captured program",
                    _AGAIN,
                    _CALL,
                )
        return [leaves[i] for i in self._positions]

    def _reordered(self, bound: dict[str, Any]) -> list[Any] | None:
        """The leaves in the captured order where only the order of dict keys differs, else ``None``."""
        try:
            leaves = self._spec.flatten_up_to(bound)
        except ValueError:
            return None
        return leaves if all(_is_leaf(leaf) for leaf in leaves) else None

    def call(self, function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        """Calls ``function`` with the user's structure rebuilt around ``inputs``."""
        values: dict[int, Any] = dict(zip(self._positions, inputs, strict=True))
        values.update(self._constants)
        arguments = pytree.tree_unflatten([values[i] for i in range(len(values))], self._spec)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name, parameter in self.signature.parameters.items():
            if name not in arguments:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                args.extend(arguments[name])
            elif parameter.kind is parameter.VAR_KEYWORD:
                kwargs.update(arguments[name])
            elif parameter.kind is parameter.KEYWORD_ONLY:
                kwargs[name] = arguments[name]
            else:
                args.append(arguments[name])
        return function(*args, **kwargs)


def _flatten(bound: dict[str, Any]) -> tuple[list[Any], pytree.TreeSpec]:
    return pytree.tree_flatten(bound, is_leaf=_is_leaf)


def _readable(path: tuple[Any, ...]) -> str:
    parts = [str(getattr(entry, "key", getattr(entry, "idx", entry))) for entry in path]
    name = "_".join(parts)
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name) or "input"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, by name: the fields of a dataclass, the items of a container."""
    if isinstance(value, dict):
        yield from ((str(key), item) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(i), item) for i, item in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for _, part in _parts(value):
        yield from _tensors(part)


def _strides(value: Any) -> Iterator[int]:
    if is_jagged(value):
        yield int(value.stride())
    for _, part in _parts(value):
        yield from _strides(part)


def _unknown_part(value: Any, path: str) -> tuple[str, type] | None:
    """Path and type of the first part whose tensors cannot be found."""
    if isinstance(value, (Tensor, *_CONSTANTS)) or is_jagged(value):
        return None
    if not isinstance(value, (dict, list, tuple)) and (not dataclasses.is_dataclass(value) or isinstance(value, type)):
        return path, type(value)
    return next((found for name, part in _parts(value) if (found := _unknown_part(part, f"{path}.{name}"))), None)


def _fixed_parts(value: Any) -> dict[str, Any]:
    """The constants inside a batch object, by path; for a jagged tensor whether it has weights."""
    if is_jagged(value):
        return {"weights": getattr(value, "weights_or_none", lambda: None)() is not None}
    fixed: dict[str, Any] = {}
    for name, part in _parts(value):
        if is_constant(part):
            fixed[name] = part
        fixed |= {f"{name}.{path}": constant for path, constant in _fixed_parts(part).items()}
    return fixed


def batch_size_of(inputs: Sequence[Any]) -> int | None:
    """The number of samples in a list of graph inputs, or ``None`` when nothing tells.

    A jagged tensor says its own; otherwise floating tensors outvote the others, since
    a list of ids may be flat.
    """
    strides = [size for value in inputs for size in _strides(value)]
    if strides:
        return strides[0]
    tensors = [t for value in inputs for t in _tensors(value) if t.dim()]
    floating = [t for t in tensors if t.is_floating_point()]
    votes = Counter(t.shape[0] for t in (floating or tensors))
    return votes.most_common(1)[0][0] if votes else None


def with_batch_size(inputs: Sequence[Any], old: int, new: int) -> list[Any]:
    """Copies of the inputs *by shape* for another batch size; the contents mean nothing.

    Capture only looks at shapes, so zeros serve. A one-dimensional integer tensor of
    ``old + 1`` entries is taken for offsets with a last entry.
    """
    return [_resize(value, old, new) for value in inputs]


def _resize(value: Any, old: int, new: int) -> Any:
    if isinstance(value, Tensor):
        return _resize_tensor(value, old, new)
    if is_jagged(value):
        keys = list(value.keys())
        weights = getattr(value, "weights_or_none", lambda: None)()
        count = len(keys) * new
        return type(value)(
            keys=keys,
            values=value.values().new_zeros(count),
            lengths=value.lengths().new_ones(count),
            weights=None if weights is None else weights.new_ones(count),
        )
    if isinstance(value, dict):
        twin = copy.copy(value)
        twin.update({key: _resize(item, old, new) for key, item in value.items()})
        return twin
    if isinstance(value, (list, tuple)):
        items = [_resize(item, old, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {f.name: _resize(getattr(value, f.name), old, new) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **changes)
    return value


def _resize_tensor(value: Tensor, old: int, new: int) -> Tensor:
    shape = list(value.shape)
    if not shape:
        return value
    if shape[0] == old:
        shape[0] = new
    elif len(shape) == 1 and shape[0] == old + 1 and not value.is_floating_point():
        shape[0] = new + 1
    elif len(shape) == 2 and shape[1] == old and not value.is_floating_point():
        shape[1] = new
    else:
        return value
    return value.new_zeros(shape)


def example_of(value: Any, module: nn.Module) -> ExampleBatch:
    """Takes what a data loader or a user hands over and makes it a call of ``module``.

    A dict whose keys are parameters of ``forward`` becomes keyword arguments; a tuple or
    list gives as many leading items as ``forward`` has positional parameters, so that a
    trailing label is left out; a single tensor or batch object is the only argument.

    Raises:
        CaptureError: nothing of it fits.
    """
    if isinstance(value, ExampleBatch):
        return value
    parameters = list(inspect.signature(module.forward).parameters.values())
    names = [p.name for p in parameters]
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    if isinstance(value, dict) and not (len(positional) == 1 and names[0] not in value):
        kept = {k: v for k, v in value.items() if k in names}
        missing = [p.name for p in required if p.name not in kept]
        if missing:
            raise _misfit(
                f"the batch has the keys {sorted(value)}, but forward{inspect.signature(module.forward)} also needs "
                f"{missing}",
                "rename the keys or pass example_batch=",
            )
        return ExampleBatch((), kept)
    if isinstance(value, (list, tuple)):
        if len(value) < len(required):
            raise _misfit(
                f"the batch has {len(value)} item(s), but forward{inspect.signature(module.forward)} needs "
                f"{len(required)}",
                "pass example_batch= with the arguments of one call",
            )
        items = tuple(value) if open_ended else tuple(value)[: max(len(required), 1)]
        return ExampleBatch(items, {})
    return ExampleBatch((value,), {})
