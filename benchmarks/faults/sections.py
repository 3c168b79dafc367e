"""Cases of configurations: the "dmt" section, and the file or text that holds it.

1. A section is drawn of values that go together; it must be taken, say what was written, and be the same when it is
   written again. Every fourth is used: the model is rewritten by it, and without tower modules computes what the flat
   model computes, bit for bit; some of them on simulated ranks as well.
2. One key is misspelt, or has a value of a type or size that no run can have: it must be refused.
3. One key has an odd value: it is taken as it is written, or refused.
4. The text is cut: it is refused, unless nothing was lost.
"""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from benchmarks.faults import odd
from benchmarks.faults.judge import Outcome, attempt, expect, settled
from benchmarks.faults.models import SGD, check_on_ranks, flat_outputs, outputs, rewritten
from dmt_plugin.config.section import DMTConfig, load_ds_config, read_dmt_config
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.plan.tower_plan import TowerPlan

Draw = random.Random


def run(draw: Draw, room: Path, shared: Path) -> Outcome:
    """One case."""
    which = draw.random()
    if which < 0.5:
        return _right(draw, room)
    if which < 0.7:
        return _refused(draw, room)
    if which < 0.92:
        return _odd(draw, room)
    return _cut(draw, room)


# -- right ones ----------------------------------------------------------------------------


def right_section(draw: Draw) -> dict[str, Any]:
    """Values that go together; about half of the keys are left out."""
    section: dict[str, Any] = {}
    for name, make in _PARTS.items():
        if draw.random() < 0.6:
            values = make(draw)
            section[name] = {key: value for key, value in values.items() if draw.random() < 0.6 or key in _KEPT}
    return section


def _towers(draw: Draw) -> dict[str, Any]:
    module = draw.choice(["dlrm", "dcn", "preserve", "none"])
    values: dict[str, Any] = {
        "module": module, "count": draw.choice(["auto", 8, 64, 65_536]), "seed": draw.choice([0, 7, 2**63 - 1]),
        "init": draw.choice(["orthogonal", "identity", "torch"]),
    }  # fmt: skip
    if module == "dlrm":
        values |= {"c": draw.choice([1, 2, 3]), "p": draw.choice([0, 1, 4]), "dim": draw.choice(["auto", 4, 2**20])}
    if module == "dcn":
        values |= {"rank": draw.choice(["auto", 1, 16]), "outputs": draw.choice(["auto", 1, 5]), "dim": 16}
    if module != "none":
        own = {"seed": draw.randrange(100), "init": draw.choice(["identity", "torch"])}
        values["overrides"] = {str(draw.randrange(8)): own}
    return values


def _partition(draw: Draw) -> dict[str, Any]:
    strategy = draw.choice(["strided", "contiguous", "learned", "graph", "random", "greedy_balance", "file"])
    values: dict[str, Any] = {"strategy": strategy}
    if strategy == "file":
        values["file"] = draw.choice(["plan.json", "/data/plans/a plan.json"])
    if strategy in ("learned", "graph"):
        values["affinity"] = "affinity.npz"
    if strategy == "learned":
        values |= {
            "objective": draw.choice(["coherent", "diverse", "mutual_information", "auto"]),
            "method": draw.choice(["refined", "paper"]), "dimensions": draw.choice([2, 3, 1024]),
            "restarts": draw.choice([1, 10_000]),
        }  # fmt: skip
    if strategy in ("learned", "graph", "random"):
        values["seed"] = draw.choice([0, 3, 2**32 - 1])
    if strategy in ("learned", "graph", "random", "greedy_balance"):
        values |= {
            "balance": draw.choice(["count", "cost"]), "bound": draw.choice(["auto", 1.0, 1.5, 65_536.0]),
            "cost": {"bytes": 0.5, "lookups": draw.choice([0.0, 2.0])}, "pin": {"a feature": draw.randrange(65_536)},
            "together": [["a", "b"]], "apart": [["a", "c"], ["d", "e"]], "groups": {"users": ["a"], "items": []},
        }  # fmt: skip
    return values


