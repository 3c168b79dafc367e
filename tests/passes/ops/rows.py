"""One row per operation in the registry.

A row has an example, what changes, what changes then, and whether samples stay apart. Inputs have six samples in front.
A row is entered under the plain name of the operation, or of the layer; more rows of one operation have a remark behind
the name: ``"cat, of pieces"``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

BATCH = 6
WIDE = 64
"""A width at which samples fill the vectors of any processor: what is left over in the end, some compute by another
routine than the rest, which rounds otherwise."""


@dataclass(frozen=True)
class Row:
    """One use of one operation.

    Attributes:
        run: ``run(*inputs)``; with a layer, ``run(layer, *inputs)``.
        shapes: of the inputs.
        change: dimensions that change, as ``(input, dimension)``.
        out: dimensions of the (first) result that change then, or what is said where that is refused.
        apart: whether it is known that samples stay apart.
        kind: of the inputs: ``float``, ``bool`` or ``int``.
        layer: makes the layer, if one is called.
        asked: what is asked of the inputs if the result is to change so; ``None``: what ``change`` says.
    """

    run: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...] = ((BATCH, WIDE),)
    change: tuple[tuple[int, int], ...] = ((0, 1),)
    out: tuple[int, ...] | str = (1,)
    apart: bool = True
    kind: str = "float"
    layer: Callable[[], nn.Module] | None = None
    asked: tuple[tuple[int, int], ...] | None = None


def called(name: str, *more: Any, **options: Any) -> Callable[..., Any]:
    """The function or method of a plain name, wherever torch or Python has it, with ``more`` arguments."""
    places = (torch.special,) if name.startswith("special_") else (F, torch, torch.linalg, operator)
    for place in places:
        for spelling in (name, f"{name}_", name.removeprefix("linalg_").removeprefix("special_")):
            if callable(found := getattr(place, spelling, None)):
                return lambda *inputs: found(*inputs, *more, **options)
    return method(name, *more, **options)


def method(name: str, *more: Any, **options: Any) -> Callable[..., Any]:
    """The method of a tensor, with ``more`` arguments."""
    return lambda x, *inputs: getattr(x, name)(*inputs, *more, **options)


def first(run: Callable[..., Any]) -> Callable[..., Any]:
    """The first of several results."""
    return lambda *inputs: run(*inputs)[0]


def assign(x: Any) -> Any:
    """A tensor made on the way, of which some entries are assigned."""
    result = x + 1.0
    result[:, :, :2] = x[:, :, 2:]
    return result


V, M = (BATCH, WIDE), (BATCH, 5, 4)
TWO, BOTH = (V, V), ((0, 1), (1, 1))
INTEGERS = {"rshift", "lshift"}
FACTORS = ((BATCH, 5, 4), (BATCH, 4, 3))
UNKNOWN = "is not known to the shape repair"


def _layer(make: Callable[[], nn.Module], shape: tuple[int, ...] = M, **answers: Any) -> Row:
    return Row(lambda layer, *x: layer(*x), (shape,), layer=make, **answers)


def _alike(*names: str, **answers: Any) -> dict[str, Row]:
    return {name: Row(called(name), **answers) for name in names}


ROWS: dict[str, Row] = {
    # entry by entry
    **_alike(
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "gelu",
        "silu",
        "sigmoid",
        "tanh",
        "softplus",
        "neg",
        "abs",
        "exp",
        "log",
        "sqrt",
        "square",
        "float",
        "detach",
        "sign",
        "rsqrt",
        "reciprocal",
        "hardtanh",
        "hardsigmoid",
        "hardswish",
        "mish",
        "celu",
        "softsign",
        "positive",
        "pos",
        "sin",
        "cos",
        "exp2",
        "expm1",
        "log1p",
        "log2",
        "log10",
        "logit",
        "erf",
        "floor",
        "ceil",
        "round",
        "trunc",
        "frac",
        "nan_to_num",
        "isnan",
        "isinf",
        "isfinite",
        "logical_not",
        "bool",
        "int",
        "long",
        "half",
        "double",
        "bfloat16",
        "contiguous",
        "clone",
        "zeros_like",
        "ones_like",
    ),
    **_alike("invert", kind="bool"),
    **_alike(
        "add",
        "sub",
        "mul",
        "div",
        "truediv",
        "true_divide",
        "multiply",
        "divide",
        "subtract",
        "rsub",
        "maximum",
        "minimum",
        "clamp_min",
        "clamp_max",
        "fmod",
        "remainder",
        "mod",
        "floordiv",
        "floor_divide",
        "fmax",
        "fmin",
        "hypot",
        "xlogy",
        "pow",
        "float_power",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "logical_and",
        "logical_or",
        "logical_xor",
        "atan2",
        "arctan2",
        shapes=TWO,
        change=BOTH,
    ),
    **_alike("and", "or", "xor", shapes=TWO, change=BOTH, kind="bool"),
    **_alike("rshift", "lshift", shapes=TWO, change=BOTH, kind="int"),
    **_alike("addcmul", "addcdiv", "lerp", shapes=(*TWO, V), change=(*BOTH, (2, 1))),
    **_alike(
        "acos",
        "arccos",
        "asin",
        "arcsin",
        "asinh",
        "arcsinh",
        "atan",
        "arctan",
        "atanh",
        "arctanh",
        "tan",
        "sinh",
        "cosh",
        "sinc",
        "absolute",
        "negative",
        "signbit",
        "sgn",
        "angle",
        "fix",
        "erfc",
        "erfinv",
        "lgamma",
        "digamma",
        "i0",
        "deg2rad",
        "rad2deg",
        "isposinf",
        "isneginf",
        "isreal",
        "hardshrink",
        "softshrink",
        "tanhshrink",
        "char",
        "short",
        "byte",
        "special_expit",
        "special_logit",
        "special_erf",
        "special_erfc",
        "special_erfcx",
        "special_erfinv",
        "special_exp2",
        "special_expm1",
        "special_log1p",
        "special_sinc",
        "special_round",
        "special_digamma",
        "special_psi",
        "special_gammaln",
        "special_entr",
        "special_ndtr",
        "special_ndtri",
        "special_log_ndtr",
        "special_i0",
        "special_i0e",
        "special_i1",
        "special_i1e",
    ),
    **_alike(
        "logaddexp",
        "logaddexp2",
        "ldexp",
        "copysign",
        "heaviside",
        "nextafter",
        "isclose",
        "greater",
        "greater_equal",
        "less",
        "less_equal",
        "not_equal",
        "igamma",
        "igammac",
        "special_xlogy",
        "special_xlog1py",
        shapes=TWO,
        change=BOTH,
    ),
    **_alike(
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "gcd",
        "lcm",
        "bitwise_left_shift",
        "bitwise_right_shift",
        shapes=TWO,
        change=BOTH,
        kind="int",
    ),
    "bitwise_not": Row(torch.bitwise_not, kind="int"),
    "acosh": Row(lambda x: torch.acosh(x + 1)),
    "arccosh": Row(lambda x: torch.arccosh(x + 1)),
    "mvlgamma": Row(lambda x: torch.mvlgamma(x + 2, 2)),
    "polygamma": Row(lambda x: torch.polygamma(1, x)),
    "special_polygamma": Row(lambda x: torch.special.polygamma(1, x)),
    "special_zeta": Row(lambda x, y: torch.special.zeta(x + 2, y), TWO, BOTH),
    "threshold": Row(lambda x: F.threshold(x, 0.4, 0.0)),
    "clip": Row(called("clip", 0.2, 0.8)),
    "fill_diagonal": Row(lambda x: (x + 1).fill_diagonal_(0.0), apart=False),
    "log_sigmoid": Row(F.logsigmoid),
    "where": Row(lambda x, y: torch.where(x > 0.5, x, y), TWO, BOTH),
    "masked_fill": Row(lambda x, y: x.masked_fill(y > 0.5, 2.0), TWO, BOTH),
    "clamp": Row(lambda x: x.clamp(max=0.5)),
    "dropout": Row(lambda x: F.dropout(x, 0.0)),
    "alpha_dropout": Row(lambda x: F.alpha_dropout(x, 0.0)),
    "full_like": Row(lambda x: torch.full_like(x, 2.0)),
    "fill": Row(lambda x: torch.fill(x, 2.0)),
    "zero": Row(lambda x: (x * 1).zero_(), apart=False),
    "expand_as": Row(lambda x, y: x.expand_as(y), ((BATCH, 1), V), ((1, 1),)),
    "rand_like": Row(torch.rand_like, apart=False),
    "randn_like": Row(torch.randn_like, apart=False),
    "empty_like": Row(torch.empty_like, out=UNKNOWN, apart=False),
    "to": Row(lambda x: x.to(torch.float64)),
    "to, as another": Row(lambda x, y: x.to(y), TWO),
    "type": Row(lambda x: x.type(torch.float64)),
    "type_as": Row(lambda x, y: x.type_as(y), TWO),
    # along a dimension
    **_alike("normalize"),
    "softmax": Row(lambda x: torch.softmax(x, 1)),
    "log_softmax": Row(lambda x: x.log_softmax(-1)),
    "softmin": Row(lambda x: F.softmin(x, 1)),
    "gumbel_softmax": Row(F.gumbel_softmax, apart=False),
    "tril": Row(torch.tril, (M,)),
    "triu": Row(torch.triu, (M,)),
    **{
        name: Row(called(name, dim=1), (M,), ((0, 2),), (1,))
        for name in ("sum", "mean", "amax", "amin", "logsumexp", "nansum", "linalg_vector_norm")
    },
    **{
        name: Row(called(name, 1), (M,), ((0, 2),), (1,))
        for name in ("prod", "var", "std", "nanmean", "any", "all", "count_nonzero")
    },
    "linalg_norm": Row(lambda x: torch.linalg.norm(x, dim=1), (M,), ((0, 2),), (1,)),
    "norm": Row(lambda x: x.norm(2, 1), (M,), ((0, 2),), (1,)),
    "sum, of the changed": Row(lambda x: x.sum(1), (M,), out=()),
    "sum, of all": Row(lambda x: x.sum(), (M,), out=(), apart=False),
    "sum, kept": Row(lambda x: x.sum(1, keepdim=True), (M,), ((0, 2),), (2,)),
    "max": Row(torch.max, TWO, BOTH),
    "min": Row(torch.min, TWO, BOTH),
    "max, along": Row(lambda x: x.max(1)[0], (M,), ((0, 2),), (1,), apart=False, asked=()),
    "median": Row(lambda x: x.median(1)[0], (M,), ((0, 2),), (1,), apart=False, asked=()),
    "sort": Row(lambda x: x.sort(1)[0], (M,), ((0, 2),), (2,), apart=False, asked=()),
    "topk": Row(lambda x: x.topk(2, 1)[0], (M,), ((0, 2),), (2,), apart=False, asked=()),
    # products
    "matmul": Row(torch.matmul, FACTORS),
    "matmul, along the sum": Row(torch.matmul, FACTORS, ((0, 2), (1, 1)), ()),
    "bmm": Row(torch.bmm, FACTORS),
    "mm": Row(torch.mm, ((BATCH, 5), (5, 4)), ((1, 1),), apart=False),
    "mv": Row(torch.mv, ((BATCH, 5), (5,)), ((0, 1), (1, 0)), (), apart=False),
    "addmm": Row(torch.addmm, ((BATCH, 4), (BATCH, 5), (5, 4)), ((0, 1), (2, 1)), apart=False),
    "baddbmm": Row(torch.baddbmm, ((BATCH, 5, 3), *FACTORS), ((0, 2), (2, 2)), (2,)),
    "linear": Row(F.linear, (M, (7, 4)), ((1, 0),), (2,), apart=False),
    "bilinear": Row(F.bilinear, (M, M, (7, 4, 4)), ((2, 0),), (2,), apart=False),
    "tensordot": Row(lambda x, y: torch.tensordot(x, y, 1), (M, (4, 7)), ((1, 1),), (2,), apart=False),
    "einsum": Row(lambda x, y: torch.einsum("bnd,bdm->bnm", x, y), FACTORS),
    "scaled_dot_product_attention": Row(F.scaled_dot_product_attention, (M, M, M)),
    "cosine_similarity": Row(lambda x, y: F.cosine_similarity(x, y, 2), (M, M), BOTH),
    "pairwise_distance": Row(F.pairwise_distance, (M, M), BOTH),
    # other dimensions
    "transpose": Row(lambda x: x.transpose(1, 2), (M,), out=(2,)),
    "permute": Row(lambda x: x.permute(0, 2, 1), (M,), out=(2,)),
    "t": Row(lambda x: x.t(), ((BATCH, 4),), out=(0,), apart=False),
    "swapaxes": Row(lambda x: x.swapaxes(1, 2), (M,), out=(2,)),
    "swapdims": Row(lambda x: x.swapdims(1, 2), (M,), out=(2,)),
    "movedim": Row(lambda x: x.movedim(1, 3), ((BATCH, 5, 4, 3),), out=(3,)),
    "moveaxis": Row(lambda x: x.moveaxis((1, 2), (2, 1)), (M,), out=(2,)),
    "getattr": Row(lambda x: x.mT, (M,), out=(2,)),
    "getattr, T": Row(lambda x: x.T, ((BATCH, 4),), out=(0,), apart=False),
    "view": Row(lambda x: x.view(-1, 20), (M,)),
    "reshape": Row(lambda x: x.reshape(x.shape[0], 5, 2, 2), (M,)),
    "flatten": Row(lambda x: x.flatten(2), ((BATCH, 5, 4, 3),)),
    "unflatten": Row(lambda x: x.unflatten(2, (2, 2)), (M,)),
    "squeeze": Row(lambda x: x.squeeze(1), ((BATCH, 1, 4),), ((0, 2),), (1,)),
    "unsqueeze": Row(lambda x: x.unsqueeze(1), ((BATCH, 4),), out=(2,)),
    "view_as": Row(lambda x, y: x.view_as(y), TWO, out=UNKNOWN, apart=False),
    "reshape_as": Row(lambda x, y: x.reshape_as(y), TWO, out=UNKNOWN, apart=False),
    # copies
    "expand": Row(lambda x: x.expand(-1, 5, -1), ((BATCH, 1, 4),), ((0, 2),), (2,)),
    "broadcast_to": Row(lambda x: torch.broadcast_to(x, (BATCH, 5, 4)), ((BATCH, 1, 4),), ((0, 2),), (2,), False),
    "repeat": Row(lambda x: x.repeat(1, 2, 1), (M,), ((0, 2),), (2,)),
    "repeat, of the changed": Row(lambda x: x.repeat(1, 2, 1), (M,), out="repeats a dimension"),
    "tile": Row(lambda x: x.tile(2, 1), (M,), ((0, 2),), (2,)),
    "repeat_interleave": Row(lambda x: x.repeat_interleave(2, 1, output_size=10), (M,), ((0, 2),), (2,)),
    "repeat_interleave, of the changed": Row(
        lambda x: x.repeat_interleave(2, 1, output_size=10), (M,), out="repeats a dimension"
    ),
    "new_zeros": Row(lambda x: x.new_zeros((BATCH, x.shape[1])), apart=False, asked=()),
    "new_ones": Row(lambda x: x.new_ones((BATCH, x.shape[1])), apart=False, asked=()),
    "new_full": Row(lambda x: x.new_full((BATCH, x.shape[1]), 2.0), apart=False, asked=()),
    "new_empty": Row(lambda x: x.new_empty((BATCH, x.shape[1])), out=UNKNOWN, apart=False),
    "zeros": Row(lambda x: torch.zeros(BATCH, x.shape[1]), apart=False, asked=()),
    "ones": Row(lambda x: torch.ones(BATCH, x.shape[1]), apart=False, asked=()),
    "rand": Row(lambda x: torch.rand(BATCH, x.shape[1]), apart=False, asked=()),
    "randn": Row(lambda x: torch.randn(BATCH, x.shape[1]), apart=False, asked=()),
    "full": Row(lambda x: torch.full((BATCH, x.shape[1]), 2.0), apart=False, asked=()),
    "eye": Row(lambda x: x @ torch.eye(x.shape[1]), apart=False, asked=()),
    # parts
    "dmt_plugin.fxtools.assigned.assigned": Row(assign, (M,)),
    "getitem": Row(lambda x: x[:, :, 1:3], (M,)),
    "getitem, from the end": Row(lambda x: x[..., 0], (M,)),
    "getitem, up to a size": Row(lambda x, y: x[:, :, y.size(1) - 1], (M, (BATCH, 3))),
    "getitem, of the changed": Row(lambda x: x[:, 1:3], (M,), out="takes the slice"),
    "getitem, lists": Row(lambda x: x[:, :, [0, 2]], (M,)),
    "select": Row(lambda x: x.select(2, 0), (M,)),
    "narrow": Row(lambda x: x.narrow(2, 0, 2), (M,)),
    "index_select": Row(lambda x, i: x.index_select(2, i), (M, (2,)), kind="int", apart=False),
    "flip": Row(lambda x: x.flip(2), (M,), apart=False),
    "flip, of the changed": Row(lambda x: x.flip(1), (M,), out="reverses the order", apart=False),
    "tril_indices": Row(lambda x: torch.tril_indices(x.shape[1], x.shape[1]), apart=False, asked=()),
    "triu_indices": Row(lambda x: torch.triu_indices(x.shape[1], x.shape[1]), apart=False, asked=()),
    # joins
    "cat": Row(lambda x, y: torch.cat([x, y], 2), (M, M), BOTH),
    "concat": Row(lambda x, y: torch.concat([x, y], -1), (M, M), BOTH),
    "concatenate": Row(lambda x, y: torch.concatenate([x, y], axis=2), (M, M), BOTH),
    "stack": Row(lambda x, y: torch.stack([x, y], 1), (M, M), BOTH, (2,)),
    "cat, of pieces": Row(lambda x: torch.cat(x.split(2, 2), 2), (M,), apart=False, asked=()),
    # cuts
    "split": Row(lambda x: x.split(2, 2)[0], (M,), apart=False),
    "split_with_sizes": Row(lambda x: x.split_with_sizes([1, 3], 2)[0], (M,), apart=False),
    "chunk": Row(lambda x: x.chunk(2, 2)[0], (M,), apart=False),
    "tensor_split": Row(lambda x: x.tensor_split([1, 2], 2)[0], (M,), apart=False),
    "unbind": Row(lambda x: x.unbind(2)[0], (M,), apart=False),
    **{
        f"{name}, of the changed": Row(first(method(name, 3, 1)), (M,), out="cuts a dimension", apart=False)
        for name in ("split", "chunk", "tensor_split")
    },
    "unbind, of the changed": Row(lambda x: x.unbind(1)[0], (M,), out="cuts a dimension", apart=False),
    # norms
    "layer_norm": Row(lambda x: F.layer_norm(x, (4,)), (M,)),
    "rms_norm": Row(lambda x: F.rms_norm(x, (4,)), (M,), ((0, 2),), (2,)),
    "prelu": Row(F.prelu, (M, (5,)), ((0, 1), (1, 0)), apart=False),
    # sizes
    "size": Row(lambda x: x / x.size(1)),
    "dim": Row(lambda x: x / x.dim()),
    "ndimension": Row(lambda x: x / x.ndimension()),
    "numel": Row(lambda x: x / x.numel(), apart=False),
    # layers
    **{
        kind.__name__: _layer(kind)
        for kind in (
            nn.ReLU,
            nn.ReLU6,
            nn.LeakyReLU,
            nn.ELU,
            nn.SELU,
            nn.GELU,
            nn.SiLU,
            nn.Sigmoid,
            nn.Tanh,
            nn.Softplus,
            nn.Hardtanh,
            nn.Identity,
            nn.LogSigmoid,
            nn.Hardswish,
            nn.Mish,
            nn.CELU,
            nn.Hardsigmoid,
            nn.Softsign,
            nn.Tanhshrink,
            nn.Softshrink,
            nn.Hardshrink,
        )
    },
    "Threshold": _layer(lambda: nn.Threshold(0.1, 2.0)),
    "Dropout": _layer(lambda: nn.Dropout(0.0)),
    "AlphaDropout": _layer(lambda: nn.AlphaDropout(0.0)),
    **{kind.__name__: _layer(lambda kind=kind: kind(dim=-1)) for kind in (nn.Softmax, nn.LogSoftmax, nn.Softmin)},
    "BatchNorm1d": _layer(lambda: nn.BatchNorm1d(5), apart=False),
    "LayerNorm": _layer(lambda: nn.LayerNorm(4), change=((0, 2),), out=(2,)),
    "RMSNorm": _layer(lambda: nn.RMSNorm(4)),
    "PReLU": _layer(lambda: nn.PReLU(5)),
    "GroupNorm": _layer(lambda: nn.GroupNorm(1, 5), out=UNKNOWN),
    "Flatten": _layer(nn.Flatten),
    "Linear": _layer(lambda: nn.Linear(4, 3)),
    "Linear, of the changed": _layer(lambda: nn.Linear(4, 3), change=((0, 2),), out=()),
    "Bilinear": Row(lambda layer, x, y: layer(x, y), (M, M), BOTH, layer=lambda: nn.Bilinear(4, 4, 3)),
    "Conv1d": _layer(lambda: nn.Conv1d(5, 3, 1), change=((0, 2),), out=(2,)),
    "Conv1d, of all positions": _layer(lambda: nn.Conv1d(5, 3, 4), change=((0, 2),), out=()),
    "Conv2d": _layer(lambda: nn.Conv2d(5, 3, 1), (BATCH, 5, 4, 3), change=((0, 2),), out=(2,)),
    "Conv2d, of the changed": _layer(lambda: nn.Conv2d(5, 3, 1), (BATCH, 5, 4, 3), out=()),
    "Conv2d, of all rows": _layer(lambda: nn.Conv2d(5, 3, (4, 1)), (BATCH, 5, 4, 3), change=((0, 2),), out=()),
    "Conv2d, of neighbours": _layer(
        lambda: nn.Conv2d(5, 3, (2, 1)), (BATCH, 5, 4, 3), change=((0, 2),), out="slides a window"
    ),
    "RNNBase": _layer(lambda: nn.GRU(4, 4, batch_first=True), out="one after the other", apart=False),
    "MultiheadAttention": Row(
        lambda layer, x: layer(x, x, x)[0],
        (M,),
        apart=False,
        asked=(),
        layer=lambda: nn.MultiheadAttention(4, 2, batch_first=True),
    ),
    "TransformerEncoderLayer": _layer(
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), apart=False, asked=()
    ),
    "TransformerEncoder": _layer(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1), apart=False, asked=()
    ),
}
