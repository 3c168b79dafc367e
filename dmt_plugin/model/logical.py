"""The logical tower model: the user's model with towers, in one process and without exchanges between ranks.

It is the reference of everything that runs on several ranks, the model that quality
studies train, and what a checkpoint describes. Its parameters carry the user's names;
tables and untouched layers *are* the user's objects.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dmt_plugin.capture import GraphModel, InputBinder
from dmt_plugin.capture.graph_state import UNREAD
from dmt_plugin.core.errors import DMTError
from dmt_plugin.core.findings import Finding
from dmt_plugin.model.flat_state import LoadedState, StateMap, load_flat_state, state_map
from dmt_plugin.passes.base import PassResult
from dmt_plugin.passes.facts import Change, ModelFacts, StoredFacts
from dmt_plugin.plan.tower_plan import TowerPlan

Entries = Mapping[str, tuple[tuple[int, ...], torch.dtype | None]]
"""Shape and type by name; no type for what is no tensor."""


class TowerModel(GraphModel):
    """A user's model decomposed into towers, callable as before.

    Args:
        graph_module: the rewritten graph.
        binder: maps calls to graph inputs.
        flat: the user's model; shares tables and untouched layers.
        plan: features to towers to hosts.
        facts: lookups, groups and changes, about the nodes of ``graph_module``.
        findings: what the transformation had to say.
        passes: what each pass did.
        batch_size: batch size of the example values in the graph.

    Attributes:
        repairs: modules and parameters that the flat model has in another form, or not at all.
        group_reasons: for each group why it is not an ordinary tower group, or ``""``.
        meeting_points: for each group the node where all branches behind its joins have met.
    """

    plan: TowerPlan
    findings: tuple[Finding, ...]
    repairs: tuple[Change, ...]
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
        facts: ModelFacts,
        findings: Sequence[Finding],
        passes: Sequence[PassResult],
        batch_size: int,
    ) -> None:
        super().__init__(graph_module, binder)
        self._keep(
            _dmt_flat=flat,
            plan=plan,
            findings=tuple(findings),
            repairs=tuple(facts.changes),
            passes=tuple(passes),
            batch_size=batch_size,
            group_reasons={g.name: g.reason for g in facts.groups},
            meeting_points={g.name: g.meeting_point for g in facts.groups},
            _dmt_facts=facts.stored(graph_module.graph),
        )

    @property
    def stored_facts(self) -> StoredFacts:
        """What the passes found out about this model, for its graph or a copy of it.

        Raises:
            DMTError: an earlier version pickled the model without it.
        """
        found: StoredFacts | None = self.__dict__.get("_dmt_facts")
        if found is None:
            raise DMTError(
                "this tower model was pickled by an earlier version, which kept too little of it: it runs in one "
                "process, but can be neither placed on ranks nor start from a flat state. Call dmt_plugin.transform "
                "on the flat model again, and load its state."
            )
        return found

    def with_plan(self, plan: TowerPlan) -> TowerModel:
        """This model, with which the result shares everything, with its tables elsewhere; towers must be the same."""
        twin = copy.copy(self)
        twin._keep(plan=plan)
        return twin

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

    @property
    def flat(self) -> nn.Module:
        """The user's model."""
        found: nn.Module = self.__dict__["_dmt_flat"]
        return found

    def note_states(self) -> None:
        """Notes names, shapes and types of the states of this and of the flat model, for when tables are let go."""
        self._keep(_dmt_states=(_shapes(self.__dict__["_dmt_flat"].state_dict()), _shapes(self.state_dict())))

    @property
    def flat_entries(self) -> Entries:
        """Shape and type of everything in the flat model's state, by name."""
        noted = self.__dict__.get("_dmt_states")
        return _shapes(self.__dict__["_dmt_flat"].state_dict()) if noted is None else noted[0]

    @property
    def own_entries(self) -> Entries:
        """Shape and type of everything in this model's state that it reads, by name."""
        noted = self.__dict__.get("_dmt_states")
        entries = _shapes(self.state_dict()) if noted is None else noted[1]
        unread = set(self._unread)
        return {name: entry for name, entry in entries.items() if name not in unread}

    @property
    def never_run(self) -> list[str]:
        """Names in the flat model's state that forward never reads: they are in this model's state, on no rank."""
        if UNREAD in self.__dict__["graph_module"].__dict__:
            return sorted(self._unread)
        return sorted(set(self.flat_entries) - set(self.own_entries)) if self.semantic_preserving else []

    @property
    def _unread(self) -> tuple[str, ...]:
        return tuple(self.__dict__["graph_module"].__dict__.get(UNREAD, ()))

    @property
    def state_map(self) -> StateMap:
        """Which entries of this model's state are those of the flat model's."""
        return state_map(self.flat_entries, self.own_entries, self.stored_facts.changes)

    def load_flat_state(self, state: Mapping[str, Tensor]) -> LoadedState:
        """Starts from a trained flat model: its tables and every layer that kept its meaning.

        Args:
            state: ``state_dict()`` of the flat model. Tables and untouched layers are shared with
                the flat model that this one was made from, so that gets the values too.

        Returns:
            What was loaded, what starts from new values, and what had no place. Parameters that forward never reads may
            be missing: no rank holds them, so the state of a run has none.

        Raises:
            DMTError: a part that should continue is missing or has another shape; nothing is
                loaded then.
        """
        absent = set(self._unread) - set(state)
        entries = {name: entry for name, entry in _shapes(self.state_dict()).items() if name not in absent}
        return load_flat_state(
            self.state_dict(), state_map(self.flat_entries, entries, self.stored_facts.changes), state
        )


def _shapes(state: Mapping[str, Any]) -> Entries:
    tensors = {name: value if isinstance(value, Tensor) else None for name, value in state.items()}
    return {name: ((), None) if t is None else (tuple(t.shape), t.dtype) for name, t in tensors.items()}
