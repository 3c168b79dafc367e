"""Plan and partition files that are not right: refused by name before anything runs, and never another computation.

A plan is changed in one entry. Either the model is as it was with it, bit for bit, or there is a ``PlanError``.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmt_plugin import transform
from dmt_plugin.core.errors import PlanError
from dmt_plugin.doctor import tiny
from dmt_plugin.plan.file import read_json
from dmt_plugin.plan.tower_plan import TowerPlan
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env

TABLES = 4
SGD = {"optimizer": "sgd", "lr": 0.1, "backend": "torch"}
SPTT: dict[str, Any] = {"towers": {"module": "none"}, "transform": {"verify": False}, "lookup": SGD}
DENSE, IDS, _ = tiny.batch(0, 6, TABLES)
Plan = dict[str, Any]


@functools.cache
def text_of_plan(module: str = "none", topology: str = "2x2") -> str:
    """A plan with a table in ranges of rows and one in columns, as a file holds it."""
    dmt = {
        "towers": {"module": module},
        "lookup": SGD,
        "placement": {"overrides": {"tables.1": "row_wise", "tables.3": "column_wise"}},
    }
    return json.dumps(transform(tiny.build(TABLES), (DENSE, IDS), {"dmt": dmt}, topology).plan.to_dict())


def plan(module: str = "none") -> Plan:
    data: Plan = json.loads(text_of_plan(module))
    return data


def read(file: Path, content: Plan, **dmt: Any) -> Any:
    """The model with the plan in a file, on its topology."""
    file.write_text(json.dumps(content))
    config = {**SPTT, **dmt, "partition": {"strategy": "file", "file": str(file)}}
    return transform(tiny.build(TABLES), (DENSE, IDS), {"dmt": config}, "2x2")


def fewer_rows_in_ranges(p: Plan) -> None:
    p["tables"][1]["rows"] = 30
    p["table_splits"]["tables.1"]["ranges"] = [
        {"lane": 0, "first": 0, "end": 15},
        {"lane": 1, "first": 15, "end": 30},
    ]


def narrower(p: Plan) -> None:
    for table in p["tables"]:
        table["dim"] = 4
    p["table_splits"]["tables.3"]["ranges"] = [{"lane": 0, "first": 0, "end": 2}, {"lane": 1, "first": 2, "end": 4}]


def swapped(p: Plan) -> None:
    first, second = p["features"][:2]
    first["tables"], second["tables"] = second["tables"], first["tables"]
    p["towers"] = [[f["name"] for f in p["features"]][:2], [f["name"] for f in p["features"]][2:]]


def change(key: str, number: int, **entries: Any) -> Callable[[Plan], None]:
    return lambda p: p[key][number].update(entries)


WRONG: dict[str, tuple[Callable[[Plan], None], str]] = {
    "30 of 50 rows, in ranges": (fewer_rows_in_ranges, r"'tables.1' has 30 rows .* in the plan, and has 50 rows"),
    "30 of 50 rows, whole": (change("tables", 0, rows=30), r"'tables.0' has 30 rows"),
    "more rows": (change("tables", 0, rows=51), r"'tables.0' has 51 rows"),
    "another parameter": (change("tables", 0, weight="tables.2.weight"), r"'tables.0' has .* in tables.2.weight"),
    "no such parameter": (change("tables", 2, weight="nothing"), r"'tables.2' has .* in nothing, from row 0"),
    "another first row": (change("tables", 0, first_row=1), r"'tables.0' has .* from row 1 on in the plan"),
    "narrower tables": (narrower, r"'tables.0' has 50 rows of width 4"),
    "tables of other features": (swapped, r"feature 'tables.0' reads \['tables.1'\] in the plan"),
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", list(WRONG))
def test_a_plan_of_other_tables_is_refused(tmp_path: Path, name: str, named: bool) -> None:
    """Whether the file says of which model it is or not."""
    edit, message = WRONG[name]
    content = plan()
    edit(content)
    if not named:
        del content["model"], content["weights"]
    with pytest.raises(PlanError, match="were changed after it was written" if named else message):
        read(tmp_path / "plan.json", content)


def test_a_plan_of_another_model_with_the_same_sizes_is_refused(tmp_path: Path) -> None:
    """What the file says of itself agrees; the model has its tables in other parameters."""

    class Renamed(tiny.Tiny):
        def __init__(self) -> None:
            super().__init__(TABLES)
            self.tables[0].weight, self.tables[1].weight = self.tables[1].weight, self.tables[0].weight
            self.first = self.tables[0]

    content = plan()
    TowerPlan.from_dict(content)
    config = {"dmt": SPTT}
    for model in (Renamed(), tiny.build(TABLES + 1)):
        batch = (DENSE, tiny.batch(0, 6, len(model.tables))[1])
        own = transform(model, batch, config, "2x2").plan
        given = TowerPlan.from_dict(content)
        if (own.tables, own.features) == (given.tables, given.features):
            continue
        with pytest.raises(PlanError, match=r"does not fit the model|made for the model"):
            transform(model, batch, config, "2x2", partition=content)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda g: g.update(width=4), "vectors of width 4 in group0, this model of width 8"),
        (lambda g: g.update(parameters=["over.0.bias"]), r"takes the parameters \['over.0.bias'\] into the towers"),
        (lambda g: g["features"].append("tables.0"), "joins the features as"),
        (lambda g: g["features"].pop(), "joins the features as"),
        (lambda g: g.update(name="group7"), "joins the features as"),
    ],
)
def test_groups_are_those_of_the_model(tmp_path: Path, edit: Callable[[Plan], None], message: str) -> None:
    content = plan("dlrm")
    edit(content["groups"][0])
    with pytest.raises(PlanError, match=message):
        read(tmp_path / "plan.json", content, towers={"module": "dlrm"})


@pytest.mark.parametrize("missing", [(), ("weights",), ("model", "weights")])
def test_plans_of_before_are_taken(tmp_path: Path, missing: tuple[str, ...]) -> None:
    """They do not say where tables are; the fingerprint is the same with that and without."""
    content = {key: value for key, value in plan().items() if key not in missing}
    made = read(tmp_path / "plan.json", content)
    assert torch.equal(made(DENSE, IDS), tiny.build(TABLES)(DENSE, IDS))
    assert made.plan.to_dict().keys() == {*content, "model"}
    with_all, without = TowerPlan.from_dict(plan()), TowerPlan.from_dict({**content, "model": plan()["model"]})
    assert with_all.weights and with_all.fingerprint == without.fingerprint and with_all == without


# -- types, ranges and names ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("tables",), {}, r"tables: found {}, expected a list"),
        (("tables", 0), [], r"tables\[0\]: found \[\], expected an object"),
        (("tables", 0, "rows"), "50", r'tables\[0\].rows: found "50", expected a whole number from 1'),
        (("tables", 0, "rows"), 50.0, r"tables\[0\].rows: found 50.0"),
        (("tables", 0, "rows"), True, r"tables\[0\].rows: found true"),
        (("tables", 0, "rows"), 2**63, r"tables\[0\].rows: found 9223372036854775808"),
        (("tables", 0, "rows"), 10**5000, r"found int that cannot be shown"),
        (("tables", 0, "dim"), 0, r"tables\[0\].dim: found 0"),
        (("tables", 0, "first_row"), -1, r"tables\[0\].first_row: found -1"),
        (("tables", 0, "dtype"), "fp23", r'found "fp23" \(did you mean "fp32"\?\)'),
        (("tables", 0, "frozen"), 1, r"tables\[0\].frozen: found 1, expected true or false"),
        (("tables", 0, "name"), "", r"tables\[0\].name: found \"\", expected a text that is not empty"),
        (("tables", 0, "name"), "a\0b", r"tables\[0\].name: found a text with a NUL"),
        (("tables", 0, "name"), "\ud800", r"half a surrogate pair"),
        (("features", 0, "hotness"), 0, r"features\[0\].hotness: found 0"),
        (("features", 0, "tables"), [], r"feature\(s\) \['tables.0'\] without a table|tables without a feature"),
        (("groups", 0, "kind"), "towers", r'found "towers" \(did you mean "tower"\?\)'),
        (("groups", 0, "dim"), 2**20 + 1, r"groups\[0\].dim: found 1048577"),
        (("towers",), None, r"towers: found null, expected a list"),
        (("towers", 0), "tables.0", r'towers\[0\]: found "tables.0", expected a list'),
        (("tower_hosts", 0), "0", r"tower_hosts\[0\]: found \"0\""),
        (("table_lanes", "tables.0"), -1, r'table_lanes\["tables.0"\]: found -1'),
        (("module", "c"), -1, r"module.c: found -1"),
        (("module", "seed"), 2**63, r"module.seed: found"),
        (("module", "kind"), "dlmr", r'module.kind: found "dlmr" \(did you mean "dlrm"\?\)'),
        (("module", "init"), "zeros", r"module.init: found"),
        (("overrides",), {"01": {}}, r'the key "01" is no tower'),
        (("overrides",), {"9" * 5000: {}}, r"is no tower"),
        (("table_splits", "tables.1", "kind"), "table_wise", r'expected "row_wise" or "column_wise"'),
        (("table_splits", "tables.1", "ranges", 0, "step"), 0, r"ranges\[0\].step: found 0"),
        (("table_splits", "tables.1", "ranges", 0, "lane"), 65_536, r"ranges\[0\].lane: found 65536"),
        (("provenance",), [], r"provenance: found \[\], expected an object"),
        (("topology",), "two", "the plan is for no topology"),
        (("topology",), "9" * 5000 + "x1", "the plan is for no topology"),
        (("version",), "1", r'version: found "1"'),
        (("versoin",), 1, r"unknown entries \['versoin'\] \(did you mean \"version\"\?\)"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 100 else "",
)
def test_entries_that_cannot_be(place: tuple[Any, ...], value: Any, message: str) -> None:
    content = plan()
    *way, last = place
    functools.reduce(lambda entry, step: entry[step], way, content)[last] = value
    with pytest.raises(PlanError, match=message):
        TowerPlan.from_dict(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200 + "]" * 200, "nested over 100 levels"),
        ("[" * 100_000 + "]" * 100_000, "nested over 100 levels"),
        ('{"towers": [], "towers": []}', 'the key "towers" is given twice'),
        ('{"towers": ' + "9" * 5000 + "}", "cannot be read"),
        ("{", "is not JSON"),
    ],
)
def test_files_that_are_no_data(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError, match=message):
        read_json(tmp_path / "plan.json")
    for path in (tmp_path, "a\0b", "a" * 5000):
        with pytest.raises(PlanError, match="cannot be read"):
            read_json(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"towers": [["a"]], "modle": ""}, r"unknown entries \['modle'\] \(did you mean \"model\"\?\)"),
        ({"towers": [["a"]], "provenance": 3}, "provenance: found 3"),
        ({"towers": [["a"]], "model": 3}, "model: found 3"),
        ({"towers": [["a"]], "row_shares": []}, "not a count of distinct rows"),
        ({"towers": [["a"]], "provenance": {"made": object()}}, "a JSON file cannot hold"),
        ([["a"]], "found .*expected an object"),
    ],
)
def test_partitions_that_cannot_be(content: Any, message: str) -> None:
    with pytest.raises(PlanError, match=f"the partition that was given: not a.*{message}|{message}"):
        transform(tiny.build(TABLES), (DENSE, IDS), {"dmt": SPTT}, "2x2", partition=content)


# -- one entry, any value ------------------------------------------------------------------


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to every entry of plain data."""
    for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*way, key)
        if isinstance(inside, (dict, list)):
            yield from places(inside, (*way, key))


