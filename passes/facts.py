"""The results of the analysis passes (lookups, regions, groups, changes), found once and kept with the tower model.

1. The passes on the logical graph fill :class:`ModelFacts`: the lookups, what the model does to one feature alone
   (regions), the groups of features that meet, and the changes that towers made to the user's model.
2. The tower model keeps them. A copied or unpickled graph has other nodes under the same names, so they are kept as
   :class:`StoredFacts`, by the names of nodes, and are asked for over one graph.
3. The passes that make a rank's graph read them; what they find out is in :mod:`dmt_plugin.passes.rank_facts`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from dmt_plugin.core.update_rule import WeightType
from dmt_plugin.fxtools.names import SCATTERED

#: Which function of :mod:`dmt_plugin.comm.input_dist.ids` reads an index input, with its arguments.
Ids = tuple[str, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Bags:
    """How rows by id are pooled, where the samples are.

    Attributes:
        offsets: starts of the bags; ``None`` where the ids are a matrix with a bag in each row.
        weights: a weight per id, in the shape of the ids.
        include_last_offset: the last of ``offsets`` is the end of the last bag.
    """

    offsets: fx.Node | None
    weights: fx.Node
    include_last_offset: bool


@dataclass(frozen=True)
class Lookup:
    """Rows of one table by one index input.

    Attributes:
        node: the node that gives them: ``(B, N)`` or ``(B, 1, N)``, for a sequence ``(B, L, N)``; by id a row for each
            id, whatever their number.
        table: name of the table: the layer's, or the weight's where it belongs to no embedding
            layer; with the range of rows where a table is shared by fields.
        rows: rows of the table.
        dim: ``N``.
        pooling: ``"sum"``, ``"mean"`` or ``"max"``, ``"none"`` for a sequence and for rows by id.
        feature: name of the feature (see :attr:`key`).
        key: structural key of the index input; equal keys mean the same ids.
        ids: how the index input is read.
        hotness: ids per sample if fixed, else ``None``.
        weighted: whether the ids have weights.
        weight: qualified name of the parameter that holds the table.
        first_row: where the table begins in that parameter.
        origin: key of the raw input that the index is computed from.
        padding: id whose row is zero and stays so (without pooling only; else such ids are dropped).
        dtype: type of the table.
        frozen: whether the table is not trained.
        bags: how its rows, which are by id, are added up; ``None`` where the model gets the rows.
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
    dtype: WeightType = "fp32"
    frozen: bool = False
    bags: Bags | None = None

    @property
    def by_id(self) -> bool:
        """Whether it gives a row for each id, of which it is not known how many a sample has."""
        return self.pooling == "none" and self.hotness is None

    @property
    def width(self) -> int:
        """Entries per sample: ``N``, or ``L * N`` for a sequence; entries of a row by id."""
        return self.dim * (self.hotness or 1) if self.pooling == "none" else self.dim


@dataclass(frozen=True)
class Region:
    """What a model does to one feature before it meets others.

    Attributes:
        stream: the node that comes out, ``(B, W)`` or ``(B, 1, W)``.
        lookups: the lookups that go in.
        nodes: everything between, ``stream`` included, in order.
        ids: index nodes that go in as well (for a mask).
        layers: whether layers with parameters are among the nodes, or parameters are read by them.
        parameters: qualified names of the parameters that they read themselves (a bias of the feature, say).
    """

    stream: fx.Node
    lookups: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    ids: tuple[fx.Node, ...] = ()
    layers: bool = False
    parameters: tuple[str, ...] = ()


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


@dataclass
class NativeStreams:
    """The streams of the groups in the native form, before and behind their towers.

    In every join the new streams of all towers of a group, tower by tower, take the place of the old ones, starting
    where the first of them stood. Whether the model behind can take them is found out by trying, group by group, so the
    old streams are kept until that is known; those that are not used go with the rest of the dead code.

    Attributes:
        streams: by name of the group, the old streams and the new ones, each in order.
        joins: what each join holds in the user's model, and the groups whose streams are among it.
    """

    streams: dict[str, tuple[list[fx.Node], list[fx.Node]]] = field(default_factory=dict)
    joins: dict[fx.Node, tuple[list[Any], list[str]]] = field(default_factory=dict)

    def add(self, group: StreamGroup, old: list[fx.Node], new: list[fx.Node]) -> None:
        """Notes the streams of one group, whose joins still hold the old ones."""
        self.streams[group.name] = (old, new)
        for join in group.joins:
            held = join.args[0] if join.args else join.kwargs["tensors"]
            self.joins.setdefault(join, (list(held), []))[1].append(group.name)  # type: ignore[arg-type]

    def wire(self, without: Collection[str] = ()) -> None:
        """Gives every join the new streams of its groups, but for those in ``without`` the old ones."""
        for join, (held, groups) in self.joins.items():
            entries, scattered = held, False
            for name in groups:
                if name not in without:
                    entries, apart = _swapped(entries, *self.streams[name])
                    scattered = scattered or apart
            join.meta[SCATTERED] = scattered
            if join.args:
                join.args = (entries, *join.args[1:])
            else:
                join.kwargs = {**join.kwargs, "tensors": entries}


