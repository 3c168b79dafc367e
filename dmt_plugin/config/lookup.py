"""The "lookup" part of the "dmt" section: how embedding rows are looked up, and how tables are trained.

What trains a table is put together from four sources, each of which wins over those before it:

1. the optimizer of the dense part, where ``optimizer`` is "auto";
2. the parameter group of that optimizer into which the user has put the table;
3. the keys of the section itself;
4. the entries of ``tables`` that match the table's name, in their order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from dmt_plugin.config.base import NotNegative, Positive, PositiveInt, Section, Seed, check_path
from dmt_plugin.config.dense_rules import DenseRules
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.update_rule import FROZEN, KNOWN_BY, Rule, RuleName, WeightType

AUTO: Final = "auto"
Share = Annotated[float, Field(ge=0, lt=1)]
Pair = Annotated[list[NotNegative], Field(min_length=2, max_length=2)]


class UpdateSection(Section):
    """Keys that say how a table is trained; "auto" leaves it to what comes before."""

    optimizer: Literal["auto"] | RuleName = Field(
        default=AUTO,
        description='Update rule of the tables; "auto": that of the optimizer of the dense part, with its options and '
        "those of the parameter group that a table is in.",
    )
    lr: Literal["auto"] | NotNegative = Field(
        default=AUTO, description='Learning rate of the tables; "auto": with the optimizer\'s rule its rate, else 0.01.'
    )
    eps: Literal["auto"] | NotNegative = Field(
        default=AUTO, description='Added to the denominator of Adagrad and Adam; "auto": 1e-8, or the optimizer\'s.'
    )
    betas: Literal["auto"] | Annotated[list[Share], Field(min_length=2, max_length=2)] = Field(
        default=AUTO, description='Of Adam and Lamb; "auto": [0.9, 0.999], or the optimizer\'s.'
    )
    momentum: Literal["auto"] | Share = Field(default=AUTO, description='Of SGD; "auto": 0, or the optimizer\'s.')
    nesterov: Literal["auto"] | bool = Field(
        default=AUTO, description="Of SGD's momentum; \"auto\": false, or the optimizer's."
    )
    weight_decay: Literal["auto"] | NotNegative = Field(
        default=AUTO,
        description='Decay of the rows that a step looks up; "auto": 0, or the optimizer\'s. A row that no step looks '
        "up keeps still.",
    )
    decoupled_weight_decay: Literal["auto"] | bool = Field(
        default=AUTO,
        description="true: a row shrinks by lr * weight_decay (AdamW); false: weight_decay times the row is added to "
        'its gradient (L2); "auto": false, or the optimizer\'s.',
    )
    initial_accumulator_value: Literal["auto"] | NotNegative = Field(
        default=AUTO, description="What Adagrad's sums begin with; \"auto\": 0, or the optimizer's."
    )
    trust_ratio: Literal["auto"] | Pair = Field(
        default=AUTO,
        description='Least and largest trust ratio of Lamb, which is that of each row; "auto": [0.01, 10], or the '
        "optimizer's.",
    )
    clip_value: Literal["auto"] | Positive | None = Field(
        default=AUTO,
        description='Entries of a row\'s gradient, summed over all ranks, are cut at this size; null, "auto": not.',
    )
    clip_norm: Literal["auto"] | Positive | None = Field(
        default=AUTO,
        description='A row\'s gradient, summed over all ranks, is scaled to this norm if it is larger; null, "auto": '
        "not.",
    )
    dtype: Literal["auto"] | WeightType = Field(
        default=AUTO,
        description='Type that the rows of tables are kept in, in memory and in checkpoints: "fp32", "bf16" or "fp16"; '
        '"auto": that of the model\'s own table. What an update rule keeps is fp32, updates are computed in fp32.',
    )
    stochastic_rounding: Literal["auto"] | bool = Field(
        default=AUTO,
        description="How updated rows of bf16 and fp16 tables are rounded: true: up or down by chance, so that small "
        "updates are not lost; the same for the same seed, step and row, whatever ranks there are; false: to nearest; "
        '"auto": true.',
    )

    @property
    def given(self) -> dict[str, Any]:
        """The options of a rule that are given here."""
        values = {key: getattr(self, key) for key in _OPTIONS}
        given = {_OPTIONS[key]: value for key, value in values.items() if value != AUTO}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


_OPTIONS = {
    key: "decoupled" if key == "decoupled_weight_decay" else key
    for key in UpdateSection.model_fields
    if key != "optimizer"
}


class LookupConfig(UpdateSection):
    """How embedding rows are looked up and trained."""

    backend: Literal["auto", "fbgemm", "torch"] = Field(
        default="auto", description='"fbgemm", "torch" (the exact reference), or fbgemm wherever it serves.'
    )
    tables: dict[str, UpdateSection] = Field(
        default={},
        description="Other values of these keys for some tables: by the name of a table or of its parameter, or a "
        "pattern of names (*, ?, [...]); later entries win.",
    )
    fields: dict[str, Annotated[list[PositiveInt], Field(min_length=2)]] = Field(
        default={},
        description="Where one table serves several features, whose ids the data pipeline has made unique: how many "
        "rows each has, in the order of the columns of ids (B, F), by the name of the table or a pattern of names.",
    )
    schedule: Literal["auto", "constant", "follow"] = Field(
        default="auto",
        description='"follow": lr times what the dense part\'s learning rate is to the one it began with, so that a '
        'scheduler holds for tables too; "constant": lr all the time; "auto": "follow" for tables whose rule is the '
        'optimizer\'s, else "constant".',
    )
    accumulation: Literal["accumulate", "per_micro_batch"] = Field(
        default="accumulate",
        description='Where several micro-batches make one step: "accumulate": tables are updated once per step, by the '
        'sum of the gradients, as dense parameters are; "per_micro_batch": after every backward pass, by that '
        "micro-batch's share.",
    )
    check_finite: bool = Field(
        default=True,
        description="Skip a step on all ranks, for tables and dense part alike, if a gradient of table rows or of the "
        "dense part is not finite on any rank; FBGEMM's updates wait for engine.step() then. false: DeepSpeed's own "
        "checks only, which do not see the tables' gradients.",
    )
    location: Literal["auto", "host", "device", "managed", "managed_caching"] = Field(
        default="auto",
        description='Memory that holds the tables. "auto", "device": that of the device that computes; "managed": '
        'host memory that an accelerator reads through unified memory; "managed_caching": the same with a cache of '
        'rows on the accelerator; "host": host memory, on an accelerator as "managed_caching".',
    )
    weights: str | dict[str, str] | None = Field(
        default=None,
        description="What tables start from: a checkpoint, a folder of .safetensors files or a file of torch.save; or "
        'one for each table by its name, "*" for the rest. null: what the model holds.',
    )
    table_init: str = Field(
        default="layer",
        description='Rows of tables on the meta device without a rule of their own: "layer": by the rule of their '
        'layer; "strict": an error; or a function of yours, "path/to/file.py:name" or "pkg.mod:name", that makes the '
        "rows of all tables on meta.",
    )
    seed: Literal["auto"] | Seed = Field(
        default="auto",
        description='Seed of the rows of tables on the meta device; "auto": that of torch.manual_seed on rank 0. A '
        'number is the seed of stochastic rounding, too; with "auto" that is 0.',
    )
    _dense: DenseRules = PrivateAttr(default_factory=DenseRules)

    @field_validator("weights")
    @classmethod
    def _paths(cls, value: str | dict[str, str] | None) -> str | dict[str, str] | None:
        for path in value.values() if isinstance(value, dict) else [value or ""]:
            check_path(path)
        return value

    @field_validator("table_init")
    @classmethod
    def _a_rule_or_a_function(cls, value: str) -> str:
        place, colon, name = value.rpartition(":")
        check_path(place)
        if value not in ("layer", "strict") and not (place and colon and name.isidentifier()):
            raise ValueError(
                f'found "{value}", expected "layer", "strict", "path/to/file.py:function" or "pkg.mod:function"'
            )
        return value

    @model_validator(mode="after")
    def _options_of_their_rules(self) -> LookupConfig:
        for section, place in ((self, ""), *((s, f".tables[{name!r}]") for name, s in self.tables.items())):
            name = section.optimizer if section.optimizer != AUTO or not place else self.optimizer
            for key in section.given:
                if name != AUTO and name not in KNOWN_BY.get(key, (name,)):
                    raise ValueError(_unknown_option(f"dmt.lookup{place}", key, name))
        return self

    @property
    def dense(self) -> DenseRules:
        """What the optimizer of the dense part makes of tables, as far as it is known."""
        return self._dense

    def trained_as(self, dense: DenseRules) -> LookupConfig:
        """The same section, which now knows what the optimizer of the dense part makes of tables."""
        new = self.model_copy()
        new._dense = dense
        return new

    def rule_of(self, table: str, parameter: str = "", dtype: WeightType = "fp32", frozen: bool = False) -> Rule:
        """How a table is kept and trained.

        Args:
            table: its name.
            parameter: name of the parameter that holds it; by default ``<table>.weight``.
            dtype: type of the table in the model.
            frozen: whether it is frozen; then no optimizer need have a rule for it.

        Raises:
            ConfigError: the optimizer of the dense part has no rule for tables, or an option is not its rule's.
        """
        if frozen:
            return replace(FROZEN, dtype=self.dtype_of(table, parameter, dtype))
        sections = self._sections_of(table, parameter)
        named: list[RuleName] = [s.optimizer for s in sections.values() if s.optimizer != "auto"]
        rule = Rule(named[-1], 0.01) if named else self._dense.rule_of(table, parameter)
        options: dict[str, Any] = {}
        at: str = AUTO  # the rule that a section is about
        for place, section in sections.items():
            at = section.optimizer if section.optimizer != AUTO else at
            for key, value in section.given.items():
                if rule.name in KNOWN_BY.get(key, (rule.name,)):
                    options[key] = value
                elif at in (AUTO, rule.name) and not (at == AUTO and named):
                    raise ConfigError(_unknown_option(f"dmt.lookup{place}", key, rule.name))
        rule = replace(rule, **{"dtype": dtype, "stochastic_rounding": True, **options})
        rule = replace(rule, stochastic_rounding=rule.stochastic_rounding and rule.dtype != "fp32")
        return replace(rule, group=None) if self.schedule == "constant" else rule

    def dtype_of(self, table: str, parameter: str = "", dtype: WeightType = "fp32") -> WeightType:
        """The type that a table is kept in, however it is trained; arguments as for :meth:`rule_of`."""
        given = [section.given for section in self._sections_of(table, parameter).values()]
        found: list[WeightType] = [options["dtype"] for options in given if "dtype" in options]
        return found[-1] if found else dtype

    def _sections_of(self, table: str, parameter: str) -> dict[str, UpdateSection]:
        """The sections that are about a table, by their place; later ones win."""
        parameter = parameter or f"{table}.weight"
        entries = {f".tables[{name!r}]": s for name, s in self.tables.items() if matches(name, table, parameter)}
        return {"": self, **entries}

    @property
    def keeps_rate(self) -> bool:
        """Whether tables, unless ``tables`` says otherwise, keep their learning rate all the time."""
        return self.schedule == "constant" or (self.schedule == "auto" and self.optimizer != AUTO)

    def check_names(self, tables: Iterable[tuple[str, str]]) -> None:
        """Each entry of ``tables`` is about a table.

        Args:
            tables: names of the tables, and of the parameters that hold them.

        Raises:
            ConfigError: there is no table of a name.
        """
        known = list(tables)
        for name in self.tables:
            if not any(matches(name, table, parameter) for table, parameter in known):
                raise ConfigError(f"dmt.lookup.tables[{name!r}]: {no_such_table(name, [table for table, _ in known])}")

    def check_types(self, tables: Iterable[tuple[str, str, WeightType]]) -> None:
        """Tables of one parameter are kept in one type.

        Args:
            tables: names of the tables, the parameters that hold them, and their types in the model.

        Raises:
            ConfigError: they are not.
        """
        found: dict[str, tuple[str, WeightType]] = {}
        for name, parameter, dtype in tables:
            own = self.dtype_of(name, parameter, dtype)
            first, other = found.setdefault(parameter, (name, own))
            if own != other:
                raise ConfigError(
                    f"dmt.lookup.tables: table {first!r} is kept in {other} and {name!r} in {own}, but both are rows "
                    f"of the parameter {parameter}, which has one type: give the dtype under {parameter!r}"
                )


def _unknown_option(place: str, key: str, rule: str) -> str:
    return (
        f"{place}.{key}: {rule} has no such option; it belongs to {', '.join(KNOWN_BY[key])}. Remove it, or set "
        f"{place}.optimizer"
    )


def no_such_table(name: str, tables: Iterable[str]) -> str:
    """What is wrong with a name, or pattern of names, that is none of a table."""
    names = sorted(tables)
    near = difflib.get_close_matches(name, names, n=1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    return f"no table has this name{meant}; there are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def matches(pattern: str, table: str, parameter: str) -> bool:
    """Whether a name or pattern is about a table: by its name or that of its parameter."""
    return pattern in (table, parameter) or fnmatchcase(table, pattern) or fnmatchcase(parameter, pattern)
