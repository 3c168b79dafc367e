"""The records of a run, read back: what is read, what is refused, what is summed up, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dmt_plugin.cli import app
from dmt_plugin.core.errors import ReportError
from dmt_plugin.report.run.page import page_of
from dmt_plugin.report.run.records import read_run
from dmt_plugin.report.run.summary import summary_of
from dmt_plugin.report.run.tables import say_slowest
from tests.report.test_html import Checker

EVERY = 10
WAITED = (0.2, 0.1, 0.3, 0.4)
"""Seconds that each rank waits in a step of one second: rank 1 is the one that others wait for."""


def header(rank: int, **other: Any) -> dict[str, Any]:
    return {
        "run": 1, "at": 100.0, "rank": rank, "host": rank // 2, "lane": rank % 2, "topology": "2x2", "plan": "abc",
        "source": "a test", "device": "cpu", "route": "hierarchical", "towers": [["a", "b"], ["c"]],
        "tower_hosts": [0, 1], "every": EVERY, "batch_per_rank": 8, "versions": {"torch": "2"}, **other,
    }  # fmt: skip


def record(rank: int, step: int, seconds: float = 1.0, **other: Any) -> dict[str, Any]:
    peers = {"count": 2.0, "waited_s": WAITED[rank] - 0.05, "in_flight_s": 0.5, "other_hosts": 100.0 * (rank + 1),
             "same_host": 0.0}  # fmt: skip
    return {
        "step": step, "samples": step * 32, "steps": EVERY, "seconds": seconds,
        "parts_s": {"between": 0.1, "forward": 0.4, "backward": 0.3, "reduce": 0.05, "step": 0.1},
        "exchanges": {"peers/forward": peers, "dense/backward": {"other_hosts": 40.0, "same_host": 8.0}},
        "tower_ids": {str(rank // 2): 30.0 if rank < 2 else 10.0}, "table_ids": {f"table.{rank}": 30.0}, **other,
    }  # fmt: skip


def write(folder: Path, rank: int, *entries: Any, end: str = "\n") -> Path:
    file = folder / f"run_rank{rank:05d}.jsonl"
    file.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries) + end)
    return file


def whole(folder: Path, ranks: range = range(4)) -> Path:
    for rank in ranks:
        # The first record holds what warms up.
        write(folder, rank, header(rank), record(rank, 10, 50.0), *(record(rank, step) for step in (20, 30, 40)))
    return folder


# -- reading -------------------------------------------------------------------------------


def test_all_ranks_are_read(tmp_path: Path) -> None:
    run = read_run(whole(tmp_path))
    assert str(run.topology) == "2x2" and sorted(run.ranks) == [0, 1, 2, 3] and not run.notes
    assert [r["step"] for r in run.ranks[3].records] == [10, 20, 30, 40]
    assert [r["step"] for r in run.ranks[3].warm] == [20, 30, 40]


def test_only_one_record_is_better_than_none(tmp_path: Path) -> None:
    write(tmp_path, 0, header(0, topology="1x1", tower_hosts=[0, 0]), record(0, 10, 50.0))
    assert summary_of(read_run(tmp_path))["step_s"] == 50.0


@pytest.mark.parametrize("torn", ['{"step": 50, "sam', '{"step": 50}\n{"ste'])
def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path, torn: str) -> None:
    whole(tmp_path)
    if "\n" in torn:  # half a line in the middle is something else
        write(tmp_path, 1, header(1), torn.split("\n")[1], record(1, 10))
        with pytest.raises(ReportError, match=r"run_rank00001.jsonl, line 2: not a line of JSON"):
            read_run(tmp_path)
        return
    write(tmp_path, 1, header(1), record(1, 10), record(1, 20), torn, end="")
    run = read_run(tmp_path)
    assert [r["step"] for r in run.ranks[1].records] == [10, 20]
    assert run.notes == [
        "run_rank00001.jsonl: the last line is half a line; left out",
        "rank 1 stopped earlier, at step 20; others at 40",
    ]


def test_missing_ranks_are_said(tmp_path: Path) -> None:
    whole(tmp_path, range(2))
    (note,) = read_run(tmp_path).notes
    assert note.startswith("no records of ranks 2, 3, of 4") and "put all files into one" in note
    assert [t["ids"] for t in summary_of(read_run(tmp_path))["towers"]] == [60.0, 0.0]


def test_a_rank_without_a_whole_header_is_missing(tmp_path: Path) -> None:
    whole(tmp_path, range(3))
    write(tmp_path, 3, '{"run": 1, "ra', end="")
    notes = read_run(tmp_path).notes
    assert any("no records of rank 3" in note for note in notes) and any("half a line" in note for note in notes)


def test_a_run_that_was_started_again_goes_on(tmp_path: Path) -> None:
    whole(tmp_path)
    again = [header(0, at=200.0), record(0, 30, 70.0), record(0, 40, 2.0), record(0, 50, 2.0)]
    # It was killed in a line, and went on from a checkpoint of step 20.
    write(tmp_path, 0, header(0), record(0, 10, 50.0), record(0, 20), record(0, 30), '{"step": 4', *again)
    run = read_run(tmp_path)
    assert [(r["step"], r["seconds"]) for r in run.ranks[0].records] == [
        (10, 50.0), (20, 1.0), (30, 70.0), (40, 2.0), (50, 2.0),
    ]  # fmt: skip
    assert [r["step"] for r in run.ranks[0].warm] == [20, 40, 50]
    assert "run_rank00000.jsonl: line 5 is half a line, before the run was started again; left out" in run.notes


def test_an_earlier_run_with_another_topology_is_left_out(tmp_path: Path) -> None:
    whole(tmp_path)
    new = header(0, at=200.0, topology="1x1", tower_hosts=[0, 0])
    write(tmp_path, 0, header(0), record(0, 10), new, record(0, 50), record(0, 60))
    run = read_run(tmp_path)
    assert str(run.topology) == "1x1" and sorted(run.ranks) == [0]
    assert [r["step"] for r in run.ranks[0].records] == [50, 60]
    assert run.notes == ["earlier runs of ranks 0, 1, 2, 3 in this folder had another topology or plan; left out"]


def test_other_versions_of_packages_are_said(tmp_path: Path) -> None:
    whole(tmp_path)
    write(tmp_path, 2, header(2, versions={"torch": "1"}), record(2, 10), *(record(2, step) for step in (20, 30, 40)))
    assert read_run(tmp_path).notes == ["rank 2 had other versions: torch 1; others: torch 2"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([header(0, run=2)], r"line 1: records of format 2; this version of dmt-plugin reads format 1.*torch 2"),
        ([{**header(0), "run": "x"}], "records of format 'x'"),
        ([record(0, 10)], "line 1: expected a header; found"),
        ([{k: v for k, v in header(0).items() if k != "plan"}], r"a header without \['plan'\]"),
        ([header(0), {"step": 3}], r"line 2: a record without \['exchanges', 'parts_s'"),
        ([header(0), "[1]"], "line 2: expected a JSON object; found list"),
        ([header(3)], "has the records of rank 3: it was renamed"),
        ([header(0)], "there are no records in .* yet: the first comes after 10 steps"),
        ([""], "no file in .* has a header yet"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, lines: list[Any], said: str) -> None:
    write(tmp_path, 0, *lines)
    with pytest.raises(ReportError, match=said):
        read_run(tmp_path)


def test_no_records_at_all(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r'has no run_rank.*"report": \{"dir"'):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="is no folder"):
        read_run(tmp_path / "absent")


# -- figures -------------------------------------------------------------------------------


def test_figures_of_a_run(tmp_path: Path) -> None:
    data = summary_of(read_run(whole(tmp_path)))
    assert data["step_s"] == pytest.approx(1.0) and data["samples_per_s"] == pytest.approx(32.0)
    assert data["steps"] == {"first": 11, "last": 40}
    parts = {part["part"]: part["mean"] for part in data["parts"]}
    assert parts["rest"] == pytest.approx(0.05)
    assert sum(parts.values()) == pytest.approx(data["step_s"])
    assert sum(part["share"] for part in data["parts"]) == pytest.approx(1.0)
    exchanges = {e["name"]: e for e in data["exchanges"]}
    peers, dense = exchanges["peers/forward"], exchanges["dense/backward"]
    assert peers["other_hosts"] == {"mean": 250.0, "min": 100.0, "min_rank": 0, "max": 400.0, "max_rank": 3}
    assert (peers["waited_s"]["max_rank"], peers["waited_s"]["min_rank"]) == (3, 1)
    assert peers["hidden"] == pytest.approx(1 - 0.2 / 0.5)
    assert dense["in_flight_s"] is dense["waited_s"] is dense["count"] is dense["hidden"] is None
    assert [rank["busy_s"] for rank in data["ranks"]] == pytest.approx([1 - w for w in WAITED])
    assert say_slowest(data).startswith("The others wait for rank 1 (host 0, lane 1): busy 900.0 ms")
    assert [t["ids"] for t in data["towers"]] == pytest.approx([60.0, 20.0])
    assert [t["to_mean"] for t in data["towers"]] == pytest.approx([1.5, 0.5])
    assert [entry["step"] for entry in data["over_time"]] == [20, 30, 40]
    assert {entry["slowest_rank"] for entry in data["over_time"]} == {1}
    assert data["over_time"][0]["heaviest_tower_to_mean"] == pytest.approx(1.5)
    json.dumps(data)


def test_records_of_different_lengths_are_weighted(tmp_path: Path) -> None:
    lines = [record(0, 10), record(0, 20, 1.0), record(0, 50, 5.0, steps=30)]
    write(tmp_path, 0, header(0, topology="1x1", tower_hosts=[0, 0]), *lines)
    assert summary_of(read_run(tmp_path))["step_s"] == pytest.approx((10 * 1 + 30 * 5) / 40)


# -- the page and the command --------------------------------------------------------------


def test_page_is_well_formed_and_self_contained(tmp_path: Path) -> None:
    whole(tmp_path, range(3))
    text = page_of(summary_of(read_run(tmp_path)), "runs & more").render()
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == [] and len(checker.ids) == len(set(checker.ids))
    assert not checker.tags & {"script", "link", "img", "iframe"}
    assert all(reference.startswith("#") for reference in checker.references)
    assert text.count("<svg") == 6
    for said in ("runs &amp; more", "no records of rank 3", "peers/forward", "sums of gradients", "table.<wbr>2"):
        assert said in text or said.replace("<wbr>", "") in text, said


def test_the_command(tmp_path: Path) -> None:
    whole(tmp_path)
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--html", str(page)])
    assert done.exit_code == 0, done.output
    for said in ("2x2 ranks, steps 11 to 40: 1,000.0 ms", "peers/forward", "wait for rank 1", "optimizer", "wrote"):
        assert said in done.output, done.output
    assert page.read_text().startswith("<!DOCTYPE html>")
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--json"])
    assert json.loads(done.output)["topology"] == "2x2"
    done = CliRunner().invoke(app, ["report", str(tmp_path / "absent")])
    assert isinstance(done.exception, ReportError)


# -- records that no run has written -----------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"at": "now"}, r'line 1: \["at"\]: found "now"'),
        ({"at": float("inf")}, r'\["at"\]: found Infinity'),
        ({"every": -1}, r'\["every"\]: found -1'),
        ({"topology": "two"}, r'\["topology"\]: a topology is written'),
        ({"topology": "1x1"}, r'\["tower_hosts"\]\[1\]: found 1'),
        ({"host": 1}, "rank 0 is not lane 0 of host 1 in a topology of 2x2"),
        ({"towers": "ab"}, r'\["towers"\]: found "ab", expected a list'),
        ({"towers": [["a"], [3]]}, r'\["towers"\]\[1\]\[0\]: found 3'),
        ({"tower_hosts": [0]}, r'\["tower_hosts"\]: found \[0\], expected the host of each of the towers'),
        ({"versions": {"torch": 2}}, r'\["versions"\]\["torch"\]: found 2'),
        ({"device": 3}, r'\["device"\]: found 3'),
    ],
)
def test_headers_that_no_run_has_written_are_refused(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    write(tmp_path, 0, header(0, **entry), record(0, 10))
    with pytest.raises(ReportError, match=said):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"step": 0}, r'line 2: \["step"\]: found 0'),
        ({"steps": 0}, r'\["steps"\]: found 0'),
        ({"seconds": "1"}, r'\["seconds"\]: found "1"'),
        ({"seconds": float("nan")}, r'\["seconds"\]: found NaN'),
        ({"seconds": -1}, r'\["seconds"\]: found -1'),
        ({"parts_s": {"forward": None}}, r'\["parts_s"\]\["forward"\]: found null'),
        ({"exchanges": {"peers": 3}}, r'\["exchanges"\]\["peers"\]: found 3, expected an object'),
        ({"exchanges": {"peers": {"waited_s": []}}}, r'\["waited_s"\]: found \[\]'),
        ({"tower_ids": {"2": 1.0}}, r"found the tower\(s\) \['2'\], expected numbers below 2"),
        ({"table_ids": {"t": 1e300}}, r'\["table_ids"\]\["t"\]: found 1e\+300'),
        ({"distinct": {"g": {"ids": "many"}}}, r'\["distinct"\]\["g"\]\["ids"\]: found "many"'),
    ],
)
def test_records_that_no_run_has_written_are_refused(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    write(tmp_path, 0, header(0), record(0, 10) | entry)
    with pytest.raises(ReportError, match=said):
        read_run(tmp_path)


def test_lines_that_are_no_data_are_refused(tmp_path: Path) -> None:
    for line, said in (("[" * 5000 + "]" * 5000, "nested over 100"), ('{"run": 1, "run": 1}', "given twice")):
        write(tmp_path, 0, line)
        with pytest.raises(ReportError, match=f"line 1: .*{said}"):
            read_run(tmp_path)
    (tmp_path / "run_rank00000.jsonl").unlink()
    (tmp_path / "run_rank00000.jsonl").mkdir()
    with pytest.raises(ReportError, match="cannot be read"):
        read_run(tmp_path)


def test_ranks_of_one_plan_have_the_same_towers(tmp_path: Path) -> None:
    whole(tmp_path)
    write(tmp_path, 1, header(1, towers=[["a"], ["b"], ["c"]], tower_hosts=[0, 1, 1]), record(1, 10))
    with pytest.raises(ReportError, match=r"has another towers and tower_hosts than the other ranks"):
        read_run(tmp_path)


def test_many_missing_ranks_are_counted_not_listed(tmp_path: Path) -> None:
    write(tmp_path, 0, header(0, topology="60000x60000"), record(0, 10))
    (note,) = read_run(tmp_path).notes
    assert note.startswith("no records of ranks 1, 2, 3, 4, 5, 6, 7, 8 and 3599999991 more, of 3600000000")
