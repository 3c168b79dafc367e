"""Everything there is to say about one transformation, as plain data.

1. Transform the model and place it for one rank of the topology; no process is started.
2. Condense the graphs: chains of dense nodes become one node, an exchange's start and wait
   one, so that what is left is the picture around the towers.
3. List every collective of a training step with shape and bytes, by formula.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx as nx
from torch import Tensor, fx, nn

from dmt_plugin.api import transform
from dmt_plugin.capture import capture
from dmt_plugin.capture.inputs import batch_size_of, example_of
from dmt_plugin.comm.row_exchange import RowExchange
from dmt_plugin.config import DMTConfig
from dmt_plugin.nn.graph_ops import jagged_offsets, jagged_values, jagged_weights, split_columns
from dmt_plugin.passes.base import PassContext, run_passes
from dmt_plugin.passes.dissolve_collections import DissolveCollections
from dmt_plugin.passes.insert_towers import TOWERS
from dmt_plugin.passes.place import EXCHANGE_META, LOOKUP, SHAPE_META
from dmt_plugin.placed import PlacedModel, place
from dmt_plugin.plan import TowerPlan
from dmt_plugin.planner.cost import exchange_costs
from dmt_plugin.topology import Topology
from dmt_plugin.tower_model import TowerModel

_STEPS_BEHIND = 10
"""How many operations behind the towers belong to "around the towers"."""

_JAGGED = {jagged_values, jagged_offsets, jagged_weights}


def explain(
    model: nn.Module,
    batch: Any,
    config: DMTConfig,
    topology: Topology,
    *,
    rank: int = 0,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Explains the transformation of ``model``.

    Args:
        model: the user's model; not changed.
        batch: one call of it.
        config: the ``"dmt"`` section.
        topology: hosts and lanes to explain for.
        rank: whose exchanges to list.
        batch_size: samples per rank for the byte counts; by default that of ``batch``.

    Returns:
        Plain data: plan, groups, findings, repairs, passes, collectives, graphs.
    """
    example = example_of(batch, model)
    captured = capture(model, example)
    inputs = captured.binder.inputs(example.args, example.kwargs)
    samples = batch_size or batch_size_of(inputs) or 1
    flat = PassContext(captured, config, topology)
    run_passes([DissolveCollections()], flat)
    placed = place_graph(transform(model, example, config, topology), config, topology, rank)
    return {
        **describe(placed, samples),
        "graph_before": condensed(flat.gm),
        "nodes_before": node_lines(flat.gm),
    }


def describe(placed: PlacedModel, batch_size: int) -> dict[str, Any]:
    """What was made of a model, from one rank's placed model: all of :func:`explain` but the graph before.

    Args:
        placed: the rank's model.
        batch_size: samples per rank for the byte counts.
    """
    logical = placed.logical
    plan = logical.plan
    widths = {t.name: t.dim for t in plan.tables}
    return {
        "topology": str(placed.topology),
        "rank": placed.rank,
        "batch_size": batch_size,
        "route": placed.placement.route,
        "plan": plan.to_dict(),
        "plan_fingerprint": plan.fingerprint,
        "towers": [
            {
                "tower": t,
                "host": plan.tower_hosts[t],
                "features": list(names),
                "width": sum(widths[table] for f in plan.features if f.name in names for table in f.tables),
                "rows": sum(plan.table(x).rows for x in _tables_of(plan, names)),
            }
            for t, names in enumerate(plan.towers)
        ],
        "groups": [
            {
                "name": g.name,
                "kind": g.kind,
                "features": len(g.features),
                "width": g.width,
                "reason": logical.group_reasons[g.name],
                "meets_at": logical.meeting_points[g.name],
            }
            for g in plan.groups
        ],
        "compression": _compression(placed),
        "findings": [dataclasses.asdict(f) for f in logical.findings],
        "repairs": [dataclasses.asdict(r) for r in logical.repairs],
        "passes": [dataclasses.asdict(r) for r in (*logical.passes, *placed.passes)],
        "collectives": [dataclasses.asdict(c) for c in costs_of(placed, batch_size)],
        "graph_after": condensed(logical.__dict__["graph_module"]),
        "graph_placed": condensed(placed.__dict__["graph_module"]),
        "nodes_after": node_lines(placed.__dict__["graph_module"]),
        "parameters": _parameters(logical),
    }


