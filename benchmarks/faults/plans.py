"""Cases of plan files: the plan of a small model, changed.

1. Changes that leave the plan one of the model (nothing at all, other lanes, other cuts between rows, another order of
   keys): it must be taken, and give the outputs of the plan before, bit for bit; some on simulated ranks as well.
2. Changes that make it another model's, or none: it must be refused.
3. One entry with an odd value, or gone, twice, or swapped with its neighbour: refused, or the model computes without
   tower modules what the flat model computes, and every table is as it is in the model.
4. The text is cut or has a bit flipped: as above.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults import odd
from benchmarks.faults.judge import Outcome, attempt, expect, settled
from benchmarks.faults.models import SGD, TABLES, check_on_ranks, flat_outputs, known, outputs, rewritten
from dmt_plugin.config.section import read_dmt_config
from dmt_plugin.core.errors import PlanError
from dmt_plugin.doctor import tiny
from dmt_plugin.model.logical import TowerModel

Draw = random.Random
Plan = dict[str, Any]
TOPOLOGIES = ("1x1", "2x1", "1x2", "2x2", "4x1", "2x3")
MODULES = ("none", "none", "dlrm", "dcn")
KINDS = ("table_wise", "row_wise", "column_wise")


def run(draw: Draw, room: Path, shared: Path) -> Outcome:
    """One case."""
    topology, section = draw.choice(TOPOLOGIES), section_of(draw)
    which = draw.random()
    if which < 0.45:
        return _right(draw, room, topology, section)
    if which < 0.7:
        return _refused(draw, room, topology, section)
    section["towers"] = {"module": "none"}
    return (_odd if which < 0.9 else _text)(draw, room, topology, section)


def section_of(draw: Draw) -> dict[str, Any]:
    """One of some dozens of sections, so that their plans are made once each."""
    overrides = {"tables.1": draw.choice(KINDS), "tables.3": draw.choice(KINDS)}
    return {
        "towers": {"module": draw.choice(MODULES)}, "lookup": SGD, "placement": {"overrides": overrides},
        "transform": {"verify": False}, "partition": {"strategy": draw.choice(["strided", "contiguous"])},
    }  # fmt: skip


def read(draw: Draw, room: Path, content: Any, topology: str, section: dict[str, Any]) -> TowerModel:
    """The model with a plan: given as data, or as a file that the section names."""
    if draw.random() < 0.5:
        without = {key: value for key, value in section.items() if key != "partition"}
        return rewritten(without, topology, json.loads(json.dumps(content)))
    file = room / "plan.json"
    file.write_text(json.dumps(content, indent=draw.choice([None, 2])))
    return _from_file(file, topology, section)


def _from_file(file: Path, topology: str, section: dict[str, Any]) -> TowerModel:
    return rewritten({**section, "partition": {"strategy": "file", "file": str(file)}}, topology)


# -- right ones ----------------------------------------------------------------------------


def _nothing(draw: Draw, plan: Plan) -> None:
    pass


def _without_names(draw: Draw, plan: Plan) -> None:
    for key in draw.sample(["model", "weights"], draw.choice([1, 2])):
        del plan[key]


def _other_order(draw: Draw, plan: Plan) -> None:
    keys = draw.sample(sorted(plan), len(plan))
    values = {key: plan[key] for key in keys}
    plan.clear()
    plan.update(values)


def _other_lanes(draw: Draw, plan: Plan) -> None:
    lanes = int(plan["topology"].split("x")[1])
    for table in plan["table_lanes"]:
        plan["table_lanes"][table] = draw.randrange(lanes)


def _other_cuts(draw: Draw, plan: Plan) -> None:
    for split in plan.get("table_splits", {}).values():
        ranges = split["ranges"]
        end = ranges[-1]["end"]
        cuts = [0, *sorted(draw.sample(range(1, end), len(ranges) - 1)), end]
        for own, (first, last) in zip(ranges, itertools.pairwise(cuts), strict=True):
            own["first"], own["end"] = first, last


def _other_hosts(draw: Draw, plan: Plan) -> None:
    hosts = list(plan["tower_hosts"])
    draw.shuffle(hosts)
    plan["tower_hosts"] = hosts


def _other_origin(draw: Draw, plan: Plan) -> None:
    plan["provenance"] = {"made by": "hand", "seed": draw.randrange(9), "<script>": [1, None]}


RIGHT: tuple[Callable[[Draw, Plan], None], ...] = (
    _nothing, _without_names, _other_order, _other_lanes, _other_cuts, _other_hosts, _other_origin,
)  # fmt: skip


def _right(draw: Draw, room: Path, topology: str, section: dict[str, Any]) -> Outcome:
    text, before = known(json.dumps(section), topology)
    plan = json.loads(text)
    edits = draw.sample(RIGHT, draw.choice([1, 1, 2, 3]))
    for edit in edits:
        edit(draw, plan)
    model, error = attempt(lambda: read(draw, room, plan, topology, section), PlanError)
    if model is not None:
        expect(torch.equal(outputs(model), before), "other outputs than with the plan before", edits)
        kept = json.loads(json.dumps(model.plan.to_dict()))
        for key in ("table_lanes", "table_splits", "tower_hosts", "towers"):
            found, wanted = kept.get(key, {}), plan.get(key, {})
            expect(found == wanted, f"the plan that is used has another {key}", (found, wanted))
        if draw.random() < 0.15:
            config = read_dmt_config({"dmt": section})
            assert config is not None
            check_on_ranks(model, config)
    return settled("taken", f"right{edits[0].__name__.replace('_', ' ')}", error)


# -- wrong ones ----------------------------------------------------------------------------


def _rows(draw: Draw, plan: Plan) -> None:
    rows = draw.choice([1, 30, 49, 51, 2**62])
    table = draw.choice(plan["tables"])
    table["rows"] = rows
    split = plan.get("table_splits", {}).get(table["name"])
    if split is not None and split["kind"] == "row_wise" and rows > 5:
        count = len(split["ranges"])
        for i, own in enumerate(split["ranges"]):
            own["first"], own["end"] = rows * i // count, rows * (i + 1) // count


def _width(draw: Draw, plan: Plan) -> None:
    draw.choice(plan["tables"])["dim"] = draw.choice([1, 4, 7, 9, 16])


def _parameter(draw: Draw, plan: Plan) -> None:
    one, other = draw.sample(plan["tables"], 2)
    one["weight"] = draw.choice([f"{other['name']}.weight", "nothing", "over.0.weight"])


def _first_row(draw: Draw, plan: Plan) -> None:
    draw.choice(plan["tables"])["first_row"] = draw.choice([1, 49, 50])


def _swapped_tables(draw: Draw, plan: Plan) -> None:
    one, other = draw.sample(plan["features"], 2)
    one["tables"], other["tables"] = other["tables"], one["tables"]


def _missing(draw: Draw, plan: Plan) -> None:
    entries = plan[draw.choice(["tables", "features", "towers"])]
    del entries[draw.randrange(len(entries))]


def _feature_twice(draw: Draw, plan: Plan) -> None:
    tower = draw.choice(plan["towers"])
    tower.append(draw.choice(plan["features"])["name"])


def _table_twice(draw: Draw, plan: Plan) -> None:
    plan["tables"].append(copy.deepcopy(draw.choice(plan["tables"])))


def _misspelt(draw: Draw, plan: Plan) -> None:
    key = draw.choice([key for key in plan if key not in ("model", "weights")])
    plan[odd.misspelt(draw, key)] = plan.pop(key)


def _no_such_lane(draw: Draw, plan: Plan) -> None:
    lanes = int(plan["topology"].split("x")[1])
    splits = [split["ranges"] for split in plan.get("table_splits", {}).values()]
    if splits and draw.random() < 0.5:
        draw.choice(draw.choice(splits))["lane"] = lanes
    else:
        plan["table_lanes"]["tables.0"] = draw.choice([lanes, -1, 65_536])


def _no_such_host(draw: Draw, plan: Plan) -> None:
    plan["tower_hosts"][draw.randrange(len(plan["tower_hosts"]))] = int(plan["topology"].split("x")[0])


def _gap(draw: Draw, plan: Plan) -> None:
    splits = [split["ranges"] for split in plan.get("table_splits", {}).values()]
    if splits:
        draw.choice(draw.choice(splits))[draw.choice(["first", "end"])] += draw.choice([-1, 1])
    else:
        del plan["table_lanes"]["tables.0"]


def _another_topology(draw: Draw, plan: Plan) -> None:
    plan["topology"] = draw.choice(["3x1", "1x3", "8x8", "two", "0x1", "65537x1", ""])


def _another_model(draw: Draw, plan: Plan) -> None:
    plan[draw.choice(["model", "weights"])] = "0123456789abcdef"


def _later_version(draw: Draw, plan: Plan) -> None:
    plan["version"] = draw.choice([0, 3, 99, "1", None])


WRONG: tuple[Callable[[Draw, Plan], None], ...] = (
    _rows, _width, _parameter, _first_row, _swapped_tables, _missing, _feature_twice, _table_twice, _misspelt,
    _no_such_lane, _no_such_host, _gap, _another_topology, _another_model, _later_version,
)  # fmt: skip


def _refused(draw: Draw, room: Path, topology: str, section: dict[str, Any]) -> Outcome:
    plan = json.loads(known(json.dumps(section), topology)[0])
    edit = draw.choice(WRONG)
    edit(draw, plan)
    if edit is not _another_model and draw.random() < 0.5:
        _without_names(draw, plan)
    _, error = attempt(lambda: read(draw, room, plan, topology, section), PlanError)
    return settled("refused", f"wrong{edit.__name__.replace('_', ' ')}", error)


# -- any ---------------------------------------------------------------------------------------


def check_same(model: TowerModel) -> None:
    """Without tower modules, whatever the plan says, the model computes what the flat one does.

    Raises:
        Wrong: it does not.
    """
    expect(torch.equal(outputs(model), flat_outputs()), "other outputs than the flat model's", model.plan)
    own = tiny.build(TABLES)
    for table in model.plan.tables:
        expect(table.of(own).shape == (tiny.ROWS, tiny.WIDTH), "a table that is not the model's", table)


def _odd(draw: Draw, room: Path, topology: str, section: dict[str, Any]) -> Outcome:
    plan = json.loads(known(json.dumps(section), topology)[0])
    if draw.random() < 0.5:
        _without_names(draw, plan)
    places = [way for way in odd.ways(plan) if way[0] != "provenance"]
    odd.change_one(draw, plan, places)
    model, error = attempt(lambda: read(draw, room, plan, topology, section), PlanError)
    if model is not None:
        check_same(model)
    return settled("either", "odd entry", error)


def _text(draw: Draw, room: Path, topology: str, section: dict[str, Any]) -> Outcome:
    text = known(json.dumps(section), topology)[0]
    data = bytearray(text.encode())
    place, how = draw.randrange(len(data)), draw.choice(["cut", "bit", "bit"])
    if how == "cut":
        del data[place:]
    else:
        data[place] ^= 1 << draw.randrange(8)
    file = room / "plan.json"
    file.write_bytes(data)
    model, error = attempt(lambda: _from_file(file, topology, section), PlanError)
    if model is not None:
        check_same(model)
    return settled("refused" if how == "cut" else "either", f"text: {how}", error)
