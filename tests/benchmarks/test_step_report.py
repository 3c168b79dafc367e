"""Bars, the page of figures, and pictures of the step benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.step.bars import FULL, QUICK, Bar, as_explained, faster, lean, listed, verdicts
from benchmarks.step.curve import CURVE, VARIANTS
from benchmarks.step.document import BEGIN, END, filled, tables
from benchmarks.step.memory import Peak, memory_rows, memory_table
from benchmarks.step.setting import Setting
from benchmarks.step.summary import rows_of
from tests.benchmarks.step_data import ranks

ROOT = Path(__file__).parents[2]


def summary() -> dict[str, Any]:
    setting = Setting(repeats=3)
    origin = {"command": "python -m benchmarks.step", "date": "2026-01-01", "machine": "a box", "versions": "torch 2"}
    return {
        "setting": {**setting.to_dict(), **origin, "cores": 3},
        "settings": [setting.to_dict()],
        "rows": {f"{name}_uniform_b512": row for name, row in rows_of(setting, ranks()).items()},
        "absent": {"torchrec_rw_int8": "TorchRec cannot"},
        "memory": memory_rows(
            {"flat_fp32": [Peak(600, 1000, 10), Peak(600, 900, 20)], "sptt_fp32": [Peak(600, 1100, 30)]}
        ),
        "bars": [{"holds": False, "text": "faster"}],
    }


def test_bars() -> None:
    bars = [
        faster("sptt_fp32", 4.0),
        faster("sptt_fp32", 4.01, "ratio"),
        as_explained("sptt_fp32"),
        lean("sptt_fp32"),
        faster("dmt_cr4_fp32", 1.0),
        faster("sptt_fp32", 1.0, "ratio_to_tower"),
    ]
    found = verdicts(bars, summary())
    assert [verdict.holds for verdict in found] == [True, False, True, True, False, False]
    text = listed(found).splitlines()
    whom = "TorchRec's best flat variant, same wire precision"
    assert text[0] == f"PASS  sptt_fp32_uniform_b512: times as fast as {whom}: 4.00, at least 4.00"
    assert text[2].endswith("1.0%, at most 3.0%") and text[-2].endswith("not measured, at least 1.00 wanted")
    assert text[-1] == "3 of 6 bars are met"
    either = {"rows": {"a_uniform_b512": {"ratio": 1.0}, "b_uniform_b512": {"ratio": 2.0}}}
    assert faster("a", 2.0, "ratio", twin="b").check(either).text.startswith("b_uniform_b512: times as fast")
    assert not faster("a", 1.0, "ratio", at="kaggle_b512").check(either).holds  # measured with other ids
    assert faster("b", 2.0, "ratio", twin="a").check(either).holds
    assert not faster("c", 2.0, "ratio", twin="b").check(either).holds  # the row that is named has to be measured
    assert not Bar("low", ("a",), most=0.03).check({"a": -0.04}).holds
    assert not Bar("odd", ("a",), least=1.0).check({"a": float("nan")}).holds
    assert all((bar.least is None) != (bar.most is None) for bar in (*FULL, *QUICK))


def test_memory() -> None:
    rows = summary()["memory"]
    assert rows["sptt_fp32"]["over_flat"] == 1.1 and rows["sptt_fp32"]["own_over_flat"] == 500 / 400
    assert rows["flat_fp32"]["tables_mb"] == pytest.approx(20e-6)
    assert "1.10x" in memory_table(rows)


def curve() -> dict[str, Any]:
    rows = rows_of(Setting(repeats=3), ranks())
    names = dict(zip(VARIANTS, [rows["flat_fp32"], *3 * [rows["sptt_fp32"]]], strict=True))
    points = [
        {"family": family, "setting": setting.to_dict(), "rows": names}
        for family, settings in CURVE.items()
        for setting in settings
    ]
    return {"setting": summary()["setting"], "points": points}


def test_page() -> None:
    text = tables(summary(), curve())
    page = filled(f"# Title\n{BEGIN}\nold\n{END}\nafter\n", text)
    assert page.startswith(f"# Title\n{BEGIN}\n### 512 samples per rank, uniform ids")
    assert "2 hosts x 2 ranks, 100mbit per host, on 3 cores; 26 tables of 10,000 rows" in page
    assert page.endswith(f"{END}\nafter\n")
    assert "row-wise" not in text  # none is in this summary
    assert "old" not in page and filled(page, text) == page
    assert "| fp32 | SPTT | 250 (250-250) | 8192 | 4.00x | 4.00x |  |  |  | 2.00 | +1.0 % |" in page
    assert "`torchrec_rw_int8`: TorchRec cannot." in page and "| faster | NO |" in page and "on a box" in page
    for line in text.splitlines():  # as many cells as the head has
        if line.startswith("|"):
            cells = line.count("|")
            assert cells in (3, 7, 9, 15), line
    both = summary()
    large = {"ids": "kaggle", "batch": 2048, "tag": "kaggle_b2048"}
    both["settings"].insert(0, {**both["settings"][0], **large})
    both["rows"]["sptt_fp32_kaggle_b2048"] = {**both["rows"]["sptt_fp32_uniform_b512"], **large}
    first, second = tables(both, None).split("### ")[1:]
    assert first.startswith("2048 samples per rank, ids that repeat") and first.count("| fp32 |") == 1
    assert second.count("| fp32 |") == 3
    assert "1gbit" in tables(summary(), curve()) and "1gbit" not in tables(summary(), None)
    with pytest.raises(ValueError, match="the page has no"):
        filled(f"{END} {BEGIN}", text)
    other = filled(f"{page}<!-- more:begin --><!-- more:end -->\n", "another machine", "more")
    assert other == f"{page}<!-- more:begin -->\nanother machine\n<!-- more:end -->\n"


def test_the_page_has_its_markers() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert page.count(BEGIN) == page.count(END) == 1 and page.index(BEGIN) < page.index(END)


def test_pictures(tmp_path: Path) -> None:
    from benchmarks.step.plots import draw_curve, draw_rows

    draw_rows(summary(), tmp_path / "rows.png")
    draw_curve(curve(), tmp_path / "curve.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("rows.png", "curve.png"))
