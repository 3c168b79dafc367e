"""Finds what the model does to one feature before it meets others, and the stream that comes out.

A feature is often not used as it is looked up: a sequence is masked and summed, a narrow
table is projected to the common width, quotient and remainder rows are multiplied. All that
belongs to the feature and can run beside its tables.

1. Walk the graph. A node belongs to a feature if it treats every sample by itself
   (:mod:`dmt_plugin.passes.ops.per_sample`) and is computed from lookups and ids of one raw input
   only, besides constants and layers that nothing else uses.
2. The stream of a lookup is the one such node that is used by others than the feature's own
   nodes, if there is just one, it is one vector per sample, and all its lookups lead to it
   alone. Else the stream is the lookup itself.
3. Lookups that meet in a stream are read by one feature, however they compute their row
   numbers from the raw input: the rows must come to one place.
4. A stream whose region reads the ids again (a mask) or needs no parameter can be computed by
   the rank that owns the table, if there is one table; any other by the tower. A region that
   reads ids and needs more than that is left where it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from dmt_plugin.passes.analysis.id_keys import key_of
from dmt_plugin.passes.analysis.table_calls import weight_of
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.facts import Region
from dmt_plugin.passes.ops.per_sample import is_per_sample


@dataclass
class _Local:
    """A node that belongs to one feature.

    Attributes:
        origin: key of the raw input.
        lookups: lookups behind it.
        nodes: the nodes between, itself included, in order.
        ids: index nodes among its inputs.
        layers: whether a layer with parameters is among them.
    """

    origin: str
    lookups: set[fx.Node] = field(default_factory=set)
    nodes: set[fx.Node] = field(default_factory=set)
    ids: set[fx.Node] = field(default_factory=set)
    layers: bool = False


class FindRegions(GraphPass):
    """See the module's docstring."""

    name = "find_regions"
    contract = Contract(provides=frozenset({"regions"}), requires=frozenset({"lookups"}))

    def run(self, ctx: PassContext) -> PassResult:
        """Fills ``ctx.facts.regions``; lookups that meet become one feature."""
        local = _local_nodes(ctx)
        ends = _ends(local)
        ctx.facts.regions = {}
        for stream in dict.fromkeys(node for own in ends.values() if len(own) == 1 for node in own):
            region = _region_at(ctx, stream, local, ends)
            if region is not None:
                ctx.facts.regions.update(dict.fromkeys(region.lookups, region))
        _merge_features(ctx)
        return self.result(len({region.stream for region in ctx.facts.regions.values()}))


# -- the walk --------------------------------------------------------------------------


def _local_nodes(ctx: PassContext) -> dict[fx.Node, _Local]:
    lookups = {lookup.node: lookup for lookup in ctx.facts.lookups}
    ids = _id_nodes(ctx)
    calls = Counter(str(n.target) for n in ctx.gm.graph.nodes if n.op == "call_module")
    local: dict[fx.Node, _Local] = {}
    for node in ctx.gm.graph.nodes:
        if node in lookups:
            local[node] = _Local(lookups[node].origin, lookups={node})
        elif node in ids:
            local[node] = _Local(ids[node], ids={node})
        elif node.op in ("call_function", "call_method", "call_module"):
            found = _combined(ctx, node, local, calls)
            if found is not None:
                local[node] = found
    return local


def _id_nodes(ctx: PassContext) -> dict[fx.Node, str]:
    """Nodes that are some lookup's index, or compute the same ids again, with the origin of the ids."""
    origins: dict[str, str] = {}
    forms: set[tuple[Any, ...]] = set()
    for lookup in ctx.facts.lookups:
        index = lookup.ids[1][0]
        # Ids of bags of varying length have no sample in front.
        if lookup.hotness is not None and lookup.ids[0] != "ids_from_column" and isinstance(index, fx.Node):
            origins[key_of(index)] = lookup.origin
            forms.add((index.op, index.target, len(index.args)))
    candidates = [n for n in ctx.gm.graph.nodes if (n.op, n.target, len(n.args)) in forms]
    return {n: origins[key] for n in candidates if (key := key_of(n)) in origins}


def _combined(ctx: PassContext, node: fx.Node, local: dict[fx.Node, _Local], calls: Counter[str]) -> _Local | None:
    """What ``node`` is if it belongs to the feature of all its inputs."""
    inputs = [n for n in node.all_input_nodes if n.op != "get_attr"]
    constants = [n for n in node.all_input_nodes if n.op == "get_attr"]
    if not inputs or any(n not in local for n in inputs) or len({local[n].origin for n in inputs}) > 1:
        return None
    if any(isinstance(weight_of(ctx.gm, str(n.target)), nn.Parameter) for n in constants):
        return None
    layers = node.op == "call_module" and any(True for _ in ctx.module(node).parameters())
    if (layers and calls[str(node.target)] > 1) or not is_per_sample(ctx.gm, node, ctx.captured.batch_size):
        return None
    sources = [local[n] for n in inputs]
    return _Local(
        sources[0].origin,
        lookups=set().union(*(s.lookups for s in sources)),
        nodes={node, *constants}.union(*(s.nodes for s in sources)),
        ids=set().union(*(s.ids for s in sources)),
        layers=layers or any(s.layers for s in sources),
    )


# -- the streams -----------------------------------------------------------------------


def _ends(local: dict[fx.Node, _Local]) -> dict[fx.Node, set[fx.Node]]:
    """For each lookup the nodes of its feature that others use."""
    ends: dict[fx.Node, set[fx.Node]] = {}
    for node, found in local.items():
        if any(user not in local for user in node.users):
            for lookup in found.lookups:
                ends.setdefault(lookup, set()).add(node)
    return ends


def _region_at(
    ctx: PassContext, stream: fx.Node, local: dict[fx.Node, _Local], ends: dict[fx.Node, set[fx.Node]]
) -> Region | None:
    found = local[stream]
    value = stream.meta["val"]
    if not isinstance(value, Tensor) or not value.is_floating_point() or not found.nodes:
        return None
    if value.dim() not in (2, 3) or (value.dim() == 3 and value.shape[1] != 1):
        return None
    if any(ends[lookup] != {stream} for lookup in found.lookups):
        return None
    own = [x for x in ctx.facts.lookups if x.node in found.lookups]
    if found.ids:
        same_ids = all(key_of(n) == key_of(own[0].ids[1][0]) for n in found.ids)
        if len(own) > 1 or found.layers or own[0].hotness is None or not same_ids:
            return None
    inside = tuple(n for n in ctx.gm.graph.nodes if n in found.nodes)
    return Region(stream, tuple(x.node for x in own), inside, tuple(found.ids), found.layers)


def _merge_features(ctx: PassContext) -> None:
    """Lookups that meet in a stream are of one feature, and so are all others with the same ids."""
    leader = {lookup.feature: lookup.feature for lookup in ctx.facts.lookups}

    def first(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    feature = {lookup.node: lookup.feature for lookup in ctx.facts.lookups}
    for region in ctx.facts.regions.values():
        for node in region.lookups[1:]:
            leader[first(feature[node])] = first(feature[region.lookups[0]])
    ctx.facts.lookups = [replace(x, feature=first(x.feature)) for x in ctx.facts.lookups]
