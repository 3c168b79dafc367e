"""How tables are trained where the configuration leaves it to the optimizer of the dense part.

1. An optimizer that was built on the flat model says it by its class and its parameter groups.
2. A callable, which DeepSpeed calls behind our backs over the parameters that the rewrite leaves, is called here once
   more, over a stand-in for each parameter group: what it builds has the class and the options that count.
3. Else the "optimizer" section of the configuration says it, with the options of the groups in ``model_parameters``.

A table that none of the groups lists is not trained by the script's optimizer; here that is an error, as it would be
trained all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.dense_rules import KINDS, WAY_OUT, DenseRules, no_such_rule, rule_of_options, rule_of_section
from dmt_plugin.config.lookup import LookupConfig
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.integrations.deepspeed.arguments.optimizers import is_built
from dmt_plugin.integrations.deepspeed.arguments.parameters import FlatParameters
from dmt_plugin.plan.tables import TableSpec


def trained(lookup: LookupConfig, optimizer: Any, settings: DeepSpeedSettings, flat: FlatParameters) -> LookupConfig:
    """The "lookup" section, which knows what the script's optimizer makes of tables where it asks for that.

    Args:
        lookup: the section.
        optimizer: the argument of ``initialize``.
        settings: the DeepSpeed configuration.
        flat: the parameters of the flat model, and their groups.

    Raises:
        ConfigError: a callable cannot be called over a stand-in.
    """
    asked = "auto" in (lookup.optimizer, *(table.optimizer for table in lookup.tables.values()))
    return lookup.trained_as(dense_rules(optimizer, settings, flat) if asked else DenseRules())


def dense_rules(optimizer: Any, settings: DeepSpeedSettings, flat: FlatParameters) -> DenseRules:
    """What the script's optimizer makes of tables.

    Args:
        optimizer: the argument of ``initialize``.
        settings: the DeepSpeed configuration.
        flat: the parameters of the flat model, and their groups.

    Raises:
        ConfigError: a callable cannot be called over a stand-in.
    """
    groups: Sequence[Mapping[str, Any]] = flat.groups or [{}]
    if optimizer is None and settings.optimizer is None:
        reason = f"there is no optimizer whose rule they could have. Name one (optimizer.type), or {WAY_OUT}"
        return DenseRules(None, why_not={"": reason})
    if optimizer is None:
        source = "optimizer.params"
        rules = [_rule_or_reason(lambda group=group: rule_of_section(settings, _options(group))) for group in groups]
    else:
        built = optimizer if is_built(optimizer) else _over_stand_ins(optimizer, groups, flat.plain)
        source = f"{type(built).__name__} given to initialize"
        rules = [_rule_or_reason(lambda group=group: _rule_of(built, group)) for group in built.param_groups]
    return _by_parameter(rules, flat, source)


def _by_parameter(rules: Sequence[Rule | str], flat: FlatParameters, source: str) -> DenseRules:
    """Rules, or reasons, by the parameters in each group."""
    numbered = [r if isinstance(r, str) else _of_group(r, number) for number, r in enumerate(rules)]
    if flat.groups is None:
        first = numbered[0]
        if isinstance(first, str):
            return DenseRules(None, why_not={"": first}, source=source)
        return DenseRules(first, source=source)
    of: dict[str, Rule] = {}
    why_not = {
        "": "its parameter is in no group of the optimizer (model_parameters), which does not train it. List it there, "
        f"freeze it (requires_grad_(False)), or {WAY_OUT}"
    }
    for number, group in enumerate(flat.groups):
        found = numbered[number]
        for name in filter(None, (flat.names.get(id(parameter)) for parameter in group["params"])):
            if isinstance(found, str):
                why_not[name] = found
            else:
                of[name] = found
    return DenseRules(None, of, why_not, source)


def _of_group(rule: Rule, number: int) -> Rule:
    return Rule(**{**vars(rule), "group": number})


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "name", "moe")}


def _rule_or_reason(make: Any) -> Rule | str:
    try:
        rule: Rule = make()
    except ConfigError as error:
        return str(error)
    return rule


def _rule_of(optimizer: Any, group: Mapping[str, Any]) -> Rule:
    kind = type(optimizer)
    known = KINDS.get(kind.__name__.lower()) if kind.__module__.split(".")[0] in ("torch", "deepspeed") else None
    if known is None:
        raise ConfigError(no_such_rule(f"optimizer {kind.__module__}.{kind.__name__}"))
    decoupled = next(
        (bool(getattr(optimizer, a)) for a in ("adam_w_mode", "adamw_mode") if hasattr(optimizer, a)), None
    )
    return rule_of_options(known[0], group, known[1] if decoupled is None else decoupled, f"optimizer {kind.__name__}")


def _over_stand_ins(make: Any, groups: Sequence[Mapping[str, Any]], plain: bool) -> Any:
    """What a callable builds over one parameter per group.

    Raises:
        ConfigError: it fails, or builds no optimizer.
    """
    stand_ins: Any = [{**_options(group), "params": [nn.Parameter(torch.zeros(1))]} for group in groups]
    try:
        built = make(stand_ins[0]["params"] if plain else stand_ins)
    except Exception as error:
        raise ConfigError(
            'dmt.lookup.optimizer is "auto", so the callable that was given as optimizer is called over a stand-in for '
            f"each parameter group, to see what it makes of tables; it failed: {type(error).__name__}: {error}. Make "
            f"it work over any list of parameters, or {WAY_OUT}"
        ) from error
    if not is_built(built):
        raise ConfigError(
            f"the callable that was given as optimizer built a {type(built).__name__}, not an optimizer with "
            f"param_groups. Have it build one, or {WAY_OUT}"
        )
    if len(built.param_groups) != len(groups):
        raise ConfigError(
            f"the callable that was given as optimizer makes {len(built.param_groups)} parameter group(s) of "
            f"{len(groups)}, so that it is not clear which options tables would have. Give the groups as "
            f"model_parameters, or {WAY_OUT}"
        )
    return built


def said(lookup: LookupConfig, tables: Iterable[TableSpec]) -> str:
    """What trains the tables, in one line: the most frequent rule, and where others are.

    Args:
        lookup: the "lookup" section, with the optimizer's rules.
        tables: all tables.
    """
    tables = list(tables)
    frozen = [table.name for table in tables if table.frozen]
    rules = {t.name: lookup.rule_of(t.name, t.parameter, t.dtype) for t in tables if not t.frozen}
    frequent = Counter(rules.values()).most_common()
    stay = f"{len(frozen)} table(s) ({', '.join(frozen[:3])}{', ...' if len(frozen) > 3 else ''}) are frozen"
    if not frequent:
        return f"tables: {stay}" if frozen else "no tables"
    origin = f", from {lookup.dense.source}" if lookup.optimizer == "auto" else ", from dmt.lookup"
    parts = [f"tables: {frequent[0][0]}{origin}"]
    for rule, count in frequent[1:]:
        names = [name for name, own in rules.items() if own == rule]
        group = "" if rule.group is None else f" of group {rule.group}"
        shown = ", ".join(names[:3]) + (", ..." if count > 3 else "")
        parts.append(f"{count} table(s){group} ({shown}): {rule}")
    parts += [stay] if frozen else []
    return "; ".join(parts)
