"""What a pass is, what passes share, and how a list of them is run.

1. Every pass states a :class:`Contract`: what it provides, what must have run before,
   what it must not meet. :func:`validate` checks a whole list before anything runs.
2. A pass works on a :class:`PassContext`: the graph, the facts that earlier passes found,
   the plan, and a list of coded findings. It returns how many places it matched and changed.
3. After every pass the graph is linted and the counts are logged; the code of the graph is made once, after the last.

A list of passes is data; nothing in it knows of process groups.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import fx, nn

from dmt_plugin.capture import CapturedModel, ExampleBatch
from dmt_plugin.capture.source_lines import located
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import TransformError
from dmt_plugin.core.findings import Finding, Severity
from dmt_plugin.partitioner.files import GivenPartition
from dmt_plugin.passes.facts import Change, Mark, ModelFacts, NativeStreams
from dmt_plugin.passes.rank_facts import Placement
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.topology.shape import Topology

logger = logging.getLogger(__name__)


WAYS_OUT = (
    'set dmt.transform.on_unsupported to "decoder" (towers compress, and a linear layer behind the exchange gives the '
    'model its old streams back), "preserve" (tower modules that keep number and width) or "transport" (the features '
    "move unchanged)"
)
"""What a finding offers where the model behind a group cannot take other streams."""


@dataclass(frozen=True)
class Contract:
    """What a pass gives and needs, as plain tags.

    Attributes:
        provides: tags that hold after the pass.
        requires: tags that must hold before it.
        conflicts_with: tags that must not hold before it.
    """

    provides: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset()
    conflicts_with: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PassResult:
    """What one pass did.

    Attributes:
        name: name of the pass.
        matched: places that it recognised.
        changed: nodes it added, replaced or removed.
        note: one line for a person.
    """

    name: str
    matched: int
    changed: int
    note: str = ""


@dataclass(frozen=True)
class DataToCount:
    """Data on which distinct rows are counted.

    Attributes:
        source: where they come from, for people.
        batches: starts a pass over them: calls of the model, with any number of samples.
        samples: per rank and step of the run.
        steps: the most steps of a host that are counted.
        seconds: after which no further batch is read.
    """

    source: str
    batches: Callable[[], Iterable[ExampleBatch]]
    samples: int
    steps: int = 8
    seconds: float = 60.0


Repair = Change
"""The name under which models that version 0.1.0 pickled hold changes."""


@dataclass(frozen=True)
class Refusal:
    """An operation behind the towers that cannot take their streams.

    Attributes:
        node: name of its node.
        reason: why, for people.
        groups: names of the groups whose streams reach it.
    """

    node: str
    reason: str
    groups: tuple[str, ...]


@dataclass
class PassContext:
    """Everything passes share about one model.

    Attributes:
        captured: the captured model; ``captured.graph_module`` is what passes change.
        config: the ``"dmt"`` section.
        topology: hosts and lanes.
        rank: the rank whose graph is made; no matter for the passes on the logical graph.
        facts: what is known of the model.
        placement: what is known of the rank; filled by the passes that make its graph.
        marks: what the user marked; filled by ``read_marks``.
        plan: filled by ``partition_features``.
        given: towers, or a whole plan, that were decided before.
        data: batches to count distinct rows on, if there are any.
        row_shares: distinct rows that were counted on real batches; None where nobody did. Filled by ``count_rows``.
        findings: what passes have to say.
        results: what each pass did, in order.
        native: streams before and behind the towers of the native form; filled by ``insert_tower_modules``.
        refused: groups whose new streams the model behind cannot take, with the reason, where they may go another way;
            filled by ``repair_shapes``.
        blocked: groups that must stay as they are, with the reason (see ``find_joins``).
        other_layout: whether some tensor lies in memory in another way than in the model, with the same numbers.
        tags: what holds now (see :class:`Contract`).
    """

    captured: CapturedModel
    config: DMTConfig
    topology: Topology
    rank: int = 0
    facts: ModelFacts = field(default_factory=ModelFacts)
    placement: Placement = field(default_factory=Placement)
    marks: list[Mark] = field(default_factory=list)
    plan: TowerPlan | None = None
    given: GivenPartition | None = None
    data: DataToCount | None = None
    row_shares: RowShares | None = None
    findings: list[Finding] = field(default_factory=list)
    results: list[PassResult] = field(default_factory=list)
    native: NativeStreams = field(default_factory=NativeStreams)
    refused: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    other_layout: bool = False
    tags: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """What the capture noticed is part of what there is to say."""
        self.findings.extend(self.captured.findings)

    @property
    def gm(self) -> fx.GraphModule:
        """The graph module that passes change."""
        return self.captured.graph_module

    @property
    def unsupported(self) -> Severity:
        """How grave it is that a model cannot go through tower modules (``dmt.transform.on_unsupported``)."""
        return "error" if self.config.transform.on_unsupported == "error" else "warning"

    def find(
        self,
        code: str,
        severity: Severity,
        module: str,
        reason: str,
        hint: str = "",
        *,
        at: fx.Node | Sequence[fx.Node] = (),
    ) -> None:
        """Adds a finding, with the user's line at a node, or the first of several that has one near it."""
        self.findings.append(Finding(code, severity, module, reason, hint, located(at)))

    def stop_on_errors(self) -> None:
        """Raises if any finding is an error."""
        if any(f.severity == "error" for f in self.findings):
            raise TransformError(self.findings)

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a ``call_module`` node calls."""
        return self.gm.get_submodule(str(node.target))


class GraphPass(ABC):
    """One step of the transformation. One file each; the docstring gives the algorithm."""

    name: ClassVar[str]
    contract: ClassVar[Contract] = Contract()

    @abstractmethod
    def run(self, ctx: PassContext) -> PassResult:
        """Looks at or changes ``ctx.gm``; says what it matched and changed."""

    def result(self, matched: int, changed: int = 0, note: str = "") -> PassResult:
        """A result in this pass's name."""
        return PassResult(self.name, matched, changed, note)


def validate(passes: Sequence[GraphPass], holding: frozenset[str] = frozenset()) -> None:
    """Checks the contracts of a list of passes, before anything runs.

    Raises:
        ValueError: a requirement that no earlier pass provides, or a conflict.
    """
    tags = set(holding)
    done: list[str] = []
    for step in passes:
        missing = step.contract.requires - tags
        clash = step.contract.conflicts_with & tags
        if missing or clash:
            raise ValueError(
                f"pass {step.name!r} cannot run after {done or 'nothing'}: missing {sorted(missing)}, "
                f"in conflict with {sorted(clash)}"
            )
        tags |= step.contract.provides
        done.append(step.name)


def run_passes(passes: Sequence[GraphPass], ctx: PassContext) -> PassContext:
    """Runs passes in order; lints the graph after each, and recompiles it after the last.

    Raises:
        ValueError: the list breaks a contract.
        TransformError: a pass found something that cannot be rewritten safely.
    """
    validate(passes, frozenset(ctx.tags))
    for step in passes:
        before = len(ctx.gm.graph.nodes)
        result = step.run(ctx)
        ctx.gm.graph.lint()
        ctx.tags |= step.contract.provides
        ctx.results.append(result)
        logger.debug(
            "%s: matched %d, changed %d, nodes %d -> %d %s",
            step.name, result.matched, result.changed, before, len(ctx.gm.graph.nodes), result.note,
        )  # fmt: skip
        ctx.stop_on_errors()
    ctx.gm.recompile()
    return ctx
