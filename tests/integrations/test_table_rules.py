"""What trains a table: the script's optimizer, its parameter groups, the section, the entries for single tables."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.dense_rules import DenseRules
from dmt_plugin.config.lookup import LookupConfig
from dmt_plugin.config.section import read_dmt_config
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.update_rule import FROZEN, Rule
from dmt_plugin.integrations.deepspeed.arguments.parameters import read_parameters
from dmt_plugin.integrations.deepspeed.arguments.table_rules import said, trained
from dmt_plugin.integrations.deepspeed.initialize import to_optimize
from dmt_plugin.plan.tables import TableSpec


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(5, 2) for _ in range(3))
        self.top = nn.Linear(6, 1)


TABLES = [TableSpec(f"tables.{i}", 5, 2) for i in range(3)]


def rules(section: dict[str, Any] | None = None, ds: dict[str, Any] | None = None, **given: Any) -> dict[str, Rule]:
    """The rule of each table of a model, by what is given to ``initialize``; functions get the model."""
    model = given.pop("model", None) or Net()
    flat = read_parameters(model, to_optimize(given))
    lookup = trained(
        LookupConfig.model_validate(section or {}), given.get("optimizer"), DeepSpeedSettings(ds or {}), flat
    )
    return {table.name: lookup.rule_of(table.name, table.parameter) for table in TABLES}


def all_of(rule: Rule) -> dict[str, Rule]:
    return {table.name: rule for table in TABLES}


def ds(kind: str, **params: Any) -> dict[str, Any]:
    return {"optimizer": {"type": kind, "params": params}}


@pytest.mark.parametrize(
    ("found", "rule"),
    [
        (ds("Adam", lr=0.01), Rule("adam", 0.01)),
        (ds("Adam", lr=1, betas=[0.8, 0.9], eps=1e-6), Rule("adam", 1.0, eps=1e-6, betas=(0.8, 0.9))),
        (ds("Adam", weight_decay=0.1), Rule("adam", 0.001, weight_decay=0.1, decoupled=True)),
        (ds("Adam", weight_decay=0.1, adam_w_mode=False), Rule("adam", 0.001, weight_decay=0.1)),
        (ds("AdamW", weight_decay=0.1, adam_w_mode=False), Rule("adam", 0.001, weight_decay=0.1, decoupled=True)),
        (ds("AdamW", torch_adam=True), Rule("adam", 0.001, weight_decay=0.01, decoupled=True)),
        (ds("SGD", lr=0.5, momentum=0.9, nesterov=True), Rule("sgd", 0.5, momentum=0.9, nesterov=True)),
        (ds("SGD", weight_decay=0.1), Rule("sgd", 0.001, weight_decay=0.1)),
        (ds("Adagrad"), Rule("adagrad", 0.01, eps=1e-10)),
        (ds("Adagrad", initial_accumulator_value=0.5), Rule("adagrad", 0.01, 1e-10, initial_accumulator_value=0.5)),
        (ds("Lamb", min_coeff=0.1, max_coeff=2), Rule("lamb", 0.001, trust_ratio=(0.1, 2.0))),
    ],
)  # fmt: skip
def test_the_section_of_the_deepspeed_file(found: dict[str, Any], rule: Rule) -> None:
    assert rules(ds=found) == all_of(Rule(**{**vars(rule), "group": 0}))
    alone = read_dmt_config({**found, "dmt": {}})
    assert alone is not None and alone.lookup.rule_of("tables.0") == rule


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda p: torch.optim.AdamW(p), Rule("adam", 0.001, weight_decay=0.01, decoupled=True)),
        (lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.2), Rule("adam", 0.1, weight_decay=0.2)),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5), Rule("sgd", 0.1, momentum=0.5)),
        (lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.3),
         Rule("adagrad", 0.1, eps=1e-10, initial_accumulator_value=0.3)),
    ],
)  # fmt: skip
def test_built_and_callable(make: Any, rule: Rule) -> None:
    model = Net()
    expected = all_of(Rule(**{**vars(rule), "group": 0}))
    assert rules(model=model, optimizer=make(model.parameters())) == expected
    assert rules(model=model, optimizer=make) == expected
    assert rules(model=model, optimizer=make, model_parameters=model.parameters()) == expected


def grouped(model: Net, **options: Any) -> list[dict[str, Any]]:
    return [
        {"params": [*model.top.parameters(), model.tables[0].weight]},
        {"params": [t.weight for t in model.tables[1:]], **options},
    ]


@pytest.mark.parametrize("how", ["file", "built", "callable"])
def test_the_group_of_a_table(how: str) -> None:
    model = Net()
    groups = grouped(model, lr=1.0, weight_decay=0.5)
    if how == "file":
        given = {"ds": ds("Adam", lr=0.01, adam_w_mode=False), "model_parameters": groups}
    elif how == "built":
        given = {"optimizer": torch.optim.Adam(groups, lr=0.01)}
    else:
        given = {"optimizer": lambda p: torch.optim.Adam(p, lr=0.01), "model_parameters": groups}
    found = rules(model=model, **given)
    assert found["tables.0"] == Rule("adam", 0.01, group=0)
    assert found["tables.1"] == found["tables.2"] == Rule("adam", 1.0, weight_decay=0.5, group=1)
    constant = rules({"schedule": "constant"}, model=model, **given)
    assert {rule.group for rule in constant.values()} == {None}


def test_what_wins() -> None:
    model = Net()
    found = rules(
        {"lr": 0.2, "tables": {"tables.*": {"eps": 1e-3}, "tables.1": {"optimizer": "sgd", "momentum": 0.9},
                               "tables.2.weight": {"lr": 0.7}}},
        ds("Adam", lr=0.01), model=model, model_parameters=grouped(model, lr=1.0),
    )  # fmt: skip
    assert found == {
        "tables.0": Rule("adam", 0.2, eps=1e-3, group=0),
        "tables.1": Rule("sgd", 0.2, momentum=0.9),
        "tables.2": Rule("adam", 0.7, eps=1e-3, group=1),
    }
    assert rules({"optimizer": "adagrad"}, ds("Lion")) == all_of(Rule("adagrad", 0.01))
    assert rules({"tables": {"*": {"optimizer": "sgd"}}}) == all_of(Rule("sgd", 0.01))


def test_types() -> None:
    """That of the model, unless a key has another; 16 bits are rounded stochastically unless a key says otherwise."""
    lookup = LookupConfig.model_validate(
        {"optimizer": "sgd", "tables": {"a": {"dtype": "fp16"}, "b*": {"stochastic_rounding": False}, "c": {"lr": 1.0}}}
    )
    plain = Rule("sgd", 0.01)
    assert lookup.rule_of("a") == replace(plain, dtype="fp16", stochastic_rounding=True)
    assert lookup.rule_of("b1", "b1.weight", "bf16") == replace(plain, dtype="bf16")
    assert lookup.rule_of("b1") == plain
    assert lookup.rule_of("c", "c.weight", "bf16") == replace(plain, lr=1.0, dtype="bf16", stochastic_rounding=True)
    whole = LookupConfig.model_validate({"optimizer": "sgd", "dtype": "fp32", "stochastic_rounding": True})
    assert whole.rule_of("a", "a.weight", "fp16") == plain
    tables = [TableSpec("a", 5, 2), TableSpec("d", 5, 2, dtype="bf16")]
    assert said(lookup, tables) == (
        "tables: sgd, lr 0.01, fp16 rounded stochastically, from dmt.lookup; "
        "1 table(s) (d): sgd, lr 0.01, bf16 rounded stochastically"
    )
    nearest = said(lookup, [TableSpec("b", 5, 2, dtype="bf16")])
    assert nearest == "tables: sgd, lr 0.01, bf16 rounded to nearest, from dmt.lookup"


def test_tables_of_one_parameter_have_one_type() -> None:
    fields = [("t[0:5]", "t.weight", "fp32"), ("t[5:9]", "t.weight", "fp32"), ("u", "u.weight", "bf16")]
    apart = LookupConfig.model_validate({"optimizer": "sgd", "tables": {"t[[]0:5]": {"dtype": "bf16"}}})
    with pytest.raises(ConfigError, match=r"dmt.lookup.tables: table 't\[0:5\]' is kept in bf16 .* under 't.weight'"):
        apart.check_types(fields)
    LookupConfig.model_validate({"optimizer": "sgd", "tables": {"t.weight": {"dtype": "bf16"}}}).check_types(fields)


class Own(torch.optim.Adam):
    """Could do anything."""


def refused(**given: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        rules(**given)
    return str(raised.value)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({}, ["table 'tables.0'", "no optimizer", "dmt"]),
        ({"ds": ds("Lion", lr=0.1)}, ["optimizer.type = 'Lion'", '"lookup": {"optimizer": "adam"']),
        ({"ds": ds("Muon")}, ["optimizer.type = 'Muon'"]),
        ({"ds": ds("SGD", dampening=0.1)}, ["optimizer.params: dampening = 0.1", "Set dampening to 0"]),
        ({"ds": ds("Adagrad", lr_decay=0.1)}, ["lr_decay = 0.1"]),
        ({"optimizer": lambda p: torch.optim.Adam(p, amsgrad=True)}, ["optimizer Adam: amsgrad = True"]),
        ({"optimizer": lambda p: torch.optim.RMSprop(p)}, ["RMSprop", "no counterpart"]),
        ({"optimizer": lambda p: Own(p)}, ["Own", "no counterpart"]),
        ({"optimizer": lambda p: torch.optim.Adam([q for q in p if q.dim() > 1])}, ["stand-in", "empty param"]),
        ({"optimizer": lambda p: 3}, ["built a int"]),
        ({"optimizer": lambda p: torch.optim.SGD([{"params": p}, {"params": []}], lr=1.0)},
         ["makes 2 parameter group(s) of 1", "model_parameters"]),
        ({"ds": ds("Adam"), "section": {"momentum": 0.9}}, ["dmt.lookup.momentum", "adam has no such option"]),
        ({"ds": ds("Adam"), "section": {"tables": {"tables.1": {"nesterov": True}}}},
         ["dmt.lookup.tables['tables.1'].nesterov", "belongs to sgd"]),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured(given: dict[str, Any], parts: list[str]) -> None:
    said_so = refused(**given)
    for part in parts:
        assert part in said_so, said_so


def test_a_frozen_table_needs_no_rule() -> None:
    model = Net()
    model.tables[1].requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat = read_parameters(model, parameters)
    section = LookupConfig.model_validate({"tables": {"tables.[12]": {"dtype": "bf16"}}})
    lookup = trained(section, None, DeepSpeedSettings(ds("Adam", lr=0.01)), flat)
    tables = [dataclasses.replace(table, frozen=table.name == "tables.1") for table in TABLES]
    assert lookup.rule_of("tables.1", frozen=True) == dataclasses.replace(FROZEN, dtype="bf16")
    assert lookup.rule_of("tables.0", frozen=True) == FROZEN and str(FROZEN) == "frozen"
    lookup.check_types([(table.name, table.parameter, table.dtype) for table in tables])
    assert said(lookup, tables).endswith("1 table(s) (tables.1) are frozen")
    with pytest.raises(ConfigError, match=r"table 'tables\.1' has no rule"):
        said(lookup, TABLES)
    still = [dataclasses.replace(table, frozen=True) for table in TABLES]
    assert said(lookup, still) == "tables: 3 table(s) (tables.0, tables.1, tables.2) are frozen"


def test_a_table_in_no_group() -> None:
    model = Net()
    text = refused(ds=ds("Adam"), model=model, model_parameters=list(model.top.parameters()))
    assert "table 'tables.0'" in text and "model_parameters" in text and "requires_grad_(False)" in text


def test_an_option_that_the_rule_does_not_know() -> None:
    with pytest.raises(ConfigError, match=r"dmt.lookup.betas: sgd has no such option.*adam"):
        read_dmt_config({"dmt": {"lookup": {"optimizer": "sgd", "betas": [0.1, 0.2]}}})


def test_names_of_tables() -> None:
    lookup = LookupConfig.model_validate({"optimizer": "sgd", "tables": {"tables.1": {}, "table.*": {"lr": 1.0}}})
    with pytest.raises(ConfigError, match=r"dmt.lookup.tables\['table.\*'\]: no table has this name \(did you mean"):
        lookup.check_names([(t.name, t.parameter) for t in TABLES])


def test_one_line_says_it() -> None:
    model = Net()
    flat = read_parameters(model, grouped(model, lr=1.0))
    lookup = trained(LookupConfig(), None, DeepSpeedSettings(ds("Adam", lr=0.01)), flat)
    assert said(lookup, TABLES) == (
        "tables: adam, lr 1, from optimizer.params; 1 table(s) of group 0 (tables.0): adam, lr 0.01"
    )
    assert said(LookupConfig.model_validate({"optimizer": "sgd"}), TABLES) == "tables: sgd, lr 0.01, from dmt.lookup"


def test_without_an_optimizer_that_is_known_a_rule_is_assumed() -> None:
    assert LookupConfig().rule_of("tables.0") == Rule("rowwise_adagrad", 0.01) == DenseRules().default
