"""The user's objects in a checkpoint's files: what a pickle may hold, and how it is read without running what it says.

torch pickles ``client_state``, the states of registered objects and those of schedulers, and a pickle may name any
function of any module. Here it is read by torch's restricted unpickler (``torch.load(weights_only=True)``):

1. Tensors, numbers, text, lists, tuples, dicts, sets, and the few classes of Python in :data:`_ALLOWED` are taken.
2. Arrays and numbers of numpy are taken as bytes with shape and type, and made here: numpy's own way trusts what a file
   says of their memory. Deques and default dicts, which torch does not fill, are made here as well.
3. Classes of the user's are taken if ``dmt.checkpoint.classes`` names them, or the script has given them to
   ``torch.serialization.add_safe_globals``.

What is saved is read back in the same way before a checkpoint is begun, so that nothing is saved that no load takes.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import io
import pathlib
import pickle
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.core.user_code import load_factory

KEY = "dmt.checkpoint.classes"
"""The key of the configuration that names classes of the user's."""
_ALLOWED: tuple[type, ...] = (
    bytes, list, dict, tuple, int, float, str, bool, frozenset, range, slice,
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone, decimal.Decimal,
    fractions.Fraction, pathlib.PurePosixPath, pathlib.PosixPath, argparse.Namespace, types.SimpleNamespace,
)  # fmt: skip
"""Classes of Python's that hold values, and do nothing when they are made."""
_PLAIN_TYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[US][0-9]{1,9})")
_LOCK = RLock()


class UserObjects:
    """What may be in a checkpoint's pickled files.

    Args:
        classes: what ``dmt.checkpoint.classes`` has: ``"package.module:Class"``.

    Raises:
        ConfigError: one cannot be imported.
    """

    def __init__(self, classes: Sequence[str] = ()) -> None:
        self._named: dict[str, Any] = {}
        for spec in classes:
            found = load_factory(spec, KEY)
            for name in (spec.replace(":", "."), f"{found.__module__}.{getattr(found, '__qualname__', '')}"):
                self._named[name] = found
        self._own = tuple(value for value in self._named.values() if isinstance(value, type))

    def read(self, path: Path) -> Any:
        """What a file holds.

        Raises:
            CheckpointError: it holds something that is not taken, and was not run; or is no such file.
        """
        try:
            with path.open("rb") as stream:
                return self._load(stream)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
        except Exception as error:  # what a damaged file raises is anything
            names = self._refused(path)
            if names:
                raise CheckpointError(
                    f"{path} holds objects of {_listed(names)}, which are not taken from a checkpoint; nothing of it "
                    f"was run. If they are yours, and you trust where the checkpoint comes from: {_way_out(names)}"
                ) from error
            raise CheckpointError(
                f"{path} is not read by torch.load(weights_only=True): {_first_line(error)}; nothing of it was run. It "
                "has changed since it was saved, or comes from elsewhere: load another checkpoint"
            ) from error

    def check(self, content: Mapping[str, Any], what: str) -> None:
        """Whether what is about to be saved can be read again.

        Args:
            content: values by the names that the user knows.
            what: what they are, such as ``"client_state"``.

        Raises:
            CheckpointError: naming the first value that cannot, its class, and what to do.
        """
        for key, value in content.items():
            stream = io.BytesIO()
            place = f"{what}[{key!r}]"
            try:
                torch.save({key: value}, stream)
            except Exception as error:  # what a class of the user's raises is anything
                raise CheckpointError(
                    f"{place}, a {type(value).__name__}, cannot be saved: {type(error).__name__}: {error}. Keep plain "
                    "values there: numbers, text, lists, dicts, tensors"
                ) from error
            stream.seek(0)
            try:
                self._load(stream)
            except Exception as error:  # as above
                stream.seek(0)
                names = self._refused(stream)
                found = f"objects of {_listed(names)}" if names else f"what no load takes: {_first_line(error)}"
                raise CheckpointError(
                    f"{place} holds {found}; a load would refuse them, as a pickle of any class can run anything, so "
                    "nothing is saved. Keep plain values there (numbers, text, lists, dicts, tensors, arrays)"
                    + (f", or {_way_out(names)}" if names else "")
                ) from error

    def _load(self, stream: BinaryIO) -> Any:
        made = _Finished(self._own)
        with self._allowed(made):
            found = torch.load(cast(Any, stream), map_location="cpu", weights_only=True)
        return made.of(found)

    def _refused(self, source: Path | BinaryIO) -> list[str]:
        """Names in a file that are not taken; none if the file cannot be followed."""
        try:
            with self._allowed(_Finished()):
                return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(cast(Any, source)))
        except Exception:  # the error of reading it is the one to be told
            return []

    @contextmanager
    def _allowed(self, made: _Finished) -> Iterator[None]:
        """torch's list of what a pickle may name, which belongs to the process, is ours in the block."""
        serialization = torch.serialization
        plain = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in _ALLOWED}
        named = {**self._named, **plain, **_NUMPY, **made.containers}
        with _LOCK:
            before = serialization.get_safe_globals()
            scripts = [entry for entry in before if _name_of(entry) not in named]
            serialization.clear_safe_globals()
            serialization.add_safe_globals([*scripts, *((value, name) for name, value in named.items())])
            try:
                yield
            finally:
                serialization.clear_safe_globals()
                serialization.add_safe_globals(before)


