"""Describes operations by letters per dimension, as einsum does, and derives the rules of shape repair from that.

An operation is described as an einsum would be: a token per dimension of every input, and the tokens of the result.
Dimensions with the same token run together; one of size 1 beside larger ones is broadcast. Tokens are letters, or
negative numbers for leading dimensions that are aligned from the right. From that one description follow

1. *forward*: a token whose dimension changed in one input has changed in all, and in the result (:func:`follow`);
2. *backward*: which inputs decide a size of the result, and what each must give (:func:`asked_of`);
3. whether *samples stay apart*: the batch is the same token in front of every input and of the result, no constant
   reaches along it, and no entry reads others along it (:func:`keeps_samples_apart`).

An operation whose arguments do not say it with certainty is not described: its description raises ``Unsupported``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import Tensor, fx

from dmt_plugin.passes.ops.axes import Axes, Axis, Unsupported
from dmt_plugin.passes.ops.names import shape_of
from dmt_plugin.passes.ops.walk import Walk

Token = str | int
Tokens = tuple[Token, ...]
Asked = list[tuple[fx.Node, Axes]]
"""Inputs, and the axes that each must give."""
Instead = Callable[[Walk, fx.Node, fx.Node, Axes], bool]
"""``(walk, node, input, what it lacks)`` to whether the node was given another input."""


@dataclass(frozen=True)
class Dims:
    """One call of an operation in letters.

    Attributes:
        terms: inputs with a token per dimension. A token of the result that no input has is a dimension that does not
            come from any (of size 1, or picked from another).
        result: tokens of the result.
        mixed: tokens along which an entry of the result reads more than the entry at its own place.
        own: tokens of the result whose size the operation decides itself, and may decide otherwise: outputs of a layer,
            a number of copies.
        sized: tokens that a layer has weights for, in the order in which it is made for them.
        unread: inputs of which only the type, the device or the shape is read.
    """

    terms: tuple[tuple[fx.Node, Tokens], ...]
    result: Tokens
    mixed: frozenset[Token] = frozenset()
    own: frozenset[Token] = frozenset()
    sized: Tokens = ()
    unread: tuple[fx.Node, ...] = ()

    def size(self, token: Token) -> int:
        """Captured size of what a token stands for."""
        found = [shape_of(node)[tokens.index(token)] for node, tokens in self.terms if token in tokens]
        return max(found, default=1)


def leading(count: int) -> Tokens:
    """Tokens of ``count`` dimensions that are aligned from the right."""
    return tuple(range(-count, 0))


def is_tensor(value: Any) -> TypeGuard[fx.Node]:
    """Whether an argument is a node that gives one tensor."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


def is_samples(value: Any) -> bool:
    """Whether an argument is a node that gives one tensor, and no parameter or buffer."""
    return is_tensor(value) and value.op != "get_attr"


def tensor(value: Any) -> fx.Node:
    """An argument that must be one tensor.

    Raises:
        Unsupported: it is not.
    """
    if not is_tensor(value):
        raise Unsupported("multiplies something that is not one tensor of the graph")
    return value


# -- what follows ----------------------------------------------------------------------------


def follow(walk: Walk, node: fx.Node, dims: Dims, instead: Instead | None = None) -> Axes:
    """The axes of the result; inputs that did not follow are asked to, unless something was put ``instead`` of one.

    1. A token whose dimension changed in one input has changed in all: those that did not follow must
       (:meth:`Walk.impose`), except where they are broadcast.
    2. What a layer is made for is noted; what the operation decides itself is what was asked of it.
    3. Tokens that the result does not have are gone; what they held no longer matters.
    """
    axes: dict[Token, Axis] = {}
    first: dict[Token, tuple[fx.Node, int]] = {}
    for source, tokens in dims.terms:
        for d, axis in walk.states[source].axes.items():
            token = tokens[d]
            if shape_of(source)[d] == 1 and dims.size(token) != 1:
                raise Unsupported("broadcasts a changed dimension of size 1")
            before = axes.get(token)
            if before is not None and before.new != axis.new:
                _reconcile(walk, (*first[token], before), (source, d, axis))
            axes[token] = axis if before is None else before.with_layout_of(axis)
            first.setdefault(token, (source, d))
    for source, tokens in dims.terms:
        shape = shape_of(source)
        followed = [d for d, token in enumerate(tokens) if shape[d] != 1 or dims.size(token) == 1]
        missing = walk.states[source].lacks({d: axes[tokens[d]] for d in followed if tokens[d] in axes})
        if missing and not (instead is not None and instead(walk, node, source, missing)):
            walk.impose(source, missing)
    if dims.sized:
        walk.note_input(node, *(axes.get(token) for token in dims.sized))
    own = {d: axis for (n, d), axis in walk.forced.items() if n is node and dims.result[d] in dims.own}
    return {d: axes[token] for d, token in enumerate(dims.result) if token in axes} | own


def _reconcile(walk: Walk, one: tuple[fx.Node, int, Axis], two: tuple[fx.Node, int, Axis]) -> None:
    """Asks one of two inputs that changed to different sizes to follow the other, whichever can; ends the walk if so.

    A gate per feature that is spread over the entries of its vectors has changed with the features alone.
    """
    for (source, d, _), (_, _, wanted) in ((two, one), (one, two)):
        try:
            walk.impose(source, {d: wanted})
        except Unsupported:
            continue


def asked_of(dims: Dims, wanted: Axes) -> Asked:
    """The inputs that decide sizes of the result, and what each must give for the result to be ``wanted``.

    None, if a wanted dimension comes from no input.
    """
    named = {dims.result[d]: axis for d, axis in wanted.items() if dims.result[d] not in dims.own}
    if not named.keys() <= {token for _, tokens in dims.terms for token in tokens}:
        return []
    found: Asked = []
    for source, tokens in dims.terms:
        shape = shape_of(source)
        axes = {d: named[t] for d, t in enumerate(tokens) if t in named and shape[d] == dims.size(t)}
        if axes:
            found.append((source, axes))
    return found


def keeps_samples_apart(node: fx.Node, dims: Dims) -> bool:
    """Whether a call whose inputs and result, but for constants, have the batch in front gives each sample its own."""
    if not dims.result or dims.result[0] in dims.mixed:
        return False
    batch = dims.result[0]
    known = [*(source for source, _ in dims.terms), *dims.unread]
    if any(is_samples(n) and n not in known for n in node.all_input_nodes):
        return False
    for source, tokens in dims.terms:
        if is_samples(source) and tokens[0] != batch:
            return False
        if not is_samples(source) and batch in tokens and shape_of(source)[tokens.index(batch)] != 1:
            return False
    return True
