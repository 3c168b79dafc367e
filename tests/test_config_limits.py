"""Values that no run could have are errors of the configuration, at once and by name; the largest that could are taken.

Whatever is written under a key: the section is taken, or there is a ``ConfigError``.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dmt_plugin.config.link import bytes_per_second
from dmt_plugin.config.section import DMTConfig, load_ds_config, read_dmt_config
from dmt_plugin.core.errors import ConfigError, MemoryNeedError
from dmt_plugin.core.json_text import MOST_LEVELS, check_levels
from dmt_plugin.core.run_files import check_folder
from dmt_plugin.nn.towers import build_tower_module, weight_entries
from dmt_plugin.plan.specs import TowerModuleSpec


def nested(levels: int) -> Any:
    data: Any = 1
    for _ in range(levels):
        data = [data]
    return data


LONG = "a" * 300
IMPOSSIBLE: list[tuple[str, Any, str]] = [
    ("comm.timeout_s", 0, "at least 0.1 and at most 86400"),
    ("comm.timeout_s", 0.09, "at most 86400"),
    ("comm.timeout_s", 86_401, "at most 86400"),
    ("comm.timeout_s", 1e300, "at most 86400"),
    ("comm.timeout_s", math.inf, "finite"),
    ("comm.link", 0.5, "at least 1"),
    ("comm.link", 1e300, "at most 1e+18"),
    ("comm.link", "9" * 400 + " GB/s", "expected a rate"),
    ("comm.link", "a\0.json", "a path with a NUL"),
    ("towers.count", 65_537, "at most 65536"),
    ("towers.count", 10**5000, "at most 65536"),
    ("topology.hosts", 65_537, "at most 65536"),
    ("topology.ranks_per_host", 2**63, "at most 65536"),
    ("towers.dim", 2**20 + 1, "at most 1048576"),
    ("towers.c", 2**20 + 1, "at most 1048576"),
    ("towers.p", 2**63, "at most 1048576"),
    ("towers.seed", 2**63, "at most 9223372036854775807"),
    ("towers.overrides", {"65536": {"c": 2}}, "is no tower"),
    ("towers.overrides", {"9" * 5000: {"c": 2}}, "is no tower"),
    ("towers.overrides", {"0": {"seed": 2**63}}, "at most 9223372036854775807"),
    ("lookup.seed", 2**63, "at most 9223372036854775807"),
    ("lookup.lr", 1e39, "at most 3.4e+38"),
    ("lookup.clip_norm", 1e-40, "at least 1.2e-38"),
    ("lookup.fields", {"t": [1, 2**63]}, "each of whose entries is a whole number of at least 1"),
    ("lookup.weights", "a\0b", "a path with a NUL"),
    ("lookup.weights", {"t": "a\0b"}, "a path with a NUL"),
    ("lookup.table_init", "a\0b.py:f", "a path with a NUL"),
    ("transform.example_batch", "a\0b.py:f", "a path with a NUL"),
    ("report.dir", "a\0b", "a path with a NUL"),
    ("report.dir", f"x/{LONG}/y", "a name of 300 bytes in it; 255 are possible"),
    ("report.dir", "a/" * 2500, "a path of 5,000 bytes; 4,095 are possible"),
    ("report.dir", "\ud800", "half a surrogate pair"),
    ("comm.dedup_shares", "a\0b", "a path with a NUL"),
    ("placement.memory_per_rank", 2**63, "at most 9223372036854775807"),
    ("placement.memory_per_rank", "9" * 400 + " TiB", "expected a number with a unit"),
    ("placement.split_gain", 1e300, "at most 3.4e+38"),
]


@pytest.mark.parametrize(
    ("key", "value", "said"), IMPOSSIBLE, ids=[f"{n} {key}" for n, (key, *_) in enumerate(IMPOSSIBLE)]
)
def test_what_cannot_be_is_refused(key: str, value: Any, said: str) -> None:
    part, _, name = key.partition(".")
    with pytest.raises(ConfigError) as caught:
        read_dmt_config({"dmt": {part: {name: value}}})
    assert f"dmt.{key}" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bound": 65_537.0}, "dmt.partition.bound"),
        ({"dimensions": 1025}, "dmt.partition.dimensions"),
        ({"restarts": 10_001}, "dmt.partition.restarts"),
        ({"cost": {"bytes": 1e300}}, "dmt.partition.cost"),
        ({"pin": {"f": -1}}, "each of whose entries is a whole number of at least 0 and below 65536"),
        ({"affinity": "a\0b"}, "a path with a NUL"),
    ],
)
def test_bounds_of_partitions(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_dmt_config({"dmt": {"partition": {"strategy": "learned", **settings}}})


def test_the_largest_that_can_be_are_taken() -> None:
    taken = read_dmt_config(
        {
            "dmt": {
                "comm": {"timeout_s": 86_400, "link": 1e18},
                "topology": {"hosts": 65_536, "ranks_per_host": 65_536},
                "towers": {"count": 65_536, "dim": 2**20, "seed": 2**63 - 1, "overrides": {"65535": {"c": 2}}},
                "report": {"dir": "/".join(["a" * 255] * 15)},
                "partition": {"strategy": "learned", "pin": {"f": 65_535}, "bound": 65_536.0},
            }
        }
    )
    assert taken is not None and taken.towers.seed == 2**63 - 1
    least = read_dmt_config({"dmt": {"comm": {"timeout_s": 0.1}}})
    assert least is not None and least.comm.timeout_s == 0.1


def test_the_largest_seed_makes_a_tower_and_small_ones_the_same_as_before() -> None:
    one, two = (build_tower_module(TowerModuleSpec("dlrm", dim=2, seed=2**63 - n), 2, 4, 1) for n in (1, 2))
    assert not torch.equal(one.state_dict()["per_feature.weight"], two.state_dict()["per_feature.weight"])
    torch.manual_seed(3 * 100_003 + 1)
    expected = torch.nn.init.orthogonal_(torch.nn.Linear(4, 2).weight)
    found = build_tower_module(TowerModuleSpec("dlrm", dim=2, seed=3), 2, 4, 1)
    assert found.state_dict()["per_feature.weight"].shape == expected.shape


@pytest.mark.parametrize(
    "spec",
    [
        TowerModuleSpec("dlrm", c=3, p=2, dim=5),
        TowerModuleSpec("dlrm", c=0, p=1, dim=5),
        TowerModuleSpec("dcn", dim=5),
        TowerModuleSpec("dcn", dim=5, rank=3, outputs=2),
        TowerModuleSpec("preserve", dim=4),
        TowerModuleSpec("none"),
    ],
)
def test_weights_of_a_tower_module_are_foretold(spec: TowerModuleSpec) -> None:
    """Those that no machine has are refused before they are allocated."""
    module = build_tower_module(spec, 3, 4, 0)
    assert weight_entries(spec, 3, 4) == sum(p.numel() for p in module.parameters() if p.dim() == 2)
    if spec.kind in ("dlrm", "dcn"):
        huge = TowerModuleSpec(spec.kind, spec.c, 2**20, 2**20, outputs=2**20)
        with pytest.raises(MemoryNeedError, match=r"tower module of tower 1 .* left. Lower c, p, dim"):
            build_tower_module(huge, 3, 4, 1)


# -- files and data ------------------------------------------------------------------------


def test_nested_over_a_hundred_levels(tmp_path: Path) -> None:
    check_levels(nested(MOST_LEVELS))
    with pytest.raises(ValueError, match="nested over 100 levels"):
        check_levels(nested(MOST_LEVELS + 1))
    file = tmp_path / "ds.json"
    for levels in (MOST_LEVELS, 100_000):
        file.write_text('{"dmt": {}, "other": ' + "[" * levels + "]" * levels + "}")
        with pytest.raises(ConfigError, match=r"ds\.json: nested over 100 levels"):
            load_ds_config(file)
    circle: dict[str, Any] = {"dmt": {}}
    circle["again"] = circle
    for config in (circle, {"a": nested(MOST_LEVELS), "dmt": {}}):
        for read in (load_ds_config, read_dmt_config):
            with pytest.raises(ConfigError, match="nested over"):
                read(config)


def test_paths_and_numbers_that_no_file_has(tmp_path: Path) -> None:
    for path in ("a\0b.json", "a" * 5000, "\ud800"):
        with pytest.raises(ConfigError, match=r"cannot be read|not found"):
            load_ds_config(path)
    (tmp_path / "ds.json").write_text('{"dmt": {"towers": {"count": ' + "9" * 5000 + "}}}")
    with pytest.raises(ConfigError, match=r"ds\.json"):
        load_ds_config(tmp_path / "ds.json")
    text = base64.urlsafe_b64encode(b'{"dmt": {}}').decode()
    assert load_ds_config(text) == {"dmt": {}}
    with pytest.raises(ConfigError, match="cannot be copied"):
        load_ds_config({"dmt": {}, "lock": (x for x in ())})


@pytest.mark.parametrize("rate", [0, -1.0, math.inf, math.nan, "fast", None])
def test_a_measured_link_that_cannot_be(tmp_path: Path, rate: Any) -> None:
    file = tmp_path / "doctor.json"
    file.write_text(json.dumps({"checks": [{"data": {"between hosts": {"GB_per_s": rate}}}]}))
    with pytest.raises(ConfigError, match=r"dmt\.comm\.link"):
        bytes_per_second(str(file), 2)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"type": "Adam", "params": {"lr": "fast"}},
        {"type": "Adam", "params": {"lr": 0.1, "betas": 0.9}},
        {"type": "Adam", "params": {"lr": 0.1, "betas": [0.9]}},
        {"type": "Adam", "params": {"lr": 0.1, "eps": None}},
        {"type": "Lamb", "params": {"lr": 0.1, "min_coeff": "small"}},
        {"type": "Adam", "params": [1]},
    ],
)
def test_options_of_the_optimizer_that_are_no_numbers(optimizer: dict[str, Any]) -> None:
    """They are DeepSpeed's to refuse; tables that would take them have no rule."""
    for more in ({}, {"zero_optimization": {"stage": "two"}}):
        config = read_dmt_config({"dmt": {}, "optimizer": optimizer, **more})
        assert config is not None
        with pytest.raises(ConfigError, match=r"optimizer\.params: found"):
            config.lookup.rule_of("t")


