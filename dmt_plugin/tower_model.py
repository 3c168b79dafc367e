"""The logical tower model: a rank-free graph of towers that runs in one process.

It is the reference of everything that runs on several ranks, the model that quality
studies train, and what a checkpoint describes. Its parameters carry the user's names;
tables and untouched layers *are* the user's objects.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from dmt_plugin.capture import GraphModel, InputBinder
from dmt_plugin.errors import DMTError
from dmt_plugin.findings import Finding
from dmt_plugin.passes.base import PassResult, Repair, StreamGroup
from dmt_plugin.plan import TowerPlan


class TowerModel(GraphModel):
    """A user's model decomposed into towers, callable as before.

    Args:
        graph_module: the rewritten graph.
        binder: maps calls to graph inputs.
        flat: the user's model; shares tables and untouched layers.
        plan: features to towers to hosts.
        groups: what the joins of the model are.
        findings: what the transformation had to say.
        repairs: parameters that changed size and started anew.
        passes: what each pass did.
        batch_size: batch size of the example values in the graph.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        binder: InputBinder,
        flat: nn.Module,
        plan: TowerPlan,
        groups: Sequence[StreamGroup],
        findings: Sequence[Finding],
        repairs: Sequence[Repair],
        passes: Sequence[PassResult],
        batch_size: int,
    ) -> None:
        super().__init__(graph_module, binder)
        self.__dict__["flat"] = flat
        self.plan = plan
        self.findings = tuple(findings)
        self.repairs = tuple(repairs)
        self.passes = tuple(passes)
        self.batch_size = batch_size
        self.group_reasons = {g.name: g.reason for g in groups}
        self.meeting_points = {g.name: g.meeting_point for g in groups}

    @property
    def semantic_preserving(self) -> bool:
        """True if the model computes exactly what the flat model computes (SPTT)."""
        return self.plan.module.kind == "none" or not any(g.kind == "tower" for g in self.plan.groups)

    @property
    def table_names(self) -> tuple[str, ...]:
        """Qualified names of the embedding layers."""
        return tuple(t.name for t in self.plan.tables)

    def to_flat(self) -> nn.Module:
        """The user's own model with the trained weights.

        Raises:
            DMTError: tower modules changed the architecture; there is no flat equal.
        """
        if not self.semantic_preserving:
            raise DMTError(
                f"the model has tower modules ({self.plan.module.kind}), so no flat model computes the same. Use the "
                'tower model itself: it runs in one process. (dmt.towers.module "none" keeps the flat model.)'
            )
        return self.__dict__["flat"]

