"""``tables_on_meta``: embedding layers without memory, and a record of how their constructor initialises them.

1. Inside the block the weight of an ``nn.Embedding`` or ``nn.EmbeddingBag`` (and of what inherits from them) is made on
   the meta device; everything else is as always.
2. Every operation that writes into such a weight, also through a view, ``.data`` or ``nn.init``, is one step of the
   table's rule (:mod:`.rules`): the part that it writes to is read off the view's place in the weight's storage.
3. What is no step of a rule is refused where it is called: on meta it would be lost without a word. Some functions of
   ``nn.init`` do nothing at all to a weight on meta: ``trunc_normal_`` is replaced while the block lasts, others are
   found by their asking whether it is on meta. ``weight[rows] = number`` is caught before the number goes to meta too.
4. At the end the rules are kept with the weights and with the layers, so that a copied or pickled model has them. What
   is done to a weight behind the block is not recorded; :func:`rule_of` finds out, and refuses it.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dmt_plugin.core.errors import TableInitError
from dmt_plugin.tables.rules import ARITHMETIC, Rectangle, Step, TableRule

LAYERS = (nn.Embedding, nn.EmbeddingBag)
_RULE, _VERSION = "_dmt_table_rule", "_dmt_table_version"
_WAYS_OUT = (
    "Do it with nn.init.normal_, uniform_, constant_, xavier, kaiming or trunc_normal_, or with numbers; or give "
    "dmt_plugin.initialize a table_init= function; or build this layer outside of tables_on_meta()"
)
_IS_META: Any = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]
_LEFT_ALONE = ("orthogonal_", "sparse_", "dirac_")
_active = threading.local()
_lock = threading.Lock()


@contextmanager
def tables_on_meta() -> Iterator[None]:
    """Build a model whose tables have no memory: ``with tables_on_meta(): model = Model()``.

    Raises:
        TableInitError: where the constructor does something to a table that cannot be recorded.
    """
    if getattr(_active, "recorder", None) is not None:  # an outer block records already
        yield
        return
    recorder = _Recorder()
    with _lock:
        _patch()
    _active.recorder = recorder
    try:
        with recorder, _Calls(recorder):
            yield
        recorder.keep()
    finally:
        _active.recorder = None
        with _lock:
            _unpatch()


def rule_of(weight: Tensor, owner: nn.Module | None, name: str) -> TableRule | None:
    """The rule that was recorded for a weight, None without one.

    Args:
        weight: on meta.
        owner: the layer that holds it; knows the rule where the weight is a copy.
        name: of the parameter, for messages.

    Raises:
        TableInitError: the weight was changed since, which it did not feel.
    """
    rule: TableRule | None = getattr(weight, _RULE, None)
    if rule is None:
        rule = None if owner is None else owner.__dict__.get(_RULE)
    elif getattr(weight, _VERSION)[0] == id(weight) and weight._version != getattr(weight, _VERSION)[1]:
        raise TableInitError(
            f"table {name} was written to after the end of tables_on_meta(): it has no memory, so that was lost. "
            "Initialise tables inside the block"
        )
    if rule is not None and (rule.rows, rule.dim) != tuple(weight.shape):
        raise TableInitError(
            f"table {name} has the shape {tuple(weight.shape)}, and was built as {(rule.rows, rule.dim)}: it was "
            "replaced after tables_on_meta(); build it again inside the block"
        )
    return rule


def record(rows: int, dim: int, init: Callable[[Tensor], Any], what: str) -> TableRule:
    """The rule of a function that initialises a table.

    Args:
        rows: of the table.
        dim: its columns.
        init: gets the weight, on meta.
        what: whose function it is, for messages.

    Raises:
        TableInitError: it does something that cannot be recorded, or leaves entries without a value.
    """
    weight = nn.Parameter(torch.empty(rows, dim, device="meta"))
    recorder = _Recorder()
    recorder.track(weight, what)
    with _lock:
        _patch()
    before, _active.recorder = getattr(_active, "recorder", None), recorder
    try:
        with recorder, _Calls(recorder), torch.no_grad():
            init(weight)
    finally:
        _active.recorder = before
        with _lock:
            _unpatch()
    rule = recorder.rule(weight)
    if not rule.complete:
        raise TableInitError(f"{what} leaves entries of the table without a value. {_WAYS_OUT}")
    return rule


class _Tracked:
    """One weight under construction."""

    def __init__(self, weight: Tensor, what: str) -> None:
        self.weight, self.what = weight, what
        rows, dim = weight.shape
        self.rule = TableRule(rows, dim, ())


class _Recorder(TorchDispatchMode):
    """Turns writes into tracked weights into steps of their rules."""

    def __init__(self) -> None:
        super().__init__()
        self._tracked: dict[int, _Tracked] = {}
        self._layers: list[tuple[nn.Module, _Tracked]] = []
        self.expected: str | None = None  # the layer whose weight is about to be made

    def track(self, weight: Tensor, what: str) -> None:
        """From now on record what is written into a weight."""
        self._tracked[_storage(weight)] = _Tracked(weight, what)

    def layer(self, module: nn.Module) -> None:
        """Note a layer whose constructor has returned."""
        found = self._tracked.get(_storage(module.weight)) if isinstance(module.weight, Tensor) else None
        if found is not None:
            self._layers.append((module, found))

    def rule(self, weight: Tensor) -> TableRule:
        """What was recorded for a weight."""
        return self._tracked[_storage(weight)].rule

    def keep(self) -> None:
        """Leave the rules with weights and layers."""
        for module, tracked in self._layers:
            weight = module.weight
            if isinstance(weight, Tensor) and weight.is_meta and _storage(weight) not in self._tracked:
                raise _refusal(tracked, "putting another tensor, computed on meta, in the place")
            if not tracked.rule.complete or not isinstance(weight, Tensor) or _storage(weight) not in self._tracked:
                continue  # the layer has another weight by now
            setattr(weight, _RULE, tracked.rule)
            setattr(weight, _VERSION, (id(weight), weight._version))  # an unpickled one counts from zero again
            module.__dict__[_RULE] = tracked.rule

    def of(self, value: Any) -> _Tracked | None:
        """The tracked weight that a tensor is part of."""
        return self._tracked.get(_storage(value)) if isinstance(value, Tensor) and value.is_meta else None

    def step(self, tracked: _Tracked, target: Tensor, what: str, numbers: tuple[float, ...]) -> None:
        """Add a step."""
        where = _rectangle(target, tracked.rule)
        if where is None:
            raise _refusal(tracked, f"{what} on a part of it that is no rectangle")
        tracked.rule = tracked.rule.then(Step(what, numbers, where))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = [value for value in _written(func, args, kwargs) if self.of(value) is not None]
        for target in written:
            tracked = self.of(target)
            assert tracked is not None
            self._write(func, tracked, target, args, kwargs)
        result = func(*args, **kwargs)
        if self.expected is not None and isinstance(result, Tensor) and result.is_meta and result.dim() == 2:
            self.track(result, self.expected)
            self.expected = None
        return result

    def _write(self, func: Any, tracked: _Tracked, target: Tensor, args: Any, kwargs: Mapping[str, Any]) -> None:
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if not args or (args[0] is not target and name in (*ARITHMETIC, "clamp")):  # out=: it reads another tensor
            raise _refusal(tracked, f"{name} with out=")
        values = _bound(func, args, kwargs)
        if name == "normal":
            self.step(tracked, target, "normal", (float(values["mean"]), float(values["std"])))
        elif name == "uniform":
            self.step(tracked, target, "uniform", (float(values["from"]), float(values["to"])))
        elif name in ("fill", "zero"):
            number = 0.0 if name == "zero" else _number(values["value"])
            if number is None:
                raise _refusal(tracked, _said(name))
            self.step(tracked, target, "constant", (number,))
        elif name == "copy":
            self._copy(tracked, target, values["src"])
        elif name == "clamp":
            for bound in ("min", "max"):
                if values.get(bound) is not None:
                    self.step(tracked, target, f"clamp_{bound}", (float(values[bound]),))
        elif name in ARITHMETIC:
            numbers = [_number(value) for key, value in values.items() if key in ("other", "min", "max")]
            scale = values.get("alpha", 1)
            if None in numbers or values.get("rounding_mode") is not None or not isinstance(scale, (int, float)):
                raise _refusal(tracked, _said(name))
            self.step(tracked, target, name, tuple(n * scale for n in numbers if n is not None))
        elif name not in ("detach", "requires_grad", "t", "transpose", "squeeze", "unsqueeze"):
            raise _refusal(tracked, _said(name))

    def _copy(self, tracked: _Tracked, target: Tensor, source: Tensor) -> None:
        number = _number(source)
        if number is not None:
            self.step(tracked, target, "constant", (number,))
            return
        where = _rectangle(target, tracked.rule)
        width = 0 if where is None else where.end_column - where.first_column
        along = target.dim() > 0 and target.shape[-1] == width and target.stride(-1) == 1  # not down a column
        if along and not source.is_meta and source.numel() == width == source.shape[-1]:
            self.step(tracked, target, "row", tuple(source.detach().reshape(-1).tolist()))
        else:
            raise _refusal(tracked, f"{_said('copy')} of values of the shape {tuple(source.shape)}")


class _Calls(TorchFunctionMode):
    """Sees what the dispatcher does not: a number that is assigned, and functions that leave a weight on meta alone."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _IS_META:
            frame = sys._getframe(1)
            name = frame.f_code.co_name
            if name in _LEFT_ALONE and frame.f_code.co_filename == inspect.getsourcefile(nn.init):
                tracked = self._recorder.of(args[0])
                if tracked is not None:
                    raise _refusal(tracked, f"nn.init.{name}")
        elif func == torch.Tensor.__setitem__ and isinstance(args[2], (int, float)):
            tracked = self._recorder.of(args[0])
            if tracked is not None:
                part = args[0][args[1]]
                if _storage(part) != _storage(args[0]):
                    raise _refusal(tracked, "index_put_")
                part.fill_(args[2])
                return None
        return func(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _written(func: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that an operation writes to."""
    found: list[Any] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found += value if isinstance(value, (list, tuple)) else [value]
    return found


def _bound(func: Any, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, with defaults."""
    arguments = func._schema.arguments
    values = {a.name: a.default_value for a in arguments if a.has_default_value()}
    return {**values, **dict(zip((a.name for a in arguments), args, strict=False)), **kwargs}


def _number(value: Any) -> float | None:
    """A number, or a tensor with one value."""
    if isinstance(value, Tensor):
        return None if value.is_meta or value.numel() != 1 else float(value)
    return float(value) if isinstance(value, (int, float)) else None


def _rectangle(view: Tensor, rule: TableRule) -> Rectangle | None:
    """The part of the table that a view of its weight shows."""
    dim = rule.dim
    sizes = [(size, stride) for size, stride in zip(view.shape, view.stride(), strict=True) if size != 1]
    row, column = divmod(int(view.storage_offset()), dim)
    rows, step, columns = 1, 1, 1
    if len(sizes) == 1 and sizes[0][1] == 1 and column == 0 and sizes[0][0] % dim == 0:  # whole rows, flattened
        return Rectangle(row, row + sizes[0][0] // dim, 1, 0, dim)
    for size, stride in sizes:
        if stride == 1 and column + size <= dim and columns == 1:
            columns = size
        elif stride and stride % dim == 0 and rows == 1:
            rows, step = size, stride // dim
        else:
            return None
    return Rectangle(row, row + (rows - 1) * step + 1, step, column, column + columns)


def _said(name: str) -> str:
    """An operation, by the name of the function of ``nn.init`` that the user called, if one did."""
    frame = sys._getframe(1)
    said = f"{name}_"
    while frame is not None:
        if frame.f_code.co_filename == inspect.getsourcefile(nn.init) and not frame.f_code.co_name.startswith("_"):
            said = f"nn.init.{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return said


def _refusal(tracked: _Tracked, what: str) -> TableInitError:
    rows, dim = tracked.weight.shape
    return TableInitError(
        f"tables_on_meta: {what} on the weight ({rows}, {dim}) of {tracked.what} cannot be recorded as a rule for its "
        f"rows. {_WAYS_OUT}"
    )


# What is replaced while a block lasts, in any thread; a thread without a block gets the stock function.
_stock: dict[tuple[Any, str], Any] = {}
_depth = 0


def _patch() -> None:
    global _depth
    _depth += 1
    if _depth > 1:
        return
    for layer in LAYERS:
        _replace(layer, "__init__", _on_meta(layer.__init__))
    _replace(nn.init, "_no_grad_trunc_normal_", _trunc_normal)


def _unpatch() -> None:
    global _depth
    _depth -= 1
    if _depth == 0:
        for (place, name), stock in _stock.items():
            setattr(place, name, stock)
        _stock.clear()


def _replace(place: Any, name: str, value: Any) -> None:
    _stock[place, name] = getattr(place, name)
    setattr(place, name, value)


def _on_meta(stock: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        recorder: _Recorder | None = getattr(_active, "recorder", None)
        bound = signature.bind(self, *args, **kwargs)
        if recorder is None or bound.arguments.get("_weight") is not None:
            stock(self, *args, **kwargs)
            return
        bound.arguments["device"] = "meta"
        recorder.expected = type(self).__name__
        try:
            stock(*bound.args, **bound.kwargs)
        finally:
            recorder.expected = None
        recorder.layer(self)

    return __init__


def _trunc_normal(tensor: Tensor, mean: float, std: float, a: float, b: float, *args: Any, **kwargs: Any) -> Tensor:
    recorder: _Recorder | None = getattr(_active, "recorder", None)
    tracked = None if recorder is None else recorder.of(tensor)
    if recorder is None or tracked is None:
        stock: Tensor = _stock[nn.init, "_no_grad_trunc_normal_"](tensor, mean, std, a, b, *args, **kwargs)
        return stock
    low, high = (math.erf((bound - mean) / std / math.sqrt(2.0)) for bound in (a, b))
    for what, numbers in (
        ("uniform", (low, high)), ("erfinv", ()), ("mul", (std * math.sqrt(2.0),)), ("add", (mean,)),
        ("clamp_min", (a,)), ("clamp_max", (b,)),
    ):  # fmt: skip
        recorder.step(tracked, tensor, what, tuple(float(number) for number in numbers))
    return tensor
