"""The quality benchmark: pairs, statistics and a whole small run on made-up data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from benchmarks import quality, quality_runs, quality_statistics


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows, fields = 1200, 8
    ids = rng.integers(0, 20, (rows, fields // 2)).repeat(2, axis=1).astype(np.int32)
    path = tmp_path / "made.npz"
    np.savez(
        path, X=ids, dense=np.zeros((rows, 0), np.float32), y=(ids[:, 0] % 2).astype(np.float32),
        split=rng.choice([0, 1, 2], rows, p=[0.6, 0.2, 0.2]), card=np.full(fields, 20),
        fields=[f"c{i}" for i in range(fields)],
    )  # fmt: skip
    return path


def test_a_small_run_from_data_to_summary(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--data", str(data), "--towers", "2", "4", "--ratios", "2", "--seeds", "2", "--random", "3"]
    options += ["--out", str(out), "--batch", "64"]
    assert quality.main(options) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sptt_equals_flat"]
    found = {(e["variant"], e["towers"]): e for e in summary["entries"]}
    assert found["flat", None]["runs"] == 2 and found["random", 4]["runs"] == 3
    assert found["sptt", 2]["to_flat"]["mean"] == 0.0
    assert found["coherent", 4]["to_random"]["pairs"] == 2
    assert found["coherent", 4]["real_ratio"] == 2.0
    assert found["flat", None]["auc"] > 0.7  # the label is in the ids
    assert (out / "quality.png").stat().st_size > 10_000
    (log,) = out.glob("runs-*.jsonl")
    lines = log.read_text()
    assert quality.main(options) == 0  # nothing is run again
    assert log.read_text() == lines
    assert "T=4 CR 2 mutual_information" in capsys.readouterr().out


def test_runs_of_one_seed_repeat(data: Path) -> None:
    loaded = quality_runs.load(data)
    tuning = quality_runs.Tuning(batch=64)

    def auc(seed: int) -> float:
        model = quality_runs.flat_model(loaded, tuning, seed)
        quality_runs.train(model, loaded, tuning, seed)
        return quality_runs.score(model, loaded, quality_runs.TEST)["logloss"]

    assert auc(0) == auc(0) != auc(1)


def test_paired_differences_are_students() -> None:
    a, b = np.array([0.81, 0.82, 0.80, 0.83]), np.array([0.80, 0.80, 0.80, 0.81])
    found = quality_statistics.paired(list(a - b))
    assert found["p"] == pytest.approx(ttest_rel(a, b).pvalue)
    low, high = ttest_rel(a, b).confidence_interval(0.95)
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
    assert found["shown"] == (low > 0 or high < 0)
    assert not quality_statistics.paired([0.1])["shown"]


def test_random_partitions_are_spread_over_the_seeds() -> None:
    made = list(quality.jobs("x", 3, [2], [4.0], 10))
    random = [job for job in made if job.variant == "random"]
    assert sorted(job.partition for job in random) == list(range(10))
    assert [sum(job.seed == s for job in random) for s in range(3)] == [4, 3, 3]


def test_bad_data_is_named(data: Path, tmp_path: Path) -> None:
    with np.load(data) as file:
        entries = {name: file[name] for name in file.files}
    np.savez(tmp_path / "short.npz", **{k: v for k, v in entries.items() if k != "card"})
    with pytest.raises(ValueError, match=r"short\.npz lacks the entries \['card'\]"):
        quality_runs.load(tmp_path / "short.npz")
    np.savez(tmp_path / "wide.npz", **{**entries, "card": np.full(8, 5)})
    with pytest.raises(ValueError, match=r"ids of .* are outside"):
        quality_runs.load(tmp_path / "wide.npz")
