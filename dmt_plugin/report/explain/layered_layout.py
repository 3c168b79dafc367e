"""Places the nodes of a directed acyclic graph in layers from top to bottom, optionally in columns.

1. A node's layer is the longest path that leads to it.
2. An edge that passes layers gets an invisible stop in each of them, so that it finds its way between the nodes;
   the edges of one source share their stops.
3. A node with a column stays inside its column's band. In layers where such nodes are, the others (mostly stops)
   keep to a gutter at the left; elsewhere they use the whole width.
4. Within a layer, nodes are ordered by the mean place of their neighbours, in sweeps down and up.
5. Nodes move towards the middle of their neighbours as far as their places in the order let them; stops pull
   hardest at each other, which straightens long edges.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import networkx as nx

_STOP_WIDTH = 12.0
_GUTTER = ""  # name of the band at the left
_ORDER_SWEEPS, _SPREAD_SWEEPS = 12, 60


@dataclass(frozen=True)
class Band:
    """The part of the picture that belongs to a column, in pixels."""

    left: float
    right: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Layout:
    """Where everything goes, in pixels.

    Attributes:
        centre: centre of every node, `(x, y)`.
        routes: for every edge the points it passes, from the source's centre to the destination's; it passes a layer
            between two nodes upright, by a point at the layer's top and one at its bottom.
        bands: the band of every column, by its name, from left to right.
        width: width of the picture.
        height: height of the picture.
    """

    centre: Mapping[str, tuple[float, float]]
    routes: Mapping[tuple[str, str], tuple[tuple[float, float], ...]]
    bands: Mapping[str, Band]
    width: float
    height: float


@dataclass
class _Item:
    """A node, or a stop of an edge (`height` 0), in its layer."""

    layer: int
    width: float
    height: float
    column: str | None
    x: float = 0.0
    above: list[_Item] = field(default_factory=list)
    below: list[_Item] = field(default_factory=list)

    def pull(self, other: _Item) -> float:
        """How strongly `other` attracts this item: a node yields little to the edges that pass by."""
        if self.height:
            return 1.0 if other.height else 0.25
        return 1.0 if other.height else 8.0


def layout(
    sizes: Mapping[str, tuple[float, float]],
    edges: Sequence[tuple[str, str]],
    columns: Mapping[str, str | None],
    *,
    gap: float = 18.0,
    layer_gap: float = 36.0,
    band_gap: float = 22.0,
) -> Layout:
    """Places nodes of the given sizes.

    Args:
        sizes: width and height of every node.
        edges: pairs of nodes, without a cycle.
        columns: the column of every node, or `None`.
        gap: least distance between two nodes of a layer.
        layer_gap: distance between layers.
        band_gap: distance between the bands of two columns.

    Raises:
        ValueError: the edges form a cycle, or name a node that does not exist.
    """
    unknown = {name for edge in edges for name in edge} - set(sizes)
    if unknown:
        raise ValueError(f"edges name nodes that do not exist: {', '.join(sorted(unknown))}")
    graph = nx.DiGraph(list(edges))
    graph.add_nodes_from(sizes)
    try:
        generations = [list(layer) for layer in nx.topological_generations(graph)]
    except nx.NetworkXUnfeasible:
        raise ValueError("a graph without a cycle is expected; the edges form one") from None
    layer_of = {name: place for place, layer in enumerate(generations) for name in layer}

    items, chains = _with_stops(sizes, edges, columns, layer_of)
    layers: list[list[_Item]] = [[] for _ in generations]
    for item in items.values():
        layers[item.layer].append(item)
    for layer in layers:
        if any(item.column for item in layer):
            for item in layer:
                item.column = item.column or _GUTTER
    present = {item.column for item in items.values()}
    names = [_GUTTER] if _GUTTER in present else []
    names += dict.fromkeys(column for column in columns.values() if column)
    _order(layers, {name: place for place, name in enumerate(names)})
    spans, width = _spans(layers, names, gap, band_gap)
    _spread(layers, spans, width, gap)

    heights = [max((item.height for item in layer), default=0.0) for layer in layers]
    tops, top = [], 0.0
    for height in heights:
        tops.append(top)
        top += height + layer_gap
    bands = {}
    for name in names:
        used = [item for item in items.values() if item.column == name]
        if name != _GUTTER:
            first, last = min(item.layer for item in used), max(item.layer for item in used)
            height = max(item.height for item in layers[last])
            bands[name] = Band(*spans[name], tops[first], tops[last] + height)
    centre = {name: (items[name].x, tops[items[name].layer] + heights[items[name].layer] / 2) for name in sizes}

    def passed(key: Hashable) -> tuple[tuple[float, float], ...]:
        item = items[key]
        if item.height:
            return (centre[str(key)],)
        return (item.x, tops[item.layer]), (item.x, tops[item.layer] + heights[item.layer])

    return Layout(
        centre=centre,
        routes={edge: tuple(point for key in chain for point in passed(key)) for edge, chain in chains.items()},
        bands=bands,
        width=width,
        height=max(top - layer_gap, 0.0),
    )


def _with_stops(
    sizes: Mapping[str, tuple[float, float]],
    edges: Sequence[tuple[str, str]],
    columns: Mapping[str, str | None],
    layer_of: Mapping[str, int],
) -> tuple[dict[Hashable, _Item], dict[tuple[str, str], list[Hashable]]]:
    """Steps 1 and 2: all nodes and stops by key, joined to their neighbours, and the keys along every edge."""
    items: dict[Hashable, _Item] = {
        name: _Item(layer_of[name], *size, columns.get(name)) for name, size in sizes.items()
    }
    chains: dict[tuple[str, str], list[Hashable]] = {}
    joined: set[tuple[Hashable, Hashable]] = set()
    for source, target in dict.fromkeys(edges):
        column = columns.get(source) if columns.get(source) == columns.get(target) else None
        chain: list[Hashable] = [source]
        for layer in range(layer_of[source] + 1, layer_of[target]):
            key = (source, column, layer)
            items.setdefault(key, _Item(layer, _STOP_WIDTH, 0.0, column))
            chain.append(key)
        chain.append(target)
        chains[source, target] = chain
        for upper, lower in pairwise(chain):
            if (upper, lower) not in joined:
                joined.add((upper, lower))
                items[upper].below.append(items[lower])
                items[lower].above.append(items[upper])
    return items, chains


def _order(layers: Sequence[list[_Item]], rank: Mapping[str, int]) -> None:
    """Step 4, in place: `x` becomes a place between 0 and 1. Columns keep their order."""

    def number(layer: list[_Item]) -> None:
        for place, item in enumerate(layer):
            item.x = (place + 0.5) / len(layer)

    def column(item: _Item) -> int:
        return -1 if item.column is None else rank[item.column]

    for layer in layers:
        layer.sort(key=column)
        number(layer)
    for sweep in range(_ORDER_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            wanted = [(column(i), _mean(i, i.above if down else i.below), place) for place, i in enumerate(layer)]
            layer[:] = [layer[place] for _, _, place in sorted(wanted)]
            number(layer)


def _mean(item: _Item, neighbours: Sequence[_Item]) -> float:
    """Mean place of the neighbours, by their pull; the item's own where it has none."""
    weight = sum(item.pull(other) for other in neighbours)
    return sum(item.pull(other) * other.x for other in neighbours) / weight if weight else item.x


