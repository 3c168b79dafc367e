"""What there is to say about one transformation, as typed values; as a dict they are the JSON of ``dmt explain``.

Text, page and JSON show these and nothing else. Of a model that was refused, ``refused`` says why, and what could not
be made is ``None`` or empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dmt_plugin.core.findings import Finding
from dmt_plugin.passes.base import PassResult
from dmt_plugin.plan.row_shares import FeatureShare, RowShares
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.planner.cost import ExchangeCost
from dmt_plugin.planner.gradient_cost import GradientSums
from dmt_plugin.planner.load import HostRows, LaneLoad
from dmt_plugin.planner.memory import MemoryNeed
from dmt_plugin.topology.shape import Topology

GraphData = Mapping[str, Any]
"""A condensed graph, see :func:`dmt_plugin.report.explain.graph_data.condensed`."""

NodeLine = tuple[str, str, str]
"""Name, operation and shape of a node."""

_ORDER_OF_REFUSED = (
    "plan", "plan_fingerprint", "compression", "parameters", "gradient_sums", "graph_after", "graph_placed", "refused",
    "towers", "groups", "tower_modules", "findings", "repairs", "new_parameters", "passes", "lanes", "collectives",
    "sent_by_host", "nodes_after", "graphs_by_host", "topology", "rank", "batch_size", "route", "graph_before",
    "nodes_before", "memory", "frozen", "distinct_rows", "dedup", "owners",
)  # fmt: skip


@dataclass(frozen=True)
class Tower:
    """One tower: its host and features; the width of its streams and the rows of its tables together."""

    tower: int
    host: int
    features: list[str]
    width: int
    rows: int


@dataclass(frozen=True)
class Group:
    """Streams that are joined in the model, why they are what they are, and the node where their branches meet."""

    name: str
    kind: str
    form: str
    features: int
    width: int
    reason: str
    meets_at: str | None


@dataclass(frozen=True)
class TowerModule:
    """One tower module; ``input`` and ``output`` are shapes as text.

    ``host`` is where it runs: that of its tables, or ``None`` where every rank has it, for its own samples.
    """

    path: str
    group: str
    tower: int
    host: int | None
    module: str
    input: str
    output: str
    parameters: int


@dataclass(frozen=True)
class Repair:
    """A layer or parameter that changed because towers feed it: what changed, and how its new values start."""

    target: str
    what: str
    init: str


@dataclass(frozen=True)
class NewParameter:
    """A parameter that does not continue the flat model's: why, and how its ``count`` values start."""

    name: str
    shape: list[int]
    count: int
    why: str
    init: str


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers in tables, in tower modules and in the dense part."""

    tables: int
    towers: int
    dense: int


@dataclass(frozen=True)
class Frozen:
    """The tables that are frozen, and what that saves.

    Attributes:
        tables: their names.
        other_hosts: bytes of gradients of a step that a rank does not send to other hosts.
        same_host: the same inside the host.
        state: bytes of optimizer state that all owners together do not keep; None where no rule is known.
    """

    tables: list[str]
    other_hosts: int
    same_host: int
    state: int | None


@dataclass(frozen=True)
class FeatureRows(FeatureShare):
    """A feature's distinct rows, and how its rows travel.

    Attributes:
        way: how they travel as it is configured: "once", "by sample", "once, of some tables", or "once, and by sample"
            where a tower module has outputs per feature and others of all its features.
    """

    way: str


@dataclass(frozen=True)
class DistinctRows:
    """How many rows of real batches are distinct, and what that makes of the bytes of a step.

    Attributes:
        samples: per rank and step.
        steps: how many were counted.
        features: all of the model.
        by_sample: bytes that the explained rank sends in a step without ``comm.dedup``: to other hosts, and inside the
            host.
        once: the same with it.
        shares: all that was counted.
        on: whether any row travels once as it is configured; ``once`` is then as configured, else for all that can.
    """

    samples: int
    steps: int
    features: list[FeatureRows]
    by_sample: tuple[int, int]
    once: tuple[int, int]
    shares: RowShares
    on: bool


@dataclass(frozen=True)
class Explanation:
    """One transformation, as seen from one rank.

    Attributes:
        refused: why the model is refused; ``None`` if it is not.
        topology: hosts and ranks per host that it is for.
        rank: whose exchanges, loads and placed graph these are.
        batch_size: samples per rank, for the bytes.
        route: ``dmt.comm.route``.
        plan: features to towers to hosts, tables to lanes.
        compression: ``CR = sum(F_t * N) / sum(O_t)`` over the tower modules; ``None`` without any.
        lanes: predicted load of every rank.
        owners: what the owners on each host send of rows that travel once; empty where these were not counted.
        collectives: every exchange and sum of gradients of one step, with its bytes.
        sent_by_host: entries of a sample that each host sends to the others.
        graph_before: the user's model.
        graph_after: with towers, in one process.
        graph_placed: of ``rank``.
        graphs_by_host: of the first rank of each host.
        nodes_before: nodes around the towers in ``graph_before``.
        nodes_after: the same in ``graph_placed``.
        memory: what every rank and host needs for training.
        frozen: tables that are not trained, and what that saves; None where there are none.
        distinct_rows: what was counted on data; None without any.
        dedup: whose rows travel once, and why, for people; empty where nobody asked for it.
    """

    refused: str | None
    topology: Topology
    rank: int
    batch_size: int
    route: str
    plan: TowerPlan | None = None
    towers: list[Tower] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    compression: float | None = None
    tower_modules: list[TowerModule] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    repairs: list[Repair] = field(default_factory=list)
    new_parameters: list[NewParameter] = field(default_factory=list)
    passes: list[PassResult] = field(default_factory=list)
    lanes: list[LaneLoad] = field(default_factory=list)
    collectives: list[ExchangeCost] = field(default_factory=list)
    sent_by_host: list[int] = field(default_factory=list)
    gradient_sums: GradientSums | None = None
    graph_after: GraphData | None = None
    graph_placed: GraphData | None = None
    nodes_after: list[NodeLine] = field(default_factory=list)
    parameters: ParameterCounts | None = None
    graph_before: GraphData | None = None
    nodes_before: list[NodeLine] = field(default_factory=list)
    graphs_by_host: Mapping[str, GraphData] = field(default_factory=dict)
    memory: MemoryNeed | None = None
    frozen: Frozen | None = None
    distinct_rows: DistinctRows | None = None
    dedup: str = ""
    owners: list[HostRows] = field(default_factory=list)

    @property
    def bytes_of_a_step(self) -> tuple[int, int]:
        """To other hosts, and inside the host."""
        return sum(c.other_hosts for c in self.collectives), sum(c.same_host for c in self.collectives)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as ``dmt explain --json`` prints it."""
        data: dict[str, Any] = {}
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if one.name == "plan":
                data |= {"plan": value and value.to_dict(), "plan_fingerprint": value and value.fingerprint}
            elif one.name == "topology":
                data["topology"] = str(value)
            else:
                data[one.name] = _plain(value)
        return {key: data[key] for key in _ORDER_OF_REFUSED} if self.refused else data


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
