"""The step benchmark: what it compares, what it computes, and one small measurement."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer import BadParameter

from benchmarks.cluster.frames import Frames
from benchmarks.step import measure
from benchmarks.step.__main__ import _chosen
from benchmarks.step.parts import Change
from benchmarks.step.profiles import PROFILES
from benchmarks.step.setting import Setting
from benchmarks.step.summary import differing, opponents, references, rows_of, table
from benchmarks.step.variants import ABSENT, BASE, VARIANTS
from tests._util.programs import run_program
from tests.benchmarks.step_data import NAMES, found, ranks

ROOT = Path(__file__).parents[2]


def test_rows() -> None:
    rows = rows_of(Setting(repeats=3), ranks())
    assert rows["flat_fp32"]["ratios"] == [2.0, 2.0, 2.0] and rows["flat_fp32"]["median_ms"] == 500
    sptt = rows["sptt_fp32"]
    assert sptt["step_ms"] == [250, 250, 250] and sptt["ratio"] == 4.0
    assert sptt["ratio_to_best"] == 4.0 and sptt["best"] == BASE and sptt["ratio_to_tower"] is None
    assert sptt["samples_per_s"] == 512 * 4 / 0.25
    assert sptt["nic_bytes_per_host"] == 2_000_000 and sptt["nic_frame_bytes_per_host"] == 2_100_000
    assert sptt["nic_limit_ms"] == pytest.approx(1e3 * 8 * 2.1e6 / 1e8)
    assert sptt["nic_bytes_by_formula"] == 1_980_000 and sptt["nic_bytes_off"] == pytest.approx(2 / 1.98 - 1)
    assert sptt["cpu_ms"] == pytest.approx(200)
    assert (sptt["compared_with"], sptt["losses_off"], sptt["tables_off"]) == ("flat_fp32", 0.0, 0.0)
    assert rows[BASE]["ratio"] == 1.0 and rows["flat_fp32"]["compared_with"] is None
    assert [line.split()[0] for line in table(rows).splitlines()] == ["variant", *NAMES]
    json.dumps(rows)


def test_opponents_have_the_same_wire_precision() -> None:
    steps = {name: [1.0] for name in VARIANTS} | {"torchrec_cw_fp16": [0.5], "torchrec_tower_cr4_fp16": [0.1]}
    assert opponents("dmt_cr4_fp16", steps) == {
        "ratio": "torchrec_tw_fp16",
        "ratio_to_best": "torchrec_cw_fp16",
        "ratio_to_tower": "torchrec_tower_cr4_fp16",
        "ratio_to_vbe": None,
        "ratio_to_without": None,
    }
    ours = opponents("sptt_dedup_fp32", steps)
    assert ours["ratio_to_vbe"] == "torchrec_vbe_fp32" and ours["ratio_to_without"] == "sptt_fp32"
    # Who is given distinct ids is an opponent of its own, and never among the flat ones.
    assert opponents("sptt_fp32", steps | {"torchrec_vbe_fp32": [0.1]})["ratio_to_best"] != "torchrec_vbe_fp32"
    assert opponents("flat_dedup_fp32", {"flat_dedup_fp32": [1.0]})["ratio_to_without"] is None
    assert opponents("sptt_fp32", steps)["ratio_to_tower"] is None
    assert set(opponents("dmt_cr8_int8", {"dmt_cr8_int8": [1.0]}).values()) == {None}


def test_one_measured_less_often_has_ratios_of_the_repeats_it_was_in() -> None:
    others = ranks()
    for rank in others:
        rank["flat_fp32"].seconds = [0.5, 0.25]
        rank["flat_fp32"].cpu_seconds = [0.05, 0.05]
    rows = rows_of(Setting(repeats=3), others)
    assert rows["flat_fp32"]["ratios"] == [2.0, 4.0] and len(rows["sptt_fp32"]["ratios"]) == 3


def test_a_lane_that_reads_late_counts_nothing_of_what_comes_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lanes of a host, in threads: the other one sends as soon as it may."""
    barrier, sent, read = threading.Barrier(2), [100], {}

    def own_frames() -> Frames:
        time.sleep(0.2 if threading.current_thread().name == "late" else 0)
        return Frames(sent[0], 1)

    def lane() -> None:
        name = threading.current_thread().name
        before = measure._frames_of_all_so_far()
        if name == "early":
            sent[0] += 50
        read[name] = (measure._frames_of_all_so_far() - before).bytes
        if name == "early":
            sent[0] += 7  # the next variant's

    monkeypatch.setattr(measure.dist, "barrier", barrier.wait)
    monkeypatch.setattr(measure, "own_frames", own_frames)
    lanes = [threading.Thread(target=lane, name=name) for name in ("late", "early")]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join(10)
    assert read == {"late": 50, "early": 50}