def _lookup(draw: Draw) -> dict[str, Any]:
    rule = draw.choice(["sgd", "adagrad", "rowwise_adagrad", "adam", "auto"])
    values: dict[str, Any] = {
        "optimizer": rule, "lr": draw.choice([0.0, 0.01, 3e38, "auto"]),
        "backend": draw.choice(["auto", "fbgemm", "torch"]), "weight_decay": draw.choice([0.0, 1e-4, "auto"]),
        "clip_value": draw.choice([None, 1.0, "auto"]), "clip_norm": draw.choice([None, 2.5, "auto"]),
        "dtype": draw.choice(["fp32", "bf16", "fp16", "auto"]), "stochastic_rounding": draw.choice([True, False]),
        "schedule": draw.choice(["auto", "constant", "follow"]), "check_finite": draw.choice([True, False]),
        "accumulation": draw.choice(["accumulate", "per_micro_batch"]), "seed": draw.choice(["auto", 0, 2**63 - 1]),
        "location": draw.choice(["auto", "host", "device", "managed"]), "table_init": draw.choice(["layer", "strict"]),
        "tables": {"user*": {"lr": 0.5}}, "fields": {"t": [1, 2**63 - 1]},
        "weights": draw.choice([None, "a/folder", {"*": "b"}]),
    }  # fmt: skip
    if rule in ("adam", "adagrad", "rowwise_adagrad"):
        values["eps"] = draw.choice([1e-8, 0.0])
    if rule == "adam":
        values["betas"] = [0.9, 0.99]
    if rule == "sgd":
        values |= {"momentum": 0.9, "nesterov": draw.choice([True, False])}
    return values


def _comm(draw: Draw) -> dict[str, Any]:
    formats = ["fp32", "bf16", "fp16", "int8"]
    return {
        "route": draw.choice(["hierarchical", "flat"]), "peer_dtype": draw.choice(formats),
        "intra_dtype": draw.choice(formats), "peer_grad_dtype": draw.choice(["auto", "fp32", "bf16"]),
        "dedup": draw.choice(["auto", "on", "off"]), "dedup_features": {"item*": draw.choice(["on", "off"])},
        "link": draw.choice([None, "100 Mbit/s", "25 GB/s", 1.0, 1e18, "doctor.json"]),
        "overlap": draw.choice([True, False]), "prefetch": draw.choice([True, False]),
        "micro_blocks": draw.choice(["auto", 1, 16]), "timeout_s": draw.choice([0.1, 20.0, 300, 86_400]),
        "dedup_shares": draw.choice([None, "shares.json"]),
    }  # fmt: skip


_KEPT = {"strategy", "file", "affinity", "module", "optimizer"}
"""Keys that others of their part depend on."""

_PARTS: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "topology": lambda draw: {k: draw.choice(["auto", 1, 8, 65_536]) for k in ("hosts", "ranks_per_host")},
    "towers": _towers,
    "partition": _partition,
    "placement": lambda draw: {
        "strategy": draw.choice(["auto", "table_wise", "row_wise", "column_wise"]),
        "memory_per_rank": draw.choice(["auto", "16GiB", 1, 2**63 - 1]), "split_gain": draw.choice([1.0, 1.5, 3.4e38]),
        "overrides": {"users": draw.choice(["row_wise", "column_wise", "table_wise"])},
    },
    "lookup": _lookup,
    "comm": _comm,
    "transform": lambda draw: {
        "on_unsupported": draw.choice(["error", "transport", "decoder", "preserve"]),
        "verify": draw.choice([True, False]), "faster_dot": draw.choice([True, False]),
        "example_batch": draw.choice([None, "batches.py:one", "pkg.mod:one"]),
    },
    "report": lambda draw: {"dir": draw.choice([None, "reports/today"]), "every": draw.choice([0, 1, 2**63 - 1])},
    "checkpoint": lambda draw: {
        "asynchronous": draw.choice([True, False]), "run_id": draw.choice([None, "nightly"]),
        "lock_stale_s": draw.choice([10.0, 86_400]),
    },
}  # fmt: skip


def _right(draw: Draw, room: Path) -> Outcome:
    if draw.random() < 0.25:
        return _used(draw)
    section = right_section(draw)
    config, error = attempt(lambda: _read(draw, room, {"dmt": section}), ConfigError)
    if config is not None:
        check_kept(section, config)
    return settled("taken", "right", error)


