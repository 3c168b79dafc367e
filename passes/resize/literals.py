"""Finds numbers in a model that may stand for a size that changed, and reports them.

``vectors.sum(1) / 6`` with six features, or ``scores / 8**0.5`` with vectors eight wide: such
a number keeps the shapes right whatever it is, so nothing forces it to follow, and nothing
proves that it should. It stays, and is reported:

1. Collect the sizes that changed, anywhere behind the towers.
2. In every product, quotient or power of a changed tensor, compare each number with those
   sizes, their roots and the inverse of both. Halves, ones and twos mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from dmt_plugin.passes.ops.queries import has_trait
from dmt_plugin.passes.resize.sweep import Sweep

_COMMON = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class KeptNumber:
    """A number that equals a form of a size that changed.

    Attributes:
        node: where it stands.
        number: the number.
        form: which form of the size it equals, in words.
        old: the size before.
        new: the size now.
    """

    node: fx.Node
    number: float
    form: str
    old: int
    new: int


def kept_numbers(sweep: Sweep) -> list[KeptNumber]:
    """Numbers that a walk which went through leaves as they are; one finding per number and node."""
    sizes: dict[int, int] = {}
    for state in sweep.states.values():
        for axis in state.axes.values():
            if axis.old != axis.new:
                sizes.setdefault(axis.old, axis.new)
    found: list[KeptNumber] = []
    for node, state in sweep.states.items():
        if not state.changed or not isinstance(state.value, Tensor) or not has_trait(node, "scales"):
            continue
        for number in _numbers((node.args, dict(node.kwargs))):
            for old, new in sizes.items():
                form = _form(number, old)
                if form:
                    found.append(KeptNumber(node, number, form.format(old), old, new))
                    break
    return found


def _numbers(arguments: Any) -> Iterator[float]:
    if isinstance(arguments, (tuple, list)):
        for item in arguments:
            yield from _numbers(item)
    elif isinstance(arguments, dict):
        yield from _numbers(list(arguments.values()))
    elif isinstance(arguments, (int, float)) and not isinstance(arguments, bool):
        yield float(arguments)


def _form(number: float, size: int) -> str:
    """Which form of ``size`` the number equals; empty if none, or if it says nothing."""
    if size < 2 or any(math.isclose(abs(number), common) for common in _COMMON):
        return ""
    forms = {"{}": size, "1/{}": 1 / size, "the root of {}": math.sqrt(size), "1/root of {}": 1 / math.sqrt(size)}
    return next((name for name, value in forms.items() if math.isclose(abs(number), value, rel_tol=1e-6)), "")
