"""Takes pass-through towers out of a rank's graph: they have no work to do on any rank.

What reads a stream behind such towers gets the stream itself again.
"""

from __future__ import annotations

from dmt_plugin.nn.graph_ops import split_streams
from dmt_plugin.nn.towers import PassThroughTower
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult


class RemovePassThrough(GraphPass):
    """See the module's docstring."""

    name = "remove_pass_through"
    contract = Contract(
        provides=frozenset({"no_pass_through"}),
        requires=frozenset({"regions", "plan"}),
        conflicts_with=frozenset({"placed"}),
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Connects the joins of ``ctx.gm`` to the streams again."""
        splits = [n for n in ctx.gm.graph.nodes if n.target is split_streams]
        removed = 0
        for split in splits:
            outputs = list(split.args[0])
            if not all(isinstance(ctx.module(n), PassThroughTower) for n in outputs):
                continue
            streams = [s for n in outputs for s in n.args[0].args[0]]
            for read in list(split.users):
                read.replace_all_uses_with(streams[int(read.args[1])])
            removed += len(outputs)
        lookups = {lookup.node for lookup in ctx.facts.lookups}  # also those that nothing uses: ids are read for them
        ctx.gm.graph.eliminate_dead_code(is_impure_node=lambda n: n.is_impure() or n in lookups)
        return self.result(len(splits), removed)
