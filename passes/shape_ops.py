"""What shape repair knows of operations by name: their kinds, and which input decides a size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

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


def producers(sweep: Sweep, node: fx.Node, dim: int) -> list[tuple[fx.Node, int]]:
    """Which inputs, in which dimension, decide the size of ``dim`` of ``node``."""
    shape = shape_of(node)
    inputs = tensor_inputs(node)
    if node.op == "call_module":
        module = sweep.gm.get_submodule(str(node.target))
        passes_on = isinstance(module, (*NORMS, *ELEMENTWISE_MODULES)) or (is_linear(module) and dim != len(shape) - 1)
        return [(inputs[0], dim)] if passes_on else []
    name = name_of(node)
    if name in ELEMENTWISE:
        pairs = [(n, dim - len(shape) + len(shape_of(n))) for n in inputs]
        return [(n, d) for n, d in pairs if d >= 0 and shape_of(n)[d] == shape[dim]]
    if name == "unsqueeze":
        given: Any = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
        at = int(given) % len(shape)
        return [] if dim == at else [(inputs[0], dim - (1 if dim > at else 0))]
    if name in ("transpose", "permute", "t"):
        return [(inputs[0], dim_order(node)(len(shape))[dim])]
    if name == "linear" and dim == len(shape) - 1:
        return [(inputs[1], 0)]
    if name in ("matmul", "mm", "bmm"):
        a, b = node.args[0], node.args[1]
        assert isinstance(a, fx.Node) and isinstance(b, fx.Node)
        if dim == len(shape) - 2:
            return [(a, len(shape_of(a)) - 2)]
        return [(b, len(shape_of(b)) - 1)] if dim == len(shape) - 1 else []
    if name in ("view", "reshape", "squeeze"):
        same = [d for d in range(len(shape_of(inputs[0]))) if shape_of(inputs[0])[d] == shape[dim]]
        return [(inputs[0], same[0])] if len(same) == 1 and shape.count(shape[dim]) == 1 else []
    return []