def test_a_report_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/here")):
        with pytest.raises(ConfigError, match=r"dmt\.report\.dir: .* cannot be written to .*Name a folder"):
            check_folder(folder)


# -- any key, any value --------------------------------------------------------------------


def keys_of(section: type[BaseModel], way: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in section.model_fields.items():
        yield (*way, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, (*way, name))


KEYS = sorted(keys_of(DMTConfig))
ODD = [None, True, False, 0, -1, 1, 2, 2**16, 2**31, 2**63, 2**64, 10**5000, 0.0, -0.5, 0.5, 1e-320, 1e38, 1e300]
ODD += [math.nan, math.inf, "", "auto", "a\0b", "\ud800", "x" * 5000, "1e5", "none", "pkg.mod:Class", "{}", b"bytes"]
ODD += [[], {}, [1, 2], [0.9, 0.99], {"0": {}}, {"a": "on"}, {"a": [1, 2]}, {1: 2}, nested(99), nested(200), object()]


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(ODD)), min_size=1, max_size=3))
def test_any_value_under_any_key_is_taken_or_refused_by_name(entries: list[tuple[tuple[str, ...], Any]]) -> None:
    section: dict[str, Any] = {}
    for (*way, last), value in entries:
        parent = section
        for name in way:
            inside = parent.setdefault(name, {})
            if not isinstance(inside, dict):
                break
            parent = inside
        else:
            parent[last] = value
    try:
        config = read_dmt_config(load_ds_config({"dmt": section}))
    except ConfigError as error:
        assert "pydantic" not in str(error)
    else:
        assert config is None or isinstance(config, DMTConfig)
