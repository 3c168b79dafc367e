"""A legible picture of a model's graph around the towers, as one SVG.

1. Nodes that play the same part fold into one stacked node: "11 x lookup" (`folding`).
2. `layered_layout` places the nodes.
3. Edges are drawn first, then column headings, nodes, and a legend of the kinds that occur.

The picture carries its own style sheet with a light and a dark set of colours: it works as a file and in a page.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from dmt_plugin.report.explain.folding import classes, common_name, without_digits
from dmt_plugin.report.explain.layered_layout import Band, layout

KINDS = {  # kind -> what the legend calls it
    "input": "input",
    "dense": "dense layers",
    "lookup": "embedding lookup",
    "exchange": "exchange between ranks",
    "tower": "tower module",
    "decoder": "decoder",
    "interaction": "layers behind the embeddings",
    "output": "output",
}
_COLOURS = {  # kind -> (light fill, light edge, dark fill, dark edge)
    "input": ("#f1f1ef", "#9a9fa8", "#26292e", "#7d838d"),
    "dense": ("#eceef1", "#6d7480", "#2a2e34", "#98a0ac"),
    "lookup": ("#e3eefa", "#2f6db5", "#1c2c40", "#6aa5e8"),
    "exchange": ("#fdeadb", "#d2640f", "#3a2616", "#f0883e"),
    "tower": ("#dff3ef", "#178a78", "#17322e", "#45bfa9"),
    "decoder": ("#f3f8dd", "#6f8f1a", "#2a3116", "#a9c84a"),
    "interaction": ("#efe8f8", "#7a55b0", "#2b233a", "#ab8ddb"),
    "output": ("#f1f1ef", "#9a9fa8", "#26292e", "#7d838d"),
}
_LABEL_PX, _NOTE_PX = 7.1, 6.1  # mean width of a character
_LINE, _PADDING, _MARGIN, _HEADING = 15.0, 10.0, 12.0, 30.0
_STACK = 7.0  # how far the nodes behind the first of a stack look out
_MOST_CHARACTERS = 34


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        id: unique name.
        label: what the picture shows.
        kind: one of `KINDS`.
        column: where it runs, such as `"host 0"`; `None` for what is not tied to one place.
        note: lines below the label: shape, bytes.
        count: how many operations it stands for.
        more: what the pointer shows besides.
    """

    id: str
    label: str
    kind: str
    column: str | None = None
    note: str = ""
    count: int = 1
    more: str = ""


@dataclass(frozen=True)
class Edge:
    """Data that goes from one node to another."""

    source: str
    target: str


@dataclass
class Graph:
    """Nodes and edges, without a cycle."""

    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Graph:
        """From `{"nodes": [{"id", "label", "kind", ...}], "edges": [{"source", "target"} or [source, target]]}`.

        Raises:
            ValueError: a node's kind is unknown.
        """
        nodes = [Node(**node) for node in data["nodes"]]
        edges = [Edge(**e) if isinstance(e, Mapping) else Edge(*e) for e in data["edges"]]
        for node in nodes:
            if node.kind not in KINDS:
                raise ValueError(f"node {node.id!r}: kind {node.kind!r}; expected one of {', '.join(KINDS)}")
        return cls(nodes, edges)

    def folded(self, least: int = 4) -> Graph:
        """The graph with `least` or more nodes that play the same part drawn as one (see `folding`)."""
        of = {node.id: node for node in self.nodes}
        looks = {node.id: _look(node) for node in self.nodes}
        nodes, kept = [], {}
        for group in classes(looks, [(e.source, e.target) for e in self.edges], least):
            first = of[group[0]]
            kept.update(dict.fromkeys(group, first.id))
            nodes.append(_stack([of[name] for name in group]) if len(group) > 1 else first)
        return Graph(nodes, list(dict.fromkeys(Edge(kept[e.source], kept[e.target]) for e in self.edges)))


def _look(node: Node) -> tuple[str | None, ...]:
    """What has to be alike for two nodes to be drawn as one, besides their part in the graph."""
    if node.kind == "input":
        return node.kind, node.column
    if node.kind == "lookup":  # tables of several widths are still tables
        return node.kind, node.column, without_digits(node.label)
    return node.kind, node.column, without_digits(node.label), without_digits(node.note)


def _stack(group: Sequence[Node]) -> Node:
    """One node for several: how many, what they are called together, and the shape they have in common."""
    count = sum(node.count for node in group)
    labels = list(dict.fromkeys(node.label for node in group))
    alike = len(labels) == 1
    shapes = list(dict.fromkeys(node.note.split("\n")[0] for node in group if node.note))
    if group[0].kind == "input" and len(shapes) > 1:
        shapes = []
    names = "" if alike else common_name(labels) or ", ".join(labels)
    note = "\n".join(line for line in (names, ", ".join(shapes)) if line)
    what, more = (labels[0], "") if alike else (KINDS[group[0].kind], ", ".join(labels))
    return replace(group[0], label=f"{count} \u00d7 {what}", note=note, count=count, more=more)


