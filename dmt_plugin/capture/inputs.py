"""How a model is called: from the user's arguments to a flat list of graph inputs and back.

A model's forward may take tensors, nested lists, tuples and dicts of them, and objects
such as a ``KeyedJaggedTensor`` or a dataclass batch. The graph behind it takes a flat
list. :class:`InputBinder` is the bridge:

1. bind the call to ``forward``'s signature and apply its defaults;
2. flatten the built-in containers; anything else is one leaf;
3. leaves that are plain constants (``None``, numbers, strings) are part of the captured
   program: a later call with another constant is refused, not ignored;
4. the other leaves are the graph's inputs, in order;
5. once the model was traced, what its forward never read (:mod:`dmt_plugin.capture.reads`) is neither an input nor
   asked of later calls.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from dmt_plugin.capture.batch_parts import (
    KEYS,
    LENGTH,
    WEIGHTS,
    WIDTHS,
    Path,
    fixed_parts,
    is_constant,
    is_jagged,
    is_known,
    is_own_container,
    jagged_parts,
    parts,
)
from dmt_plugin.capture.keyed_tensors import is_keyed
from dmt_plugin.capture.misfits import (
    AGAIN,
    CALL,
    Described,
    KeysRead,
    check_fixed,
    check_sizes,
    described,
    misfit,
    other_kind,
)
from dmt_plugin.capture.reads import Reads, parameters_read, watched
from dmt_plugin.capture.structure import Constant, Input, Items, Keys, Structure, find_inputs, leaf_paths, without


@dataclasses.dataclass(frozen=True)
class ExampleBatch:
    """One call of the model: the arguments of ``forward``.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


def _is_leaf(value: Any) -> bool:
    return not isinstance(value, (list, tuple, dict))


