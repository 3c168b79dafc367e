"""Gives every index expression a key, a text that is equal where two lookups read the same ids.

* The *key* of an index expression is equal for structurally equal expressions of the model's
  inputs: the same ids, in the same order.
* Its *origin* is the key of the raw input it is computed from: quotient and remainder of one
  column are different ids of one origin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from dmt_plugin.passes.ops.queries import has_trait


def key_of(*values: Any) -> str:
    """A text that is equal for structurally equal expressions of graph inputs."""
    memo: dict[fx.Node, str] = {}
    return "".join(_text(value, memo) for value in values)


def column_key(matrix: fx.Node, column: int) -> str:
    """The key of ``matrix[:, column]``, whether or not such a node exists."""
    return f"(call_function:getitem {key_of((matrix, (slice(None), column)), {})})"


def origin_of(index: Any) -> str:
    """The key of the raw input that an index expression is computed from."""
    while isinstance(index, fx.Node) and has_trait(index, "keeps_ids"):
        tensors = [n for n in index.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        sources = [n for n in tensors if n.op != "get_attr"]
        if len(sources) != 1:
            break
        index = sources[0]
    return key_of(index)


def _text(value: Any, memo: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        if value not in memo:
            memo[value] = (
                f"%{value.target}"
                if value.op in ("placeholder", "get_attr")
                else f"({value.op}:{_name(value.target)} {_text(value.args, memo)}{_text(dict(value.kwargs), memo)})"
            )
        return memo[value]
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_text(item, memo) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}={_text(v, memo)}" for k, v in sorted(value.items())) + "}"
    return repr(value)


def _name(target: str | Callable[..., Any]) -> str:
    return target if isinstance(target, str) else getattr(target, "__qualname__", repr(target))
