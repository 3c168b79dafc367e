"""Recognises calls that read rows of an embedding table, and gives all of them in one form.

A table is read by ``nn.Embedding`` or ``nn.EmbeddingBag`` (also through a subclass that
inherits ``forward``), or by ``F.embedding`` or ``F.embedding_bag`` on a parameter of some
module. What follows does not care which: a call has a weight, an index, and options.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dmt_plugin.fxtools.arguments import arguments
from dmt_plugin.fxtools.attributes import attribute
from dmt_plugin.passes.ops.queries import has_trait

_OPTIONS = ("padding_idx", "max_norm", "scale_grad_by_freq")


@dataclass(frozen=True)
class TableCall:
    """One call that reads rows.

    Attributes:
        node: the node of the call.
        weight: qualified name of the weight, a tensor of the graph module.
        bag: True if each sample's rows are pooled.
        index: the ids.
        offsets: starts of the bags, for a bag of flat ids.
        weights: weight per id, for a bag.
        mode: ``"sum"``, ``"mean"`` or ``"max"``; ``"sum"`` without pooling.
        include_last_offset: the last of ``offsets`` is the end of the last bag.
        padding_idx: id whose row stays as it is.
        max_norm: as in ``nn.Embedding``.
        scale_grad_by_freq: as in ``nn.Embedding``.
    """

    node: fx.Node
    weight: str
    bag: bool
    index: fx.Node
    offsets: fx.Node | None
    weights: fx.Node | None
    mode: str
    include_last_offset: bool
    padding_idx: int | None
    max_norm: float | None
    scale_grad_by_freq: bool

    @property
    def table(self) -> str:
        """The table's name for people: the module where that has only this weight, else the weight."""
        return self.weight.removesuffix(".weight")

    @property
    def options(self) -> tuple[Any, ...]:
        """Everything but the node that decides what the call gives, other than its inputs."""
        return (self.weight, self.bag, self.mode, self.include_last_offset, self.padding_idx, self.max_norm)


def weight_of(gm: fx.GraphModule, name: str) -> Tensor:
    """The tensor of that name, a parameter or a buffer."""
    found = attribute(gm, name)
    assert isinstance(found, Tensor)
    return found


def read_call(gm: fx.GraphModule, node: fx.Node) -> TableCall | None:
    """The call in its common form; ``None`` if ``node`` reads no table by the samples' ids.

    A table that is read otherwise (one row per position, say) is an ordinary dense parameter.
    """
    found = _module_call(gm, node) if node.op == "call_module" else _function_call(gm, node)
    if found is None or not isinstance(weight_of(gm, found.weight), nn.Parameter):
        return None  # a buffer is what the model says it is: the same on every rank
    return found if reads_samples(node) else None


def _module_call(gm: fx.GraphModule, node: fx.Node) -> TableCall | None:
    layer = gm.get_submodule(str(node.target))
    if not isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return None
    given = arguments(node, "input", "offsets", "per_sample_weights")
    options = {name: getattr(layer, name) for name in _OPTIONS}
    weight = f"{node.target}.weight"
    if isinstance(layer, nn.Embedding):
        return TableCall(node, weight, False, given["input"], None, None, "sum", False, **options)
    return TableCall(
        node, weight, True, given["input"], given.get("offsets"), given.get("per_sample_weights"), layer.mode,
        layer.include_last_offset, **options,
    )  # fmt: skip


def _function_call(gm: fx.GraphModule, node: fx.Node) -> TableCall | None:
    if node.target not in (F.embedding, F.embedding_bag):
        return None
    assert callable(node.target)
    call = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    call.apply_defaults()
    given = call.arguments
    table = given["weight"]
    if not isinstance(table, fx.Node) or table.op != "get_attr":
        return None
    options = {name: given[name] for name in _OPTIONS}
    weight = str(table.target)
    if (padding := options["padding_idx"]) is not None and padding < 0:
        options["padding_idx"] = weight_of(gm, weight).shape[0] + padding
    if node.target is F.embedding:
        return TableCall(node, weight, False, given["input"], None, None, "sum", False, **options)
    return TableCall(
        node, weight, True, given["input"], given["offsets"], given["per_sample_weights"], given["mode"],
        given["include_last_offset"], **options,
    )  # fmt: skip


def trained_behind(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a value is computed from a parameter that is trained, or by a layer with such."""
    pending, seen = [node], {node}
    while pending:
        source = pending.pop()
        if source.op == "get_attr" and getattr(attribute(gm, str(source.target)), "requires_grad", False):
            return True
        layer = gm.get_submodule(str(source.target)) if source.op == "call_module" else None
        if layer is not None and any(p.requires_grad for p in layer.parameters()):
            return True
        fresh = [n for n in source.all_input_nodes if n not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return False


def reads_samples(node: fx.Node) -> bool:
    """Whether a value comes from what is in the model's inputs, not only from their sizes, device or type."""
    pending, seen = list(node.all_input_nodes), set()
    while pending:
        source = pending.pop()
        if source.op == "placeholder":
            return True
        if source in seen or tells_no_values(source):
            continue
        seen.add(source)
        pending.extend(source.all_input_nodes[:1] if has_trait(source, "reads_first") else source.all_input_nodes)
    return False


def tells_no_values(node: fx.Node) -> bool:
    """Whether a node reads no values of its inputs, but their shape, type or device."""
    value = node.meta.get("val")
    if has_trait(node, "reads_no_values") or isinstance(value, (int, float, torch.device, torch.dtype)):
        return True
    return isinstance(value, tuple) and all(isinstance(size, int) for size in value)


def independent_calls(calls: list[TableCall]) -> tuple[list[TableCall], list[TableCall]]:
    """Calls whose inputs are there before any row is, and those that wait for rows of others (in graph order)."""
    behind: set[fx.Node] = set()
    first: list[TableCall] = []
    second: list[TableCall] = []
    for call in calls:
        (second if behind & set(call.node.all_input_nodes) else first).append(call)
        pending = [call.node]
        while pending:
            node = pending.pop()
            fresh = [user for user in node.users if user not in behind]
            behind.update(fresh)
            pending.extend(fresh)
    return first, second
