"""The quality benchmark: pairs, statistics and a whole small run on made-up data."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from benchmarks import quality, quality_report, quality_runs, quality_statistics, quality_tuning


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
    assert found["sptt", 2]["to_flat"]["auc"]["mean"] == 0.0
    assert found["coherent", 4]["to_random"]["logloss"]["pairs"] == 2
    assert found["coherent", "all"]["to_random"]["logloss"]["p_holm"] <= 1.0
    assert found["coherent", 4]["real_ratio"] == 2.0
    assert found["flat", None]["auc"] > 0.7  # the label is in the ids
    assert (out / "quality.png").stat().st_size > 10_000
    (log,) = out.glob("runs-*.jsonl")
    lines = log.read_text()
    assert quality.main(options) == 0  # nothing is run again
    assert log.read_text() == lines
    assert "T=4 CR 2 tower mutual information" in capsys.readouterr().out


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


def test_holms_correction() -> None:
    assert quality_statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert quality_statistics.holm([0.9, 0.8]) == [1.0, 1.0]


def made_runs() -> list[dict[str, Any]]:
    """Two numbers of towers, three seeds; coherent is .01 better than random at T=2, and .03 at T=4."""
    found = []
    for seed in range(3):
        base = 0.7 + 0.01 * seed
        found.append(("flat", None, None, None, seed, base))
        for towers, gain in ((2, 0.01), (4, 0.03)):
            found.append(("random", "tower", towers, 2.0, seed, base - 0.02))
            found.append(("random", "tower", towers, 2.0, seed, base - 0.04))
            found.append(("coherent", "tower", towers, 2.0, seed, base - 0.03 + gain + 0.001 * seed))
    keys = ("variant", "form", "towers", "ratio", "seed", "auc")
    rest = {"data": "x", "logloss": 0.5, "real_ratio": 2.0}
    return [{**rest, **dict(zip(keys, run, strict=True))} for run in found]


def test_strategies_are_paired_with_the_mean_of_random() -> None:
    found = {(e["variant"], e["towers"]): e for e in quality_statistics.summarise(made_runs())}
    assert found["random", 2]["to_flat"]["auc"]["mean"] == pytest.approx(-0.03)
    assert found["random", 2]["auc_std"] > found["flat", None]["auc_std"]  # of all runs, not of their means
    assert found["coherent", 2]["to_random"]["auc"]["mean"] == pytest.approx(0.011)
    assert found["coherent", "all"]["to_random"]["auc"]["mean"] == pytest.approx(0.021)
    assert found["coherent", "all"]["to_flat"]["auc"]["pairs"] == 3
    assert not found["random", 2]["to_flat"]["auc"]["within_seed_noise"]  # .03 against .01
    assert found["coherent", "all"]["to_flat"]["auc"]["within_seed_noise"]
    assert found["random", 2]["auc_within_seed_std"] == pytest.approx(0.02 / np.sqrt(2))
    single, pooled = (found["coherent", towers]["to_random"]["auc"] for towers in (4, "all"))
    assert single["p_holm"] > single["p"]
    assert pooled["p_holm"] == pooled["p"]  # the only question of its kind


def test_sentences_list_the_rows_they_are_about() -> None:
    told = "\n".join(quality_report.statements(quality_statistics.summarise(made_runs())))
    assert "better than the mean of random: T=2 CR 2 tower coherent (+110), T=4 CR 2 tower coherent (+310)" in told
    assert "worse than the mean of random: none, of 3 rows" in told
    assert "tower at CR 2 against flat: 1 of 4 rows within its seed noise" in told
    assert "outside: T=2 CR 2 tower random (-300), T=2 CR 2 tower coherent (-190), T=4" in told
    assert "worse: T=2 CR 2 tower coherent (-190); better: none" in told


def test_runs_without_random_partitions_have_no_baseline() -> None:
    runs = [run for run in made_runs() if run["variant"] != "random"]
    assert all("to_random" not in entry for entry in quality_statistics.summarise(runs))


@pytest.mark.parametrize("form", quality_runs.FORMS)
@pytest.mark.parametrize("ratio", [2.0, 4.0])
@pytest.mark.parametrize("towers", [2, 4, 8])
@pytest.mark.parametrize("features", [19, 21, 26])
def test_the_ratio_asked_for_is_met(features: int, towers: int, ratio: float, form: str) -> None:
    shape = quality_runs.tower_shape(features, towers, ratio, form)
    sent = shape["dim"] * (shape["c"] * features + shape["p"] * towers)
    assert features * quality_runs.WIDTH / sent == pytest.approx(ratio, rel=0.06)
    assert shape["dim"] <= quality_runs.WIDTH


def test_some_rows_are_spread_over_the_part(data: Path) -> None:
    loaded = quality_runs.load(data)
    every, some = loaded.rows(quality_runs.TRAIN), loaded.rows(quality_runs.TRAIN, 50)
    assert len(some) == 50 and len(set(some.tolist())) == 50
    assert some[0] == every[0] and some[-1] >= every[-len(every) // 50 - 1]
    assert loaded.rows(quality_runs.TRAIN, len(every) + 1).equal(every)


def test_rows_of_one_data_set() -> None:
    options = quality.arguments(["--rows", "300", "ml=20"])
    assert [quality.number_of(name, options.rows) for name in ("ml", "other")] == [20, 300]
    assert quality.number_of("x", ["ml=20"]) == 0
    assert quality.number_of("x", quality.arguments([]).rows) == 40_000


def test_a_form_may_name_its_initialisation(data: Path) -> None:
    loaded = quality_runs.load(data)
    flat = quality_runs.flat_model(loaded, quality_runs.Tuning(), 0)
    partition = quality.Partition((("c0", "c1", "c2", "c3"), ("c4", "c5", "c6", "c7")))
    partition = dataclasses.replace(partition, towers=tuple(tuple(f"tables.{n}" for n in t) for t in partition.towers))
    found = {}
    for form in ("tower", "tower:torch"):
        made, ratio = quality_runs.tower_model(copy.deepcopy(flat), loaded, partition, 2.0, form, 0)
        assert ratio == 2.0
        found[form] = made.get_submodule("dmt_towers.group0.tower0.per_tower").weight
    rows = found["tower"] @ found["tower"].T
    assert torch.allclose(rows, torch.eye(len(rows)), atol=1e-5)
    assert not torch.allclose(found["tower:torch"], found["tower"])


def test_tuning_climbs_to_the_best_and_stops(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = {"lr_tables": 1e-3, "lr_dense": 1e-2, "init_std": 0.1}

    def trial(data: Any, setting: quality_runs.Tuning, seeds: int) -> dict[str, Any]:
        away = sum(abs(np.log(getattr(setting, key) / value)) for key, value in best.items())
        return {**dataclasses.asdict(dataclasses.replace(setting, epochs=2)), "logloss": away}

    monkeypatch.setattr(quality_tuning, "_trial", trial)
    found, tried = quality_tuning.tune(quality_runs.load(data), quality_runs.Tuning(), 3)
    assert {key: getattr(found, key) for key in best} == best and found.epochs == 2
    assert len(tried) < 20 and quality_tuning.at_end(found, 3) == []
    assert quality_tuning.at_end(dataclasses.replace(found, init_std=0.3), 2) == ["init_std", "epochs"]


def test_a_trial_keeps_its_best_pass(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.5, 0.4, 0.45, 0.1])
    monkeypatch.setattr(quality_runs, "score", lambda *_: {"logloss": next(losses), "auc": 0.5})
    found = quality_tuning._trial(quality_runs.load(data), quality_runs.Tuning(batch=256, epochs=4))
    assert found["epochs"] == 2 and found["logloss"] == 0.4


def test_a_trial_may_be_the_mean_over_seeds(data: Path) -> None:
    loaded, setting = quality_runs.load(data), quality_runs.Tuning(batch=256)
    found = quality_tuning._trial(loaded, setting, seeds=3)
    single = []
    for seed in range(quality_tuning.SEED, quality_tuning.SEED + 3):
        model = quality_runs.flat_model(loaded, setting, seed)
        quality_runs.train(model, loaded, setting, seed)
        single.append(quality_runs.score(model, loaded, quality_runs.VALIDATION)["logloss"])
    assert found["logloss"] == pytest.approx(np.mean(single)) and len(set(single)) == 3


def test_other_calls_add_to_the_log(data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    options = ["--data", str(data), "--towers", "2", "--ratios", "2", "--batch", "256", "--out", str(tmp_path)]
    assert quality.main([*options, "--strategies", "random"]) == 0
    assert quality.main([*options, "--strategies", "strided", "--forms", "feature"]) == 0
    assert quality.main([*options, "--done", "--page", str(page)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    found = {(e["form"], e["variant"]) for e in summary["entries"]}
    assert found == {(None, "flat"), (None, "sptt"), ("tower", "random"), ("feature", "strided")}
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "| T=2 CR 2 feature strided |" in text and str(tmp_path) not in text
    assert page.with_suffix(".svg").exists()


def test_random_partitions_are_spread_over_the_seeds() -> None:
    options = ["--seeds", "3", "--towers", "2", "--ratios", "4", "--random", "10"]
    made = list(quality.jobs("x", quality.arguments(options)))
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
