from __future__ import annotations

import base64
import json
import subprocess
import sys

import pytest

from dmt_plugin.config.section import DMTConfig, load_ds_config, read_dmt_config
from dmt_plugin.core.errors import ConfigError

DESIGNED = {
    "enabled": True,
    "topology": {"ranks_per_host": "auto"},
    "towers": {"count": "auto", "module": "dlrm", "c": 1, "p": 0, "dim": "auto"},
    "partition": {"strategy": "strided", "file": None, "objective": "coherent", "balance": "count"},
    "lookup": {"backend": "auto", "optimizer": "auto", "lr": "auto", "location": "auto"},
    "comm": {
        "route": "hierarchical",
        "peer_dtype": "fp32",
        "intra_dtype": "fp32",
        "overlap": True,
        "prefetch": True,
    },
    "transform": {"on_unsupported": "error", "verify": True},
    "report": {"dir": None},
}


def refusal(section, source="ds.json") -> str:
    with pytest.raises(ConfigError) as caught:
        read_dmt_config({"train_batch_size": 8, "dmt": section}, source)
    text = str(caught.value)
    assert text.startswith(source)
    assert "pydantic" not in text and "validation error" not in text and len(text) < 600
    return text


# ---- the section ---------------------------------------------------------------------------------


def test_every_key_has_a_default_that_serves():
    config = read_dmt_config({"dmt": {}})
    assert config == DMTConfig() == read_dmt_config({"dmt": DESIGNED})
    assert config.towers.module == "dlrm" and config.comm.timeout_s == 300


def test_no_section_or_disabled_is_none():
    assert read_dmt_config({"train_batch_size": 8, "fp16": {}, "amp": {}, "bf16": {}}) is None
    assert read_dmt_config({"dmt": {"enabled": False, "towers": {"count": 4}}}) is None


def test_disabled_section_is_still_checked():
    with pytest.raises(ConfigError, match=r"dmt\.towers\.cuont"):
        read_dmt_config({"dmt": {"enabled": False, "towers": {"cuont": 4}}})


def test_every_key_is_documented():
    for name, field in DMTConfig.model_fields.items():
        assert field.description, name
        for key, inner in getattr(field.annotation, "model_fields", {}).items():
            assert inner.description, f"{name}.{key}"


@pytest.mark.parametrize(
    "section",
    [
        {"topology": {"hosts": 2, "ranks_per_host": 4}},
        {"towers": {"module": "my.models:Tower", "count": 3}},
        {"towers": {"c": 0, "p": 2, "dim": 8, "init": "identity", "seed": 7}},
        {"towers": {"module": "none", "c": 0, "p": 0}},
        {"towers": {"overrides": {"1": {"c": 2, "p": 1, "module": "dcn"}, "0": {}}}},
        {"towers": {"count": 2, "overrides": {"1": {"module": "my.models:Tower", "init": "torch", "seed": 3}}}},
        {"towers": {"module": "preserve", "overrides": {"1": {"init": "identity"}}}},
        {"towers": {"module": "dcn", "rank": 16, "outputs": 1, "overrides": {"1": {"rank": "auto", "outputs": 2}}}},
        {"towers": {"rank": 16, "overrides": {"1": {"module": "dcn"}}}},
        {"towers": {"c": 0, "p": 1, "overrides": {"0": {"c": 1, "p": 0}}}},
        {"transform": {"on_unsupported": "decoder"}},
        {"transform": {"on_unsupported": "preserve"}},
        {"partition": {"strategy": "file", "file": "towers.json"}},
        {"placement": {"strategy": "row_wise", "memory_per_rank": 10**9, "split_gain": 2}},
        {"placement": {"memory_per_rank": "1.5 GiB", "overrides": {"users": "row_wise", "items": "column_wise"}}},
        {"lookup": {"location": "managed_caching"}},
        {"lookup": {"lr": 1}},
        {"transform": {"example_batch": "some/train.py:batch"}},
        {"transform": {"example_batch": "pkg.mod:batch"}},
        {"checkpoint": {"asynchronous": True}},
    ],
)
def test_accepted(section):
    assert read_dmt_config({"dmt": section}) is not None


