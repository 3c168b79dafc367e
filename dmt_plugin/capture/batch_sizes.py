"""The number of samples of a batch, and the same batch by shape with another number of samples.

1. Jagged and keyed tensors say how many samples they have.
2. Flat ids, their weights, offsets and lengths do not have one entry per sample: what each of them is for is read off
   the model, which is traced once on the example batch as it is (:func:`uses_of`). The bags of an embedding bag, and
   the samples of a ``KeyedJaggedTensor`` that forward makes, are the samples.
3. Otherwise tensors of two or more dimensions have a row per sample, floating ones first; a list of ids may be flat.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, fx, nn

from dmt_plugin.capture.batch_parts import Path, has_fields, is_jagged, parts, said_sizes, tensors
from dmt_plugin.capture.jagged import resized
from dmt_plugin.capture.keyed_tensors import is_keyed
from dmt_plugin.capture.leaves import is_bag_collection
from dmt_plugin.fxtools.arguments import arguments


@dataclass(frozen=True)
class Use:
    """What a flat tensor of the batch is for.

    Attributes:
        kind: ``"flat"``: an entry per id, of which samples have any number; ``"counted"``: entries per sample.
        times: of a counted one: entries per sample.
        more: of a counted one: entries besides (the end of the last bag).
    """

    kind: Literal["flat", "counted"]
    times: int = 1
    more: int = 0


@dataclass(frozen=True)
class Uses:
    """What a trace of the example batch tells.

    Attributes:
        samples: the number of samples; ``None`` if nothing tells.
        of: by path: the name of the graph input, then fields.
    """

    samples: int | None
    of: Mapping[Path, Use]


def batch_size_of(inputs: Sequence[Any]) -> int | None:
    """The number of samples in a list of graph inputs by their shapes alone, or ``None`` when nothing tells."""
    sizes = [size for value in inputs for size in said_sizes(value)]
    if sizes:
        return sizes[0]
    found = [t for value in inputs for t in tensors(value) if t.dim()]
    wide = [t for t in found if t.dim() > 1]
    for some in ([t for t in wide if t.is_floating_point()], wide, [t for t in found if t.is_floating_point()], found):
        if some:
            return Counter(t.shape[0] for t in some).most_common(1)[0][0]
    return None


def shapes_tell(inputs: Sequence[Any]) -> bool:
    """Whether shapes alone say which dimensions are the samples: no list of ids, offsets or lengths is among them."""
    if any(True for value in inputs for _ in said_sizes(value)):
        return not any(_may_be_flat(t) for value in inputs for t in tensors(value))
    found = [t for value in inputs for t in tensors(value) if t.dim()]
    agree = len({t.shape[0] for t in found}) == 1 and any(t.dim() > 1 for t in found)
    return agree or not any(map(_may_be_flat, found))


def _may_be_flat(value: Tensor) -> bool:
    return value.dim() == 1 and not value.is_floating_point()


# -- what tensors are for --------------------------------------------------------------


def uses_of(graph: fx.Graph, model: nn.Module) -> Uses:
    """What the flat tensors of a batch are for, from a trace of ``model`` on it."""
    samples: Counter[int] = Counter()
    found: dict[Path, Use] = {}
    for node in graph.nodes:
        for value, use, size in [*_bags(node, model), *_jagged(node), *_sequences(node)]:
            samples[size] += 1
            path = _origin(value)
            if path is not None and isinstance(use, Use):
                found.setdefault(path, use)
    return Uses(samples.most_common(1)[0][0] if samples else None, found)


def _bags(node: fx.Node, model: nn.Module) -> Iterator[tuple[Any, Use | None, int]]:
    """What the flat inputs of an embedding bag are for, with the number of its bags."""
    if node.op == "call_module":
        layer = model.get_submodule(str(node.target))
        if is_bag_collection(layer):
            (features,) = [*node.args, *node.kwargs.values()]
            if isinstance(features, fx.Node) and is_jagged(features.meta.get("val")):
                yield features, None, int(features.meta["val"].stride())
        if not isinstance(layer, nn.EmbeddingBag):
            return
        given = arguments(node, "input", "offsets", "per_sample_weights")
    elif node.target is F.embedding_bag:
        given = arguments(
            node, "input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse",
            "per_sample_weights",
        )  # fmt: skip
    else:
        return
    offsets = given.get("offsets")
    if not isinstance(offsets, fx.Node):
        return
    bags = int(node.meta["val"].shape[0])
    yield offsets, Use("counted", 1, offsets.meta["val"].numel() - bags), bags
    yield given["input"], Use("flat"), bags
    if isinstance(given.get("per_sample_weights"), fx.Node):
        yield given["per_sample_weights"], Use("flat"), bags


def _jagged(node: fx.Node) -> Iterator[tuple[Any, Use | None, int]]:
    """What a jagged tensor is made of that forward makes."""
    value: Any = node.meta.get("val")
    if node.op != "call_function" or not isinstance(node.target, type) or not is_jagged(value):
        return
    given = arguments(node, "keys", "values", "weights", "lengths", "offsets")
    samples, keys = int(value.stride()), len(value.keys())
    for name, use in {
        "values": Use("flat"),
        "weights": Use("flat"),
        "lengths": Use("counted", keys),
        "offsets": Use("counted", keys, 1),
    }.items():
        if isinstance(given.get(name), fx.Node):
            yield given[name], use, samples


_OVER_SEQUENCES = ("jagged_to_padded_dense", "jagged_dense_elementwise_add", "jagged_dense_elementwise_mul")


def _sequences(node: fx.Node) -> Iterator[tuple[Any, Use | None, int]]:
    """What FBGEMM's operations on sequences read: rows, one behind the other, and the ends of the samples' own."""
    if getattr(node.target, "__name__", "") not in _OVER_SEQUENCES or len(node.args) < 2:
        return
    rows, ends = node.args[:2]
    if not isinstance(rows, fx.Node) or not isinstance(ends, (list, tuple)) or len(ends) != 1:
        return
    samples = ends[0].meta["val"].numel() - 1  # type: ignore[union-attr]
    for value in _behind(ends[0], (samples, samples + 1)):
        yield value, Use("counted", 1, value.meta["val"].numel() - samples), samples
    for value in _behind(rows, (rows.meta["val"].shape[0],)):
        yield value, Use("flat"), samples


def _behind(node: Any, sizes: Sequence[int]) -> Iterator[fx.Node]:
    """The inputs, of one of these sizes in front, that a value is computed from by values of such sizes."""
    pending, seen = [node], {node}
    while pending:
        found = pending.pop()
        value = found.meta.get("val")
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] not in sizes:
            continue
        if _origin(found) is not None and value.dim() == 1:
            yield found
            continue
        fresh = [source for source in found.all_input_nodes if source not in seen]
        seen.update(fresh)
        pending.extend(fresh)


def _origin(node: Any) -> Path | None:
    """Where in the batch a tensor comes from, or the matrix that it is a row of; ``None`` where its values changed."""
    path: Path = ()
    while isinstance(node, fx.Node):
        if node.op == "placeholder":
            return (str(node.target), *path)
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return None
        mine, before = node.meta.get("val"), source.meta.get("val")
        if isinstance(before, Tensor):
            row = node.target is operator.getitem and before.dim() == 2 and isinstance(node.args[1], int)
            if not isinstance(mine, Tensor) or node.op == "call_module" or not (row or mine.numel() == before.numel()):
                return None
            if len(node.all_input_nodes) != 1 or node.target in ("t", "transpose", "permute"):
                return None
        elif len(node.args) == 2:
            path = (node.args[1], *path)  # a field or an item of a batch object
        else:
            return None
        node = source
    return None


# -- another number of samples ---------------------------------------------------------


def with_batch_size(
    inputs: Sequence[Any], old: int, new: int, names: Sequence[str] = (), uses: Mapping[Path, Use] | None = None
) -> list[Any]:
    """Copies of the inputs *by shape* for another batch size; the contents mean nothing.

    Capture only looks at shapes, so zeros serve. A one-dimensional integer tensor of ``old + 1`` entries is taken for
    offsets with a last entry, if its use is not known.

    Args:
        inputs: the graph's inputs.
        old: their number of samples.
        new: the wanted number.
        names: name of each.
        uses: what is known of the flat ones.
    """
    own = names or [""] * len(inputs)
    return [_resize(value, old, new, (name,), uses or {}) for name, value in zip(own, inputs, strict=True)]


def _resize(value: Any, old: int, new: int, path: Path, uses: Mapping[Path, Use]) -> Any:
    if isinstance(value, Tensor):
        return _resize_tensor(value, old, new, uses.get(path))
    if is_jagged(value):
        return resized(value, int(value.stride()) * new // old)
    if is_keyed(value):
        shape = list(value.values().shape)
        shape[1 - value.key_dim()] = new
        values = value.values().new_zeros(shape)
        return type(value)(list(value.keys()), list(value.length_per_key()), values, value.key_dim())
    own = {name: _resize(item, old, new, (*path, name), uses) for name, item in parts(value)}
    if isinstance(value, dict):
        twin = copy.copy(value)
        twin.update(own)
        return twin
    if isinstance(value, (list, tuple)):
        items = list(own.values())
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if has_fields(value):
        return dataclasses.replace(value, **{f.name: own[f.name] for f in dataclasses.fields(value) if f.init})
    return value


def _resize_tensor(value: Tensor, old: int, new: int, use: Use | None) -> Tensor:
    shape = list(value.shape)
    if not shape or (use is not None and use.kind == "flat"):
        return value
    if use is not None and len(shape) <= 2:
        rows = shape[0] if len(shape) == 2 and use.times > 1 else 1  # all of a matrix, or each of its rows
        shape[-1] = (use.times * new + use.more) // rows
    elif shape[0] == old:
        shape[0] = new
    elif len(shape) == 1 and shape[0] == old + 1 and not value.is_floating_point():
        shape[0] = new + 1
    elif len(shape) == 2 and shape[1] == old and not value.is_floating_point():
        shape[1] = new
    else:
        return value
    return value.new_zeros(shape)