class _Type:
    """Stands for a type of numpy's: numbers and text only."""

    def __init__(self, name: str, *_: Any) -> None:
        if not isinstance(name, str) or not _PLAIN_TYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"an array of the type {name!r}: only those of numbers and text are taken")
        self.type = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"an array has the order of bytes {order!r}")
        self.type = self.type.newbyteorder(order)


class _Array:
    """Stands for an array until the whole file is read."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, data = state
        self.value = _array(kind, data).reshape(shape, order="F" if by_columns else "C").copy(order="K")


class _Marker:
    """Stands for ``numpy.ndarray``, which only :func:`_array_of` may be given."""


def _array(kind: Any, data: Any) -> Any:
    if not isinstance(kind, _Type) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("an array that is not made of bytes")
    return np.frombuffer(data, kind.type) if kind.type.itemsize else np.zeros(0, kind.type)


def _array_of(kind: Any, *_: Any) -> _Array:
    if kind is not _Marker:
        raise pickle.UnpicklingError("an array of a class of its own")
    return _Array()


def _number(kind: Any, data: Any) -> Any:
    return _array(kind, data)[0]


_NUMPY: dict[str, Any] = {
    "numpy.dtype": _Type,
    "numpy.ndarray": _Marker,
    **{f"numpy.{core}.multiarray._reconstruct": _array_of for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _number for core in ("core", "_core")},
    f"{__name__}._Array": _Array,
}


class _Finished:
    """Puts arrays, deques and default dicts in the place of what stands for them while one file is read.

    Looks into containers and objects of the named classes.

    Attributes:
        containers: what makes a list or dict for a deque or a default dict, by the name that a pickle has.
    """

    def __init__(self, own: tuple[type, ...] = ()) -> None:
        self._holders = (argparse.Namespace, types.SimpleNamespace, *own)
        self._done: dict[int, Any] = {}
        self._made: dict[int, tuple[Any, Any]] = {}
        self.containers = {"collections.deque": self._deque, "collections.defaultdict": self._default_dict}

    def _deque(self, items: Any = (), most: int | None = None) -> list[Any]:
        found = list(items)
        self._made[id(found)] = (found, collections.deque(maxlen=most))
        return found

    def _default_dict(self, factory: Any = None) -> dict[Any, Any]:
        if factory is not None and factory not in (*_ALLOWED, set):
            raise pickle.UnpicklingError(f"a default dict whose values are made by {factory!r}")
        found: dict[Any, Any] = {}
        self._made[id(found)] = (found, collections.defaultdict(factory))
        return found

    def of(self, value: Any) -> Any:
        """The value, finished; containers and objects are changed in place."""
        if isinstance(value, _Array):
            if value.value is None:
                raise pickle.UnpicklingError("an array without content")
            return value.value
        if isinstance(value, (_Type, _Marker)) or value is _Marker:
            raise pickle.UnpicklingError("a type of numpy's that belongs to no array")
        if id(value) in self._done:
            return self._done[id(value)]
        if isinstance(value, (dict, list, tuple)):
            return self._container(value)
        if isinstance(value, self._holders) and hasattr(value, "__dict__"):
            self._done[id(value)] = value
            self._fill(value.__dict__)
        return value

    def _container(self, value: Any) -> Any:
        _, other = self._made.get(id(value), (None, value))
        self._done[id(value)] = other
        if isinstance(value, dict):
            self._fill(value)
            if other is not value:
                other.update(value)
        elif other is not value:
            other.extend(self.of(item) for item in value)
        elif isinstance(value, list):
            value[:] = [self.of(item) for item in value]
        else:
            items = [self.of(item) for item in value]
            if any(one is not other for one, other in zip(items, value, strict=True)):
                make: Callable[[Any], Any] = getattr(type(value), "_make", type(value))
                self._done[id(value)] = make(items)
        return self._done[id(value)]

    def _fill(self, values: dict[Any, Any]) -> None:
        for key, item in values.items():
            values[key] = self.of(item)


def _name_of(entry: Any) -> str:
    return str(entry[1]) if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _way_out(names: Sequence[str]) -> str:
    shown = ", ".join(f'"{module}:{name}"' for module, _, name in (name.rpartition(".") for name in names[:5]))
    return f'name them in the configuration, "dmt": {{"checkpoint": {{"classes": [{shown}]}}}}'


def _first_line(error: BaseException) -> str:
    """What went wrong, without torch's advice to switch the guard off."""
    text = str(error)
    cause = error.__cause__ or error.__context__
    if "weights_only" in text and cause is not None:
        text = str(cause)
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no more is known'}"