def picture_of_graph(graph: Graph, *, fold: int = 4, title: str = "", name: str = "gp") -> str:
    """The SVG of a graph, from top to bottom.

    Args:
        graph: what to draw.
        fold: draw this many parallel twins, or more, as one node; 0 draws all.
        title: text for screen readers.
        name: prefix of the ids in the SVG; has to differ between the pictures of a page.

    Raises:
        ValueError: the graph has a cycle, or an edge names a node that does not exist.
    """
    if fold:
        graph = graph.folded(fold)
    texts = {node.id: _texts(node) for node in graph.nodes}
    sizes = {node.id: _size(node.kind, *texts[node.id]) for node in graph.nodes}
    placed = layout(
        sizes,
        [(edge.source, edge.target) for edge in graph.edges],
        {node.id: node.column for node in graph.nodes},
        layer_gap=44.0 if any(node.column for node in graph.nodes) else 34.0,
    )
    kinds = [kind for kind in KINDS if any(node.kind == kind for node in graph.nodes)]
    legend, legend_width = _legend(kinds, placed.width)
    first = min((band.top for band in placed.bands.values()), default=_HEADING)
    top = _MARGIN + max(_HEADING - first, 6.0)  # room for a heading, or for the top of a stack
    width = max(placed.width, legend_width) + 2 * _MARGIN
    left = _MARGIN + (width - 2 * _MARGIN - placed.width) / 2
    height = top + placed.height + 26 + 22 * len(_legend_lines(kinds, placed.width)) + _MARGIN

    half = {node.id: sizes[node.id][1] / 2 for node in graph.nodes}
    above = {node.id: half[node.id] + (_STACK if node.count > 1 else 0.0) for node in graph.nodes}

    parts = [_band(band) for band in placed.bands.values()]
    parts += [_edge(points, half[a], above[b], name) for (a, b), points in placed.routes.items()]
    parts += [_heading(text, band) for text, band in placed.bands.items()]
    parts += [_node(node, texts[node.id], sizes[node.id], placed.centre[node.id]) for node in graph.nodes]
    return (
        f'<svg class="gp" xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}"><title>{html.escape(title or "model graph")}</title>'
        f"<style>{_STYLE}</style>"
        f'<defs><marker id="{name}-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path class="tip" d="M0 0.6 L7.4 4 L0 7.4 Z"/></marker></defs>'
        f'<rect class="ground" width="{width:.0f}" height="{height:.0f}" rx="6"/>'
        f'<g transform="translate({left:.1f} {top:.1f})">{"".join(parts)}</g>'
        f'<g transform="translate({_MARGIN:.1f} {top + placed.height + 26:.1f})">{legend}</g></svg>'
    )


def _texts(node: Node) -> tuple[str, list[str]]:
    """Label and note lines, shortened to what fits."""

    def shorten(text: str) -> str:
        if len(text) <= _MOST_CHARACTERS:
            return text
        if "." in text and " " not in text:  # the end of a path says more than its beginning
            return "\u2026" + text[1 - _MOST_CHARACTERS :].lstrip(".")
        return text[: _MOST_CHARACTERS - 1].rstrip(" ,") + "\u2026"

    return shorten(node.label), [shorten(line) for line in node.note.splitlines()[:2] if line]


def _size(kind: str, label: str, note: Sequence[str]) -> tuple[float, float]:
    widest = max([len(label) * _LABEL_PX, *(len(line) * _NOTE_PX for line in note)])
    padding = _PADDING + (10 if kind == "exchange" else 2)  # round ends need more
    return widest + 2 * padding, _LINE * (1 + len(note)) + 2 * 7.0


def _node(node: Node, texts: tuple[str, list[str]], size: tuple[float, float], centre: tuple[float, float]) -> str:
    (width, height), (x, y) = size, centre
    left, top = x - width / 2, y - height / 2
    label, note = texts
    radius = height / 2 if node.kind == "exchange" else 7
    box = f'width="{width:.1f}" height="{height:.1f}" rx="{radius:.1f}"'
    stack = ""
    if node.count > 1:
        stack = "".join(f'<rect x="{left + d:.1f}" y="{top - d:.1f}" {box}/>' for d in (_STACK, _STACK / 2))
    lines = f'<text class="label" x="{x:.1f}" y="{top + 7 + 11.5:.1f}">{html.escape(label)}</text>'
    for place, line in enumerate(note, start=1):
        lines += f'<text class="note" x="{x:.1f}" y="{top + 7 + 11 + _LINE * place:.1f}">{html.escape(line)}</text>'
    hover = html.escape("\n".join(text for text in (node.label, node.note, node.more) if text))
    return (
        f'<g class="node k-{node.kind}"><title>{hover}</title>{stack}'
        f'<rect x="{left:.1f}" y="{top:.1f}" {box}/>{lines}</g>'
    )


