"""Tidies a graph that was rewritten: what nothing uses goes, and every node comes behind its inputs."""

from __future__ import annotations

from torch import fx


def drop_unused(graph: fx.Graph) -> None:
    """Removes every node that nothing uses, calls of modules too; inputs and the output stay."""
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))


def sort_nodes(graph: fx.Graph) -> None:
    """Sorts nodes so that each comes after its inputs, otherwise keeping their order."""
    done: set[fx.Node] = set()
    output = next(n for n in reversed(graph.nodes) if n.op == "output")

    def visit(node: fx.Node) -> None:
        stack = [(node, iter(node.all_input_nodes))]
        waiting = {node}
        while stack:
            current, inputs = stack[-1]
            pending = next((n for n in inputs if n not in done), None)
            if pending is not None:
                assert pending not in waiting, f"{pending.name} would wait for itself"
                waiting.add(pending)
                stack.append((pending, iter(pending.all_input_nodes)))
                continue
            stack.pop()
            waiting.discard(current)
            if current not in done:
                done.add(current)
                output.prepend(current)

    for node in [n for n in graph.nodes if n is not output]:
        if node not in done:
            visit(node)
