"""The planted benchmark: a small run, and data in which nothing but the affinity tells the blocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sklearn.metrics import adjusted_rand_score

from benchmarks import planted


def test_a_small_run_from_data_to_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench:begin -->\n<!-- bench:end -->\nafter\n")
    options = ["--noises", "0.5", "3", "--draws", "2", "--features", "40", "--towers", "4", "--page", str(page)]
    assert planted.main([*options, "--out", str(tmp_path / "planted.json")]) == 0
    written = json.loads((tmp_path / "planted.json").read_text())
    found = {row["label"]: row for row in written["recovery"]}
    assert found["learned, refined"]["mean"]["0.5"] == 1.0 > found["learned, refined"]["mean"]["3"]
    assert found["learned, refined"]["std"]["0.5"] == 0.0 < found["learned, refined"]["std"]["3"]
    assert found["random"]["mean"]["0.5"] < 0.3
    assert written["timed"][1]["evenness"] <= 1.1
    assert "| learned, refined | 1.00 ± 0.00 |" in page.read_text()
    assert "40 features into 4 towers" in capsys.readouterr().out


@pytest.mark.parametrize("strategy", ["strided", "contiguous"])
def test_the_order_of_features_tells_nothing(strategy: str) -> None:
    scores = []
    for seed in range(10):
        _, blocks = planted.planted_rows(32, 8, 0.0, seed, samples=1)
        partition = planted.made(None, 32, 8, strategy=strategy)
        scores.append(adjusted_rand_score(blocks, planted.labels(partition, 32)))
    assert max(scores) < 0.5 and abs(sum(scores)) / 10 < 0.1