def _edge(points: Sequence[tuple[float, float]], start: float, end: float, svg: str) -> str:
    """A smooth line through its points; it starts below its source's centre and ends above its target's."""
    (first_x, first_y), (last_x, last_y) = points[0], points[-1]
    stops = [(first_x, first_y + start), *points[1:-1], (last_x, last_y - end - 1.5)]
    path = f"M{stops[0][0]:.1f} {stops[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(stops):
        bend = (y1 - y0) / 2
        path += f" C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
    return f'<path class="edge" d="{path}" marker-end="url(#{svg}-tip)"/>'


def _band(band: Band) -> str:
    """A column's background."""
    top = band.top - _HEADING
    return (
        f'<rect class="band" x="{band.left:.1f}" y="{top:.1f}" width="{band.right - band.left:.1f}" '
        f'height="{band.bottom - top + 10:.1f}" rx="10"/>'
    )


def _heading(text: str, band: Band) -> str:
    """A column's name in its corner; a halo keeps edges off it."""
    place = f'x="{band.left + 10:.1f}" y="{band.top - _HEADING + 16:.1f}"'
    return f'<text class="heading" {place}>{html.escape(text)}</text>'


def _legend_lines(kinds: Sequence[str], width: float) -> list[list[tuple[str, float]]]:
    """The legend's entries with their x, line by line."""
    lines: list[list[tuple[str, float]]] = [[]]
    x = 0.0
    for kind in kinds:
        needed = 20 + len(KINDS[kind]) * _NOTE_PX + 14
        if lines[-1] and x + needed > max(width, 320.0):
            lines.append([])
            x = 0.0
        lines[-1].append((kind, x))
        x += needed
    return lines


def _legend(kinds: Sequence[str], width: float) -> tuple[str, float]:
    shown, widest = [], 0.0
    for row, line in enumerate(_legend_lines(kinds, width)):
        for kind, x in line:
            y = 22 * row
            shown.append(
                f'<g class="node k-{kind}"><rect x="{x:.1f}" y="{y:.1f}" width="13" height="13" '
                f'rx="{6.5 if kind == "exchange" else 3}"/>'
                f'<text class="entry" x="{x + 19:.1f}" y="{y + 10.5:.1f}">{KINDS[kind]}</text></g>'
            )
            widest = max(widest, x + 20 + len(KINDS[kind]) * _NOTE_PX)
    return "".join(shown), widest


def _variables(theme: int) -> str:
    fills = "".join(f"--gp-{k}:{c[2 * theme]};--gp-{k}-edge:{c[2 * theme + 1]};" for k, c in _COLOURS.items())
    ink, muted, line, band, ground = (
        ("#1b1d21", "#5b616b", "#9aa0aa", "#f5f5f3", "#ffffff"),
        ("#e8e9eb", "#a6adb8", "#6b727d", "#24282d", "#1c1f23"),
    )[theme]
    return f"{fills}--gp-ink:{ink};--gp-muted:{muted};--gp-line:{line};--gp-band:{band};--gp-ground:{ground};"


_STYLE = (
    f".gp{{{_variables(0)}font-family:inherit}}"
    f"@media(prefers-color-scheme:dark){{.gp{{{_variables(1)}}}}}"
    ".gp text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,Arial,'Liberation Sans',sans-serif}"
    ".gp .node text{text-anchor:middle;fill:var(--gp-ink)}"
    ".gp .label{font-size:12px;font-weight:600}.gp .node .note{font-size:11px;fill:var(--gp-muted)}"
    ".gp .node .entry{font-size:11px;text-anchor:start;fill:var(--gp-muted)}"
    ".gp .heading{font-size:12px;font-weight:650;fill:var(--gp-muted);paint-order:stroke;stroke:var(--gp-band);"
    "stroke-width:6px;stroke-linejoin:round}"
    ".gp .band{fill:var(--gp-band)}.gp .ground{fill:var(--gp-ground)}"
    ".gp .edge{fill:none;stroke:var(--gp-line);stroke-width:1.3}.gp .tip{fill:var(--gp-line)}"
    + "".join(f".gp .k-{k} rect{{fill:var(--gp-{k});stroke:var(--gp-{k}-edge);stroke-width:1.2}}" for k in KINDS)
)