def _swapped(entries: list[Any], old: list[fx.Node], new: list[fx.Node]) -> tuple[list[Any], bool]:
    """``entries`` with ``new`` where the first of ``old`` stood, and whether old ones did not stand side by side."""
    gone = set(old)
    at = min(i for i, entry in enumerate(entries) if entry in gone)
    side_by_side = all(entry in gone for entry in entries[at : at + len(gone)])
    before = [e for e in entries[:at] if e not in gone]
    behind = [e for e in entries[at:] if e not in gone]
    return [*before, *new, *behind], not side_by_side


@dataclass(frozen=True)
class Change:
    """A module or parameter that the tower model has in another form than the flat model, or that only it has.

    The states of both models have the same names, so that the map between them, in either direction, is which of the
    names that a change covers it keeps.

    Attributes:
        target: qualified name.
        what: the change for people, e.g. ``"in_features 357 -> 189"``.
        init: how the new values start, for people.
        kept: names below ``target`` whose values stay what they are in the flat model.
    """

    target: str
    what: str
    init: str
    kept: tuple[str, ...] = ()

    def covers(self, name: str) -> bool:
        """Whether an entry of a state belongs to what changed."""
        return name == self.target or name.startswith(f"{self.target}.")

    def keeps(self, name: str) -> bool:
        """Whether an entry stands for the same values in the state of the other model, flat or with towers."""
        return name in {f"{self.target}.{kept}" for kept in self.kept}


@dataclass
class ModelFacts:
    """What is known of a model, about the nodes of one graph.

    Attributes:
        lookups: filled by ``find_lookups``.
        regions: by lookup, what happens to its feature alone; filled by ``find_regions``.
        groups: filled by ``find_joins``.
        changes: filled by ``insert_tower_modules`` and ``repair_shapes``.
    """

    lookups: list[Lookup] = field(default_factory=list)
    regions: dict[fx.Node, Region] = field(default_factory=dict)
    groups: list[StreamGroup] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    @property
    def tables_by_id(self) -> frozenset[str]:
        """Tables of which some lookup gives rows by id; they are asked for rows, also for their other lookups."""
        return frozenset(lookup.table for lookup in self.lookups if lookup.by_id)

    @property
    def by_sample(self) -> list[Lookup]:
        """The lookups in all other tables, whose rows may travel by sample."""
        return [lookup for lookup in self.lookups if lookup.table not in self.tables_by_id]

    def leading(self) -> list[Lookup]:
        """One lookup per stream, in their order: the first of those that meet in it."""
        return [x for x in self.lookups if x.node not in self.regions or self.regions[x.node].lookups[0] is x.node]

    def stream_of(self, lookup: Lookup) -> fx.Node:
        """The node by which a lookup enters the rest of the model."""
        region = self.regions.get(lookup.node)
        return lookup.node if region is None else region.stream

    def stored(self, graph: fx.Graph) -> StoredFacts:
        """The facts by names of nodes; what is about nodes that are no longer in ``graph`` is left out."""
        there = set(graph.nodes)
        regions = {node: region for node, region in self.regions.items() if there.issuperset(region.nodes)}
        groups = [
            dataclasses.replace(
                g, streams=[n for n in g.streams if n in there], joins=[n for n in g.joins if n in there]
            )
            for g in self.groups
        ]
        known = dataclasses.replace(self, regions=regions, groups=groups)
        return StoredFacts(_replaced(known, lambda v: _Named(v.name) if isinstance(v, fx.Node) else v))


@dataclass(frozen=True)
class _Named:
    """Stands for the node of that name."""

    name: str


@dataclass(frozen=True)
class StoredFacts:
    """:class:`ModelFacts` as plain data, which outlive copying and pickling of their graph.

    Attributes:
        facts: the facts, with names in place of nodes.
    """

    facts: Any

    @property
    def changes(self) -> list[Change]:
        """What towers changed; that is about names of modules, whatever the graph."""
        return list(self.facts.changes)

    @property
    def pooled_by_maximum(self) -> frozenset[str]:
        """Names of the tables that some lookup pools by maximum."""
        return frozenset(lookup.table for lookup in self.facts.lookups if lookup.pooling == "max")

    def over(self, graph: fx.Graph) -> ModelFacts:
        """The facts about the nodes of a graph, which is the one they were stored for or a copy of it."""
        nodes = {node.name: node for node in graph.nodes}
        found: ModelFacts = _replaced(self.facts, lambda v: nodes[v.name] if isinstance(v, _Named) else v)
        return found


def _replaced(value: Any, by: Callable[[Any], Any]) -> Any:
    """A copy of facts with other values in place of nodes, or the other way round."""
    if isinstance(value, (ModelFacts, Lookup, Bags, Region, StreamGroup)):
        return type(value)(**{f.name: _replaced(getattr(value, f.name), by) for f in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {_replaced(key, by): _replaced(item, by) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(_replaced(item, by) for item in value)
    return by(value)
