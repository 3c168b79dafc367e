"""Which nodes of a picture are so alike that one node may stand for all of them.

1. Colour every node by kind, column, depth and label (without its numbers).
2. Refine: nodes stay alike only while their sources and their targets have the same colours.
3. A colour that few nodes share is no stack: its nodes get a colour each, and step 2 goes on, since what leads to
   two different nodes is different itself.

Nodes of one colour have one depth (the longest way that leads to them), so folding them closes no circle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

import networkx as nx


def classes(looks: Mapping[str, Hashable], edges: Iterable[tuple[str, str]], least: int) -> list[list[str]]:
    """Groups of nodes to draw as one; most groups have one member.

    Args:
        looks: what of a node is seen, by its name.
        edges: pairs of names, without a cycle.
        least: how many alike make a group.
    """
    graph = nx.DiGraph(list(edges))
    graph.add_nodes_from(looks)
    depth = {name: d for d, layer in enumerate(nx.topological_generations(graph)) for name in layer}
    colour: dict[str, Hashable] = _numbered({name: (look, depth[name]) for name, look in looks.items()}, looks)
    while True:
        count = len(set(colour.values()))
        refined = {
            name: (
                colour[name],
                frozenset(colour[n] for n in graph.predecessors(name)),
                frozenset(colour[n] for n in graph.successors(name)),
            )
            for name in looks
        }
        sizes = Counter(refined.values())
        alone = {name: (name,) if sizes[key] < least else key for name, key in refined.items()}
        colour = _numbered(alone, looks)
        if len(set(colour.values())) == count:
            break
    groups: dict[Hashable, list[str]] = {}
    for name in looks:
        groups.setdefault(colour[name], []).append(name)
    return list(groups.values())


def _numbered(keys: Mapping[str, Hashable], order: Iterable[str]) -> dict[str, Hashable]:
    """Small numbers for colours, which would grow with every step of refinement."""
    number: dict[Hashable, int] = {}
    return {name: number.setdefault(keys[name], len(number)) for name in order}


def without_digits(text: str) -> str:
    """A label without what numbers its node."""
    return "".join(c for c in text if not c.isdigit())


def common_name(names: Sequence[str]) -> str:
    """What the members of a group are called together: the leading dotted names that all share, or ``""``."""
    split = [name.split(".") for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
