"""What the features of a model look like in a batch: their embedding rows, and nothing behind them.

1. The model is captured, and the compiler's own passes find its lookups: what ``dmt explain`` understands serves.
2. The part of the graph that the lookups need becomes a graph of its own; the dense layers are never run.
3. A feature with several lookups is shown by its widest, side by side. A bag is pooled by the lookup itself; the rows
   of a sequence are added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dmt_plugin.capture import ExampleBatch, capture
from dmt_plugin.capture.example_call import example_of
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import PlanError
from dmt_plugin.core.modes import in_mode
from dmt_plugin.passes.base import GraphPass, PassContext, run_passes
from dmt_plugin.passes.facts import Lookup
from dmt_plugin.passes.logical.find_joins import FindJoins
from dmt_plugin.passes.logical.find_lookups import FindLookups
from dmt_plugin.passes.logical.make_tower_plan import describe
from dmt_plugin.passes.pipeline import towers_passes
from dmt_plugin.plan.tower_plan import model_fingerprint
from dmt_plugin.topology.shape import Topology

_WHATEVER_IT_SAYS = DMTConfig.model_validate({"transform": {"on_unsupported": "transport"}})
"""Features are looked at whether or not they can go through tower modules."""


class FeatureRows:
    """Gives the embedding rows of every feature of a model.

    Args:
        model: the user's flat model, with weights; not changed. Later changes of its weights are seen.
        example: one call of it.

    Attributes:
        features: the model's features.
        tables: its tables.
        fingerprint: of both, as plans carry it.
        joined: for each group that can go through tower modules its features.

    Raises:
        CaptureError: the model cannot be captured.
        TransformError: its lookups cannot be read safely; carries coded findings.
        PlanError: the model's weights hold no data, or a feature has no row per sample.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        if any(p.is_meta for p in model.parameters()):
            raise PlanError(
                "the model's weights hold no data (they are on the meta device), so its embeddings say nothing. Build "
                "it on the CPU and load a checkpoint."
            )
        self._model = model
        ctx = PassContext(capture(model, example_of(example, model, labelled=True)), _WHATEVER_IT_SAYS, Topology(1, 1))
        passes = towers_passes()
        last = next(i for i, step in enumerate(passes) if isinstance(step, FindLookups))
        run_passes(passes[: last + 1], ctx)
        if by_id := sorted({x.feature for x in ctx.facts.lookups if x.by_id and x.bags is None}):
            raise PlanError(
                f"the features {by_id} give a row for each of any number of ids, which is no vector of a sample that "
                'could be compared with those of others. Set dmt.partition.strategy to "strided", or list the towers '
                "in dmt.partition.file."
            )
        self.tables, self.features = describe(ctx.facts.lookups)
        self.fingerprint = model_fingerprint(self.tables, self.features)
        self._binder = ctx.captured.binder
        shown = _widest(ctx.facts.lookups)
        self._names = [lookup.feature for lookup in shown]
        self._graph = _up_to(ctx.gm, [lookup.node for lookup in shown])
        self.joined = _joined(ctx, passes[last + 1 :])

    def example(self, batch: Any) -> ExampleBatch:
        """A batch of a data loader as a call of the model."""
        return example_of(batch, self._model, labelled=True)

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """The rows ``(B, N)`` of every feature for one batch, as the model would look them up in eval mode."""
        call = self.example(batch)
        with in_mode(self._graph, training=False), torch.no_grad():
            found = self._graph(*self._binder.inputs(call.args, call.kwargs))
        parts: dict[str, list[Tensor]] = {}
        for name, rows in zip(self._names, found, strict=True):
            flat = rows if rows.dim() == 2 else rows.reshape(len(rows), -1, rows.shape[-1]).sum(1)
            parts.setdefault(name, []).append(flat)
        return {f.name: torch.cat(parts[f.name], dim=1) for f in self.features}


def _joined(ctx: PassContext, rest: Sequence[GraphPass]) -> list[frozenset[str]]:
    """The features of each group that can go through tower modules, as the passes behind the lookups find them."""
    last = next(i for i, step in enumerate(rest) if isinstance(step, FindJoins))
    run_passes(rest[: last + 1], ctx)
    return [frozenset(x.feature for x in g.lookups) for g in ctx.facts.groups if g.kind == "tower"]


def _widest(lookups: list[Lookup]) -> list[Lookup]:
    """The lookups that show their feature: a first-order weight beside an embedding says nothing of its direction."""
    widest: dict[str, int] = {}
    for lookup in lookups:
        widest[lookup.feature] = max(widest.get(lookup.feature, 0), lookup.dim)
    return [lookup for lookup in lookups if lookup.dim == widest[lookup.feature]]


def _up_to(gm: fx.GraphModule, outputs: list[fx.Node]) -> fx.GraphModule:
    """The part of a graph that gives some of its nodes; modules and parameters are shared."""
    needed, pending = set(outputs), list(outputs)
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                pending.append(source)
    graph = fx.Graph()
    twin: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder" or node in needed:  # inputs stay, so that it is called as the whole graph
            twin[node] = graph.node_copy(node, twin.__getitem__)
    graph.output(tuple(twin[node] for node in outputs))
    return fx.GraphModule(gm, graph)