def _used(draw: Draw) -> Outcome:
    topology = draw.choice(["1x1", "2x1", "1x2", "2x2", "4x1"])
    hosts = int(topology[0])
    module = draw.choice(["none", "none", "dlrm", "dcn", "preserve"])
    towers: dict[str, Any] = {"module": module}
    if draw.random() < 0.5:
        towers["count"] = draw.choice([n for n in (1, 2, 4) if n >= hosts])
    if module == "dlrm":
        towers |= {"c": draw.choice([1, 2]), "p": draw.choice([0, 1]), "dim": draw.choice(["auto", 4])}
    kinds = ["auto", "table_wise", "row_wise", "column_wise"]
    section = {
        "towers": towers,
        "partition": draw.choice([{}, {"strategy": "contiguous"}, {"strategy": "random", "seed": draw.randrange(9)}]),
        "placement": {"strategy": draw.choice(kinds), "overrides": {"tables.1": draw.choice(kinds[1:])}},
        "comm": {"route": draw.choice(["hierarchical", "flat"]), "dedup": draw.choice(["auto", "on", "off"])},
        "lookup": SGD,
    }
    if section["comm"]["route"] == "flat" and module != "none":  # type: ignore[index]
        section["comm"] = {"dedup": "off"}
    model, error = attempt(lambda: rewritten(section, topology), ConfigError)
    if model is not None:
        found = outputs(model)
        if module == "none":
            expect(torch.equal(found, flat_outputs()), "without tower modules, other outputs than the flat model's")
        expect(found.shape == flat_outputs().shape and bool(found.isfinite().all()), "outputs that cannot be", found)
        expect(len(model.plan.towers) == towers.get("count", hosts), "another number of towers", model.plan.towers)
        again = TowerPlan.from_dict(json.loads(json.dumps(model.plan.to_dict())))
        expect(again == model.plan and again.fingerprint == model.plan.fingerprint, "a plan that is another when read")
        if draw.random() < 0.3:
            check_on_ranks(model, _known(read_dmt_config({"dmt": section})))
    return settled("taken", "right, and used", error)


# -- wrong ones ----------------------------------------------------------------------------