@pytest.mark.parametrize(
    "section, parts",
    [
        ({"towers": {"cuont": 2}}, ["dmt.towers.cuont", 'did you mean "count"']),
        ({"tower": {"count": 2}}, ["dmt.tower", 'did you mean "towers"']),
        ({"module": "dlrm"}, ["dmt.module", '"dmt.towers.module"']),
        ({"towers": {"zzz": 2}}, ["dmt.towers.zzz", "count, module, c, p, dim"]),
        ({"enabled": "yes"}, ["dmt.enabled", '"yes"', "true or false"]),
        ({"towers": {"count": 0}}, ["dmt.towers.count", "0", "whole number of at least 1", '"auto"']),
        ({"towers": {"count": True}}, ["dmt.towers.count", "true", "whole number"]),
        ({"towers": {"count": "four"}}, ["dmt.towers.count", '"four"', '"auto"']),
        ({"towers": {"module": "dlrn"}}, ["dmt.towers.module", '"dlrn"', 'did you mean "dlrm"', "pkg.mod:Class"]),
        ({"towers": {"module": "a.b:1x"}}, ["dmt.towers.module", "a.b:1x", "pkg.mod:Class"]),
        ({"towers": {"c": 0, "p": 0}}, ["dmt.towers", "c = 0", "p = 0"]),
        ({"towers": {"c": -1}}, ["dmt.towers.c", "-1", "at least 0"]),
        ({"partition": {"strategy": "file"}}, ["dmt.partition", '"file"', "dmt.partition.file"]),
        ({"partition": {"file": "x.json"}}, ["dmt.partition", "x.json", "strided", '"strategy": "file"']),
        ({"partition": {"affinity": "x.npz"}}, ["dmt.partition.affinity", "x.npz", "strided", '"strategy": "learned"']),
        ({"partition": {"strategy": "stridet"}}, ["dmt.partition.strategy", 'did you mean "strided"']),
        ({"partition": {"objective": "diverse"}}, ["dmt.partition.objective", "would not be read", '"learned"']),
        ({"partition": {"strategy": "graph", "pin": {"a": "b"}}}, ["dmt.partition.pin"]),
        ({"partition": {"strategy": "learned", "bound": 0.5}}, ["dmt.partition.bound", "0.5"]),
        ({"comm": {"peer_dtype": "fp8"}}, ["dmt.comm.peer_dtype", "fp8", '"fp32", "bf16", "fp16" or "int8"']),
        ({"comm": {"intra_grad_dtype": "int4"}}, ["dmt.comm.intra_grad_dtype", 'did you mean "int8"', '"auto"']),
        ({"comm": {"timeout_s": 0}}, ["dmt.comm.timeout_s", "at least 0.1 and at most 86400"]),
        ({"lookup": {"lr": float("nan")}}, ["dmt.lookup.lr", "number"]),
        ({"lookup": {"optimizer": "adamax"}}, ["dmt.lookup.optimizer", "rowwise_adagrad", "adam"]),
        ({"transform": {"on_unsupported": "ignore"}}, ["dmt.transform.on_unsupported", '"error"']),
        ({"transform": {"on_unsupported": "decode"}}, ["dmt.transform.on_unsupported", 'did you mean "decoder"']),
        ({"towers": {"module": "preserv"}}, ["dmt.towers.module", 'did you mean "preserve"']),
        ({"towers": {"module": "preserve", "dim": 4}}, ["dmt.towers", '"dim": 4', "keeps each width"]),
        ({"towers": {"rank": 8}}, ["dmt.towers", '"rank": 8', "would not be read", '"dcn"']),
        ({"towers": {"module": "preserve", "outputs": 1}}, ["dmt.towers", '"outputs": 1', "would not be read"]),
        ({"towers": {"module": "dcn", "rank": 0}}, ["dmt.towers.rank", "0", "at least 1", '"auto"']),
        (
            {"towers": {"module": "dcn", "overrides": {"1": {"module": "dlrm", "outputs": 2}}}},
            ["overrides.1", "outputs would not be read", '"dlrm"'],
        ),
        ({"towers": {"overrides": {"1": {"modul": "dcn"}}}}, ["dmt.towers.overrides.1.modul", 'did you mean "module"']),
        ({"towers": {"overrides": {"1": {"module": "dcm"}}}}, ["overrides.1.module", 'did you mean "dcn"']),
        ({"towers": {"overrides": {"1": {"zzz": 1}}}}, ["overrides.1.zzz", "module, c, p, rank, outputs, init, seed"]),
        ({"towers": {"overrides": {"1": {"count": 3}}}}, ["overrides.1.count", "dmt.towers.count"]),
        ({"towers": {"overrides": {"1": {"dim": 4}}}}, ["overrides.1", "one width", "dmt.towers.dim"]),
        ({"towers": {"overrides": {"1": {"c": "x"}}}}, ["overrides.1.c", '"x"', "whole number of at least 0"]),
        ({"towers": {"overrides": {"1": {"c": 0}}}}, ["overrides.1", "c = 0", "p = 0"]),
        ({"towers": {"overrides": {"1": {"init": "xavier"}}}}, ["overrides.1.init", '"orthogonal"']),
        ({"towers": {"overrides": {"1": {"module": "none"}}}}, ["overrides.1.module", '"none"', '"identity"']),
        ({"towers": {"overrides": {"1": 3}}}, ["overrides.1", "found 3", '{"module": ...}']),
        ({"towers": {"overrides": 3}}, ["dmt.towers.overrides", "found 3", '{"0": {"module": ...}}']),
        ({"towers": {"overrides": {"one": {}}}}, ["dmt.towers.overrides", '"one"', "number"]),
        ({"towers": {"overrides": {"01": {}}}}, ["dmt.towers.overrides", '"01"', "number"]),
        ({"towers": {"overrides": {1: {"c": 2}}}}, ["dmt.towers.overrides.1", "the key 1 is not a string", '"1"']),
        ({"towers": {"count": 2, "overrides": {"2": {"c": 2}}}}, ["overrides.2", "2 towers, 0 to 1"]),
        ({"towers": {"module": "none", "overrides": {"0": {"c": 2}}}}, ["overrides.0", '"module": "none"']),
        ({"towers": {"module": "none", "compile": True}}, ["towers", '"compile": true', '"module": "none"']),
        ({"towers": {"module": "preserve", "overrides": {"0": {"c": 2}}}}, ["overrides.0", "c would not fit"]),
        ({"transform": {"example_batch": "train.py"}}, ["dmt.transform.example_batch", "file.py:factory"]),
        ({"placement": {"strategy": "rowwise"}}, ["dmt.placement.strategy", 'did you mean "row_wise"']),
        ({"placement": {"memory_per_rank": "lots"}}, ["dmt.placement.memory_per_rank", '"lots"', '"16GiB"', '"auto"']),
        ({"placement": {"memory_per_rank": "16 gbit"}}, ["dmt.placement.memory_per_rank", '"16 gbit"', "GiB"]),
        ({"placement": {"memory_per_rank": 0}}, ["dmt.placement.memory_per_rank", "found 0", "at least 1"]),
        ({"placement": {"split_gain": 0.5}}, ["dmt.placement.split_gain", "0.5", "at least 1"]),
        ({"placement": {"overrides": {"t": "rows"}}}, ["dmt.placement.overrides.t", '"rows"', '"row_wise"']),
        ({"placement": {"overrides": ["t"]}}, ["dmt.placement.overrides", '["t"]', '{"users": "row_wise"}']),
        ({"memory_per_rank": 4}, ["dmt.memory_per_rank", '"dmt.placement.memory_per_rank"']),
        ({"lookup": {"location": "uvm"}}, ["dmt.lookup.location", '"uvm"', '"managed_caching"']),
        ({"checkpoint": {"asynchronous": 1}}, ["dmt.checkpoint.asynchronous", "1", "true or false"]),
        ({"checkpoint": {"async": True}}, ["dmt.checkpoint.async", "asynchronous"]),
        ({"report": "out"}, ["dmt.report", '"out"', "object", '{"dir"']),
        ({"topology": {"hosts": 2.0}}, ["dmt.topology.hosts", "2.0", "whole number"]),
    ],
)
def test_refused(section, parts):
    text = refusal(section)
    for part in parts:
        assert part in text, text


