"""Operations whose result has the shape of their inputs, broadcast: entry by entry, conversions, softmax.

Where inputs meet entry by entry, all must have the entries that one of them has. A constant that masks pairs of
features, or weighs them in two values, is built for their new number
(:func:`dmt_plugin.passes.ops.index_patterns.mask_anew`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from dmt_plugin.fxtools.arguments import argument
from dmt_plugin.passes.ops.axes import Axes
from dmt_plugin.passes.ops.dims import Dims, Token, follow, leading
from dmt_plugin.passes.ops.index_patterns import mask_anew
from dmt_plugin.passes.ops.names import name_of, shape_of, tensor_inputs
from dmt_plugin.passes.ops.registry import layer, never, op, op_by_rules
from dmt_plugin.passes.ops.walk import Walk

POINTWISE_LAYERS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh,
    nn.Dropout, nn.Identity, nn.LogSigmoid, nn.Hardswish, nn.Mish, nn.CELU, nn.Hardsigmoid, nn.Softsign,
    nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.AlphaDropout,
)  # fmt: skip
"""Layers whose every entry is made of the entry at the same place."""


def _by_entry(node: fx.Node) -> Dims:
    inputs = [(source, leading(len(shape_of(source)))) for source in tensor_inputs(node)]
    return Dims(tuple(inputs), leading(len(shape_of(node))))


def elementwise(walk: Walk, node: fx.Node) -> Axes:
    """Changed dimensions run together; constants that mask pairs of features are built for their new number."""
    return follow(walk, node, _by_entry(node), mask_anew)


@op(
    "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "sigmoid", "tanh", "softplus", "dropout",
    "neg", "abs", "exp", "log", "sqrt", "square", "rsub", "subtract", "maximum", "minimum", "clamp_min", "clamp_max",
    "float", "detach", "where", "sign", "rsqrt", "reciprocal", "addcmul", "addcdiv", "lerp", "masked_fill", "hardtanh",
    "hardsigmoid", "hardswish", "mish", "celu", "softsign", "log_sigmoid", "alpha_dropout", "positive", "pos", "sin",
    "cos", "exp2", "expm1", "log1p", "log2", "log10", "logit", "erf", "ceil", "round", "trunc", "frac", "fmax", "fmin",
    "hypot", "xlogy", "nan_to_num", "isnan", "isinf", "isfinite", "eq", "ne", "lt", "le", "gt", "ge", "or", "xor",
    "invert", "logical_and", "logical_or", "logical_not", "logical_xor", "bool", "half", "double", "bfloat16", "zero",
    "fill", "atan2", "arctan2", "acos", "arccos", "acosh", "arccosh", "asin", "arcsin", "asinh", "arcsinh", "atan",
    "arctan", "atanh", "arctanh", "tan", "sinh", "cosh", "sinc", "absolute", "negative", "signbit", "sgn", "angle",
    "fix", "erfc", "erfinv", "lgamma", "digamma", "mvlgamma", "polygamma", "i0", "igamma", "igammac", "deg2rad",
    "rad2deg", "logaddexp", "logaddexp2", "ldexp", "copysign", "heaviside", "nextafter", "isposinf", "isneginf",
    "isreal", "isclose", "greater", "greater_equal", "less", "less_equal", "not_equal", "bitwise_and", "bitwise_or",
    "bitwise_xor", "bitwise_not", "gcd", "lcm", "hardshrink", "softshrink", "tanhshrink", "threshold", "char", "short",
    "byte", "special_expit", "special_logit", "special_erf", "special_erfc", "special_erfcx",
    "special_erfinv", "special_exp2", "special_expm1", "special_log1p", "special_sinc", "special_round",
    "special_digamma", "special_psi", "special_gammaln", "special_entr", "special_ndtr", "special_ndtri",
    "special_log_ndtr", "special_xlogy", "special_xlog1py", "special_zeta", "special_polygamma", "special_i0",
    "special_i0e", "special_i1", "special_i1e",
    forward=elementwise,
)  # fmt: skip
@op("float_power", forward=elementwise)
@op("multiply", "divide", "pow", forward=elementwise, traits=("scales",))
@op("mul", "div", "truediv", "true_divide", forward=elementwise, traits=("scales", "keeps_ids"))
@op(
    "add", "sub", "clamp", "clip", "floor", "bitwise_left_shift", "bitwise_right_shift",
    "fmod", "remainder", "mod", "floordiv", "floor_divide", "and", "rshift", "lshift",
    "long", "int", "contiguous", "clone",
    forward=elementwise, traits=("keeps_ids",),
)  # fmt: skip
@op("zeros_like", "ones_like", "full_like", forward=elementwise, traits=("reads_no_values",))
@op("expand_as", forward=elementwise, traits=("reads_first",))
@op("rand_like", "randn_like", forward=elementwise, per_sample=never)
@layer(*POINTWISE_LAYERS, forward=elementwise)
def entry_by_entry(node: fx.Node, module: nn.Module | None = None) -> Dims:
    """Every entry of the result is made of the entries at the same place, broadcast, and of nothing else."""
    return _by_entry(node)


op_by_rules("empty_like", "new_empty", traits=("reads_no_values",))


@op("to", "type", traits=("keeps_ids", "reads_first"))
@op("type_as", traits=("reads_first",))
def converted(node: fx.Node) -> Dims:
    """The first argument in another type, or at another place."""
    source, *others = node.all_input_nodes
    tokens = leading(len(shape_of(source)))
    return Dims(((source, tokens),), tokens, unread=tuple(others))


# -- along one dimension ---------------------------------------------------------------------


def _along(source: fx.Node, given: Any) -> Dims:
    """Entries along a dimension that is given read each other; all do, if it is computed or follows from the rank."""
    tokens = leading(len(shape_of(source)))
    fixed = isinstance(given, int) and not isinstance(given, bool)
    mixed: set[Token] = {tokens[given]} if fixed and tokens else set(tokens)
    return Dims(((source, tokens),), tokens, mixed=frozenset(mixed))


@op("softmax", "log_softmax", "softmin", "normalize")
@op("gumbel_softmax", per_sample=never)
def _softmax(node: fx.Node) -> Dims:
    source: Any = node.args[0] if node.args else node.kwargs["input"]
    place, default = (2, 1) if name_of(node) == "normalize" else (1, None)
    return _along(source, argument(node, place, "dim|axis", default))


@layer(nn.Softmax, nn.LogSoftmax, nn.Softmin)
def _softmax_layer(node: fx.Node, module: nn.Softmax) -> Dims:
    return _along(node.all_input_nodes[0], module.dim)


@op("tril", "triu", "fill_diagonal")
def _triangle(node: fx.Node) -> Dims:
    """The place of an entry in the last two dimensions says what becomes of it."""
    (source,) = (n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor))
    tokens = leading(len(shape_of(source)))
    return Dims(((source, tokens),), tokens, mixed=frozenset(tokens[-2:]))
