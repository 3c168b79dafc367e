"""One picture of what several ranks run: the graphs of one rank per host, joined at what they share.

1. `without_plumbing` drops what a reader does not miss: constants, and operations that only hand something on.
2. `beside_each_other` keeps, of every rank's graph, what lies between its first and its last exchange in a column of
   its own; everything else is the same on all ranks and appears once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import networkx as nx

from dmt_plugin.report.explain.graph_picture import Edge, Graph


def _digraph(graph: Graph) -> nx.DiGraph:
    digraph = nx.DiGraph([(edge.source, edge.target) for edge in graph.edges])
    digraph.add_nodes_from(node.id for node in graph.nodes)
    return digraph


def without_plumbing(graph: Graph) -> Graph:
    """The graph without constants (no source, yet no input) and operations that say nothing of their result."""
    digraph = _digraph(graph)
    for node in graph.nodes:
        constant = node.kind != "input" and not digraph.in_degree(node.id)
        silent = node.kind in ("interaction", "dense") and not node.note
        if constant or silent:
            digraph.add_edges_from([(s, t) for s in digraph.predecessors(node.id) for t in digraph.successors(node.id)])
            digraph.remove_node(node.id)
    if nx.is_directed_acyclic_graph(digraph):  # a shortcut beside a longer way adds nothing
        digraph = nx.DiGraph(nx.transitive_reduction(digraph).edges) if digraph.edges else digraph
    kept = [node for node in graph.nodes if node.id in digraph]
    return Graph(kept, [Edge(source, target) for source, target in digraph.edges])


def beside_each_other(graphs: Mapping[str, Graph]) -> Graph:
    """Joins the graphs of several ranks, one per host.

    Args:
        graphs: by the name of the column, such as `"host 0"`, the graph one rank of it runs. The parts outside the
            exchanges are taken from the first.

    Returns:
        One graph; the nodes strictly between a rank's first and last exchange carry its column.
    """
    joined: Graph | None = None
    for column, graph in graphs.items():
        digraph = _digraph(graph)
        order = {name: place for place, name in enumerate(nx.lexicographical_topological_sort(digraph))}
        exchanges = sorted((node.id for node in graph.nodes if node.kind == "exchange"), key=order.__getitem__)
        inner: set[str] = set()
        if len(exchanges) > 1:
            inner = nx.descendants(digraph, exchanges[0]) & nx.ancestors(digraph, exchanges[-1])
        if joined is None:
            joined = Graph([n for n in graph.nodes if n.id not in inner], [])
            ends = exchanges[:1] + exchanges[-1:]
            joined.edges += [e for e in graph.edges if not {e.source, e.target} & inner]
        own = {name: f"{column}/{name}" for name in inner}
        own.update(zip(exchanges[:1] + exchanges[-1:], ends, strict=True))
        joined.nodes += [replace(n, id=own[n.id], column=column) for n in graph.nodes if n.id in inner]
        joined.edges += [
            Edge(own[e.source], own[e.target])
            for e in graph.edges
            if {e.source, e.target} & inner and e.source in own and e.target in own
        ]
    return joined or Graph()
