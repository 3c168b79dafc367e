"""Which parts of a batch a model's forward reads, so that all others may be anything, and may change.

A batch often holds more than the model needs: request ids, names, step numbers, labels. While a model is traced:

1. a dict among the arguments is a :class:`WatchedDict`, which notes the keys that are asked for, and whether somebody
   goes through all of them;
2. reads of the fields of a batch object are noted by its proxy (:mod:`dmt_plugin.capture.proxies`);
3. an argument whose name the code of forward never reads is not read.

What is not certain counts as read.
"""

from __future__ import annotations

import builtins
import dis
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.utils._pytree as pytree

from dmt_plugin.capture.batch_parts import Path

_SEES_ALL = {"locals", "vars", "eval", "exec", "dir"}
_WRITES = ("STORE_", "DELETE_", "MAKE_CELL", "COPY_FREE_VARS")
_READS_TOO = "LOAD_"
"""In the name of an instruction of two steps, of which the first writes: ``STORE_FAST_LOAD_FAST``."""


@dataclass
class Reads:
    """What was read.

    Attributes:
        asked: for each watched dict, by path, the keys that were asked for, present or not.
        whole: paths of dicts whose keys all matter.
        fields: paths of fields and items of batch objects that were read; the first entry is the graph input's name.
        whole_fields: paths of containers in batch objects of which everything may have been read.
        sizes: names of the graph's inputs whose sizes Python was told, for a loop or a branch.
    """

    asked: dict[Path, set[Any]] = field(default_factory=dict)
    whole: set[Path] = field(default_factory=set)
    fields: set[Path] = field(default_factory=set)
    whole_fields: set[Path] = field(default_factory=set)
    sizes: set[str] = field(default_factory=set)

    def and_of(self, other: Reads) -> Reads:
        """What was read in this or in another trace."""
        asked = {path: keys | other.asked.get(path, set()) for path, keys in {**other.asked, **self.asked}.items()}
        whole_fields = self.whole_fields | other.whole_fields
        sizes = self.sizes | other.sizes
        return Reads(asked, self.whole | other.whole, self.fields | other.fields, whole_fields, sizes)

    def field_is_read(self, path: Path) -> bool:
        """Whether a part of a batch object was read: itself, or a container around it as a whole."""
        return path in self.fields or self.all_is_read(path)

    def asked_of(self, path: Path) -> set[Any]:
        """The fields or keys of a batch object, or of a container in it, that were asked for."""
        return {read[-1] for read in self.fields if read[:-1] == path}

    def all_is_read(self, path: Path) -> bool:
        """Whether everything in a container of a batch object may have been read, or in one around it."""
        return any(path[:n] in self.whole_fields for n in range(len(path) + 1))


def parameters_read(forward: Callable[..., Any]) -> set[str] | None:
    """Names of the parameters that the code of ``forward`` reads; ``None`` if that is not certain."""
    function = getattr(forward, "__func__", forward)
    if not inspect.isfunction(function) or hasattr(function, "__wrapped__"):
        return None
    code = function.__code__
    if _SEES_ALL & set(code.co_names):
        return None
    found: set[str] = set()
    for step in dis.get_instructions(code):
        if step.opname.startswith(_WRITES) and _READS_TOO not in step.opname:
            continue
        names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
        found.update(name for name in names if isinstance(name, str))
    return found & {*code.co_varnames, *code.co_cellvars}


def watched(value: Any, reads: Reads, path: Path = ()) -> Any:
    """The same containers, with a :class:`WatchedDict` in place of each dict."""
    if type(value) in (list, tuple):
        return type(value)(watched(item, reads, (*path, i)) for i, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    items = {key: watched(item, reads, (*path, key)) for key, item in value.items()}
    reads.asked.setdefault(path, set())
    if type(value) is dict:
        return WatchedDict(items, reads, path)
    reads.whole.add(path)  # one of a class of its own, whose methods are not known here
    twin = value.copy()
    twin.update(items)
    return twin


class WatchedDict(dict[Any, Any]):
    """A dict that notes what is read of it.

    Args:
        items: what it holds.
        reads: where that is noted.
        path: its path.
    """

    def __init__(self, items: dict[Any, Any], reads: Reads, path: Path) -> None:
        super().__init__(items)
        self._reads, self._path = reads, path

    def _ask(self, key: Any) -> None:
        self._reads.asked[self._path].add(key)

    def _all(self) -> None:
        self._reads.whole.add(self._path)

    def __getitem__(self, key: Any) -> Any:
        self._ask(key)
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        """As of a dict."""
        self._ask(key)
        return super().get(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        """As of a dict."""
        self._ask(key)
        return super().pop(key, *default)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """As of a dict."""
        self._ask(key)
        return super().setdefault(key, default)

    def __contains__(self, key: Any) -> bool:
        self._ask(key)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[Any]:
        self._all()
        return super().__iter__()

    def __len__(self) -> int:
        self._all()
        return super().__len__()

    def __reversed__(self) -> Iterator[Any]:
        self._all()
        return super().__reversed__()

    def __eq__(self, other: object) -> bool:
        self._all()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        self._all()
        return super().__ne__(other)

    __hash__ = None

    def __or__(self, other: Any) -> Any:
        self._all()
        return super().__or__(other)

    def __ror__(self, other: Any) -> Any:
        self._all()
        return super().__ror__(other)

    def keys(self) -> Any:
        """As of a dict."""
        self._all()
        return super().keys()

    def values(self) -> Any:
        """As of a dict."""
        self._all()
        return super().values()

    def items(self) -> Any:
        """As of a dict."""
        self._all()
        return super().items()

    def copy(self) -> builtins.dict[Any, Any]:
        """As of a dict."""
        self._all()
        return dict(super().items())

    def popitem(self) -> tuple[Any, Any]:
        """As of a dict."""
        self._all()
        return super().popitem()


def _flat_dict(value: WatchedDict) -> tuple[list[Any], list[Any]]:
    items = dict(value.items())
    return list(items.values()), list(items)


def _dict_of(values: Iterable[Any], keys: list[Any]) -> dict[Any, Any]:
    return dict(zip(keys, values, strict=True))


pytree.register_pytree_node(WatchedDict, _flat_dict, _dict_of)  # a forward may map a function over its batch
