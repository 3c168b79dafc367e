"""An fx graph as plain data for people: a condensed graph for a picture, or lines of text.

For a picture:

1. Every node gets a kind (:func:`kinds_of`). Constants and sizes are left out: they say how, not what; so are the
   micro-blocks behind the first, which do the same as it does.
2. Nodes of one kind and one part of the model (the first name in which the paths of its modules differ) that
   are connected become one box. The level of a node, the number of boundaries between such parts on the longest
   way to it, keeps apart what is left and entered again, so the boxes form no cycle.
3. If many boxes of layers remain, those in a row and of one kind become one.

For text, the nodes around the towers are listed one by one.
"""

from __future__ import annotations

from typing import Any

import networkx as nx
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dmt_plugin.fxtools.names import BLOCK_META, EXCHANGE_META, LOOKUP, SHAPE_META, TOWERS, tower_part
from dmt_plugin.nn.graph_ops import jagged_offsets, jagged_values, jagged_weights

_STEPS_BEHIND = 10
"""How many operations behind the towers belong to "around the towers"."""

_MOST_LAYERS = 16
"""With more boxes of layers than these, those in a row are drawn as one."""

_JAGGED = {jagged_values, jagged_offsets, jagged_weights}
_LOOKUPS = {F.embedding, F.embedding_bag, torch.embedding_bag}
_ENDS = ("placeholder", "output")
_PLAIN = (bool, int, float, str, torch.Size, torch.dtype, torch.device)

Key = tuple[str, str]


def kinds_of(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """What every node is, in the words of the picture; ``"constant"`` and ``"size"`` are not in it."""
    kinds: dict[fx.Node, str] = {}
    sparse: set[fx.Node] = set()
    for node in gm.graph.nodes:
        sources = [s for s in node.all_input_nodes if kinds[s] != "size"]
        kinds[node] = _kind(gm, node, sources, kinds, any(s in sparse for s in sources))
        if kinds[node] in ("lookup", "exchange", "tower", "decoder", "interaction"):
            sparse.add(node)
    for node in reversed(gm.graph.nodes):
        users = [kinds[u] for u in node.users]
        ids = node.target in _JAGGED or all(u in ("input", "lookup", "exchange", "size") for u in users)
        if kinds[node] == "dense" and users and ids:  # what only reads inputs or prepares ids
            kinds[node] = "input"
    return kinds


def _kind(gm: fx.GraphModule, node: fx.Node, sources: list[fx.Node], kinds: dict[fx.Node, str], sparse: bool) -> str:
    if node.op in _ENDS:
        return "input" if node.op == "placeholder" else "output"
    if EXCHANGE_META in node.meta:
        return "exchange"
    if node.op == "call_module":
        target = str(node.target)
        if (part := tower_part(target)) is not None:
            return part.kind
        if target == LOOKUP or isinstance(gm.get_submodule(target), (nn.Embedding, nn.EmbeddingBag)):
            return "lookup"
    if node.target in _LOOKUPS:
        return "lookup"
    if _is_plain(node.meta.get("val")) or (node.target is getattr and "val" not in node.meta):
        return "size"
    if node.op == "get_attr" or all(kinds[s] == "constant" for s in sources):
        return "constant"
    return "interaction" if sparse else "dense"


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and bool(value) and all(map(_is_plain, value)))


