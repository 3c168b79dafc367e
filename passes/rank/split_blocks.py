"""Cuts a rank's batch into blocks, so that the exchange of one runs while another is computed.

A pass over a placed graph, before it is scheduled:

1. the ids are distributed and looked up for the whole batch, in rows sorted by block (the input distribution
   sorts them); the rows that enter the first output distribution are cut into one contiguous range per block;
2. every exchange behind that, with the tower modules between them, runs once per block, with the batch layout of the
   block;
3. rows that travel once, however many samples need them, are asked for and looked up for the whole batch too; each goes
   with the first block that needs it (:mod:`dmt_plugin.comm.distinct.first_use`). What spreads and expands the rows of
   a block is handed those of the blocks before. Rows by id are cut into equal parts, whoever's they are, and joined
   before the model reads them;
4. what follows the last exchange runs once per block as far as it is proven to treat samples by themselves
   (:mod:`dmt_plugin.passes.ops.per_sample`). Values that do not depend on the exchange (a bottom MLP) are computed once
   and cut into the same blocks;
5. where an operation needs the whole batch (batch normalisation, a sum over samples), or the model returns a value,
   the blocks are joined again.

Whether there are blocks must not depend on the rank, for all ranks of a group have to start the same exchanges: a
model is left in one block for what its plan says alone.

Nothing is computed twice; what differs from the graph without blocks is the order of some sums over samples in the
backward pass. Tables are updated once per step, as before.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx, nn

from dmt_plugin.comm.distinct.requests import RowRequests
from dmt_plugin.comm.input_dist.input_dist import InputDist
from dmt_plugin.fxtools.names import (
    BLOCK_META,
    BY_ID_META,
    EXCHANGE_META,
    LOOKUP,
    SHAPE_META,
    carries_samples,
    hands_rows,
)
from dmt_plugin.fxtools.order import drop_unused
from dmt_plugin.nn.block_ops import cut_batch, cut_rows, join_ids, join_rows, view_rows
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.ops.per_sample import open_view
from dmt_plugin.passes.rank.by_block import ByBlock, carries_rows, picks_block
from dmt_plugin.plan.tower_plan import TowerPlan

_BY_ROWS = ("none", "dlrm", "dcn", "preserve")
"""Tower modules that are known to treat samples by themselves."""


class SplitBlocks(GraphPass):
    """See the module's docstring."""

    name = "split_blocks"
    contract = Contract(
        provides=frozenset({"split"}), requires=frozenset({"placed"}), conflicts_with=frozenset({"scheduled"})
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Rewrites ``ctx.gm``."""
        assert ctx.plan is not None
        blocks = ctx.config.comm.blocks_on(ctx.topology.hosts)
        if blocks == 1:
            return self.result(0, 0, "one block")
        # On the flat route towers run behind the last exchange, where a part that may mix samples sees the whole batch.
        strange = _strange_modules(ctx.plan) if ctx.placement.route == "hierarchical" else ""
        if strange:
            return self.result(0, 0, f"one block: {strange} may mix samples, and runs between two exchanges")
        if not any(carries_rows(node) for node in ctx.gm.graph.nodes):
            return self.result(0, 0, "one block: no rows are exchanged")
        for exchange in ctx.placement.exchanges.values():
            if isinstance(exchange, InputDist):
                exchange.sort_by_blocks(blocks)
            elif isinstance(exchange, RowRequests):
                exchange.cut_into(blocks)
        before = len(ctx.gm.graph.nodes)
        inside = _Split(ctx, blocks).inside
        drop_unused(ctx.gm.graph)
        behind = sum("val" in n.meta and isinstance(n.meta["val"], Tensor) for n in inside)
        return self.result(len(inside), len(ctx.gm.graph.nodes) - before, f"{blocks} blocks, {behind} of the model")


class _Split:
    """One graph that is cut.

    Attributes:
        inside: the nodes that ran once for the whole batch, and now run once per block.
    """

    def __init__(self, ctx: PassContext, blocks: int) -> None:
        self.ctx, self.graph, self.blocks = ctx, ctx.gm.graph, blocks
        self.order = list(self.graph.nodes)
        found = ByBlock(ctx.gm, ctx.captured.batch_size)
        self.constants, self.layout, self.samples = found.constants, found.layout, found.samples
        self.inside = found.inside
        self._clone(found.first, self.inside)

    def _clone(self, first: fx.Node | None, inside: dict[fx.Node, None]) -> None:
        layout, rows = self.layout, None
        if first is not None and isinstance(layout, fx.Node):
            (rows,) = _rows_of(first)
            with self.graph.inserting_before(first):
                self.layouts = self._parts(self.graph.call_function(getattr, (layout.args[0], "layouts")))
                cut = self._cut_looked_up(rows, layout)
                sent = self._parts(cut)
        self.cuts: dict[fx.Node, list[fx.Node]] = {}
        of_block: list[dict[fx.Node, fx.Node]] = []
        for block in range(self.blocks):
            copies: dict[fx.Node, fx.Node] = {}
            if rows is not None and isinstance(layout, fx.Node):
                copies = {rows: sent[block], layout: self.layouts[block]}
            for node in inside:
                with self.graph.inserting_before(node):
                    copies[node] = self._copy(node, copies, block)
                    if block and hands_rows(node):
                        copies[node].args = (*copies[node].args[:-1], of_block[-1][node])
                if node is first and rows is not None:
                    del copies[rows]  # elsewhere these rows, if anybody reads them, are those of the whole batch
            of_block.append(copies)
        self._join(inside, of_block)

    def _cut_looked_up(self, rows: fx.Node, layout: fx.Node) -> fx.Node:
        """The rows that enter the first exchange, in blocks; the lookup's own rows by the lookup."""
        if rows.target != LOOKUP or len(rows.users) > 1:
            return self.graph.call_function(cut_rows, (rows, layout, self.blocks))
        rows.kwargs = {"scaled": False}
        self.ctx.gm.add_submodule(f"{LOOKUP}.cut_rows", nn.Identity())
        return self.graph.call_module(f"{LOOKUP}.cut_rows", (rows, layout, self.blocks))

    def _copy(self, node: fx.Node, copies: dict[fx.Node, fx.Node], block: int) -> fx.Node:
        def of_block(value: fx.Node) -> fx.Node:
            if value in copies:
                return copies[value]
            return value if value in self.constants else self._cut(value)[block]

        view = open_view(node)
        if picks_block(node):
            copy = self.graph.create_node(node.op, node.target, (*node.args[:-1], block))
        elif view is None:
            copy = self.graph.node_copy(node, of_block)
        else:
            copy = self.graph.call_function(view_rows, fx.map_arg(view, of_block))
            copy.meta.update(node.meta)
        copy.meta[BLOCK_META] = block
        shape = _shape_text(node, self.ctx.captured.batch_size)
        if shape:
            copy.meta[SHAPE_META] = shape.replace("B", f"B/{self.blocks}")
        return copy

    def _cut(self, value: fx.Node) -> list[fx.Node]:
        """The blocks of a value that is computed for the whole batch."""
        if value not in self.cuts:
            self.cuts[value] = self._parts(self.graph.call_function(cut_batch, (value, self.samples, self.blocks)))
        return self.cuts[value]

    def _parts(self, several: fx.Node) -> list[fx.Node]:
        return [self.graph.call_function(operator.getitem, (several, block)) for block in range(self.blocks)]

    def _join(self, inside: dict[fx.Node, None], of_block: list[dict[fx.Node, fx.Node]]) -> None:
        """Gives every use outside the blocks the value for the whole batch."""
        joined: dict[fx.Node, fx.Node] = {}

        def whole(node: fx.Node) -> fx.Node:
            if node not in inside:
                return node
            if node not in joined:
                with self.graph.inserting_before(last[node]):
                    parts = [copies[node] for copies in of_block]
                    if BY_ID_META in node.meta:
                        joined[node] = self.graph.call_function(join_ids, (parts,))
                    elif isinstance(node.meta.get("val"), Tensor):
                        joined[node] = self.graph.call_function(join_rows, (parts, self.samples))
                    else:  # a size, or several results: made again from what was joined
                        assert not carries_samples(node), f"{node.name} would be run a second time"
                        joined[node] = self.graph.node_copy(node, whole)
                    joined[node].meta["val"] = node.meta.get("val")
            return joined[node]

        last = {node: node.next for node in inside}
        for node in self.order:
            if node not in inside and any(n in inside for n in node.all_input_nodes):
                node.args = fx.map_arg(node.args, whole)
                node.kwargs = fx.map_arg(node.kwargs, whole)
        for node in reversed(list(inside)):
            self.graph.erase_node(node)


def _rows_of(first: fx.Node) -> list[fx.Node]:
    """The rows that enter the first node of a block."""
    return [n for n in first.all_input_nodes if EXCHANGE_META not in first.meta or n is first.args[0]]


def _strange_modules(plan: TowerPlan) -> str:
    kinds: list[Any] = [plan.module.kind, *(spec.kind for spec in plan.overrides.values())]
    return ", ".join(sorted({kind for kind in kinds if kind not in _BY_ROWS}))


def _shape_text(node: fx.Node, batch: int) -> str:
    """The shape of a node in the letters of the design; empty for what is no tensor of samples."""
    value = node.meta.get("val")
    if SHAPE_META in node.meta or not isinstance(value, Tensor) or value.shape[:1] != (batch,):
        return str(node.meta.get(SHAPE_META, ""))
    return "(" + ", ".join(["B", *map(str, value.shape[1:])]) + ")"