def write_report(placed: PlacedModel, batch_size: int, folder: str | Path) -> None:
    """Writes ``plan.json`` (usable as ``partition.file``) and ``transform.json`` into a folder, which is made."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    placed.plan.save(target / "plan.json")
    (target / "transform.json").write_text(json.dumps(describe(placed, batch_size), indent=2) + "\n")


def _tables_of(plan: TowerPlan, features: Sequence[str]) -> set[str]:
    return {table for f in plan.features if f.name in features for table in f.tables}


def costs_of(placed: PlacedModel, batch: int) -> list[Any]:
    """Bytes of every exchange of one step of a placed model, by formula."""
    placement = placed.placement
    return exchange_costs(
        placement.slots,
        placement.rank_widths,
        [sum(c.width for c in own) for own in placement.host_columns],
        placed.topology,
        placed.rank,
        batch,
        placement.route,
        formats={name: x.formats for name, x in placement.exchanges.items() if isinstance(x, RowExchange)},
    )


def _compression(placed: PlacedModel) -> float | None:
    """``CR = sum(F_t * N) / sum(O_t)`` over the tower modules, or ``None`` without any."""
    plan = placed.plan
    sent = sum(c.width for own in placed.placement.host_columns for c in own if c.tower)
    if not sent:
        return None
    looked_up = sum(g.width * len(g.features) for g in plan.groups if g.kind == "tower")
    return looked_up / sent


def _parameters(model: TowerModel) -> dict[str, int]:
    tables = {t.parameter for t in model.plan.tables}
    counts = {"tables": 0, "towers": 0, "dense": 0}
    for name, parameter in model.named_parameters():
        kind = "tables" if name in tables else "towers" if name.startswith(TOWERS) else "dense"
        counts[kind] += parameter.numel()
    return counts


# -- graphs ----------------------------------------------------------------------------


def kind_of(gm: fx.GraphModule, node: fx.Node, sparse: bool) -> str:
    """What a node is, in the words of the picture."""
    if node.op == "placeholder":
        return "input"
    if node.op == "output":
        return "output"
    if EXCHANGE_META in node.meta:
        return "exchange"
    if node.op == "call_module":
        target = str(node.target)
        if target.startswith(f"{TOWERS}."):
            return "tower"
        if target == LOOKUP or isinstance(gm.get_submodule(target), (nn.Embedding, nn.EmbeddingBag)):
            return "lookup"
    return "interaction" if sparse else "dense"


def _classes(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """Kind of every node; what only reads inputs or prepares ids counts as input."""
    kinds: dict[fx.Node, str] = {}
    sparse: set[fx.Node] = set()
    for node in gm.graph.nodes:
        kind = kind_of(gm, node, bool(sparse & set(node.all_input_nodes)))
        if kind in ("lookup", "exchange", "tower") or (kind == "interaction"):
            sparse.add(node)
        kinds[node] = kind
    for node in reversed(gm.graph.nodes):
        users = [kinds[u] for u in node.users]
        ids = node.target in _JAGGED or all(
            u == "input" or (u in ("lookup", "exchange") and kinds[node] == "dense") for u in users
        )
        if kinds[node] == "dense" and users and ids:
            kinds[node] = "input"
    return kinds


def condensed(gm: fx.GraphModule) -> dict[str, Any]:
    """The graph as ``{"nodes": [...], "edges": [...]}`` for a picture: neighbours of one kind become one node."""
    kinds = _classes(gm)
    whole: nx.Graph[fx.Node] = nx.Graph()
    nodes = [n for n in gm.graph.nodes if n.users or n.op in ("placeholder", "output")]
    position = {n: i for i, n in enumerate(nodes)}
    whole.add_nodes_from(nodes)
    for node in nodes:
        for source in node.all_input_nodes:
            same_exchange = node.meta.get(EXCHANGE_META) == source.meta.get(EXCHANGE_META)
            mergeable = kinds[node] in ("dense", "interaction", "input") or same_exchange
            if kinds[node] == kinds[source] and mergeable:
                whole.add_edge(source, node)
    parts: list[list[fx.Node]] = []
    for component in nx.connected_components(whole):
        parts.extend(_without_cycles(sorted(component, key=position.__getitem__), kinds))
    home = {node: i for i, part in enumerate(parts) for node in part}
    edges = sorted({(home[s], home[n]) for n in nodes for s in n.all_input_nodes if home[s] != home[n]})
    return {
        "nodes": [
            {"id": str(i), "label": _label(gm, part, kinds), "kind": kinds[part[0]], "note": _note(part)}
            for i, part in enumerate(parts)
        ],
        "edges": [{"source": str(a), "target": str(b)} for a, b in edges],
    }


def _without_cycles(part: list[fx.Node], kinds: dict[fx.Node, str]) -> list[list[fx.Node]]:
    """Cuts a merged part where a path leaves it and comes back (pack, tower, interaction, exchange, ...)."""
    members = set(part)
    depth: dict[fx.Node, int] = {}
    graph_nodes = list(part[0].graph.nodes)
    for node in graph_nodes:
        levels = []
        for source in node.all_input_nodes:
            crossing = source not in members and node in members and kinds[source] != "input"
            levels.append(depth[source] + (1 if crossing else 0))
        depth[node] = max(levels, default=0)
    by_level: dict[int, list[fx.Node]] = {}
    for node in part:
        by_level.setdefault(depth[node], []).append(node)
    return [by_level[level] for level in sorted(by_level)]


def _label(gm: fx.GraphModule, part: list[fx.Node], kinds: dict[fx.Node, str]) -> str:
    first = part[0]
    kind = kinds[first]
    if kind == "exchange":
        return f"{first.meta[EXCHANGE_META]} exchange"
    if kind in ("lookup", "tower"):
        target = str(first.target)
        return "sharded lookup" if target == LOOKUP else target.removeprefix(f"{TOWERS}.")
    if kind == "input":
        named = [str(n.target) for n in part if n.op == "placeholder"]
        return ", ".join(named) if named else "ids"
    if kind == "output":
        return "output"
    modules = [str(n.target) for n in part if n.op == "call_module"]
    joins = [n.name for n in part if n.op == "call_function" and n.target is split_columns]
    operations = modules or joins or [n.name for n in part]
    shown = list(dict.fromkeys(m.split(".")[0] for m in operations))
    return ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "")


def _note(part: list[fx.Node]) -> str:
    if SHAPE_META in part[-1].meta:
        return str(part[-1].meta[SHAPE_META])
    value = part[-1].meta.get("val")
    if isinstance(value, Tensor):
        return "(" + ", ".join(["B", *map(str, value.shape[1:])]) + ")"
    return f"{len(part)} operations" if len(part) > 1 else ""


def node_lines(gm: fx.GraphModule) -> list[tuple[str, str, str]]:
    """``(name, operation, shape)`` of the nodes around the towers: from the ids to what follows the joins."""
    kinds = _classes(gm)
    nodes = list(gm.graph.nodes)
    near = {n for n in nodes if kinds[n] in ("lookup", "exchange", "tower")}
    frontier = set(near)
    for _ in range(_STEPS_BEHIND):
        frontier = {u for n in frontier for u in n.users if kinds[u] == "interaction"} - near
        near |= frontier
    lines: list[tuple[str, str, str]] = []
    overlapped: list[fx.Node] = []
    for node in nodes:
        if kinds[node] == "dense" and any(EXCHANGE_META in n.meta for n in near):
            overlapped.append(node)
        elif node in near and node.target is not getattr:
            if overlapped and EXCHANGE_META in node.meta:
                first, last = overlapped[0].name, overlapped[-1].name
                lines.append((f"{first} ... {last}", f"{len(overlapped)} dense operations meanwhile", ""))
            overlapped = []
            target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
            lines.append((node.name, f"{node.op.removeprefix('call_')} {target}", _shape(node)))
    return lines


def _shape(node: fx.Node) -> str:
    return str(node.meta.get(SHAPE_META) or (_note([node]) if isinstance(node.meta.get("val"), Tensor) else ""))