class InputBinder:
    """Maps calls of one model to the flat inputs of its graph.

    Args:
        forward: the bound ``forward`` of the user's model.
        example: a call that works.

    Attributes:
        names: a readable name for each graph input, in order.
        samples: the number of samples in ``example``; ``None`` until it is captured.

    Raises:
        CaptureError: if ``example`` does not fit the signature of ``forward``.
    """

    def __init__(self, forward: Callable[..., Any], example: ExampleBatch) -> None:
        signature = inspect.signature(forward)
        # Annotations may name types that cannot be pickled, and say nothing about a call.
        plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        self.signature = signature.replace(parameters=plain, return_annotation=signature.empty)
        self.samples: int | None = None
        bound = self._bind(example.args, example.kwargs, "the example batch does not fit the model")
        leaves, self._spec = pytree.tree_flatten(bound, is_leaf=_is_leaf)
        self._leaves: list[Constant | None] = [Constant(leaf) if is_constant(leaf) else None for leaf in leaves]
        self._structure = _structure(pytree.tree_unflatten(_numbered(leaves), self._spec))
        self._paths = leaf_paths(self._structure)
        self.names = _readable(self._paths)
        inputs = find_inputs(self._structure, bound)
        self._unknown = {i: found for i, value in enumerate(inputs) if (found := list(_unknown(value)))}
        self._fixed = {n: fixed_parts(v) for n, v in zip(self.names, inputs, strict=True) if not isinstance(v, Tensor)}
        self._keys: dict[str, dict[Path, KeysRead]] = {}
        self._sizes: dict[str, dict[Path, tuple[int | None, ...]]] = {}
        self._described = {n: described(v) for n, v in zip(self.names, inputs, strict=True)}
        self._reads: Reads | None = None
        self._parameters_read = parameters_read(forward)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_structure" not in state:  # as version 0.1.0 pickled it
            leaves: list[Constant | None] = [None] * state["_spec"].num_leaves
            for place, constant in state["_constants"].items():
                leaves[place] = Constant(constant)
            count = iter(range(len(leaves)))
            numbered = [leaf if leaf is not None else Input(next(count)) for leaf in leaves]
            self._structure = _structure(pytree.tree_unflatten(numbered, state["_spec"]))
            self._paths = leaf_paths(self._structure)
            self._fixed = {n: {_path_of(p): v for p, v in f.items()} for n, f in state["_fixed"].items()}
            self._described, self._unknown, self._leaves, self._reads, self.samples = {}, {}, leaves, None, None
            self._keys, self._sizes = {}, {}

    def _bind(self, args: Sequence[Any], kwargs: dict[str, Any], summary: str = CALL) -> dict[str, Any]:
        """The arguments of a call by the names of ``forward``'s parameters, with its defaults."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise misfit(
                f"the batch does not fit the model: forward{self.signature} cannot be called with "
                f"{len(args)} positional argument(s) and the keywords {sorted(kwargs)}: {error}",
                "pass example_batch=(args...) or a dict whose keys are forward's parameters"
                if summary != CALL
                else "call it with the arguments of forward",
                summary,
            ) from error
        bound.apply_defaults()
        return dict(bound.arguments)

    def inputs(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """Returns the graph's inputs for one call.

        Raises:
            CaptureError: the call has another structure, or another constant, than the
                one the model was captured with, in what the model reads.
        """
        # Nothing of a call is kept here: another thread may be in a call of its own.
        found = find_inputs(self._structure, self._bind(args, kwargs))
        for name, value in zip(self.names, found, strict=True):
            fixed = self._fixed.get(name)
            if fixed is not None:
                before, now = (self._of_those_read(name, own) for own in (fixed, fixed_parts(value)))
                check_fixed(name, before, now, value)
                self._check_keys(name, value)
            elif is_keyed(value) or is_jagged(value):
                raise other_kind(name, "a tensor", value)
            if name in self._sizes:
                check_sizes(name, self._sizes[name], self._described[name], described(value))
        return found

    def _check_keys(self, name: str, value: Any) -> None:
        """Looks for what the model reads of jagged tensors by the names or the places of their keys."""
        needed = self._keys.get(name, {})
        for path, jagged in jagged_parts(value) if needed else ():
            if path in needed and (why := needed[path].misfit(list(jagged.keys()))):
                raise misfit(f"the input {'.'.join(map(str, (name, *path)))} {why}", AGAIN, CALL)

    def _of_those_read(self, name: str, fixed: dict[Path, Any]) -> dict[Path, Any]:
        """The constants of a batch object that forward reads."""
        reads = self._reads
        if reads is None:  # a model that an earlier version pickled does not know of containers
            return {path: v for path, v in fixed.items() if path[-1] != LENGTH and not isinstance(v, frozenset)}
        found = {}
        for path, value in fixed.items():
            owner = (name, *path[:-1])
            if path[-1] == LENGTH or isinstance(value, frozenset):
                if reads.all_is_read(owner):
                    found[path] = value
                elif isinstance(value, frozenset) and (asked := reads.asked_of(owner)):
                    found[path] = value & asked
            elif reads.field_is_read((name, *path)) or (
                path[-1] in (WEIGHTS, KEYS, WIDTHS) and (len(path) == 1 or reads.field_is_read(owner))
            ):
                found[path] = value
        return found

    def differences(self, inputs: Sequence[Any]) -> list[tuple[str, Described, Described]]:
        """Tensors of a call that are others than in the example batch: name, there, here."""
        found = []
        for name, value in zip(self.names, inputs, strict=True):
            before, now = self._described.get(name, {}), described(value)
            for path in before.keys() & now.keys():
                if not now[path].like(before[path]):
                    found.append((".".join([name, *map(str, path)]), before[path], now[path]))
        return sorted(found, key=lambda entry: entry[0])

    # -- while the model is traced -----------------------------------------------------

    def call(self, function: Callable[..., Any], inputs: Sequence[Any], reads: Reads | None = None) -> Any:
        """Calls ``function`` with the user's structure rebuilt around ``inputs``.

        Args:
            function: takes the arguments of the user's ``forward``.
            inputs: one value per graph input.
            reads: where it is noted what ``function`` reads of them.
        """
        rest = iter(inputs)
        values = [next(rest) if leaf is None else leaf.value for leaf in self._leaves]
        arguments = pytree.tree_unflatten(values, self._spec)
        if reads is not None:
            arguments = {name: watched(value, reads, (name,)) for name, value in arguments.items()}
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

    def unknown_read(self, reads: Reads) -> list[tuple[str, type]]:
        """Name and type of each part that forward reads and whose tensors cannot be found."""
        kept = set(leaf_paths(self._kept(reads)))
        return [
            (".".join([self.names[i], *map(str, path)]), kind)
            for i, found in self._unknown.items()
            for path, kind in found
            if self._paths[i] in kept and (not path or reads.field_is_read((self.names[i], *path)))
        ]

    def forget_unread(self, reads: Reads) -> list[int]:
        """Takes away the inputs and constants that forward never read.

        Returns:
            The places of the inputs that are left, among those before.
        """
        structure = self._kept(reads)
        left = [self._paths.index(path) for path in leaf_paths(structure)]
        self._structure = _renumbered(structure, {place: i for i, place in enumerate(left)})
        self.names, self._paths = [self.names[i] for i in left], [self._paths[i] for i in left]
        self._reads = reads
        fixed = {name: self._of_those_read(name, self._fixed[name]) for name in self.names if name in self._fixed}
        self._fixed = fixed
        self._described = {name: self._described[name] for name in self.names}
        self._leaves, self._unknown = [], {}
        return left

    def note_keys(self, read: Mapping[Path, KeysRead]) -> None:
        """Keeps what the model needs of the keys of jagged tensors, by path, to check later calls for it."""
        self._keys = {name: {} for name, *_ in read}
        for (name, *path), needed in read.items():
            self._keys[name][tuple(path)] = needed

    def note_sizes(self, told: Mapping[str, Any]) -> None:
        """Keeps the sizes that Python was told while the model was traced, to check later calls for them.

        Args:
            told: by name the inputs whose sizes it was told, at another number of samples, which tells what follows it.
        """
        for name, value in told.items():
            before, other = self._described[name], described(value)
            self._sizes[name] = {
                path: tuple(a if a == b else None for a, b in zip(own.shape, other[path].shape, strict=True))
                for path, own in before.items()
                if len(own.shape) > 1
            }

    def _kept(self, reads: Reads) -> Structure:
        return without(self._structure, reads, self._parameters_read)


def _path_of(text: str) -> Path:
    """A path as version 0.1.0 wrote it."""
    head, _, last = text.rpartition(".")
    return (*(int(p) if p.isdigit() else p for p in head.split(".") if p), WEIGHTS if last == "weights" else last)


def _numbered(leaves: Sequence[Any]) -> list[Constant | Input]:
    """For each leaf the constant, or the number of the graph's input."""
    found: list[Constant | Input] = []
    for leaf in leaves:
        number = sum(isinstance(entry, Input) for entry in found)
        found.append(Constant(leaf) if is_constant(leaf) else Input(number))
    return found