def test_without_the_base_there_is_no_ratio() -> None:
    rows = rows_of(Setting(repeats=3), [{"sptt_fp32": rank["sptt_fp32"]} for rank in ranks()])
    assert rows["sptt_fp32"]["ratio"] is None and "-" in table(rows)


def test_variants_that_train_otherwise_are_refused() -> None:
    assert differing(ranks()) == []
    other = ranks()
    other[2]["sptt_fp32"] = found([1.0] * 3, 2, losses=(0.7, 0.6, 0.50001))
    (text,) = differing(other)
    assert "sptt_fp32: losses of rank 2 differ from those of flat_fp32 by 2.00e-05" in text
    for step, refused in ((1, True), (3, False)):  # later steps also carry what rounding made of the tables
        other = ranks()
        other[2]["flat_fp32"].losses[:] = [0.7, 0.6, 0.5, 0.4]
        other[2]["sptt_fp32"].losses[:] = [0.7, 0.6, 0.5, 0.4]
        other[2]["sptt_fp32"].losses[step] *= 1 + 5e-6
        assert bool(differing(other)) == refused
    other[2]["sptt_fp32"].losses[3] *= 1 + 1e-5
    assert "by 1.50e-05 (relative), allowed 1e-05" in differing(other)[0]
    other = ranks()
    other[1]["sptt_fp32"].changes[1] = Change(4.0, 1.02, 640)
    (text,) = differing(other)
    assert "sptt_fp32: table 1 is not trained as in flat_fp32: its change is 1.00e-02" in text
    other[1]["sptt_fp32"].changes[1] = Change(4.0, 1.01, 640)
    assert len(differing(other, 1e-3)) == 1 and differing(other, 1e-2) == []
    other[1]["sptt_fp32"].changes[1] = Change(4.0, 1.03, 640)
    assert len(differing(other, 1e-2)) == 1
    assert (Setting().tables_apart, Setting(ids="kaggle").tables_apart) == (0.0, 3e-5)
    assert Setting(4, 2, ids="kaggle", batch=2048).tables_apart == 0.01
    for change in (Change(4.0, 1.0, 639), Change(4.2, 1.0, 640), Change(float("nan"), 1.0, 640)):
        other[1]["sptt_fp32"].changes[1] = change
        assert len(differing(other)) == 1
    other = ranks()
    del other[3]["sptt_fp32"].changes[3]
    assert "table 3 is not trained as in flat_fp32: its change is inf" in differing(other)[0]
    other = ranks()
    for rank in other:  # nothing trained at all is no agreement
        for own in rank.values():
            own.changes = dict.fromkeys(own.changes, Change(0.0, 0.0, 640))
    assert len(differing(other)) == 2
    other = ranks()
    other[0]["flat_fp32"].losses[1] = float("nan")
    assert any("are not numbers" in line for line in differing(other))


def test_whom_a_variant_is_compared_with() -> None:
    assert references(NAMES) == {BASE: "flat_fp32", "flat_fp32": None, "sptt_fp32": "flat_fp32"}
    alone = references(["dmt_cr4_int8", "torchrec_tower_cr4_fp32", "dmt_cr8_fp32"])
    assert alone == {"dmt_cr4_int8": "torchrec_tower_cr4_fp32", "torchrec_tower_cr4_fp32": None, "dmt_cr8_fp32": None}
    # In a full run nothing goes unchecked, and fp32 is what the others are compared with.
    for name, reference in references(VARIANTS).items():
        assert reference is None or VARIANTS[reference].precision == "fp32"
        assert (reference is None) == (name in {"flat_fp32", *(f"torchrec_tower_cr{r}_fp32" for r in (2, 4, 8))})
    for entry in VARIANTS.values():
        assert entry.without is None or VARIANTS[entry.without].model == entry.model
        assert entry.without is None or VARIANTS[entry.without].precision == entry.precision


def test_profiles_name_what_there_is() -> None:
    assert not set(ABSENT) & set(VARIANTS)
    for profile in PROFILES.values():
        measured = [f"{name}_{one.setting.tag}" for one in profile.runs for name in one.variants]
        assert len(measured) == len(set(measured))
        for one in profile.runs:
            assert set(one.rare) <= set(one.variants) <= set(VARIANTS)
        rows = [bar.path[1] for bar in profile.bars if bar.path[0] == "rows"]
        rows += [bar.twin for bar in profile.bars if bar.twin is not None]
        assert rows and set(rows) <= set(measured)
    runs = PROFILES["full"].runs
    assert [one.setting.tag for one in runs] == ["kaggle_b512", "kaggle_b2048", "uniform_b512"]
    more = [one.setting.tag for one in PROFILES["more"].runs]
    assert more == ["flights_b512", "kaggle_b512_bags10", "kaggle_b512_8x2"]
    assert all(one.setting.repeats >= 7 for one in runs)
    assert PROFILES["full"].absent == ABSENT
    for name in ("dmt_cr{}_fp32", "dmt_cr{}_dedup_fp32", "torchrec_tower_cr{}_fp32"):
        assert {name.format(ratio) for ratio in (2, 4, 8)} <= set(runs[0].variants)
    for precision in ("fp32", "fp16", "int8"):
        plans = [f"torchrec_{plan}_{precision}" for plan in ("tw", "planner_dp_cpu", "planner_dp_cuda")]
        assert {*plans, f"sptt_{precision}", f"sptt_dedup_{precision}"} <= set(runs[0].variants) - set(runs[0].rare)
    assert all(VARIANTS[name].kind == "torchrec" for one in runs for name in one.rare)


