"""What shape repair knows of operations by name: their kinds, and which input decides a size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from dmt_plugin.passes.axes import Axes, view_axes

if TYPE_CHECKING:
    from dmt_plugin.passes.shape_sweep import Sweep

ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh,
    nn.Dropout, nn.Identity, nn.Softmax, nn.LogSigmoid, nn.Hardswish, nn.Mish,
)  # fmt: skip
NORMS = (nn.BatchNorm1d, nn.LayerNorm)
ELEMENTWISE = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "sigmoid", "tanh", "softplus", "dropout",
    "softmax", "neg", "abs", "exp", "log", "sqrt", "square", "pow", "add", "sub", "mul", "div", "truediv",
    "true_divide", "multiply", "subtract", "rsub", "maximum", "minimum", "clamp", "clamp_min", "clamp_max", "float",
    "contiguous", "clone", "detach", "to", "type_as", "where", "tril", "triu", "sign", "rsqrt", "reciprocal",
}  # fmt: skip
REDUCTIONS = {"sum", "mean", "amax", "amin", "prod", "norm", "var", "std", "logsumexp"}
VIEWS = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
SIZES = {"size", "dim", "ndimension", "numel"}


def name_of(node: fx.Node) -> str:
    """An operation's plain name, the same for its method, function and in-place forms."""
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
        a, b = (int(d) % rank for d in given)
        dims[a], dims[b] = dims[b], dims[a]
        return dims

    return order


def producers(sweep: Sweep, node: fx.Node, wanted: Axes) -> list[tuple[fx.Node, Axes]]:
    """Which inputs decide the sizes of a node, and what each must give for the node to give ``wanted``.

    Raises:
        Unsupported: a view that does not cut the wanted dimension at its vectors.
    """
    shape = shape_of(node)
    last = len(shape) - 1
    inputs = tensor_inputs(node)
    if node.op == "call_module":
        module = sweep.gm.get_submodule(str(node.target))
        passes_on = isinstance(module, (*NORMS, *ELEMENTWISE_MODULES)) or (is_linear(module) and last not in wanted)
        return [(inputs[0], wanted)] if passes_on else []
    name = name_of(node)
    if name in ELEMENTWISE:
        shifts = [(n, len(shape) - len(shape_of(n))) for n in inputs]
        found = [(n, {d - by: axis for d, axis in wanted.items() if _spans(n, d - by, shape[d])}) for n, by in shifts]
        return [(n, axes) for n, axes in found if axes]
    if name in VIEWS:
        before = view_axes(wanted, shape, shape_of(inputs[0]))
        return [(inputs[0], before)] if isinstance(before, dict) else []
    if name in ("transpose", "permute", "t"):
        order = dim_order(node)(len(shape))
        return [(inputs[0], {order[d]: axis for d, axis in wanted.items()})]
    if name == "getitem":
        dims = kept_dims(node)
        return [(inputs[0], {dims[d]: axis for d, axis in wanted.items()})] if wanted.keys() <= dims.keys() else []
    if name == "linear":
        return [(inputs[1], {0: wanted[last]})] if last in wanted else [(inputs[0], wanted)]
    if name in ("matmul", "mm", "bmm"):
        return _of_product(node, wanted)
    return []


def _spans(node: fx.Node, dim: int, size: int) -> bool:
    return dim >= 0 and shape_of(node)[dim] == size


def _of_product(node: fx.Node, wanted: Axes) -> list[tuple[fx.Node, Axes]]:
    a, b = node.args[0], node.args[1]
    assert isinstance(a, fx.Node) and isinstance(b, fx.Node)
    last = len(shape_of(node)) - 1
    found: list[tuple[fx.Node, Axes]] = []
    if last in wanted:
        found.append((b, {len(shape_of(b)) - 1: wanted[last]}))
    if last - 1 in wanted:
        found.append((a, {len(shape_of(a)) - 2: wanted[last - 1]}))
    return found


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
        elif item is not None and not isinstance(item, int):
            return {}
        frm += item is not None
        to += not isinstance(item, int)
    return found | {to + i: frm + i for i in range(rank - frm)}


def why_fixed(sweep: Sweep, node: fx.Node) -> str:
    """Why what produces a node cannot be given another size."""
    module = sweep.gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or name_of(node) in ("embedding", "embedding_bag"):
        return (
            "it is a lookup that does not go through these towers, whose table keeps its width; "
            f"set dmt.towers.dim to {shape_of(node)[-1]}"
        )
    return "nothing that produces it can be resized"
