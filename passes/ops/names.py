"""What shape repair knows of operations by name: their kinds, and which input decides a size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from dmt_plugin.passes.ops.axes import Axes, Axis, Unsupported
from dmt_plugin.passes.ops.products import PRODUCTS, factors
from dmt_plugin.passes.ops.reshaping import view_axes
from dmt_plugin.passes.ops.walk import Walk

POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh,
    nn.Dropout, nn.Identity, nn.LogSigmoid, nn.Hardswish, nn.Mish, nn.CELU, nn.Hardsigmoid, nn.Softsign,
    nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.AlphaDropout,
)  # fmt: skip
"""Layers whose every entry is made of the entry at the same place."""
ELEMENTWISE_MODULES = (*POINTWISE_MODULES, nn.Softmax, nn.LogSoftmax, nn.Softmin)
"""Layers whose result has the shape of their input."""
NORMS = (nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm)
POINTWISE = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "sigmoid", "tanh", "softplus", "dropout",
    "neg", "abs", "exp", "log", "sqrt", "square", "pow", "add", "sub", "mul", "div", "truediv",
    "true_divide", "multiply", "subtract", "rsub", "maximum", "minimum", "clamp", "clamp_min", "clamp_max", "float",
    "contiguous", "clone", "detach", "type_as", "where", "sign", "rsqrt", "reciprocal",
    "addcmul", "addcdiv", "lerp", "masked_fill", "hardtanh",
    "hardsigmoid", "hardswish", "mish", "celu", "softsign", "logsigmoid", "alpha_dropout", "positive", "pos", "sin",
    "cos", "exp2", "expm1", "log1p", "log2", "log10", "logit", "erf", "floor", "ceil", "round", "trunc", "frac", "fmod",
    "remainder", "fmax", "fmin", "hypot", "xlogy", "float_power", "nan_to_num", "isnan", "isinf", "isfinite", "eq",
    "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "invert", "logical_and", "logical_or", "logical_not",
    "logical_xor", "bool", "int", "long", "half", "double", "bfloat16", "zeros_like", "ones_like", "full_like",
    "zero", "fill",
}  # fmt: skip
"""Every entry of the result is made of the entries at the same place, broadcast, and of nothing else."""
ELEMENTWISE = POINTWISE | {
    "softmax", "log_softmax", "softmin", "gumbel_softmax", "normalize", "tril", "triu", "rand_like", "randn_like", "to",
    "expand_as",
}  # fmt: skip
"""The result has the shape of the inputs, broadcast."""
REDUCTIONS = {
    "sum", "mean", "amax", "amin", "prod", "norm", "var", "std", "logsumexp", "nansum", "nanmean", "any", "all",
    "count_nonzero", "linalg_norm", "linalg_vector_norm",
}  # fmt: skip
JOINS = {"cat", "concat", "concatenate", "stack"}
VIEWS = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
REPEATS = {"expand", "broadcast_to", "repeat", "tile"}
FILLS = {"zeros", "ones", "full", "rand", "randn", "new_zeros", "new_ones", "new_full"}
SIZES = {"size", "dim", "ndimension", "numel"}


def name_of(node: fx.Node) -> str:
    """An operation's plain name, the same for its method, function and in-place forms; empty for what has none."""
    if node.op not in ("call_function", "call_method"):
        return ""  # names of modules, parameters and inputs are the user's
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if not isinstance(target, str):
        origin = getattr(target, "__module__", "") or ""
        known = origin.split(".")[0] in ("torch", "_operator", "operator", "builtins", "") or origin == "torch._C._nn"
        if not known:
            return f"{origin}.{name}"
    return name.strip("_") if name not in ("__getitem__",) else "getitem"


def is_linear(module: nn.Module) -> bool:
    """Whether a layer computes what ``nn.Linear`` computes."""
    return type(module).forward is nn.Linear.forward


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The captured shape of a node."""
    return tuple(node.meta["val"].shape)


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs whose sizes decide those of the result."""
    if name_of(node) in ("to", "type_as"):  # the second argument gives a type
        return [n for n in node.args[:1] if isinstance(n, fx.Node)]
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]


def dim_order(node: fx.Node) -> Callable[[int], list[int]]:
    """How a transposition orders the dimensions of a tensor, given its rank."""
    name = name_of(node)
    given: list[Any] = [*node.args[1:], *node.kwargs.values()]

    def order(rank: int) -> list[int]:
        dims = list(range(rank))
        if name == "t":
            return dims[::-1]
        if name == "permute":
            wanted = given[0] if isinstance(given[0], (list, tuple)) else given
            return [int(d) % rank for d in wanted]
        if name in ("movedim", "moveaxis"):
            return _moved(rank, *([d] if isinstance(d, int) else list(d) for d in given))
        a, b = (int(d) % rank for d in given)
        dims[a], dims[b] = dims[b], dims[a]
        return dims

    return order


def _moved(rank: int, source: list[int], destination: list[int]) -> list[int]:
    placed = {to % rank: frm % rank for frm, to in zip(source, destination, strict=True)}
    rest = iter([d for d in range(rank) if d not in placed.values()])
    return [placed[d] if d in placed else next(rest) for d in range(rank)]


