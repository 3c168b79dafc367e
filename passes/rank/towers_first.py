"""Lets a tower module that works on each feature by itself run before the exchange inside the host.

A ``dlrm`` tower with ``p = 0`` applies one linear layer to every feature: it does not matter to whose rows. Behind the
exchange a lane applies it to its own samples and all features of the tower; before the exchange, to all samples and
the features it holds. The products are as many, but what then crosses between the lanes is the tower's output: ``CR``
times fewer bytes, in both directions. Gradients of the tower's parameters are summed over the lanes in either case. A
tower whose tables are all frozen stays behind the exchange: there no gradients go back through it.

1. A candidate is a call of a tower on all blocks of the exchange ``lanes`` (:mod:`dmt_plugin.passes.rank.feed_towers`)
   that nothing else reads, with ``p = 0``.
2. The tower is called on the rows that enter the exchange instead, and the exchange is replaced by one of the outputs'
   widths.
3. What arrives is put into the order of the tower's features.

All lanes of a host find the same: the widths of all of them are known to each. What fits no step stays as it is.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.fxtools.names import EXCHANGE_META, EXCHANGES, SHAPE_META, calls_tower
from dmt_plugin.nn.graph_ops import pick_columns
from dmt_plugin.nn.towers import DLRMTower
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult


class TowersFirst(GraphPass):
    """See the module's docstring. The exchange ``lanes`` of ``ctx.placement`` may be replaced."""

    name = "towers_first"
    contract = Contract(
        provides=frozenset({"towers_first"}),
        requires=frozenset({"fed_towers"}),
        conflicts_with=frozenset({"split", "scheduled"}),
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Rewrites the calls of towers in ``ctx.gm``."""
        calls = [n for n in ctx.gm.graph.nodes if calls_tower(n)]
        moved = sum(_move(ctx, call) for call in calls)
        return self.result(len(calls), moved, f"{moved} tower(s) before the exchange inside the host")


def _move(ctx: PassContext, call: fx.Node) -> bool:
    """Moves the call of one tower, if it can be moved."""
    gm, placement = ctx.gm, ctx.placement
    tower = gm.get_submodule(str(call.target))
    wait = call.args[0]
    if type(tower) is not DLRMTower or tower.per_tower is not None or len(call.args) != 2:
        return False
    if not isinstance(wait, fx.Node) or wait.meta.get(EXCHANGE_META) != "lanes" or len(wait.users) > 1:
        return False
    exchange = placement.exchanges["lanes"]
    assert isinstance(exchange, OutputDist) and isinstance(tower.per_feature, nn.Linear)
    if not any(exchange.gradient_widths):
        return False
    (start,) = wait.all_input_nodes
    rows, layout = start.args
    places: Any = call.args[1]
    width, out = tower.width, tower.per_feature.out_features
    trained = any(p.requires_grad for p in tower.parameters())
    graph = gm.graph
    with graph.inserting_before(start):
        own = graph.call_module(str(call.target), ((rows,), tuple(range(exchange.send_width // width))))
    own.meta[SHAPE_META] = f"(H*L*B, {exchange.send_width // width * out})"
    with graph.inserting_after(wait):
        picked = graph.call_function(pick_columns, (wait, places, out))
    picked.meta[SHAPE_META] = call.meta.get(SHAPE_META, "")
    start.args = (own, layout)
    wait.meta[SHAPE_META] = picked.meta[SHAPE_META]
    call.replace_all_uses_with(picked)
    graph.erase_node(call)
    smaller = OutputDist(
        exchange.name, exchange.group, exchange.send_width // width * out,
        [own // width * out for own in exchange.recv_widths], exchange.formats,
        None if trained else [own // width * out for own in exchange.gradient_widths],
    )  # fmt: skip
    gm.set_submodule(f"{EXCHANGES}.lanes", smaller)
    placement.exchanges["lanes"] = smaller
    of_lane = dict(zip(ctx.topology.lanes_of(ctx.rank), smaller.recv_widths, strict=True))
    widths = [of_lane.get(rank, own) for rank, own in enumerate(placement.rank_widths)]
    placement.rank_widths = tuple(widths)
    back = dict(zip(ctx.topology.lanes_of(ctx.rank), smaller.gradient_widths, strict=True))
    placement.rank_gradients = tuple(back.get(rank, own) for rank, own in enumerate(placement.rank_gradients))
    return True
