"""Finds what the model does to one feature before it meets others, and the stream that comes out.

A feature is often not used as it is looked up: a sequence is masked and summed, a narrow
table is projected to the common width, quotient and remainder rows are multiplied. All that
belongs to the feature and can run beside its tables.

1. Walk the graph. A node belongs to a feature if it treats every sample by itself
   (:mod:`dmt_plugin.passes.ops.per_sample`) and is computed from lookups and ids of one raw input
   only, besides constants, and layers and parameters that nothing else uses. Where a plan is
   given, they are the parameters that it has in its towers.
2. The stream of a lookup is the one such node that is used by others than the feature's own
   nodes, if there is just one, it is one vector per sample, and all its lookups lead to it
   alone. Else the stream is the lookup itself.
3. Lookups that meet in a stream are read by one feature, however they compute their row
   numbers from the raw input: the rows must come to one place.
4. Rows by id have no samples in front: what the model does to them stays where it is.
5. A stream whose region reads the ids again (a mask) or needs no parameter can be computed by
   the rank that owns the table, if there is one table; any other by the tower. A region that
   reads ids and needs more than that is left where it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from dmt_plugin.fxtools.attributes import attribute
from dmt_plugin.passes.analysis.id_keys import key_of
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.facts import Region
from dmt_plugin.passes.ops.names import name_of
from dmt_plugin.passes.ops.per_sample import filled_alike, is_per_sample


@dataclass
class _Local:
    """A node that belongs to one feature.

    Attributes:
        origin: key of the raw input.
        lookups: lookups behind it.
        nodes: the nodes between, itself included, in order.
        ids: index nodes among its inputs.
        layers: whether a layer with parameters, or a parameter, is among them.
        parameters: qualified names of the parameters.
        fixed: whether it is the same for every sample, and has none in front.
    """

    origin: str
    lookups: set[fx.Node] = field(default_factory=set)
    nodes: set[fx.Node] = field(default_factory=set)
    ids: set[fx.Node] = field(default_factory=set)
    layers: bool = False
    parameters: set[str] = field(default_factory=set)
    fixed: bool = False


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
    lookups = {lookup.node: lookup for lookup in ctx.facts.lookups if not lookup.by_id}
    ids = _id_nodes(ctx)
    calls = Counter(str(n.target) for n in ctx.gm.graph.nodes if n.op == "call_module")
    local: dict[fx.Node, _Local] = {}
    constants = _constants(ctx, ids)
    allowed = _allowed(ctx)
    for node in ctx.gm.graph.nodes:
        if node in lookups:
            local[node] = _Local(lookups[node].origin, lookups={node})
        elif node in ids:
            local[node] = _Local(ids[node], ids={node})
        elif node.op in ("call_function", "call_method", "call_module") and node not in constants:
            found = _combined(ctx, node, local, calls, constants)
            if found is not None and (allowed is None or found.parameters <= allowed):
                local[node] = found
    return local


def _allowed(ctx: PassContext) -> frozenset[str] | None:
    """The parameters that the towers of a given plan apply to single features; ``None`` where none is given."""
    if ctx.given is None or not ctx.given.is_plan:
        return None
    plan = ctx.given.plan
    return None if plan.module.kind == "none" else frozenset(name for g in plan.groups for name in g.parameters)


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


def _constants(ctx: PassContext, ids: Mapping[fx.Node, str]) -> dict[fx.Node, frozenset[fx.Node]]:
    """Nodes that are computed from parameters and buffers alone, each with the parameters.

    Of the model's inputs they may read where those are, as in ``torch.zeros(1, n, device=ids.device)``.
    """
    found: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in ctx.gm.graph.nodes:
        if node.op == "get_attr":
            trained = isinstance(attribute(ctx.gm, str(node.target)), nn.Parameter)
            found[node] = frozenset((node,) if trained else ())
        elif node.target is getattr and node.args[1] == "device" and _is_input(node.args[0], ids):
            found[node] = frozenset()
        elif node.op in ("call_function", "call_method") and not _random(node):
            sources = node.all_input_nodes
            if sources and all(n in found for n in sources):
                found[node] = frozenset().union(*(found[n] for n in sources))
    return found


def _is_input(node: Any, ids: Mapping[fx.Node, str]) -> bool:
    return isinstance(node, fx.Node) and (node.op == "placeholder" or node in ids)


def _random(node: fx.Node) -> bool:
    name = name_of(node)
    return "rand" in name or name in ("dropout", "alpha_dropout", "bernoulli", "multinomial", "normal", "empty")


def _alone_with(parameters: Iterable[fx.Node], node: fx.Node, constants: Mapping[fx.Node, Any]) -> bool:
    """Whether ``node`` is all that the parameters are read for."""
    pending = [n for n in node.graph.nodes if n.op == "get_attr" and n.target in {p.target for p in parameters}]
    while pending:
        for user in pending.pop().users:
            if user in constants:
                pending.append(user)
            elif user is not node:
                return False
    return True


def _combined(
    ctx: PassContext,
    node: fx.Node,
    local: dict[fx.Node, _Local],
    calls: Counter[str],
    constants: Mapping[fx.Node, frozenset[fx.Node]],
) -> _Local | None:
    """What ``node`` is if it belongs to the feature of all its inputs."""
    inputs = [n for n in node.all_input_nodes if n not in constants]
    fixed = [n for n in node.all_input_nodes if n in constants]
    if not inputs or any(n not in local for n in inputs) or len({local[n].origin for n in inputs}) > 1:
        return None
    layers = node.op == "call_module" and any(True for _ in ctx.module(node).parameters())
    batch = ctx.captured.batch_size
    filled = filled_alike(node, batch)
    known = constants.keys() | {n for n in inputs if local[n].fixed}
    if (layers and calls[str(node.target)] > 1) or not (filled or is_per_sample(ctx.gm, node, batch, known)):
        return None
    parameters = frozenset[fx.Node]().union(*(constants[n] for n in fixed))
    if parameters and not _alone_with(parameters, node, constants):
        return None
    sources = [local[n] for n in inputs]
    return _Local(
        sources[0].origin,
        lookups=set().union(*(s.lookups for s in sources)),
        nodes={node, *(n for n in fixed if n.op == "get_attr")}.union(*(s.nodes for s in sources)),
        ids=set().union(*(s.ids for s in sources)),
        layers=layers or bool(parameters) or any(s.layers for s in sources),
        parameters={str(p.target) for p in parameters}.union(*(s.parameters for s in sources)),
        fixed=filled == "constant" or (isinstance(node.meta["val"], Tensor) and all(local[n].fixed for n in inputs)),
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
    parameters = tuple(sorted(found.parameters))
    return Region(stream, tuple(x.node for x in own), inside, tuple(found.ids), found.layers, parameters)


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