def test_all_problems_in_one_message():
    text = refusal({"towers": {"cuont": 2, "c": -1}, "comm": {"rout": "flat"}})
    assert "3 problems" in text
    for key in ("dmt.towers.cuont", "dmt.towers.c", "dmt.comm.rout"):
        assert key in text


@pytest.mark.parametrize("section", [None, True, [], "on"])
def test_section_must_be_an_object(section):
    assert "must be an object" in refusal(section)


@pytest.mark.parametrize("key", ["dnt", "DMT", "Dmt", "dmt_plugin", "dmt-plugin", "dmt_config", "dtm", "dmtt", "dm"])
def test_near_misses_at_the_top(key):
    with pytest.raises(ConfigError, match=f'"{key}".*"dmt"'):
        read_dmt_config({key: {"enabled": True}})


@pytest.mark.parametrize("key", ["amp", "fp16", "bf16", "zero_optimization", "csv_monitor", "comet", "aio", "moe"])
def test_no_false_alarm_at_the_top(key):
    assert read_dmt_config({key: {}}) is None


def test_direct_construction_speaks_the_same_language():
    with pytest.raises(ValueError):
        DMTConfig.model_validate({"towers": {"c": 0, "p": 0}})


# ---- the file ------------------------------------------------------------------------------------


def test_load_from_file_mapping_and_base64(tmp_path):
    content = {"train_batch_size": 8, "dmt": {"towers": {"count": 2}}}
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(content))
    encoded = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
    assert load_ds_config(file) == load_ds_config(str(file)) == load_ds_config(content) == content
    assert load_ds_config(encoded) == content


