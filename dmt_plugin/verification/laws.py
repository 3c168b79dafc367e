"""Runs the laws of the transformation on a user's own model and batch.

1. The captured graph gives the model's outputs, in eval mode and, with the same random
   numbers, in train mode.
2. With pass-through towers, outputs and the gradient of every parameter are equal bit for
   bit. Where they are not, both graphs are run node by node and the first node that
   differs is named (:mod:`dmt_plugin.verification.bisect`).
3. With tower modules, every parameter that had a gradient still has one, and the order of
   the tower outputs matters: no stream is lost or mixed up on the way.

A model that is refused breaks the law that it can be rewritten; the findings say why.

Tables on the meta device get those rows that the batch looks up, made by their rules; a law that would need more than
that is not checked, and the verdict says so.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dmt_plugin.capture import ExampleBatch, GraphModel, capture
from dmt_plugin.capture.example_call import example_of
from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.equality import differences, same, say_differences
from dmt_plugin.core.errors import CaptureError, TransformError
from dmt_plugin.core.modes import left_as_it_was
from dmt_plugin.fxtools.names import tower_part
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.same_outputs import rows_on_demand
from dmt_plugin.tables.on_demand import RowsNotMadeError, RowsOnDemand
from dmt_plugin.topology.shape import Topology
from dmt_plugin.verification.bisect import first_gradient, first_layer, first_value, loss_of


@dataclass(frozen=True)
class Verdict:
    """One law on one model.

    Attributes:
        law: what must hold.
        holds: whether it does; ``None`` if that was not checked.
        detail: what was compared, or what differs, or why it was not checked.
        node: name of the first node that differs, where a node can be named.
    """

    law: str
    holds: bool | None
    detail: str = ""
    node: str = ""


def check_laws(model: nn.Module, batch: Any, config: DMTConfig, topology: Topology) -> list[Verdict]:
    """Checks every law that one process can check.

    Args:
        model: the user's model; it is copied.
        batch: one call of it.
        config: the ``"dmt"`` section.
        topology: what the towers are for.
    """
    # What is on meta has nothing to copy, and a rule that belongs to it.
    model = copy.deepcopy(model, {id(p): p for p in model.parameters() if p.is_meta})
    example = example_of(batch, model)
    verdicts: list[Verdict] = []
    try:
        rows = rows_on_demand(model, example, config.lookup)
        verdicts.extend(_captured_laws(model, example, rows))
        # The checks that transform makes by itself would stop at the first difference.
        config = config.model_copy(update={"transform": config.transform.model_copy(update={"verify": False})})
        verdicts.extend(_preserving_laws(model, example, config, topology, rows))
        if config.towers.module != "none":
            compressed = transform(model, example, config, topology)
            if not compressed.semantic_preserving:
                verdicts.extend(_tower_laws(model, compressed, example, rows))
    except CaptureError as error:
        verdicts.append(Verdict("the model can be captured as a graph", False, str(error)))
    except TransformError as error:
        verdicts.append(Verdict("the model can be rewritten as the configuration asks", False, str(error)))
    except RowsNotMadeError as error:
        law = "all other laws" if verdicts else "all laws"
        verdicts.append(Verdict(law, None, f"the laws are checked with numbers, and: {error}"))
    return verdicts


def _captured_laws(model: nn.Module, example: ExampleBatch, rows: RowsOnDemand) -> Iterator[Verdict]:
    captured = capture(model, example).as_module()
    with rows.held_by(model, captured):
        for training in (False, True):
            expected, found = (_outputs(m, example, training) for m in (model, captured))
            law = f"the captured graph is the model ({_mode(training)} mode)"
            detail = say_differences(changed := differences(expected, found))
            if not changed:
                yield Verdict(law, True, detail)
            else:
                find = functools.partial(first_layer, model, captured, example, training)
                yield _broken(law, detail, find, rows, "in an operation outside layers")


def _preserving_laws(
    model: nn.Module, example: ExampleBatch, config: DMTConfig, topology: Topology, rows: RowsOnDemand
) -> Iterator[Verdict]:
    preserving = config.model_copy(update={"towers": config.towers.model_copy(update={"module": "none"})})
    captured = capture(model, example).as_module()
    towers = transform(model, example, preserving, topology)
    nowhere = "in no node that both graphs have"
    with rows.held_by(model, captured, towers):
        for training in (False, True):
            (expected, wanted), (found, given) = (_gradients(m, example, training) for m in (model, towers))
            law = f"pass-through towers keep outputs ({_mode(training)} mode)"
            detail = say_differences(changed := differences(expected, found))
            if not changed:
                yield Verdict(law, True, detail)
            else:
                find = functools.partial(first_value, captured, towers, example, training)
                yield _broken(law, detail, find, rows, nowhere)
            law = f"pass-through towers keep every gradient ({_mode(training)} mode)"
            different = sorted(n for n in wanted.keys() | given.keys() if not same(wanted.get(n), given.get(n)))
            if not different:
                yield Verdict(law, True, f"{len(wanted)} gradients")
            else:
                find = functools.partial(first_gradient, captured, towers, example, training)
                yield _broken(law, f"gradients differ: {different[:5]}", find, rows, nowhere)


def _broken(law: str, detail: str, find: Callable[[], fx.Node | None], rows: RowsOnDemand, nowhere: str) -> Verdict:
    try:
        with rows.held_by():
            node = find()
    except RowsNotMadeError as error:
        return Verdict(law, False, f"{detail}; where it begins cannot be said: {error}")
    where = f"node {node.name} ({node.op} {node.target})" if node is not None else nowhere
    return Verdict(law, False, f"{detail}; first {where if node is None else f'at {where}'}", node.name if node else "")


def _tower_laws(model: nn.Module, towers: TowerModel, example: ExampleBatch, rows: RowsOnDemand) -> Iterator[Verdict]:
    with rows.held_by(model, towers):
        _, wanted = _gradients(model, example, True)
        _, given = _gradients(towers, example, True)
        trained = {n for n, _ in towers.named_parameters()}
        lost = sorted((set(wanted) & trained) - set(given))
        idle = sorted(n for n in trained if tower_part(n) is not None and n not in given)
        yield Verdict(
            "with tower modules every trained parameter gets a gradient",
            not lost and not idle,
            f"{len(given)} gradients" if not lost and not idle else f"without: {(lost + idle)[:5]}",
        )
        before = _outputs(towers, example, False)
        for path in [n for n, _ in towers.named_modules() if (part := tower_part(n)) is not None and not part.inside]:
            hook = towers.get_submodule(path).register_forward_hook(lambda module, args, out: out.flip(1))
            changed = not same(before, _outputs(towers, example, False))
            hook.remove()
            detail = "reversed outputs change the result" if changed else "reversed outputs do not change the result"
            yield Verdict(f"the streams of {path} are told apart", changed, detail)


def _mode(training: bool) -> str:
    return "train" if training else "eval"


def _outputs(model: nn.Module | GraphModel, example: ExampleBatch, training: bool) -> Any:
    with left_as_it_was(model, training), torch.no_grad():
        return model(*example.args, **example.kwargs)


def _gradients(model: nn.Module, example: ExampleBatch, training: bool) -> tuple[Any, dict[str, Any]]:
    """Outputs, and the gradients by name; of a sparse one the rows that are not zero, and their numbers."""
    model.zero_grad()
    with left_as_it_was(model, training):
        outputs = model(*example.args, **example.kwargs)
        loss = loss_of(outputs)
        if loss is not None:
            loss.backward()
    found = {n: _copied(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return outputs, found


def _copied(gradient: Tensor) -> Any:
    if not gradient.is_sparse:
        return gradient.detach().clone()
    whole = gradient.detach().coalesce()
    changed = whole.values().flatten(1).ne(0).any(1)
    return whole.indices()[:, changed], whole.values()[changed]
