"""Runs the laws of the transformation on a user's own model and batch.

1. The captured graph gives the model's outputs, in eval mode and, with the same random
   numbers, in train mode.
2. With pass-through towers, outputs and the gradient of every parameter are equal bit for
   bit. Where they are not, both graphs are run node by node and the first node that
   differs is named.
3. With tower modules, every parameter that had a gradient still has one, and the order of
   the tower outputs matters: no stream is lost or mixed up on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from dmt_plugin.api import transform
from dmt_plugin.capture import ExampleBatch, GraphModel, capture
from dmt_plugin.capture.inputs import example_of
from dmt_plugin.config import DMTConfig
from dmt_plugin.passes.insert_towers import TOWERS
from dmt_plugin.topology import Topology
from dmt_plugin.tower_model import TowerModel


@dataclass(frozen=True)
class Verdict:
    """One law on one model.

    Attributes:
        law: what must hold.
        holds: whether it does.
        detail: what was compared, or what differs.
    """

    law: str
    holds: bool
    detail: str = ""


def check_laws(model: nn.Module, batch: Any, config: DMTConfig, topology: Topology) -> list[Verdict]:
    """Checks every law that one process can check.

    Args:
        model: the user's model, with weights; it is copied.
        batch: one call of it.
        config: the ``"dmt"`` section.
        topology: what the towers are for.
    """
    model = copy.deepcopy(model)
    example = example_of(batch, model)
    return list(_laws(model, example, config, topology))


def _laws(model: nn.Module, example: ExampleBatch, config: DMTConfig, topology: Topology) -> Iterator[Verdict]:
    captured = capture(model, example).as_module()
    for mode in ("eval", "train"):
        expected, found = (_outputs(m, example, mode == "train") for m in (model, captured))
        law = f"the captured graph is the model ({mode} mode)"
        yield Verdict(law, _equal(expected, found), _worst(expected, found))
    # The checks that transform makes by itself would stop at the first difference.
    config = config.model_copy(update={"transform": config.transform.model_copy(update={"verify": False})})
    preserving = config.model_copy(update={"towers": config.towers.model_copy(update={"module": "none"})})
    towers = transform(model, example, preserving, topology)
    yield from _same_gradients(model, captured, towers, example)
    if config.towers.module != "none":
        compressed = transform(model, example, config, topology)
        if not compressed.semantic_preserving:
            yield from _tower_laws(model, compressed, example)


def _same_gradients(
    model: nn.Module, captured: GraphModel, towers: TowerModel, example: ExampleBatch
) -> Iterator[Verdict]:
    for mode in ("eval", "train"):
        runs = [_gradients(m, example, mode == "train") for m in (model, towers)]
        (expected, wanted), (found, given) = runs
        same = _equal(expected, found)
        detail = _worst(expected, found)
        if not same:
            detail += f"; first at {first_difference(captured, towers, example)}"
        yield Verdict(f"pass-through towers keep outputs ({mode} mode)", same, detail)
        different = sorted(n for n in wanted.keys() | given.keys() if not _same(wanted.get(n), given.get(n)))
        detail = f"{len(wanted)} gradients" if not different else f"gradients differ: {different[:5]}"
        yield Verdict(f"pass-through towers keep every gradient ({mode} mode)", not different, detail)


def _tower_laws(model: nn.Module, towers: TowerModel, example: ExampleBatch) -> Iterator[Verdict]:
    _, wanted = _gradients(model, example, True)
    _, given = _gradients(towers, example, True)
    trained = {n for n, _ in towers.named_parameters()}
    lost = sorted((set(wanted) & trained) - set(given))
    idle = sorted(n for n in trained if n.startswith(TOWERS) and n not in given)
    yield Verdict(
        "with tower modules every trained parameter gets a gradient",
        not lost and not idle,
        f"{len(given)} gradients" if not lost and not idle else f"without: {(lost + idle)[:5]}",
    )
    before = _outputs(towers, example, False)
    for path in [n for n, _ in towers.named_modules() if n.startswith(f"{TOWERS}.") and n.count(".") == 2]:
        hook = towers.get_submodule(path).register_forward_hook(lambda module, args, out: out.flip(1))
        changed = not _equal(before, _outputs(towers, example, False))
        hook.remove()
        yield Verdict(f"the streams of {path} are told apart", changed, "reversed outputs change the result")


# -- running -----------------------------------------------------------------------------


@contextmanager
def _left_as_it_is(model: nn.Module, training: bool) -> Iterator[None]:
    """Runs in one mode, with fixed random numbers, and restores buffers and modes."""
    states = {n: b.clone() for n, b in model.named_buffers()}
    modes = [(m, m.training) for m in model.modules()]
    model.train(training)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        for module, was in modes:
            module.training = was
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(states[name])


def _outputs(model: nn.Module, example: ExampleBatch, training: bool) -> list[Any]:
    with _left_as_it_is(model, training), torch.no_grad():
        return pytree.tree_leaves(model(*example.args, **example.kwargs))


def _gradients(model: nn.Module, example: ExampleBatch, training: bool) -> tuple[list[Any], dict[str, Tensor]]:
    model.zero_grad()
    with _left_as_it_is(model, training):
        out = pytree.tree_leaves(model(*example.args, **example.kwargs))
        losses = [o.float().square().sum() for o in out if isinstance(o, Tensor) and o.requires_grad]
        if losses:
            torch.stack(losses).sum().backward()
    found = {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return [o.detach() if isinstance(o, Tensor) else o for o in out], found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        a, b = (t.to_dense() if t.is_sparse else t for t in (a, b))
        return a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    return type(a) is type(b) and bool(a == b)


def _equal(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))


def _worst(a: list[Any], b: list[Any]) -> str:
    if len(a) != len(b):
        return f"{len(a)} outputs, then {len(b)}"
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if isinstance(x, Tensor) and isinstance(y, Tensor) and x.numel():
            if x.shape != y.shape:
                return f"shape {tuple(x.shape)}, then {tuple(y.shape)}"
            worst = max(worst, float((x.detach().double() - y.detach().double()).abs().max()))
    return f"largest difference {worst:.3g}"


# -- bisect ------------------------------------------------------------------------------


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the value of every node."""

    def __init__(self, module: fx.GraphModule, see: Callable[[str, Any], None]) -> None:
        super().__init__(module)
        self._see = see

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node and hands its value over."""
        value = super().run_node(n)
        self._see(n.name, value)
        return value


def first_difference(before: GraphModel, after: GraphModel, example: ExampleBatch) -> str:
    """Name of the first node that both graphs have and compute differently.

    Args:
        before: a graph.
        after: the same graph, rewritten; nodes that were kept have kept their names.
        example: the call to run both with, in eval mode.

    Returns:
        The name and operation of the node, or a text saying that none differs.
    """
    values: dict[str, Any] = {}
    differing: list[str] = []

    def compare(name: str, value: Any) -> None:
        if name in values and isinstance(value, Tensor) and not differing and not _same(values[name], value):
            differing.append(name)

    for model, see in ((before, values.__setitem__), (after, compare)):
        with _left_as_it_is(model, False), torch.no_grad():
            _Recorder(model.__dict__["graph_module"], see).run(*model.binder.inputs(example.args, example.kwargs))
    if not differing:
        return "no node (the difference is in the gradients alone)"
    node = next(n for n in after.graph.nodes if n.name == differing[0])
    return f"node {node.name} ({node.op} {node.target})"