def _structure(value: Any) -> Structure:
    if isinstance(value, (Constant, Input)):
        return value
    if isinstance(value, dict):
        return Keys({key: _structure(item) for key, item in value.items()})
    return Items(type(value).__name__, tuple(_structure(item) for item in value))


def _renumbered(structure: Structure, numbers: dict[int, int]) -> Structure:
    if isinstance(structure, Input):
        return Input(numbers[structure.number])
    if isinstance(structure, Keys):
        items = {key: _renumbered(item, numbers) for key, item in structure.items.items()}
        return dataclasses.replace(structure, items=items)
    if isinstance(structure, Items):
        return Items(structure.kind, tuple(_renumbered(item, numbers) for item in structure.items))
    return structure


def _readable(paths: Sequence[Path]) -> list[str]:
    """A name for each path, which Python takes for the name of an argument; no two are the same."""
    names: list[str] = []
    for path in paths:
        name = "".join(c if f"_{c}".isidentifier() else "_" for c in "_".join(map(str, path))) or "input"
        count = sum(1 for other in names if other == name)
        while count and f"{name}_{count}" in names:
            count += 1
        names.append(f"{name}_{count}" if count else name)
    return names


def _unknown(value: Any, path: Path = ()) -> Iterator[tuple[Path, type]]:
    """Path and type of each part whose tensors cannot be found."""
    if not is_known(value) or is_own_container(value):
        yield path, type(value)
    elif not is_constant(value):
        for name, part in parts(value):
            yield from _unknown(part, (*path, name))
