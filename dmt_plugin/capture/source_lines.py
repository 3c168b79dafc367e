"""Where in the user's model and in the user's code something was recorded or went wrong.

1. While a model is traced, the innermost frame outside torch and this package is the
   user's line; every node keeps it in ``meta[SOURCE]``.
2. fx keeps the stack of modules around every node in ``meta["nn_module_stack"]``; its last
   entry is the qualified name of the module whose forward ran.
3. Findings of the capture name both: the module path, and the line inside the reason.
"""

from __future__ import annotations

import linecache
import os
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from unittest import mock

import torch
from torch import fx

from dmt_plugin.core.errors import CaptureError
from dmt_plugin.core.findings import Finding
from dmt_plugin.fxtools.names import SOURCE

Source = tuple[str, int, str]
"""File, line number and function."""

_LIBRARY = tuple(os.path.dirname(os.path.abspath(file or "")) for file in (torch.__file__, __file__, mock.__file__))


_REACH = 6
"""How many steps from a node its nearest line may be; passes put chains of a few nodes in the place of one."""


def calling_line() -> Source | None:
    """The innermost line of the user's code on the stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_LIBRARY):
            return frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back
    return None


def raising_line(error: BaseException) -> Source | None:
    """The innermost line of the user's code that ``error`` came through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_LIBRARY):
            return frame.filename, frame.lineno or 0, frame.name
    return None


def shown(source: Source | None) -> str:
    """A line for a message: file, number, function and text."""
    if source is None:
        return "an unknown line"
    file, number, function = source
    return f'{file}:{number}, in {function}: "{linecache.getline(file, number).strip()}"'


def module_of(node: fx.Node) -> str:
    """Qualified name of the module whose forward recorded ``node``; "" for the model itself."""
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""


def located(nodes: fx.Node | Sequence[fx.Node]) -> str:
    """The user's line at a node, or near it, with the module whose forward it is in; "" if there is none.

    Args:
        nodes: a node, or several of which the first that has a line counts.
    """
    for node in [nodes] if isinstance(nodes, fx.Node) else nodes:
        nearest = _nearest(node)
        if nearest is not None:
            file, number, function = nearest.meta[SOURCE]
            where = f" of {module}" if (module := _calling_module(nearest)) else ""
            return f'{file}:{number}, in {function}{where}: "{linecache.getline(file, number).strip()}"'
    return ""


def _calling_module(node: fx.Node) -> str:
    """Qualified name of the module whose forward has the node's line: of a layer, that of its caller."""
    stack = [str(entry[0]) for entry in (node.meta.get("nn_module_stack") or {}).values()]
    if stack and node.op == "call_module" and str(node.target).startswith(stack[-1]):
        stack.pop()
    return stack[-1] if stack else ""


def _nearest(node: fx.Node) -> fx.Node | None:
    """The node itself, or the nearest one behind or before it, whose line is known."""
    ring, seen = [node], {node}
    for _ in range(_REACH):
        found = next((n for n in ring if n.meta.get(SOURCE)), None)
        if found is not None:
            return found
        ring = [n for current in ring for n in (*current.users, *current.all_input_nodes) if n not in seen]
        seen.update(ring)
    return None


def described(node: fx.Node) -> str:
    """A node for a message: the operation as fx prints it, and the user's line."""
    operation = node.format_node() or f"the output {node.args}"
    return f"{operation} (at {shown(node.meta[SOURCE])})" if node.meta.get(SOURCE) else operation


def refusal(code: str, module: str, reason: str, hint: str) -> CaptureError:
    """An error with one finding."""
    return CaptureError([Finding(code, "error", module, reason, hint)])
