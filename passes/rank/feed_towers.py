"""Feeds tower modules the blocks of an exchange as they arrive, instead of a tensor stacked from their columns.

The exchange inside a host brings one contiguous block per lane. Where a tower of the kind ``dlrm`` takes every column
of every block, each of its width ``N``, stacking them to ``(B, F_t, N)`` would copy all rows once more in the forward
pass and twice in the backward pass; its layers can be applied to each block by itself
(:meth:`dmt_plugin.nn.towers.DLRMTower.forward`):

1. a candidate is a call of a ``dlrm`` tower on ``pack_streams`` of columns that one ``split_columns`` made;
2. all columns must be of the tower's width, taken once each, and read by nothing else;
3. the call then gets the blocks, and the place of each feature in them: a lane's columns come in another order than
   the tower's features.

Sums over features (outputs of the whole tower) are added up in another order, so this is for the graph of a rank,
never for the logical graph. What fits no step stays as it is.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from dmt_plugin.fxtools.names import calls_tower
from dmt_plugin.fxtools.order import drop_unused
from dmt_plugin.nn.graph_ops import pack_streams, split_columns
from dmt_plugin.nn.towers import DLRMTower
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult


class FeedTowers(GraphPass):
    """See the module's docstring."""

    name = "feed_towers"
    contract = Contract(
        provides=frozenset({"fed_towers"}),
        requires=frozenset({"placed"}),
        conflicts_with=frozenset({"split", "scheduled"}),
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Rewrites the calls of towers in ``ctx.gm``."""
        calls = [n for n in ctx.gm.graph.nodes if calls_tower(n)]
        fed = sum(_feed(ctx.gm, call) for call in calls)
        drop_unused(ctx.gm.graph)
        return self.result(len(calls), fed, f"{fed} tower(s) take the blocks of the lanes")


def _feed(gm: fx.GraphModule, call: fx.Node) -> bool:
    tower = gm.get_submodule(str(call.target))
    pack = call.args[0]
    if type(tower) is not DLRMTower or not isinstance(pack, fx.Node) or pack.target is not pack_streams:
        return False
    columns: Any = pack.args[0]
    if any(n.target is not operator.getitem or len(n.users) > 1 for n in columns) or len(pack.users) > 1:
        return False
    splits = {n.args[0] for n in columns}
    split = splits.pop()
    if splits or split.target is not split_columns or len(split.users) != len(columns):
        return False
    blocks, widths = split.args
    places = [n.args[1] for n in columns]
    flat = [width for own in widths for width in own]
    if sorted(places) != list(range(len(flat))) or set(flat) != {tower.width}:
        return False
    call.args = (blocks, tuple(places))
    return True
