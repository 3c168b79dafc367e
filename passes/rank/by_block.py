"""Which nodes of a placed graph run once per micro-block, before any of them is copied.

1. What picks the rows and requests of a block, and what enters the first exchange of rows by sample, begins a block.
2. Every exchange of rows behind that is of a block, with what leads to it, and with what hands distinct rows on.
3. What follows the last exchange is, as far as it is proven to treat samples by themselves
   (:mod:`dmt_plugin.passes.ops.per_sample`).
"""

from __future__ import annotations

from torch import Tensor, fx

from dmt_plugin.fxtools.names import (
    EXCHANGE_META,
    EXCHANGES,
    REQUESTS,
    calls_tower,
    carries_ids,
    carries_samples,
    hands_rows,
    is_start,
    is_wait,
)
from dmt_plugin.nn.distinct_rows import asked_rows, block_requests
from dmt_plugin.passes.ops.per_sample import is_by_rows, is_plumbing, writes_input


class ByBlock:
    """The nodes of one graph that run once per block.

    Args:
        gm: the placed graph.
        batch: batch size of the example values.

    Attributes:
        constants: nodes that depend on no input of the model, but for where it is.
        first: where blocks of rows by sample begin: the first exchange, or the tower that runs before it; None where
            all rows travel once.
        layout: the batch layout that this exchange goes by; None without one.
        samples: the node that says how many samples the batch has, as soon as anything of a block can be there; None
            where all rows are by id, so that nothing of a block has samples.
        inside: the nodes, in order.
    """

    def __init__(self, gm: fx.GraphModule, batch: int) -> None:
        self._gm, self._batch = gm, batch
        self._order = list(gm.graph.nodes)
        self.constants = self._constants()
        start = next((n for n in self._order if carries_samples(n) and is_start(n)), None)
        self.first: fx.Node | None = None
        self.layout: fx.Node | None = None
        if start is not None:
            rows, layout = start.args
            assert isinstance(rows, fx.Node) and isinstance(layout, fx.Node)
            self.first, self.layout = (rows if calls_tower(rows) else start), layout
        self.samples = next((n for n in self._order if n is self.layout or self._counts_samples(n)), None)
        self.inside = self._inside()
        missed = [n.name for n in self._order if carries_rows(n) and n not in self.inside]
        assert not missed, f"{missed} would carry the whole batch while others carry blocks"

    def _counts_samples(self, node: fx.Node) -> bool:
        """Whether a node gives requests for rows of which some are by sample."""
        if not is_wait(node) or node.meta[EXCHANGE_META] != REQUESTS:
            return False
        requests = self._gm.get_submodule(f"{EXCHANGES}.{REQUESTS}")
        return any(not slot.by_id for slot in requests.slots)  # type: ignore[union-attr]

    def _constants(self) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in self._order:
            alike = all(n in found for n in node.all_input_nodes) or _is_place(node)
            if node.op not in ("placeholder", "output") and alike:
                found.add(node)
        return found

    def _inside(self) -> dict[fx.Node, None]:
        leads: set[fx.Node] = set()  # what a later exchange needs
        for node in reversed(self._order):
            if (carries_rows(node) and is_start(node)) or any(user in leads for user in node.users):
                leads.add(node)
        inside: dict[fx.Node, None] = {}
        for node in self._order:
            if node is self.first or picks_block(node):
                inside[node] = None
                continue
            if node.op == "output" or not any(n in inside for n in node.all_input_nodes):
                continue
            if node in leads or carries_rows(node) or hands_rows(node):
                # Placement puts here what it has proven to need the rows alone (`find_regions`); rows of other ranks
                # have nothing on this one that could be cut beside them.
                strangers = [n for n in node.all_input_nodes if n not in inside and n not in self.constants]
                assert strangers in ([], [self.layout]), f"{node.name} reads {strangers} between two exchanges"
                inside[node] = None
            elif self._splits(node, inside):
                inside[node] = None
        return inside

    def _splits(self, node: fx.Node, inside: dict[fx.Node, None]) -> bool:
        known = [n for n in node.all_input_nodes if n not in inside or "val" in n.meta]
        if "val" not in node.meta or len(known) < len(node.all_input_nodes):
            return is_plumbing(node) and all(n in inside for n in node.all_input_nodes)
        outside = [n for n in node.all_input_nodes if n not in inside and n not in self.constants]
        if outside and writes_input(self._gm, node):
            return False
        if not all(isinstance(n.meta.get("val"), Tensor) for n in outside):
            return False
        return is_by_rows(self._gm, node, self._batch, self.constants)


def _is_place(node: fx.Node) -> bool:
    """Whether a node reads where a tensor is, which is the same for all of its blocks."""
    return node.target is getattr and node.args[1] == "device"


def carries_rows(node: fx.Node) -> bool:
    """Whether a node belongs to an exchange of rows, one per sample or distinct ones."""
    return EXCHANGE_META in node.meta and not carries_ids(node)


def picks_block(node: fx.Node) -> bool:
    """Whether a node picks what belongs to one block, which is its last argument."""
    return node.op == "call_function" and node.target in (asked_rows, block_requests)