def test_options_change_a_profile() -> None:
    def runs(variants: str | None = None, only: str | None = None, **changed: Any) -> list[tuple[str, int]]:
        return [(one.setting.tag, len(one.variants)) for one in _chosen("full", variants, only, changed).runs]

    assert runs(only="kaggle_b2048,uniform_b512") == runs()[1:]
    assert runs("sptt_fp16,sptt_fp32") == [("kaggle_b512", 2), ("kaggle_b2048", 1), ("uniform_b512", 1)]
    assert runs("sptt_fp16") == [("kaggle_b512", 1)]
    assert runs(ids="kaggle", batch=32) == [("kaggle_b32", len(PROFILES["full"].runs[0].variants))]
    assert _chosen("full", None, None, {}).absent == ABSENT and not _chosen("full", "sptt_fp32", None, {}).absent
    assert runs("sptt_fp16", "kaggle_b2048") == [("kaggle_b2048", 1)]  # named for a run that has it not
    with pytest.raises(BadParameter, match="no runs"):
        runs(only="kaggle_b1")
    assert Setting(ids="kaggle").table_lr == 30 and Setting().table_lr == 500
    assert Setting(ids="kaggle").to_dict()["table_lr"] == 30


SMALL = [
    *PROFILES["quick"].runs[0].variants,
    *("torchrec_twrw_fp32", "torchrec_rw_fp32", "torchrec_vbe_fp32", "torchrec_tw_fp16", "dmt_cr4_fp16"),
    *("torchrec_tower_cr4_fp32", "sptt_dedup_fp32", "dmt_cr4_dedup_fp32"),
]
MORE = [
    *("torchrec_planner_dp_cpu_fp32", "torchrec_planner_dp_cuda_fp32", "torchrec_planner_dp_cpu_int8"),
    *("torchrec_tower_cr4_int8", "dmt_cr4_int8"),
]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("ids", "names"),
    [("uniform", SMALL), pytest.param("kaggle", SMALL + MORE, marks=pytest.mark.campaign)],
    ids=["uniform", "kaggle"],
)
def test_small_measurement(_able: None, tmp_path: Path, ids: str, names: list[str]) -> None:
    output = tmp_path / "summary.json"
    options = ["--ids", ids, "--batch", 32, "--width", 32, "--rate", "50mbit", "--repeats", 1]
    done = run_program("benchmarks.step", *options, "--variants", ",".join(names), "--output", output, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]  # 3 where variants train differently
    summary = json.loads(output.read_text())
    assert summary["setting"]["batch"] == 32 and output.with_suffix(".png").stat().st_size > 10_000
    assert list(summary["rows"]) == [f"{name}_{ids}_b32" for name in names] and summary["settings"][0]["batch"] == 32
    rows = {row["variant"]: row for row in summary["rows"].values()}
    assert list(rows) == names and {(row["ids"], row["batch"]) for row in rows.values()} == {(ids, 32)}
    if ids == "kaggle":  # the planner replicates tables here, and ranks agree with each other as losses do with all
        assert rows["torchrec_planner_dp_cpu_fp32"]["nic_bytes_per_host"] < rows[BASE]["nic_bytes_per_host"]
        assert rows["dmt_cr4_int8"]["best"] == "torchrec_planner_dp_cpu_int8"
        assert rows["dmt_cr4_int8"]["ratio_to_tower"] > 0
    for name, row in rows.items():
        ours = VARIANTS[name].kind == "ours" and VARIANTS[name].without is None
        formula = row["nic_bytes_by_formula"]
        # On top of the formula: headers of packets and a barrier.
        assert not ours or formula < row["nic_bytes_per_host"] < 1.05 * formula + 800_000
        assert len(row["step_ms"]) == 1 and row["median_ms"] > 0
    assert rows["dmt_cr4_fp32"]["ratio_to_tower"] > 0 and rows["dmt_cr4_fp16"]["best"] == "torchrec_tw_fp16"
    assert rows["sptt_fp32"]["first_losses"] == pytest.approx(rows[BASE]["first_losses"], rel=1e-5)
    wrong = run_program("benchmarks.step", *options, "--variants", "fast", timeout=60)
    assert wrong.returncode == 2 and "unknown variants" in wrong.stderr
