"""Runs a placed model through ``torch.compile``: the dense layers and towers between its exchanges.

1. Exchanges, the reading of ids and the lookup are kept out of the compiler: each is a break in the graph that it sees,
   and runs as before. What lies between two of them, towers and dense part, is compiled as one piece, forward and
   backward.
2. The graph is compiled for batches of any size, and so is the part of it that runs where ids came ahead.

Compilation happens at the first calls. Sums inside a compiled piece may be added in another order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dmt_plugin.fxtools.names import EXCHANGES, LOOKUP
from dmt_plugin.model.placed import PlacedModel


def compile_dense(placed: PlacedModel, **options: Any) -> int:
    """From now on run towers and dense part compiled.

    Args:
        placed: this rank's model.
        **options: as for ``torch.compile``.

    Returns:
        Number of modules that are kept out.
    """
    graph_module: fx.GraphModule = placed.__dict__["graph_module"]
    apart = {
        str(node.target)
        for node in graph_module.graph.nodes
        if node.op == "call_module" and str(node.target).startswith((EXCHANGES, LOOKUP))
    }
    for path in apart:
        module = graph_module.get_submodule(path)
        module.forward = torch.compiler.disable(module.forward, reason="it exchanges rows or ids with other ranks")

    def compiled(program: Any) -> Any:
        return torch.compile(program, **{"dynamic": True, **options})

    placed._keep(compiled=compiled(type(graph_module).forward))
    if placed.prefetcher is not None:
        placed.prefetcher.compile(compiled)
    return len(apart)