def _spans(
    layers: Sequence[Sequence[_Item]], names: Sequence[str], gap: float, band_gap: float
) -> tuple[dict[str, tuple[float, float]], float]:
    """Left and right edge of every band, wide enough for its fullest layer, and the width of the picture."""

    def needed(items: Sequence[_Item]) -> float:
        return sum(item.width for item in items) + gap * max(len(items) - 1, 0)

    spans, left = {}, 0.0
    for name in names:
        width = max(needed([item for item in layer if item.column == name]) for layer in layers)
        width += 0.0 if name == _GUTTER else 2 * gap
        spans[name] = (left, left + width)
        left += width + band_gap
    return spans, max([left - band_gap, *(needed(layer) for layer in layers)])


def _spread(layers: Sequence[list[_Item]], spans: Mapping[str, tuple[float, float]], width: float, gap: float) -> None:
    """Step 5, in place: `x` becomes the centre in pixels."""

    def limits(item: _Item) -> tuple[float, float]:
        left, right = (0.0, width) if item.column is None else spans[item.column]
        if item.column:
            left, right = left + gap / 2, right - gap / 2
        return left + item.width / 2, right - item.width / 2

    def push(layer: Sequence[_Item], goals: Sequence[float], sign: int) -> list[float]:
        """Places from one side: no item before its goal, none closer than `gap` to the one before."""
        places, edge = [], float("-inf")
        for item, goal in zip(layer[::sign], goals[::sign], strict=True):
            places.append(max(sign * goal, edge + item.width / 2))
            edge = places[-1] + item.width / 2 + gap
        return [sign * place for place in places][::sign]

    def settle(layer: list[_Item], goals: Sequence[float]) -> None:
        """The goals, moved apart evenly to both sides, and into the limits."""
        least = push(layer, [limits(item)[0] for item in layer], 1)
        most = push(layer, [limits(item)[1] for item in layer], -1)
        right, left = push(layer, goals, 1), push(layer, goals, -1)
        for item, a, b, low, high in zip(layer, right, left, least, most, strict=True):
            item.x = max(low, min((a + b) / 2, high))

    def goal(item: _Item) -> float:
        mean = _mean(item, [*item.above, *item.below])
        return mean if not item.column else (mean + sum(limits(item)) / 2) / 2  # and towards the band's middle

    for layer in layers:
        settle(layer, [sum(limits(item)) / 2 if item.column else item.x * width for item in layer])
    for sweep in range(_SPREAD_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            settle(layer, [goal(item) for item in layer])