def condensed(gm: fx.GraphModule, batch: int) -> dict[str, Any]:
    """The graph as ``{"nodes": [{"id", "label", "kind", "note"}], "edges": [{"source", "target"}]}``.

    Args:
        gm: the graph.
        batch: batch size of its example values, shown as ``B``.
    """
    kinds = kinds_of(gm)
    drawn = [n for n in gm.graph.nodes if n.meta.get(BLOCK_META, 0) == 0 and kinds[n] not in ("constant", "size")]
    nodes = [n for n in drawn if n.users or n.op in _ENDS]
    keys = _keys(nodes, kinds)
    boxes: nx.DiGraph[int] = nx.DiGraph()
    home: dict[fx.Node, int] = {}
    parts: dict[int, list[fx.Node]] = {}
    for place, part in enumerate(_parts(nodes, keys)):
        parts[place] = part
        home.update(dict.fromkeys(part, place))
        boxes.add_node(place)
    for node in nodes:
        boxes.add_edges_from((home[s], home[node]) for s in node.all_input_nodes if s in home and home[s] != home[node])
    if sum(kinds[part[0]] in ("dense", "interaction") for part in parts.values()) > _MOST_LAYERS:
        _join_rows(boxes, parts, kinds)
    return {
        "nodes": [
            {
                "id": str(i),
                "label": _label(part, kinds, keys),
                "kind": kinds[part[0]],
                "note": _note(part, kinds, keys, batch),
            }
            for i, part in sorted(parts.items())
        ],
        "edges": [{"source": str(a), "target": str(b)} for a, b in sorted(boxes.edges)],
    }


def _keys(nodes: list[fx.Node], kinds: dict[fx.Node, str]) -> dict[fx.Node, Key]:
    """Which nodes may share a box: those of one kind and one part of the model; lookups and towers stand alone."""
    paths = {n: _path(n) for n in nodes if kinds[n] in ("dense", "interaction")}
    common = _common([p for p in paths.values() if p])
    keys: dict[fx.Node, Key] = {}
    for node in nodes:
        kind = kinds[node]
        if kind in ("lookup", "tower", "decoder", "output"):
            keys[node] = (kind, node.name)
        elif kind == "exchange":
            keys[node] = (kind, str(node.meta[EXCHANGE_META]))
        elif kind == "input":
            keys[node] = (kind, "")
        else:
            own = _part(paths[node], common)
            before = {keys[s] for s in node.all_input_nodes if s in keys}
            named = {key for key in before if key[1]}
            # A relu or a residual sum between layers belongs to the part it reads from.
            follows = not own and len(named) == 1 and all(k == kind for k, _ in before)
            keys[node] = next(iter(named)) if follows else (kind, own)
    return keys


def _path(node: fx.Node) -> list[str]:
    """The module in whose forward the node was recorded, or that it calls."""
    if node.op == "call_module":
        return str(node.target).split(".")
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).split(".") if stack and stack[-1][0] else []


def _part(path: list[str], common: int) -> str:
    """The name that tells parts of the model apart; a number says nothing without the list it counts in."""
    if len(path) <= common:
        return ""
    return ".".join(path[common - 1 : common + 1]) if path[common].isdigit() and common else path[common]


def _common(paths: list[list[str]]) -> int:
    """How many leading names all paths share; the last name of a path always counts as its own."""
    count = 0
    while paths and all(len(p) > count + 1 and p[count] == paths[0][count] for p in paths):
        count += 1
    return count


def _parts(nodes: list[fx.Node], keys: dict[fx.Node, Key]) -> list[list[fx.Node]]:
    """Step 2: connected nodes of one key and level, in the order of the graph."""
    level: dict[fx.Node, int] = {}
    whole: nx.Graph[fx.Node] = nx.Graph()
    whole.add_nodes_from(nodes)
    for node in nodes:
        sources = [s for s in node.all_input_nodes if s in level]
        level[node] = max((level[s] + (keys[s] != keys[node]) for s in sources), default=0)
    for node in nodes:
        for source in node.all_input_nodes:
            if source in level and (keys[source], level[source]) == (keys[node], level[node]):
                whole.add_edge(source, node)
    position = {n: i for i, n in enumerate(nodes)}
    parts = [sorted(component, key=position.__getitem__) for component in nx.connected_components(whole)]
    return sorted(parts, key=lambda part: position[part[0]])


def _join_rows(boxes: nx.DiGraph[int], parts: dict[int, list[fx.Node]], kinds: dict[fx.Node, str]) -> None:
    """Step 3, in place. Joining the ends of a lone edge cannot close a circle."""
    for target in list(nx.topological_sort(boxes)):
        sources = list(boxes.predecessors(target))
        if len(sources) != 1 or boxes.out_degree(sources[0]) != 1:
            continue
        source = sources[0]
        kind = kinds[parts[source][0]]
        if kind == kinds[parts[target][0]] and kind in ("dense", "interaction"):
            parts[target] = parts.pop(source) + parts[target]
            boxes.add_edges_from((s, target) for s in list(boxes.predecessors(source)))
            boxes.remove_node(source)


