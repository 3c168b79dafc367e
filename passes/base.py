"""What a pass is, what passes share, and how a list of them is run.

1. Every pass states a :class:`Contract`: what it provides, what must have run before,
   what it must not meet. :func:`validate` checks a whole list before anything runs.
2. A pass works on a :class:`PassContext`: the graph, what earlier passes found, the plan,
   and a list of coded findings. It returns how many places it matched and changed.
3. After every pass the graph is linted and recompiled, and the counts are logged.

A list of passes is data; nothing in it knows of process groups.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import fx, nn

from dmt_plugin.capture import CapturedModel
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import TransformError
from dmt_plugin.core.findings import Finding, Severity
from dmt_plugin.partitioner.files import GivenPartition
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


#: Which function of :mod:`dmt_plugin.comm.input_dist.ids` reads an index input, with its arguments.
Ids = tuple[str, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Lookup:
    """Rows of one table by one index input.

    Attributes:
        node: the node that gives them: ``(B, N)`` or ``(B, 1, N)``, for a sequence ``(B, L, N)``.
        table: name of the table: the layer's, or the weight's where it belongs to no embedding
            layer; with the range of rows where a table is shared by fields.
        rows: rows of the table.
        dim: ``N``.
        pooling: ``"sum"`` or ``"mean"``, ``"none"`` for a sequence.
        feature: name of the feature (see :attr:`key`).
        key: structural key of the index input; equal keys mean the same ids.
        ids: how the index input is read.
        hotness: ids per sample if fixed, else ``None``.
        weighted: whether the ids have weights.
        weight: qualified name of the parameter that holds the table.
        first_row: where the table begins in that parameter.
        origin: key of the raw input that the index is computed from.
        padding: id whose row is zero and stays so (sequences only; else such ids are dropped).
    """

    node: fx.Node
    table: str
    rows: int
    dim: int
    pooling: str
    feature: str
    key: str
    ids: Ids
    hotness: int | None
    weighted: bool
    weight: str = ""
    first_row: int = 0
    origin: str = ""
    padding: int | None = None

    @property
    def width(self) -> int:
        """Entries per sample: ``N``, or ``L * N`` for a sequence."""
        return self.dim * (self.hotness or 1) if self.pooling == "none" else self.dim


@dataclass(frozen=True)
class Region:
    """What a model does to one feature before it meets others.

    Attributes:
        stream: the node that comes out, ``(B, W)`` or ``(B, 1, W)``.
        lookups: the lookups that go in.
        nodes: everything between, ``stream`` included, in order.
        ids: index nodes that go in as well (for a mask).
        layers: whether layers with parameters are among the nodes.
    """

    stream: fx.Node
    lookups: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    ids: tuple[fx.Node, ...] = ()
    layers: bool = False


@dataclass(frozen=True)
class Mark:
    """One marker of the user's (``dmt_plugin.mark_embeddings``).

    Attributes:
        name: the group's.
        keys: a name for each feature; empty without keys.
        sources: for each marked stream what feeds it: embedding calls, each with the field that is picked out of its
            ``(B, F, N)``, or ``None`` for all of it.
        joint: whether there is one stream only, which holds the vectors of several features.
    """

    name: str
    keys: tuple[str, ...]
    sources: tuple[frozenset[tuple[fx.Node, int | None]], ...]
    joint: bool = False


@dataclass
class StreamGroup:
    """Lookups whose results meet in the same joins.

    Attributes:
        name: ``group0``, ...
        kind: ``"tower"`` or ``"transport"``.
        lookups: the lookups, in the order in which they are joined.
        streams: for each lookup the node that enters the joins.
        joins: the nodes that join them, or use them in whatever way where the form is not
            native (empty for a transport group).
        width: width of a stream (0 when they differ).
        reason: why a group is transport only, or cannot be in the native form.
        meeting_point: name of the node where all branches behind the joins have met.
        form: of a tower group: what the model behind it sees (see :class:`dmt_plugin.plan.tower_plan.GroupSpec`).
    """

    name: str
    kind: str
    lookups: list[Lookup]
    streams: list[fx.Node]
    joins: list[fx.Node]
    width: int
    reason: str = ""
    meeting_point: str = ""
    form: str = "native"


@dataclass(frozen=True)
class Repair:
    """A parameter or module that starts anew because towers feed it: it changed its size, or is a decoder.

    Attributes:
        target: qualified name.
        what: the change, e.g. ``"in_features 357 -> 189"``.
        init: how the new values start.
    """

    target: str
    what: str
    init: str


@dataclass
class PassContext:
    """Everything passes share about one model.

    Attributes:
        captured: the captured model; ``captured.graph_module`` is what passes change.
        config: the ``"dmt"`` section.
        topology: hosts and lanes.
        lookups: filled by ``find_lookups``.
        marks: what the user marked; filled by ``read_marks``.
        regions: by lookup, what happens to its feature alone; filled by ``find_regions``.
        groups: filled by ``find_joins``.
        plan: filled by ``partition_features``.
        given: towers, or a whole plan, that were decided before.
        findings: what passes have to say.
        repairs: filled by ``repair_shapes``.
        results: what each pass did, in order.
        unsupported: groups whose streams reach an operation that cannot be adapted; filled by ``repair_shapes``.
        blocked: groups that must stay as they are, with the reason (see ``find_joins``).
        tags: what holds now (see :class:`Contract`).
    """

    captured: CapturedModel
    config: DMTConfig
    topology: Topology
    lookups: list[Lookup] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    regions: dict[fx.Node, Region] = field(default_factory=dict)
    groups: list[StreamGroup] = field(default_factory=list)
    plan: TowerPlan | None = None
    given: GivenPartition | None = None
    findings: list[Finding] = field(default_factory=list)
    repairs: list[Repair] = field(default_factory=list)
    results: list[PassResult] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    blocked: dict[str, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """What the capture noticed is part of what there is to say."""
        self.findings.extend(self.captured.findings)

    @property
    def gm(self) -> fx.GraphModule:
        """The graph module that passes change."""
        return self.captured.graph_module

    def find(self, code: str, severity: Severity, module: str, reason: str, hint: str = "") -> None:
        """Adds a finding."""
        self.findings.append(Finding(code, severity, module, reason, hint))

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
    """Runs passes in order; lints and recompiles the graph after each.

    Raises:
        ValueError: the list breaks a contract.
        TransformError: a pass found something that cannot be rewritten safely.
    """
    validate(passes, frozenset(ctx.tags))
    for step in passes:
        before = len(ctx.gm.graph.nodes)
        result = step.run(ctx)
        ctx.gm.graph.lint()
        ctx.gm.recompile()
        ctx.tags |= step.contract.provides
        ctx.results.append(result)
        logger.debug(
            "%s: matched %d, changed %d, nodes %d -> %d %s",
            step.name, result.matched, result.changed, before, len(ctx.gm.graph.nodes), result.note,
        )  # fmt: skip
        ctx.stop_on_errors()
    return ctx