def test_loaded_mapping_is_a_copy():
    content = {"dmt": {"towers": {"count": 2}}}
    load_ds_config(content)["dmt"]["towers"]["count"] = 9
    assert content["dmt"]["towers"]["count"] == 2


def test_comments_are_read_as_deepspeed_reads_them(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text('{\n  # two towers\n  "dmt": {"towers": {"count": 2}},\n}')
    assert load_ds_config(file) == {"dmt": {"towers": {"count": 2}}}


@pytest.mark.parametrize(
    "text, parts",
    [
        ('{"dmt": {"enabled": true "towers": {}}}', ["line 1", "column"]),
        ('{\n "a": 1,\n "b": ]\n}', ["line 3", "column 7"]),
        ('{"dmt": {}, "dmt": {"enabled": false}}', ['"dmt"', "twice"]),
        ('{"dmt": {"towers": {"c": 1, "c": 2}}}', ['"c"', "twice"]),
        ('{\n# note\n"dmt": {"towers": {"c": 1, "c": 2}}}', ['"c"', "twice"]),
        ("[1, 2]", ["object"]),
        ("", ["line 1"]),
    ],
)
def test_bad_files(tmp_path, text, parts):
    file = tmp_path / "ds.json"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_ds_config(file)
    assert "ds.json" in str(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"nope\.json.*not.*found"):
        load_ds_config(tmp_path / "nope.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_ds_config(tmp_path)


def test_other_types_are_refused():
    with pytest.raises(ConfigError, match="int"):
        load_ds_config(3)


def test_import_is_light():
    code = "import sys, dmt_plugin.config.section; print({'torch', 'deepspeed'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_what_holds_for_one_tower():
    towers = DMTConfig.model_validate({"towers": {"c": 2, "seed": 4, "overrides": {"1": {"c": 1, "p": 1}}}}).towers
    assert (towers.of_tower(0).c, towers.of_tower(0).p) == (2, 0)
    assert (towers.of_tower(1).c, towers.of_tower(1).p, towers.of_tower(1).seed) == (1, 1, 4)