ODD = [None, True, 0, -1, 1, 2, 3, 7, 30, 2**31, 2**63, 1.0, 0.5, math.nan, "", "0", "tables.1", "tables.2.weight", "x"]
ODD += ["2x2", "4x1", "a\0", [], {}, [[]], [0], {"a": 1}, ["tables.0"], "row_wise", "dlrm", "fp16", "native"]


@st.composite
def spoilt(draw: Any) -> Plan:
    """A plan with one entry changed, removed, repeated or swapped with its neighbour."""
    content = plan()
    *way, last = draw(st.sampled_from([p for p in places(content) if p[0] != "provenance"]))
    parent = functools.reduce(lambda entry, step: entry[step], way, content)
    what = draw(st.sampled_from(["value", "value", "value", "gone", "twice", "swapped"]))
    if what == "value":
        parent[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
    elif what == "gone":
        del parent[last]
    elif isinstance(parent, list) and what == "twice":
        parent.insert(last, copy.deepcopy(parent[last]))
    elif isinstance(parent, list):
        parent[last - 1], parent[last] = parent[last], parent[last - 1]
    if draw(st.booleans()):
        content.pop("model", None)
        content.pop("weights", None)
    return content


def check_refused_or_equal(content: Plan) -> bool:
    """Whether a plan was taken; then the model computes what it does without one."""
    try:
        made = transform(tiny.build(TABLES), (DENSE, IDS), {"dmt": SPTT}, "2x2", partition=content)
    except PlanError:
        return False
    assert torch.equal(made(DENSE, IDS), tiny.build(TABLES)(DENSE, IDS))
    own = tiny.build(TABLES)
    for table in made.plan.tables:
        assert table.of(own).shape == (table.rows, table.dim) == (tiny.ROWS, tiny.WIDTH)
    return True


QUIET = settings(max_examples=25, suppress_health_check=list(HealthCheck), derandomize=True)


@QUIET
@given(spoilt())
def test_a_plan_with_one_entry_changed_is_refused_or_gives_the_same(content: Plan) -> None:
    check_refused_or_equal(content)


@pytest.mark.campaign
@settings(max_examples=1500, suppress_health_check=list(HealthCheck))
@given(spoilt())
def test_many_plans_with_one_entry_changed(content: Plan) -> None:
    check_refused_or_equal(content)


# -- on ranks ------------------------------------------------------------------------------


def refusals(rank: int, world: int, folder: str) -> dict[str, str]:
    """What ``initialize`` says to each wrong plan, and to none."""
    import dmt_plugin

    said = {}
    for file in sorted(Path(folder).glob("*.json")):
        dmt = {
            "topology": {"hosts": 2, "ranks_per_host": 1},
            "towers": {"module": "none"},
            "lookup": SGD,
            "partition": {"strategy": "file", "file": str(file)},
        }
        config = {
            "train_micro_batch_size_per_gpu": 4,
            "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
            "zero_allow_untested_optimizer": True,
            "dmt": dmt,
        }
        try:
            engine = dmt_plugin.initialize(model=tiny.build(TABLES), config=config, example_batch=(DENSE, IDS))[0]
            said[file.stem] = "taken"
            engine.destroy()
        except PlanError as error:
            said[file.stem] = f"PlanError: {error}"
    return said


@pytest.mark.processes
@pytest.mark.campaign
def test_every_rank_says_it_before_anything_runs(tmp_path: Path) -> None:
    content = json.loads(text_of_plan(topology="2x1"))
    (tmp_path / "right.json").write_text(json.dumps(content))
    for name, edit in {"rows": change("tables", 0, rows=30), "weight": change("tables", 0, weight="b")}.items():
        wrong = copy.deepcopy(content)
        del wrong["model"], wrong["weights"]
        edit(wrong)
        (tmp_path / f"{name}.json").write_text(json.dumps(wrong))
    results = run_ranks(2, refusals, str(tmp_path), env=functools.partial(launcher_env, "2x1"))
    for said in results:
        assert said["right"] == "taken"
        assert all(said[name].startswith("PlanError: the plan does not fit the model") for name in ("rows", "weight"))
