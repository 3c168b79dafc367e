"""Lets a rank's tower modules run compiled, where ``dmt.towers.compile`` asks for it.

1. Every tower module that the graph of this rank calls is replaced by a twin: another object over the same parameters,
   buffers and submodules, under the same path. Names of parameters and the state stay, and the logical model, which
   shares its tower modules with the graphs of the ranks, keeps running eagerly: it is the reference.
2. The twin's calls are compiled for a batch of any size. Compilation happens at the first call, once for each
   kind of call (with and without gradients; batches of one sample or none are kinds of their own).
"""

from __future__ import annotations

from torch import nn

from dmt_plugin.fxtools.names import calls_tower
from dmt_plugin.nn.towers import compiled
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult


class CompileTowers(GraphPass):
    """See the module's docstring."""

    name = "compile_towers"
    contract = Contract(provides=frozenset({"compiled_towers"}), requires=frozenset({"placed"}))

    def run(self, ctx: PassContext) -> PassResult:
        """Replaces the tower modules of ``ctx.gm``."""
        paths = sorted({str(n.target) for n in ctx.gm.graph.nodes if calls_tower(n)})
        if not ctx.config.towers.compile:
            return self.result(len(paths), 0, "tower modules run eagerly")
        for path in paths:
            twin: nn.Module = compiled(ctx.gm.get_submodule(path))
            ctx.gm.set_submodule(path, twin)
        return self.result(len(paths), len(paths), "compiled at their first call")
