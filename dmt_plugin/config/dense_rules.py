"""What the optimizer of the dense part makes of tables: the update rule that trains them as it trains dense parameters.

An optimizer whose rule, or an option whose effect, tables do not have is refused by name: tables would be trained by
other rules than the script says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.update_rule import ASSUMED, Rule
from dmt_plugin.core.words import shown

WAY_OUT = 'name the rule of the tables: "dmt": {"lookup": {"optimizer": "adam", "lr": 0.001}}'


@dataclass(frozen=True)
class DenseRules:
    """How the optimizer of the dense part would train tables.

    Attributes:
        default: tables whose parameter is not in ``of``; None: they cannot be trained like that.
        of: by parameter of the flat model, those whose parameter group is known.
        why_not: by parameter, those that cannot be trained like that, with the reason; under "" that of ``default``.
        source: where this was found, for messages.
    """

    default: Rule | None = ASSUMED
    of: Mapping[str, Rule] = field(default_factory=dict)
    why_not: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    def rule_of(self, table: str, parameter: str) -> Rule:
        """The rule of a table.

        Raises:
            ConfigError: it has none.
        """
        rule = self.of.get(parameter, self.default)
        reason = self.why_not.get(parameter) or (self.why_not.get("", "") if rule is None else "")
        if rule is None or reason:
            raise ConfigError(f'dmt.lookup.optimizer is "auto", but table {table!r} has no rule: {reason}')
        return rule


def of_settings(settings: DeepSpeedSettings) -> DenseRules:
    """What the "optimizer" section of a DeepSpeed configuration makes of tables; without one, what is assumed."""
    if settings.optimizer is None:
        return DenseRules()
    source = "optimizer.params"
    try:
        return DenseRules(rule_of_section(settings, {}), source=source)
    except ConfigError as error:
        return DenseRules(None, why_not={"": str(error)}, source=source)


def rule_of_section(settings: DeepSpeedSettings, group: Mapping[str, Any]) -> Rule:
    """The rule of tables by the "optimizer" section of a DeepSpeed configuration.

    Args:
        settings: the configuration, with such a section.
        group: options of a parameter group, which win.

    Raises:
        ConfigError: tables have no such rule.
    """
    name = str(settings.optimizer).lower()
    params = settings.at("optimizer.params") or {}
    if not isinstance(params, Mapping):
        raise ConfigError(f"optimizer.params: found {shown(params)}, expected an object with the optimizer's options.")
    given = {key: value for key, value in {**params, **group}.items() if value != "auto"}  # another program fills it in
    options = {"lr": _LR.get(name), **({"eps": 1e-10} if name == "adagrad" else {}), **given}
    if name not in KINDS:
        raise ConfigError(no_such_rule(f"optimizer.type = {settings.optimizer!r}"))
    kind, decoupled = KINDS[name]
    if name == "adam":
        decoupled = bool(params.get("adam_w_mode", True))
    if kind == "adam" and decoupled and params.get("torch_adam"):
        options.setdefault("weight_decay", 0.01)  # torch's AdamW has another default than DeepSpeed's
    return rule_of_options(kind, options, decoupled, "optimizer.params")


#: Optimizers by their name in lower case: the rule, and whether its weight decay is decoupled.
KINDS: dict[str, tuple[str, bool]] = {
    "sgd": ("sgd", False),
    "adagrad": ("adagrad", False),
    "deepspeedcpuadagrad": ("adagrad", False),
    "adam": ("adam", False),
    "adamw": ("adam", True),
    "fusedadam": ("adam", True),
    "deepspeedcpuadam": ("adam", True),
    "lamb": ("lamb", False),
    "fusedlamb": ("lamb", False),
}
_LR = {"sgd": 1e-3, "adagrad": 1e-2, "adam": 1e-3, "adamw": 1e-3, "lamb": 1e-3}


def no_such_rule(found: str) -> str:
    """What is wrong with an optimizer, ``found``, that tables have no rule for, and what to do."""
    return f"{found} has no counterpart among the update rules of tables (sgd, adagrad, adam, lamb): {WAY_OUT}"


_OPTIONS = {
    "sgd": {"lr", "momentum", "nesterov", "weight_decay"},
    "adagrad": {"lr", "eps", "weight_decay", "initial_accumulator_value"},
    "adam": {"lr", "betas", "eps", "weight_decay"},
    "lamb": {"lr", "betas", "eps", "weight_decay", "max_coeff", "min_coeff"},
}
#: Options of optimizers that tables do not have, and the values at which they do nothing.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "dampening": (0, 0.0),
    "lr_decay": (0, 0.0),
    "maximize": (False,),
    "amsgrad": (False,),
    "differentiable": (False,),
    "bias_correction": (True, 1),
    "eps_inside_sqrt": (False,),
    "max_grad_norm": (0, 0.0, None),
}

#: Options of a parameter group that decide, beside the learning rate, how it is trained.
RULE_OPTIONS = tuple(sorted({*set().union(*_OPTIONS.values()), *_WITHOUT_EFFECT, "decoupled_weight_decay"} - {"lr"}))


def rule_of_options(kind: str, options: Mapping[str, Any], decoupled: bool, source: str) -> Rule:
    """The rule that trains tables as an optimizer trains dense parameters.

    Args:
        kind: ``"sgd"``, ``"adagrad"``, ``"adam"`` or ``"lamb"``.
        options: the optimizer's, or those of one of its parameter groups. What is missing has the default of
            :class:`Rule`; what no optimizer of this kind has is not looked at, as the optimizer does not either.
        decoupled: whether its weight decay is (AdamW).
        source: what they are, for messages.

    Raises:
        ConfigError: an option has an effect that tables cannot have.
    """
    known = _OPTIONS[kind]
    for key, allowed in _WITHOUT_EFFECT.items():
        value = options.get(key, allowed[0])
        if value not in allowed:
            raise ConfigError(
                f"{source}: {key} = {value!r} has no counterpart among the update rules of tables, which would be "
                f"trained by other rules than the dense part. Set {key} to {allowed[0]}, or {WAY_OUT}"
            )
    decoupled = bool(options.get("decoupled_weight_decay", decoupled))
    taken = {key: options[key] for key in known & options.keys() if key not in ("max_coeff", "min_coeff")}
    if "betas" in taken:
        betas = taken["betas"]
        if not isinstance(betas, list | tuple) or len(betas) != 2:
            raise ConfigError(f"{source}: found betas = {shown(betas)}, expected two numbers.")
        taken["betas"] = tuple(_number(source, "betas", beta) for beta in betas)
    if kind == "lamb":
        ends = (("min_coeff", 0.01), ("max_coeff", 10.0))
        taken["trust_ratio"] = tuple(_number(source, key, options.get(key, usual)) for key, usual in ends)
    if "lr" not in taken:
        raise ConfigError(f"{source}: there is no learning rate (lr) for tables to take. Set it, or {WAY_OUT}")
    for key in taken.keys() - {"betas", "nesterov", "trust_ratio"}:
        taken[key] = _number(source, key, taken[key])
    rule = Rule(kind, **taken)  # type: ignore[arg-type]
    return replace(rule, decoupled=decoupled and rule.weight_decay != 0)


def _number(source: str, key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{source}: found {key} = {shown(value)}, expected a number.") from None
