"""Keeps, or refuses, what a model's forward does to gradients and precision other than by operations.

A recorded graph holds operations only: ``no_grad`` blocks, custom backwards, hooks and autocast would be lost without a
difference in any output. While a model is captured:

1. Operations under ``torch.no_grad()`` are noted while they are recorded. Once all is recorded, what leaves such a
   block is detached: the same values, and no gradient through them. (The block may be in a helper, or a decorator.)
2. A change in place under ``torch.no_grad()`` keeps the old gradient in eager mode, which no operation does: refused.
3. A custom ``torch.autograd.Function`` has a backward of its own, which recording its forward would replace: refused.
   Checkpoints of activations are followed as if their function was called by itself: the same numbers and gradients.
4. Hooks on tensors, and branches on what autograd knows of a tensor: refused. An example value knows no gradient.
5. Operations under ``torch.autocast`` would run in full precision: refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch.utils.checkpoint import CheckpointFunction

from dmt_plugin.capture.mutations import refuse_outliving_changes
from dmt_plugin.capture.source_lines import calling_line, described, module_of, refusal, shown
from dmt_plugin.capture.trace_environment import Recorder, contains_proxy
from dmt_plugin.core.errors import CaptureError
from dmt_plugin.fxtools.assigned import assigned
from dmt_plugin.fxtools.names import MUTATED, WITHOUT_GRADIENT

_OF_AUTOGRAD = (
    "grad", "grad_fn", "is_leaf", "register_hook", "register_post_accumulate_grad_hook", "requires_grad",
    "requires_grad_", "retain_grad", "retains_grad",
)  # fmt: skip


def note_surroundings(node: fx.Node, here: str) -> None:
    """Notes on a node that is being recorded whether gradients are off.

    Args:
        node: the node.
        here: the module whose forward runs.

    Raises:
        CaptureError: autocast is on.
    """
    if node.op not in ("call_function", "call_method", "call_module"):
        return  # a parameter that is read in such a block is still trained
    if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
        raise refusal(
            "DMT114", here,
            f"torch.autocast is on at {shown(calling_line())}; a graph would run its operations in full precision",
            'take torch.autocast out of forward, and choose the precision of training for the whole model ("bf16" in '
            "the DeepSpeed configuration)",
        )  # fmt: skip
    if not torch.is_grad_enabled():
        node.meta[WITHOUT_GRADIENT] = True


def refuse_autograd(name: str, here: str) -> None:
    """Refuses an attribute of a tensor that is autograd's.

    Raises:
        CaptureError: ``name`` is one.
    """
    if name in _OF_AUTOGRAD:
        raise refusal(
            "DMT114", here,
            f".{name} of a tensor is used at {shown(calling_line())}; a graph holds operations, and nothing of their "
            "gradients",
            "do this outside forward; x.detach() and torch.no_grad() are followed",
        )  # fmt: skip


@contextmanager
def own_backwards_refused(tracer: Recorder) -> Iterator[None]:
    """Refuses custom autograd functions that are applied to something recorded."""
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if tracer.evaluating or not contains_proxy((args, kwargs)):
            return original.__get__(None, cls)(*args, **kwargs)
        if cls is CheckpointFunction:
            function: Callable[..., Any] = args[0]
            return function(*args[2:])
        raise refusal(
            "DMT114", tracer.here,
            f"{cls.__name__}, a torch.autograd.Function with a backward of its own, is applied at "
            f"{shown(calling_line())}; recording its operations would give them another gradient",
            "call it in a function at the top of its file that is marked with torch.fx.wrap: it stays one operation",
        )  # fmt: skip

    with mock.patch.object(torch.autograd.Function, "apply", classmethod(apply)):
        yield


def detach_what_has_no_gradient(graph: fx.Graph) -> None:
    """Detaches what leaves a block without gradients.

    Raises:
        CaptureError: the block changes a tensor in place.
    """
    inside: set[fx.Node] = set()
    for node in list(graph.nodes):
        if not _without(node, inside):
            continue
        if node.target is assigned and node.args[0] not in inside and _tensors(node.args[0]):
            raise _changed_in_place(node)
        if MUTATED in node.meta:
            refuse_outliving_changes(graph, node)
            raise _changed_in_place(node)
        inside.add(node)
    for node in inside:
        value = node.meta["val"]
        outer = [user for user in node.users if user not in inside]
        if not outer or not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            continue
        with graph.inserting_after(node):
            cut = graph.call_method("detach", (node,))
        cut.meta = {key: kept for key, kept in node.meta.items() if key != WITHOUT_GRADIENT} | {"val": value}
        for user in outer:
            user.replace_input_with(node, cut)


def _tensors(node: Any) -> list[fx.Node]:
    """The tensors that a node is computed from: what is made of none has no gradient."""
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]


def _without(node: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether nothing of ``node`` has a gradient; taking an item of a list is not an operation of autograd's."""
    source = node.args[0] if node.args else None
    item = node.target in (operator.getitem, getattr) and isinstance(source, fx.Node)
    if item and not isinstance(source.meta.get("val"), Tensor):  # type: ignore[union-attr]
        return source in inside
    return WITHOUT_GRADIENT in node.meta


def _changed_in_place(node: fx.Node) -> CaptureError:
    return refusal(
        "DMT114", module_of(node),
        f"{described(node)} changes a tensor in place under torch.no_grad(), so its gradient ignores the change",
        "compute a new tensor, and write x + (new - x).detach() where the gradient is to pass unchanged",
    )  # fmt: skip