def keys_of(section: type[BaseModel], way: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Ways to all keys of a section and of those in it."""
    for name, field in section.model_fields.items():
        yield (*way, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, (*way, name))


KEYS = sorted(keys_of(DMTConfig))
NO_TYPE: Any = {"?": [1.5]}
"""What no key takes."""
BEYOND: list[tuple[str, Any]] = [
    ("comm.timeout_s", 0.09), ("comm.timeout_s", 86_401), ("comm.link", 0.5), ("comm.link", "9" * 400 + " GB/s"),
    ("comm.micro_blocks", 17), ("towers.count", 65_537), ("towers.count", 10**400), ("towers.dim", 2**20 + 1),
    ("towers.c", -1), ("towers.seed", 2**63), ("topology.hosts", 0), ("topology.ranks_per_host", 65_537),
    ("lookup.lr", 1e39), ("lookup.lr", "0.1"), ("lookup.clip_norm", 1e-40), ("lookup.seed", -1),
    ("lookup.fields", {"t": [1]}), ("report.every", -1), ("report.dir", "a\0b"), ("report.dir", "a" * 300),
    ("placement.split_gain", 0.5), ("placement.memory_per_rank", 2**63), ("placement.overrides", {"t": "rows"}),
    ("partition.seed", 2**32), ("partition.strategy", "file"), ("checkpoint.lock_stale_s", 9.9),
    ("checkpoint.run_id", ""), ("transform.example_batch", "no_function"), ("towers.overrides", {"01": {}}),
]  # fmt: skip


def _put(section: dict[str, Any], way: tuple[str, ...], value: Any) -> bool:
    """Puts a value under a key; whether there is a place for it."""
    parent: Any = section
    for name in way[:-1]:
        parent = parent.setdefault(name, {})
        if not isinstance(parent, dict):
            return False
    parent[way[-1]] = value
    return True


def _refused(draw: Draw, room: Path) -> Outcome:
    section = right_section(draw) if draw.random() < 0.7 else {}
    whole: Any = {"dmt": section}
    what = draw.choice(["misspelt", "no type", "beyond", "no object", "twice", "misspelt dmt"])
    if what == "misspelt":
        *way, last = draw.choice(KEYS)
        section.pop(way[0], None) if way else None
        _put(section, (*way, odd.misspelt(draw, last)), draw.choice(odd.PLAIN))
    elif what == "no type":
        way = list(draw.choice(KEYS))
        section.pop(way[0], None)
        _put(section, tuple(way), copy.deepcopy(NO_TYPE))
    elif what == "beyond":
        key, value = draw.choice(BEYOND)
        section.pop(key.partition(".")[0], None)
        _put(section, tuple(key.split(".")), value)
    elif what == "no object":
        whole["dmt"] = draw.choice([[], "auto", 3, None, True, [section]])
    elif what == "twice":
        text = json.dumps(whole)
        file = room / "ds.json"
        file.write_text(f'{text[:-1]}, "dmt": {{}}}}')
        _, error = attempt(lambda: read_dmt_config(load_ds_config(file)), ConfigError)
        return settled("refused", what, error)
    else:
        whole = {draw.choice(["dnt", "DMT", "dmt_", "dmtt", "Dmt", "dtm"]): section}
    _, error = attempt(lambda: _read(draw, room, whole), ConfigError)
    if error is not None:
        expect("pydantic" not in str(error), "a message of somebody else's", error)
    return settled("refused", what, error)


def _odd(draw: Draw, room: Path) -> Outcome:
    section = right_section(draw) if draw.random() < 0.5 else {}
    values = odd.PLAIN + odd.OBJECTS
    for _ in range(draw.choice([1, 1, 2, 3])):
        _put(section, draw.choice(KEYS), copy.deepcopy(draw.choice(values)))
    config, error = attempt(lambda: read_dmt_config(load_ds_config({"dmt": section})), ConfigError)
    if config is not None:
        check_kept(section, config)
    return settled("either", "odd value", error)


def _cut(draw: Draw, room: Path) -> Outcome:
    whole = {"train_batch_size": 8, "dmt": right_section(draw)}
    text = json.dumps(whole, indent=draw.choice([None, 1])) + "\n"
    place = draw.randrange(len(text))
    how = draw.choice(["cut", "cut", "bit", "zeros"])
    data = bytearray(text.encode())
    if how == "cut":
        del data[place:]
    elif how == "bit":
        data[place] ^= 1 << draw.randrange(8)
    else:
        data[place : place + 8] = bytes(len(data[place : place + 8]))
    file = room / "ds.json"
    file.write_bytes(data)
    found, error = attempt(lambda: load_ds_config(file), ConfigError)
    if found is not None:
        config, error = attempt(lambda: read_dmt_config(found), ConfigError)
        if how == "cut":
            expect(found == whole, "half a file was taken", data[-40:])
        if config is not None:
            check_kept(found["dmt"], config)
    return settled("either", f"text: {how}", error)


# -- reading, and what is read -------------------------------------------------------------


def _read(draw: Draw, room: Path, whole: Mapping[str, Any]) -> DMTConfig | None:
    """As a dict, a file, a file with comments, or base64: all say the same."""
    text = json.dumps(whole)
    form = draw.choice(["dict", "file", "comments", "base64"])
    if form == "dict":
        return read_dmt_config(load_ds_config(whole))
    if form == "base64":
        return read_dmt_config(load_ds_config(base64.urlsafe_b64encode(text.encode()).decode()))
    file = room / "ds config.json"
    file.write_text(text if form == "file" else f"// ours\n{text[:-1]}, /* more */\n}}\n")
    return read_dmt_config(load_ds_config(str(file)), str(file))


def _known(config: DMTConfig | None) -> DMTConfig:
    assert config is not None
    return config


def check_kept(section: Any, config: DMTConfig) -> None:
    """What was written is there, and written again it is the same.

    Raises:
        Wrong: it is not.
    """
    said = config.model_dump()
    for way in odd.ways(section):
        value = odd.at(section, way)
        if not isinstance(value, (dict, list)):
            found = _at(said, way)
            expect(found == value and isinstance(found, bool) == isinstance(value, bool), f"dmt.{way}", (value, found))
    again = read_dmt_config({"dmt": config.model_dump(mode="json", exclude_unset=True)})
    expect(again == config, "written and read again it is another section", again)


def _at(data: Any, way: odd.Way) -> Any:
    try:
        return odd.at(data, way)
    except (KeyError, IndexError, TypeError):
        return "nothing there"
