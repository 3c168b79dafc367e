"""What ``torch.export`` sees of a model that the tracer cannot follow: for the error only.

1. The model is exported (non-strict), with the first dimension of every tensor free where
   that is possible, else for the example batch as it is.
2. Every embedding operation of the exported program is named by the parameter it reads.
3. Where export stops as well, the tables that the model holds are listed.

Nothing is ever rewritten from this. An exported program is made of aten operations: layers
have become their operations, train and eval mode are baked in, and so are the branches
that the example took. Putting towers into the user's model "by name" from such a program would need
every operation between lookups and joins to belong to exactly one forward that can be
replaced, which is what the capture could not establish. The ways out are an adapter, or a
forward that can be followed.
"""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from dmt_plugin.capture.inputs import ExampleBatch
from dmt_plugin.capture.trace_environment import left_as_it_was
from dmt_plugin.core.findings import Finding

_LOOKUPS = ("aten.embedding", "aten._embedding_bag")
_SHOWN = 8
_WAY_OUT = (
    "this is what could be sharded once the model can be captured: change the place named above, or register an "
    "adapter (dmt_plugin.register_adapter)"
)


def what_export_sees(model: nn.Module, example: ExampleBatch) -> list[Finding]:
    """One note (DMT111) on the embedding calls of ``model``; empty if it has no table at all."""
    program, batches, problem = _exported(model, example)
    if program is not None:
        calls = list(_calls(program))
        listed = _listed([f"{name} ({rows} x {width})" for name, rows, width in calls])
        reason = f"torch.export follows the model ({batches}) and sees {len(calls)} embedding call(s): {listed}"
        return [Finding("DMT111", "info", "", reason, _WAY_OUT)] if calls else []
    tables = [
        f"{path} ({module.num_embeddings} x {module.embedding_dim})"
        for path, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    ]
    if not tables:
        return []
    listed = _listed(tables)
    reason = f"torch.export cannot follow the model either ({problem}); it holds {len(tables)} table(s): {listed}"
    return [Finding("DMT111", "info", "", reason, _WAY_OUT)]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _exported(model: nn.Module, example: ExampleBatch) -> tuple[Any, str, str]:
    """The exported program, for which batches it holds, and what export said where there is none."""
    problem = ""
    for batches, shapes in (("at any batch size", _free_batch(model, example)), ("at this batch size only", None)):
        if batches == "at any batch size" and shapes is None:
            continue
        try:
            with left_as_it_was(model), _quiet():
                program = torch.export.export(model, example.args, example.kwargs, dynamic_shapes=shapes, strict=False)
            return program, batches, ""
        except Exception as error:  # whatever export raises is only worth a line in a note
            problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}"
    return None, "", problem


def _free_batch(model: nn.Module, example: ExampleBatch) -> Any:
    """``dynamic_shapes`` with a free first dimension; ``None`` where the inputs are not containers of tensors."""
    try:
        bound = inspect.signature(model.forward).bind(*example.args, **example.kwargs)
    except (TypeError, ValueError):
        return None
    leaves, spec = pytree.tree_flatten(dict(bound.arguments))
    builtin = pytree.tree_leaves(
        dict(bound.arguments), is_leaf=lambda value: not isinstance(value, (list, tuple, dict))
    )
    if len(leaves) != len(builtin) or any(p.kind is p.VAR_POSITIONAL for p in bound.signature.parameters.values()):
        return None
    shapes = [{0: torch.export.Dim.AUTO} if isinstance(leaf, Tensor) and leaf.dim() else None for leaf in leaves]
    return pytree.tree_unflatten(shapes, spec)


def _calls(program: Any) -> Iterator[tuple[str, int, int]]:
    parameters = program.graph_signature.inputs_to_parameters
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target).startswith(_LOOKUPS):
            weight = node.args[0]
            rows, width = weight.meta["val"].shape
            yield parameters.get(weight.name, weight.name), int(rows), int(width)


@contextmanager
def _quiet() -> Iterator[None]:
    """Export prints the program so far of every model that it cannot follow."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
