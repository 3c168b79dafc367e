"""The logical tower model: a rank-free graph of towers that runs in one process.

It is the reference of everything that runs on several ranks, the model that quality
studies train, and what a checkpoint describes. Its parameters carry the user's names;
tables and untouched layers *are* the user's objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, fx, nn

from dmt_plugin.capture import GraphModel, InputBinder
from dmt_plugin.core.findings import Finding
from dmt_plugin.model.flat_state import LoadedState, load_flat_state, new_parts
from dmt_plugin.passes.base import PassResult, Repair, StreamGroup
from dmt_plugin.plan.tower_plan import TowerPlan


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

    Attributes:
        group_reasons: for each group why it is not an ordinary tower group, or ``""``.
        meeting_points: for each group the node where all branches behind its joins have met.
    """

    plan: TowerPlan
    findings: tuple[Finding, ...]
    repairs: tuple[Repair, ...]
    passes: tuple[PassResult, ...]
    batch_size: int
    group_reasons: Mapping[str, str]
    meeting_points: Mapping[str, str]

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
        self._keep(
            _dmt_flat=flat,
            plan=plan,
            findings=tuple(findings),
            repairs=tuple(repairs),
            passes=tuple(passes),
            batch_size=batch_size,
            group_reasons={g.name: g.reason for g in groups},
            meeting_points={g.name: g.meeting_point for g in groups},
        )

    @property
    def semantic_preserving(self) -> bool:
        """True if the model computes exactly what the flat model computes (SPTT)."""
        return self.plan.module.kind == "none" or not any(g.kind == "tower" for g in self.plan.groups)

    @property
    def table_names(self) -> tuple[str, ...]:
        """Qualified names of the embedding layers."""
        return tuple(t.name for t in self.plan.tables)

    def to_flat(self) -> nn.Module:
        """The trained model in one process, without anything of towers across hosts.

        Returns:
            Without tower modules the user's own model, which shares its parameters with this one.
            With tower modules no flat model computes the same: this model itself, an ordinary
            ``nn.Module`` that ``torch.export`` takes.
        """
        return self.__dict__["_dmt_flat"] if self.semantic_preserving else self

    def new_parts(self) -> dict[str, Repair | None]:
        """Names of the state that do not continue the flat model's, each with the repair that made it new, if any."""
        return new_parts(self.state_dict(), self.__dict__["_dmt_flat"].state_dict(), self.repairs)

    def load_flat_state(self, state: Mapping[str, Tensor]) -> LoadedState:
        """Starts from a trained flat model: its tables and every layer that kept its meaning.

        Args:
            state: ``state_dict()`` of the flat model. Tables and untouched layers are shared with
                the flat model that this one was made from, so that gets the values too.

        Returns:
            What was loaded, what starts anew, and what had no place.

        Raises:
            DMTError: a part that should continue is missing or has another shape; nothing is
                loaded then.
        """
        return load_flat_state(self.state_dict(), self.new_parts(), state)