def producers(walk: Walk, node: fx.Node, wanted: Axes) -> list[tuple[fx.Node, Axes]]:
    """Which inputs decide the sizes of a node, and what each must give for the node to give ``wanted``.

    Raises:
        Unsupported: a view that does not cut the wanted dimension at its vectors.
    """
    shape = shape_of(node)
    last = len(shape) - 1
    inputs = tensor_inputs(node)
    if node.op == "call_module":
        module = walk.gm.get_submodule(str(node.target))
        if is_linear(module):
            wanted = {d: axis for d, axis in wanted.items() if d != last}
        elif not isinstance(module, (*NORMS, *ELEMENTWISE_MODULES)):
            return []
        return [(inputs[0], wanted)]
    name = name_of(node)
    if name in ELEMENTWISE:
        shifts = [(n, len(shape) - len(shape_of(n))) for n in inputs]
        found = [(n, {d - by: axis for d, axis in wanted.items() if _spans(n, d - by, shape[d])}) for n, by in shifts]
        return [(n, axes) for n, axes in found if axes]
    if name in VIEWS:
        before = view_axes(wanted, shape, shape_of(inputs[0]))
        return [(inputs[0], before)] if isinstance(before, dict) else []
    if name in REPEATS:
        shift = len(shape) - len(shape_of(inputs[0]))
        kept = {d - shift: axis for d, axis in wanted.items() if not copied(node, d)}
        return [(inputs[0], kept)] if kept else []
    if name in ("layer_norm", "rms_norm", "prelu"):
        return [(inputs[0], wanted)]
    if name in ("transpose", "permute", "t", "swapaxes", "swapdims", "movedim", "moveaxis"):
        order = dim_order(node)(len(shape))
        return [(inputs[0], {order[d]: axis for d, axis in wanted.items()})]
    if name in JOINS:
        return _of_join(node, wanted)
    if name == "getitem":
        dims = kept_dims(node) if inputs else {}  # an element of several tensors is not asked for a size
        return [(inputs[0], {dims[d]: axis for d, axis in wanted.items()})] if wanted.keys() <= dims.keys() else []
    if name in PRODUCTS:
        return factors(node, name, wanted)
    if name in REDUCTIONS:
        left = kept_by_reduction(node)
        return [(inputs[0], {left[d]: axis for d, axis in wanted.items()})] if wanted.keys() <= left.keys() else []
    return []


def copied(node: fx.Node, dim: int) -> bool:
    """Whether a dimension of the node's result is made of copies of one entry, as many as an argument says."""
    if name_of(node) in FILLS:
        return True
    if name_of(node) not in REPEATS:
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)
    own = dim - (len(shape_of(node)) - len(shape_of(source)))
    return own < 0 or shape_of(source)[own] == 1


def _spans(node: fx.Node, dim: int, size: int) -> bool:
    return dim >= 0 and shape_of(node)[dim] == size


def kept_by_reduction(node: fx.Node) -> dict[int, int]:
    """Dimension of a reduction's result -> of its source; those summed over, and kept as size 1, are not there.

    Raises:
        Unsupported: the dimension is computed.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rank, kwargs = len(shape_of(source)), dict(node.kwargs)
    position = 2 if name_of(node) in ("norm", "linalg_norm", "linalg_vector_norm") else 1
    given: Any = kwargs.get("dim", kwargs.get("axis", node.args[position] if len(node.args) > position else None))
    if isinstance(given, (fx.Node, bool)):
        raise Unsupported("reduces over a computed dimension")
    listed = range(rank) if given is None else [given] if isinstance(given, int) else given
    gone = {int(d) % rank for d in listed}
    left = [d for d in range(rank) if d not in gone or len(shape_of(node)) == rank]
    return {to: d for to, d in enumerate(left) if d not in gone}


def joined_dim(node: fx.Node) -> int:
    """The dimension of a join's result along which its parts lie."""
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    return int(given) % len(shape_of(node))


def joined_parts(node: fx.Node) -> list[fx.Node]:
    """What a join puts side by side."""
    return list(node.args[0] if node.args else node.kwargs["tensors"])  # type: ignore[arg-type]


def _of_join(node: fx.Node, wanted: Axes) -> list[tuple[fx.Node, Axes]]:
    """Other entries of a joined dimension are asked of each part, another size only where it is clear of which."""
    dim, parts = joined_dim(node), joined_parts(node)
    stacked = name_of(node) == "stack"
    across = {d - (stacked and d > dim): axis for d, axis in wanted.items() if d != dim}
    if dim not in wanted:
        return [(part, across) for part in parts]
    if stacked:
        return []
    sizes = [shape_of(part)[dim] for part in parts]
    segments = wanted[dim].segments
    if [s.old for s in segments] == sizes:
        along = [{dim: Axis((s,))} if s.changed else {} for s in segments]
    elif wanted[dim].old == wanted[dim].new:
        along = [{dim: Axis.of(size, size)} for size in sizes]
    else:
        return []
    return [(part, across | own) for part, own in zip(parts, along, strict=True) if across | own]


def kept_dims(node: fx.Node) -> dict[int, int]:
    """For a ``getitem`` that takes whole dimensions or single entries: dimension of the result -> of the source."""
    index: Any = node.args[1]
    items = list(index) if isinstance(index, (tuple, list)) else [index]
    rank = len(shape_of(node.args[0]))  # type: ignore[arg-type]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (rank - sum(1 for item in items if item is not None) + 1)
    found: dict[int, int] = {}
    frm = to = 0
    for item in items:
        if item == slice(None):
            found[to] = frm
        elif item is not None and not isinstance(item, (int, slice)):
            return {}
        frm += item is not None
        to += not isinstance(item, int)
    return found | {to + i: frm + i for i in range(rank - frm)}


def why_fixed(walk: Walk, node: fx.Node) -> str:
    """Why what produces a node cannot be given another size."""
    module = walk.gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or name_of(node) in ("embedding", "embedding_bag"):
        return (
            "it is a lookup that does not go through these towers, whose table keeps its width; "
            f"set dmt.towers.dim to {shape_of(node)[-1]}"
        )
    if name_of(node) in JOINS:
        return "which of the parts joined there should change is not known"
    return "nothing that produces it can be resized"
