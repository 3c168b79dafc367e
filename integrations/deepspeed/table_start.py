"""Which rows every table starts from, the same whatever ranks there are, and how their owners get them.

1. Starting weights that were asked for (``dmt.lookup.weights``, ``weights=`` of ``initialize``) come first. Files and
   checkpoints are read by the owners, each its own rows.
2. Rows of a table on the meta device are made by their owner, by the table's rule or the user's function.
3. Every other table starts from rank 0's copy, which rank 0 sends (:mod:`.weight_sync`): ranks may have built their
   models from different random states. An owner does not read its own copy of such a table.

What rank 0 has is what holds: where it has a table's values, they are sent, also to ranks that have the table on meta;
where it has a rule, every owner goes by that rule.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dmt_plugin.checkpoint.compare import retyped
from dmt_plugin.checkpoint.state import table_sizes
from dmt_plugin.checkpoint.weights import StoredTensor, open_weights
from dmt_plugin.config.lookup import LookupConfig
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.user_code import load_factory
from dmt_plugin.model.placed import sources_of
from dmt_plugin.nn.lookup.rounding import TORCH_TYPES
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.tables.sources import RowSource, RuleSource, TableInit, ValuesSource
from dmt_plugin.topology.agreement import gather
from dmt_plugin.topology.groups import RankGroups

KEY = "dmt.lookup.weights"
ALL = "*"


@dataclass(frozen=True)
class TableStart:
    """Where the rows of all tables come from, on one rank.

    Attributes:
        sources: by parameter of the flat model what makes or reads its rows; on other ranks than 0 without those that
            are sent.
        sent: parameters whose rows rank 0 sends.
        lines: what a user should know about it.
    """

    sources: Mapping[str, RowSource]
    sent: frozenset[str]
    lines: tuple[str, ...] = ()


def table_init_of(config: LookupConfig, given: TableInit | None) -> tuple[TableInit | None, bool]:
    """The user's function for rows of tables on meta, if there is one, and whether the rule of a layer is not enough.

    Args:
        config: the "lookup" section.
        given: ``table_init=`` of ``initialize``; it wins.

    Raises:
        ConfigError: the function that the key names cannot be loaded.
    """
    if given is not None:
        if not callable(given):
            raise ConfigError(
                f"table_init is a {type(given).__name__}; expected a function (name, first_row, shape, generator) -> "
                "tensor of that shape"
            )
        return given, False
    if config.table_init in ("layer", "strict"):
        return None, config.table_init == "strict"
    return load_factory(config.table_init, "dmt.lookup.table_init"), False


def find_start(
    model: nn.Module,
    plan: TowerPlan,
    config: LookupConfig,
    seed: int,
    weights: Any = None,
    table_init: TableInit | None = None,
    share: tuple[int, int] = (0, 1),
) -> TableStart:
    """Where the rows of the tables come from, as this rank sees it.

    Args:
        model: the user's model.
        plan: names its tables.
        config: the "lookup" section.
        seed: of rows that are made, the same on all ranks.
        weights: ``weights=`` of ``initialize``: a path, a state dict, or paths by table; in place of the key.
        table_init: ``table_init=`` of ``initialize``, in place of the key.
        share: this rank and the number of ranks: each checks the content of its share of a checkpoint's files.

    Raises:
        ConfigError: weights are for a table that the model does not have, or not there.
        CheckpointError: a weights file does not fit.
        TableInitError: a table on meta has no rule.
    """
    function, strict = table_init_of(config, table_init)
    loaded, lines = _loaded(plan, config.weights if weights is None else weights, share)
    lines += _other_types(plan, config, loaded)
    rest = [table for table in plan.tables if table.parameter not in loaded]
    own, more = sources_of(model, rest, seed=seed, table_init=function, strict=strict)
    sources = {**own, **loaded}
    sent = frozenset(name for name, source in sources.items() if isinstance(source, ValuesSource))
    return TableStart(sources, sent, (*lines, *more))


def agree(start: TableStart, groups: RankGroups) -> TableStart:
    """Every rank's part of what rank 0 says; all ranks call this.

    Args:
        start: as this rank sees it.
        groups: this rank's groups.

    Raises:
        ConfigError: on every rank, where the ranks were given different files or functions.
        ExchangeError: a rank is gone, or the time is up.
    """
    kinds = {name: f"{type(source).__name__}: {source}" for name, source in start.sources.items()}
    rules = {name: source for name, source in start.sources.items() if isinstance(source, RuleSource)}
    said = gather(groups, (kinds, rules if groups.rank == 0 else {}), "comparing what tables start from")
    first, by_rule = said[0]
    for rank, (other, _) in enumerate(said):
        for name, kind in first.items():
            by_itself = name not in by_rule and not kind.startswith(ValuesSource.__name__)
            if by_itself and other.get(name) != kind:
                raise ConfigError(
                    f"table {name} starts from {kind.partition(': ')[2]} on rank 0, and from "
                    f"{other.get(name, ': nothing').partition(': ')[2]} on rank {rank}. Give every rank the same "
                    f"{KEY} and table_init, and build the table on meta on all ranks or on none."
                )
    sent = frozenset(name for name, kind in first.items() if kind.startswith(ValuesSource.__name__))
    own = {name: source for name, source in start.sources.items() if name not in sent or groups.rank == 0}
    return TableStart({**own, **by_rule}, sent, start.lines)


def _loaded(plan: TowerPlan, weights: Any, share: tuple[int, int]) -> tuple[dict[str, RowSource], list[str]]:
    """Sources of the tables that start from weights which exist, by parameter."""
    if weights is None:
        return {}, []
    sizes = table_sizes(plan)
    asked, rest = _asked(plan, weights)
    found: dict[str, RowSource] = {}
    lines: list[str] = []
    if rest is not None:
        found = dict(open_weights(rest, {name: size for name, size in sizes.items() if name not in asked}, share))
        if isinstance(rest, Mapping):  # a state dict: like the model's own values, it is rank 0's that is sent
            found = {name: ValuesSource(rest[name].detach()) for name in found}
        others = [name for name in sizes if name not in asked and name not in found]
        if not found and not asked:
            raise ConfigError(f"{KEY}: {_shown(rest)} has none of the tables {_some(sizes)}")
        if others:
            lines.append(f"not in {_shown(rest)}, so they start as without it: {_some(others)}")
    for where in dict.fromkeys(asked.values()):
        wanted = {name: sizes[name] for name, place in asked.items() if place == where}
        own = open_weights(where, wanted, share)
        missing = [name for name in wanted if name not in own]
        if missing:
            raise ConfigError(f"{KEY}: {_shown(where)} has no {_some(missing)}, whose rows were to come from there")
        found |= own
    if found:
        lines.insert(0, f"{len(found)} table(s) start from {_shown(weights)}")
    return found, lines


def _other_types(plan: TowerPlan, config: LookupConfig, loaded: Mapping[str, RowSource]) -> list[str]:
    """Weights that are stored in another type than they are kept in."""
    here = {t.parameter: TORCH_TYPES[config.dtype_of(t.name, t.parameter, t.dtype)] for t in plan.tables}
    stored = {
        name: source.dtype if isinstance(source, StoredTensor) else source.values.dtype
        for name, source in loaded.items()
        if isinstance(source, (StoredTensor, ValuesSource))
    }
    return retyped(*({name: str(t).removeprefix("torch.") for name, t in types.items()} for types in (stored, here)))


def _asked(plan: TowerPlan, weights: Any) -> tuple[dict[str, Any], Any]:
    """Weights by parameter, and those for all the rest."""
    if not isinstance(weights, Mapping):
        if not isinstance(weights, (str, Path)):
            raise ConfigError(
                f"weights is a {type(weights).__name__}; expected a path, a state dict, or paths by table name"
            )
        return {}, weights
    tensors = [value for value in weights.values() if isinstance(value, Tensor)]
    if tensors and len(tensors) == len(weights):
        return {}, weights
    names = {name: table.parameter for table in plan.tables for name in (table.name, table.parameter)}
    asked: dict[str, Any] = {}
    for name, where in weights.items():
        if not isinstance(where, (str, Path)):
            raise ConfigError(f"{KEY}.{name}: a path expected, found a {type(where).__name__}")
        if name != ALL and name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {_some(names)}"
            raise ConfigError(f"{KEY}.{name}: the model has no such table; {hint}")
        if name != ALL:
            asked[names[name]] = where
    return asked, weights.get(ALL)


def _shown(where: Any) -> str:
    if not isinstance(where, Mapping):
        return str(where)
    paths = {str(path) for path in where.values() if not isinstance(path, Tensor)}
    return _some(paths) if paths else "the state dict of rank 0"


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")


def values_of(plan: TowerPlan, start: TableStart, table: str) -> Tensor:
    """The ``(rows, dim)`` values of a table, or of a shard of one, that rank 0 sends, by its name.

    Raises:
        AttributeError: there is no such table.
    """
    try:
        shard = plan.shard(table)
    except KeyError:
        raise AttributeError(table) from None
    source = start.sources[shard.table.parameter]
    assert isinstance(source, ValuesSource)
    rows, columns = shard.parameter_rows, shard.parameter_columns
    return source.values[rows.start : rows.stop : rows.step, columns.start : columns.stop]
