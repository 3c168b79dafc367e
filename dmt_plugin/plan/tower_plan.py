"""The tower plan: which feature belongs to which tower, which host runs it, which lanes hold each table.

A plan is plain data. It is made by the partitioner and the planner, read by the passes,
saved beside checkpoints and exchanged as JSON. It belongs to one model and one topology
and says so by two fingerprints; :meth:`TowerPlan.check` refuses any other.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dmt_plugin.core.errors import PlanError, TopologyError
from dmt_plugin.core.update_rule import WeightType
from dmt_plugin.plan.file import read_json, short_hash, write_json
from dmt_plugin.plan.fit import model_fingerprint as model_fingerprint
from dmt_plugin.plan.fit import unlike, weights_fingerprint
from dmt_plugin.plan.reading import PLAN_VERSION, read_fields
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.plan.specs import FORMS
from dmt_plugin.plan.specs import FeatureSpec as FeatureSpec
from dmt_plugin.plan.specs import GroupSpec as GroupSpec
from dmt_plugin.plan.specs import TowerModuleSpec as TowerModuleSpec
from dmt_plugin.plan.tables import Kind, TableShard, TableSplit, check_places, shards_of
from dmt_plugin.plan.tables import TableSpec as TableSpec
from dmt_plugin.topology.shape import Topology

_SHOWN = 6
"""Differences from a model that a message names."""


@dataclass(frozen=True)
class TowerPlan:
    """Features to towers, towers to hosts, tables to lanes.

    Attributes:
        topology: the topology the plan was made for, as ``"HxL"``, or ``"HxMxL"`` where a host consists of ``M``
            machines with ``L`` ranks each.
        tables: every table of the model.
        features: every feature of the model.
        groups: the joins the features take part in.
        towers: feature names of each tower.
        tower_hosts: host of each tower.
        table_lanes: lane of each whole table.
        table_splits: how the other tables are divided.
        module: the tower module of the tower groups.
        overrides: the towers whose module differs from that, by number.
        model: fingerprint of the model's features and tables.
        provenance: how the partition was made (strategy and its parameters).
        row_shares: the distinct rows that were counted when it was made; None where nobody did.
        table_hosts: host of the whole tables that are elsewhere than their tower.
        weights: fingerprint of where the tables are in the model's parameters; empty in plans of before. It is no part
            of the plan's own fingerprint.
    """

    topology: str
    tables: tuple[TableSpec, ...]
    features: tuple[FeatureSpec, ...]
    groups: tuple[GroupSpec, ...]
    towers: tuple[tuple[str, ...], ...]
    tower_hosts: tuple[int, ...]
    table_lanes: Mapping[str, int]
    module: TowerModuleSpec = field(default_factory=TowerModuleSpec)
    model: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[int, TowerModuleSpec] = field(default_factory=dict)
    table_splits: Mapping[str, TableSplit] = field(default_factory=dict)
    row_shares: RowShares | None = None
    table_hosts: Mapping[str, int] = field(default_factory=dict)
    weights: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        self._check_complete()

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Plans that an earlier version pickled have no ``table_hosts``, and no ``weights``."""
        self.__dict__.update({"table_hosts": {}, "weights": "", **state})

    # -- questions ---------------------------------------------------------------------

    def tower_of(self, feature: str) -> int:
        """Tower of a feature."""
        return self._tower_by_feature[feature]

    def host_of_table(self, table: str) -> int:
        """Host of a table's tower. It keeps the table, but for rows that travel once: see :meth:`shards_of`."""
        return self.tower_hosts[self.tower_of(self._feature_by_table[table])]

    def shards_of(self, table: str) -> tuple[TableShard, ...]:
        """What ranks hold of a table: one shard if it is whole, else one per range, in rising order."""
        return self._shards_by_table[table]

    def shard(self, name: str) -> TableShard:
        """A shard by its own name; a whole table is the shard of that name."""
        return self._shard_by_name[name]

    def kind_of(self, table: str) -> Kind:
        """How a table is placed."""
        return self._shards_by_table[table][0].kind

    def only_once(self, table: str) -> bool:
        """Whether a table is where only rows that travel once may be."""
        split = self.table_splits.get(table)
        return table in self.table_hosts or (split is not None and not split.is_plain)

    def lanes_of(self, table: str) -> tuple[int, ...]:
        """Lanes that hold a shard of a table, on whichever host, rising."""
        return tuple(sorted({shard.lane for shard in self._shards_by_table[table]}))

    def towers_on(self, host: int) -> tuple[int, ...]:
        """Towers of a host."""
        return tuple(t for t, h in enumerate(self.tower_hosts) if h == host)

    def table(self, name: str) -> TableSpec:
        """A table by name."""
        return self._table_by_name[name]

    def module_of(self, group: GroupSpec, tower: int) -> TowerModuleSpec:
        """The module of one tower in one group, with the width of its outputs."""
        spec = self.overrides.get(tower, self.module)
        if group.form == "preserve":
            return dataclasses.replace(spec, kind="preserve", dim=group.width)
        return dataclasses.replace(spec, dim=group.dim or spec.dim)

    def features_of(self, group: GroupSpec, tower: int) -> tuple[str, ...]:
        """Features of one tower in one group, in the tower's order."""
        members = set(group.features)
        return tuple(f for f in self.towers[tower] if f in members)

    # Asked for every lookup on every rank, so looked up in a dict that is made once.

    @cached_property
    def _tower_by_feature(self) -> dict[str, int]:
        return {name: t for t, names in enumerate(self.towers) for name in names}

    @cached_property
    def _feature_by_table(self) -> dict[str, str]:
        return {table: feature.name for feature in self.features for table in feature.tables}

    @cached_property
    def _table_by_name(self) -> dict[str, TableSpec]:
        return {table.name: table for table in self.tables}

    @cached_property
    def _shards_by_table(self) -> dict[str, tuple[TableShard, ...]]:
        lanes, splits, hosts = self.table_lanes, self.table_splits, self.table_hosts
        return {
            name: shards_of(table, hosts.get(name, self.host_of_table(name)), lanes.get(name), splits.get(name))
            for name, table in self._table_by_name.items()
        }

    @cached_property
    def _shard_by_name(self) -> dict[str, TableShard]:
        return {shard.name: shard for shards in self._shards_by_table.values() for shard in shards}

    @property
    def row_dtype(self) -> WeightType:
        """Type of the rows that the flat model looks up: that of its tables, fp32 where they have several."""
        found = {table.dtype for table in self.tables}
        return found.pop() if len(found) == 1 else "fp32"

    # -- checks ------------------------------------------------------------------------

    def _check_complete(self) -> None:
        names = [f.name for f in self.features]
        described = {"feature": names, "table": [t.name for t in self.tables], "group": [g.name for g in self.groups]}
        for what, given in described.items():
            repeated = sorted(name for name, count in Counter(given).items() if count > 1)
            if repeated:
                raise PlanError(f"the plan describes the {what}(s) {repeated} more than once.")
        listed = Counter(name for tower in self.towers for name in tower)
        missing = sorted(set(names) - set(listed))
        unknown = sorted(set(listed) - set(names))
        twice = sorted(name for name, count in listed.items() if count > 1)
        if missing or unknown or twice:
            raise PlanError(
                "the plan does not cover the model: "
                + "; ".join(
                    text
                    for text, found in (
                        (f"features in no tower: {missing}", missing),
                        (f"features the model does not have: {unknown}", unknown),
                        (f"features in more than one tower: {twice}", twice),
                    )
                    if found
                )
                + ". List every feature of the model in exactly one tower."
            )
        if len(self.tower_hosts) != len(self.towers):
            raise PlanError(
                f"the plan has {len(self.towers)} towers but hosts for {len(self.tower_hosts)}; give each a host."
            )
        try:
            topology = Topology.parse(self.topology)
        except TopologyError as error:
            raise PlanError(f"the plan is for no topology: {error}.") from error
        outside = [h for h in self.tower_hosts if not 0 <= h < topology.hosts]
        if outside:
            raise PlanError(f"the plan names host(s) {outside}; a topology of {topology} has 0..{topology.hosts - 1}.")
        tables = {t.name for t in self.tables}
        used = {t for f in self.features for t in f.tables}
        if tables != used:
            raise PlanError(
                f"tables without a feature: {sorted(tables - used)}; tables that features use but the plan lacks: "
                f"{sorted(used - tables)}. Make the plan again for this model."
            )
        host_of = {t.name: self.host_of_table(t.name) for t in self.tables}
        check_places(self.tables, self.table_lanes, self.table_splits, self.table_hosts, host_of, topology)
        absent = sorted(set(self.overrides) - set(range(len(self.towers))))
        if absent:
            raise PlanError(
                f"the plan overrides the module of tower(s) {absent}; it has the towers 0..{len(self.towers) - 1}."
            )
        if bare := sorted(f.name for f in self.features if not f.tables):
            raise PlanError(f"the plan has the feature(s) {bare} without a table. Make the plan again for this model.")
        odd = {g.name: g.form for g in self.groups if g.form not in FORMS}
        if odd:
            raise PlanError(f"the plan gives groups the form {odd}; expected one of {list(FORMS)}.")
        placed = {*self.table_lanes, *self.table_splits, *self.table_hosts}
        strangers = sorted({*placed, *(f for g in self.groups for f in g.features)} - tables - set(names))
        if strangers:
            raise PlanError(
                f"table_lanes, table_splits, table_hosts or groups name {strangers}, which the model does not have. "
                "Make the plan again for this model."
            )
        for feature in self.features:
            homes = {self.tower_of(other.name) for other in self.features for t in feature.tables if t in other.tables}
            if len(homes) > 1:
                raise PlanError(
                    f"feature {feature.name!r} shares a table with features of the towers {sorted(homes)}; a table "
                    "lives in one tower, so put features that share a table together."
                )

    def _check_own_fingerprints(self) -> None:
        """What a plan says of its model is what its own tables and features say."""
        for key, found in (
            ("model", model_fingerprint(self.tables, self.features)),
            ("weights", weights_fingerprint(self.tables)),
        ):
            said = getattr(self, key)
            if said and said != found:
                raise PlanError(
                    f"the plan says {key} = {said}, but its tables and features make that {found}: they were changed "
                    "after it was written. Make a new plan for this model."
                )

    def check_model(self, tables: Sequence[TableSpec], features: Sequence[FeatureSpec]) -> None:
        """Refuses to be used for a model with other tables or features, or with tables in other parameters.

        Args:
            tables: the model's.
            features: the model's.

        Raises:
            PlanError: naming what differs.
        """
        if found := unlike(self.tables, self.features, tables, features):
            more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise PlanError(
                f"the plan does not fit the model: {'; '.join(found[:_SHOWN])}{more}. Make a new plan for this model, "
                'or keep only its towers: a partition file may hold just {"towers": [[...], ...]}.'
            )

    def check(self, *, model: str, topology: Topology) -> None:
        """Refuses to be used for another model or topology.

        Raises:
            PlanError: naming what differs and how to make a new plan.
        """
        if self.model and model and self.model != model:
            raise PlanError(
                f"the plan was made for the model {self.model}, this model is {model} (other features, tables or "
                "shapes). Make a new plan for this model, or remove dmt.partition.file."
            )
        if self.topology != str(topology):
            raise PlanError(
                f"the plan was made for {self.topology} (hosts x ranks per host; in the middle the machines of a host, "
                f"where there are several), this run is {topology}. Make a plan "
                'for this topology, or keep only its towers: a partition file may hold just {"towers": [[...], ...]}.'
            )

    @property
    def fingerprint(self) -> str:
        """A short hash of the whole plan but for ``weights``, which plans of before do not have."""
        return short_hash({key: value for key, value in self.to_dict().items() if key != "weights"})

    def by_sample(self) -> TowerPlan:
        """The same towers, with every table where its rows can be looked up by sample.

        Tables that are elsewhere than on their tower's host, or in rows by modulo, are whole on a lane there.
        """
        special = {n: split.ranges[0].lane for n, split in self.table_splits.items() if self.only_once(n)}
        splits = {name: split for name, split in self.table_splits.items() if name not in special}
        lanes = {**self.table_lanes, **special}
        return dataclasses.replace(self, table_lanes=lanes, table_splits=splits, table_hosts={})

    # -- JSON --------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        data = {"version": self._version, **dataclasses.asdict(self)}
        data["tables"] = [table.to_dict() for table in self.tables]
        data["module"] = self.module.to_dict()
        data["overrides"] = {str(tower): spec.to_dict() for tower, spec in sorted(self.overrides.items())}
        data["groups"] = [{k: v for k, v in g.items() if k != "parameters" or v} for g in data["groups"]]
        data["table_splits"] = {name: split.to_dict() for name, split in self.table_splits.items()}
        if not self.table_splits:
            del data["table_splits"]  # a plan of whole tables keeps the fingerprint it had before there were others
        for key in ("table_hosts", "weights"):
            if not data[key]:
                del data[key]
        if self.row_shares is None:
            del data["row_shares"]
        else:
            data["row_shares"] = self.row_shares.to_dict()
        return data

    @property
    def _version(self) -> int:
        """The oldest that has what this plan needs."""
        if Topology.parse(self.topology).machines_per_host > 1:
            return PLAN_VERSION
        return 2 if self._needs_version_2 else 1

    @property
    def _needs_version_2(self) -> bool:
        plain = all(split.is_plain for split in self.table_splits.values())
        modules = (self.module, *self.overrides.values())
        shaped = any(module.rank or module.outputs for module in modules)
        return self.row_shares is not None or bool(self.table_hosts) or not plain or shaped

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON: the file is there as a whole, or as it was before."""
        write_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TowerPlan:
        """Reads what :meth:`to_dict` gave.

        Raises:
            PlanError: entries that are missing, unknown or impossible, another version, or tables and features that are
                not those of the model that it says it is for.
        """
        plan = cls(**read_fields(data))
        plan._check_own_fingerprints()
        return plan

    @classmethod
    def load(cls, path: str | Path) -> TowerPlan:
        """Reads a plan from a JSON file.

        Raises:
            PlanError: as :meth:`from_dict`, or there is no such file.
        """
        data = read_json(path)
        try:
            return cls.from_dict(data)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error