def _label(part: list[fx.Node], kinds: dict[fx.Node, str], keys: dict[fx.Node, Key]) -> str:
    first = part[0]
    kind = kinds[first]
    if kind == "exchange":
        return f"{first.meta[EXCHANGE_META]} exchange"
    if kind in ("lookup", "tower", "decoder"):
        target = str(first.target) if isinstance(first.target, str) else first.name
        return "sharded lookup" if target == LOOKUP else target.removeprefix(f"{TOWERS}.")
    if kind == "input":
        named = [str(n.target) for n in part if n.op == "placeholder"]
        return ", ".join(named) if named else "ids"
    if kind == "output":
        return "output"
    return _listed([keys[n][1] for n in part if keys[n][1]] or _operations(part))


def _operations(part: list[fx.Node]) -> list[str]:
    """What the functions and methods among the nodes do; reading an element is nothing of its own."""
    names = [_target(n) for n in part if n.op in ("call_function", "call_method")]
    telling = [n for n in names if n not in ("getitem", "getattr")]
    return telling or names or [n.name for n in part]


def _listed(names: list[str], most: int = 4) -> str:
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")


def _note(part: list[fx.Node], kinds: dict[fx.Node, str], keys: dict[fx.Node, Key], batch: int) -> str:
    """Second line: the shape of what comes out; third line: what a named interaction consists of."""
    given = [n for n in part if n.op == "placeholder"]
    shape = _shape(given[0] if len(given) == 1 else part[-1], batch)
    if not shape and len(part) > 1:
        shape = f"{len(part)} operations"
    named = any(keys[n][1] for n in part)
    if kinds[part[0]] == "interaction" and named and any(n.op != "call_module" for n in part):
        return f"{shape}\n{_listed(_operations(part), 5)}".strip()
    return shape


def node_lines(gm: fx.GraphModule, batch: int) -> list[tuple[str, str, str]]:
    """``(name, operation, shape)`` of the nodes around the towers: from the ids to what follows the joins."""
    kinds = kinds_of(gm)
    nodes = list(gm.graph.nodes)
    near = {n for n in nodes if kinds[n] in ("lookup", "exchange", "tower", "decoder")}
    frontier = set(near)
    for _ in range(_STEPS_BEHIND):
        frontier = {u for n in frontier for u in n.users if kinds[u] == "interaction"} - near
        near |= frontier
    placed = any(kinds[n] == "exchange" for n in near)
    lines: list[tuple[str, str, str]] = []
    overlapped: list[fx.Node] = []
    for node in nodes:
        if kinds[node] == "dense" and placed:
            overlapped.append(node)
        elif node in near:
            if overlapped and kinds[node] == "exchange":
                first, last = overlapped[0].name, overlapped[-1].name
                lines.append((f"{first} ... {last}", f"{len(overlapped)} dense operations meanwhile", ""))
            overlapped = []
            lines.append((node.name, f"{node.op.removeprefix('call_')} {_target(node)}", _shape(node, batch)))
    return lines


def _target(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", "?"))


def _shape(node: fx.Node, batch: int) -> str:
    """The shape of a node's value, its batch dimension as ``B``; of a placed node in the letters of the design."""

    def first(size: int) -> str:
        times, rest = divmod(size, batch)
        return str(size) if rest or not times else "B" if times == 1 else f"{times}*B"

    if SHAPE_META in node.meta:
        return str(node.meta[SHAPE_META])
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return "(" + ", ".join([first(value.shape[0]), *map(str, value.shape[1:])]) + ")" if value.dim() else "()"
    if isinstance(value, (tuple, list)) and value and all(isinstance(v, Tensor) for v in value):
        return f"{len(value)} tensors"
    return ""
