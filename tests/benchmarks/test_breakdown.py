"""The parts of a step: what a trace makes of them, what is reported of them, and one small measurement."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.step.breakdown import DEFAULT
from benchmarks.step.breakdown_labels import PREFIX, STEP, Flight
from benchmarks.step.breakdown_measure import RankTraces, Traced, TracedStep
from benchmarks.step.breakdown_page import markdown
from benchmarks.step.breakdown_parts import PARTS, Where
from benchmarks.step.breakdown_picture import draw_bars
from benchmarks.step.breakdown_summary import REST_ALLOWED, middle, rows_of, sentences, table
from benchmarks.step.breakdown_timeline import draw_timeline
from benchmarks.step.breakdown_trace import KNOWN_REST, Span, spans_of, totals
from benchmarks.step.document import filled
from benchmarks.step.setting import Setting
from tests._util.programs import run_program

ROOT = Path(__file__).parents[2]


# -- traces --------------------------------------------------------------------------------


@dataclass
class Event:
    """As the profiler has them, microseconds."""

    name: str
    begin: float
    end: float
    sequence_nr: int = -1
    thread: int = 1
    is_async: bool = False
    time_range: Any = field(init=False)

    def __post_init__(self) -> None:
        self.time_range = SimpleNamespace(start=self.begin, end=self.end)


def label(where: str, begin: float, end: float, **options: Any) -> Event:
    return Event(f"{PREFIX}/{where}", begin, end, **options)


def node(name: str, begin: float, end: float, number: int) -> Event:
    return Event(f"autograd::engine::evaluate_function: {name}", begin, end, number)


def test_every_moment_belongs_to_the_innermost_that_says_so() -> None:
    marks = [(3, Where("lookup", "lookup")), (5, Where("dense", "forward")), (9, Where("rest", "engine forward"))]
    events = [
        label(STEP, 1000, 2000),
        label("rest/engine forward", 1010, 1400),
        label("lookup/lookup", 1020, 1100),
        Event("aten::embedding_bag", 1030, 1090),
        label("dense/forward", 1100, 1390),
        label("idle/peer", 1200, 1300),
        label("dense/forward", 1210, 1290, thread=2),  # another thread's
        Event("gloo:all_to_all", 1150, 1350, is_async=True),
        Event("aten::binary_cross_entropy", 1410, 1440),
        label("rest/engine backward", 1450, 1900),
        node("BinaryCrossEntropyBackward0", 1460, 1480, 10),
        node("AddmmBackward0", 1500, 1600, 6),
        Event("aten::mm", 1510, 1590),
        node("torch::autograd::AccumulateGrad", 1605, 1625, -1),
        label("all-reduce/all_reduce", 1610, 1620),
        node("EmbeddingBackward0", 1650, 1850, 3),
        node("OlderBackward0", 1860, 1870, 1),
        label("rest/engine step", 1910, 1990),
        label("optimizer/dense", 1920, 1980),
    ]
    (spans,) = spans_of(events, marks)
    assert spans[0].begin == 0 and spans[-1].end == pytest.approx(1e-3)
    assert all(a.end == b.begin for a, b in itertools.pairwise(spans))
    micro = {(f"{w.part}/{w.detail}", phase): round(1e6 * s) for (w, phase), s in totals(spans).items()}
    assert micro == {
        ("rest/training loop", "forward"): 10 + 10 + 10,
        ("rest/engine forward", "forward"): 10 + 10,
        ("lookup/lookup", "forward"): 80,
        ("dense/forward", "forward"): 190,
        ("idle/peer", "forward"): 100,
        ("dense/loss", "forward"): 30,
        ("rest/engine backward", "backward"): 10 + 20 + 5 + 25 + 10 + 30,
        ("dense/loss", "backward"): 20,
        ("dense/forward", "backward"): 100 + 5 + 5,
        ("all-reduce/all_reduce", "backward"): 10,
        ("lookup/lookup", "backward"): 200,
        ("rest/OlderBackward0", "backward"): 10,
        ("rest/training loop", "backward"): 10,
        ("rest/engine step", "step"): 10 + 10,
        ("optimizer/dense", "step"): 60,
        ("rest/training loop", "step"): 10,
    }


def test_two_steps_in_a_trace() -> None:
    events = [label(STEP, 0, 100), label("tower/module", 0, 40), label(STEP, 200, 300), label("peer/start", 220, 300)]
    first, second = spans_of(events, [])
    assert [(s.where.part, round(1e6 * (s.end - s.begin))) for s in first] == [("tower", 40), ("rest", 60)]
    assert [(s.where.part, round(1e6 * (s.end - s.begin))) for s in second] == [("rest", 20), ("peer", 80)]


# -- summary -------------------------------------------------------------------------------


def traced(seconds: float, busy: float = 0.5, begun: float = 50.0) -> TracedStep:
    """Dense work, a tenth of the step that nobody has named (it posts to its peer in the middle), then blocked."""
    posted, waited = seconds * (busy + 0.05), seconds * (busy + 0.1)
    spans = [
        Span(0.0, seconds * busy, Where("dense", "forward"), "forward"),
        Span(seconds * busy, waited, Where("rest", "training loop"), "forward"),
        Span(waited, seconds, Where("idle", "peer"), "backward"),
    ]
    clocks = (begun + posted, 1_000_000, begun + waited, begun + seconds)
    return TracedStep(begun, spans, [Flight("peers", "backward", "peer", (0, 1), 0, *clocks)], 0.2)


def ranks() -> list[RankTraces]:
    """Two ranks; the second posts 0.25 s after the first has begun to wait."""
    return [RankTraces({"sptt_fp32": Traced([traced(1.0, busy)], [0.9])}) for busy in (0.5, 0.8)]


def test_parts_add_up_and_late_ranks_show() -> None:
    row = rows_of(ranks())["sptt_fp32"]
    assert row["step_ms"] == pytest.approx(1000) and row["untraced_step_ms"] == 900
    assert set(row["parts"]) == set(PARTS)
    assert sum(part["ms"] for part in row["parts"].values()) == pytest.approx(row["step_ms"])
    assert sum(part["share"] for part in row["parts"].values()) == pytest.approx(1)
    assert row["parts"]["dense"]["ms"] == pytest.approx(650)
    assert row["idle"]["peer"] == pytest.approx({"ms": 250, "late_ms": 125, "backward": 250})
    assert row["exchanges"]["peer"] == pytest.approx({"posted_to_collected_ms": 300, "blocked_ms": 250})
    assert row["rest"] == pytest.approx({"training loop": 100})
    text = table({"sptt_fp32": row})
    assert [line.split()[0] for line in text.splitlines()] == [
        "ms", "dense", "idle", "for", "(for", "rest", "step", "without", "main",
    ]  # fmt: skip
    (first, second, work, third, last) = sentences({"sptt_fp32": row}, crowd=2)
    assert "do not quote" not in sentences({"sptt_fp32": row}, crowd=2.6)[2]
    assert "750.0 ms on the clock, 200.0 ms" in work and work.endswith("do not quote this.")
    assert "250.0 of 1000.0 ms blocked (25%): peer 250.0 ms" in first and "125.0 ms of that until" in second
    assert "peer 300.0 (250.0)" in third
    assert last.endswith("More than 5% of the step.")  # a tenth is rest
    row["rest"]["StrangeBackward0"] = 1.0
    assert sentences({"sptt_fp32": row}, crowd=1)[-1].endswith("Not known: StrangeBackward0.")
    json.dumps(row)


def test_the_page_gets_its_table() -> None:
    page = (ROOT / "docs" / "breakdown.md").read_text()
    new = filled(page, markdown({"command": "x", "date": "y", "machine": "z", **Setting().to_dict()}, rows_of(ranks())))
    assert "| for peer | 250.0 (25 %) |" in new and "`x`, y, on z" in new
    assert filled(new, "") == filled(page, "")


def test_the_middle_half() -> None:
    steps = [traced(seconds) for seconds in (9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)]
    assert [step.seconds for step in middle(steps)] == [3.0, 4.0, 5.0, 6.0]
    assert [step.seconds for step in middle(steps[:3])] == [1.0, 2.0, 9.0]


def test_pictures(tmp_path: Path) -> None:
    found = ranks()
    draw_bars(tmp_path / "bars.svg", rows_of(found), "two ranks")
    draw_timeline(tmp_path / "time.svg", found[0].variants, [], "100mbit", "rank 0")
    for name in ("bars", "time"):
        assert (tmp_path / f"{name}.svg").read_text().lstrip().startswith("<?xml")


# -- all of it -----------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize(
    "names", [("sptt_fp32", "dmt_cr4_fp32"), pytest.param(DEFAULT, marks=pytest.mark.campaign)], ids=["two", "all"]
)
def test_small_measurement(_able: None, tmp_path: Path, names: tuple[str, ...]) -> None:
    files = {"--timeline": "t.svg", "--output": "b.json", "--picture": "b.png"}
    options = [word for option, name in files.items() for word in (option, tmp_path / name)]
    for _ in range(3):  # what runs beside this only ever adds to the rest
        done = run_program(
            "benchmarks.step.breakdown", "--rate", "50mbit", "--iterations", 1, "--repeats", 2, *options,
            "--variants", ",".join(names), timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        rows = json.loads((tmp_path / "b.json").read_text())["rows"]
        if all(row["parts"]["rest"]["median_ms"] < REST_ALLOWED * row["step_median_ms"] for row in rows.values()):
            break
    assert (tmp_path / "t.svg").exists() and (tmp_path / "b.png").exists()
    assert set(rows) == set(names)
    for row in rows.values():
        parts = {part: own["ms"] for part, own in row["parts"].items()}
        assert sum(parts.values()) == pytest.approx(row["step_ms"], rel=1e-6)
        # The median: a rank that waits for a core waits anywhere.
        assert row["parts"]["rest"]["median_ms"] < REST_ALLOWED * row["step_median_ms"], row["rest"]
        assert sum(own["ms"] for own in row["idle"].values()) == pytest.approx(parts["idle"], rel=1e-6)
        assert all(parts[part] > 0 for part in ("index", "lookup", "dense", "all-reduce", "idle"))
        # Autograd nodes that no part of the forward pass has made would show here by name.
        assert set(row["rest"]) <= KNOWN_REST
    if "flat_fp32" in names:
        assert rows["flat_fp32"]["parts"]["global"]["ms"] > 0 and rows["flat_fp32"]["parts"]["intra"]["ms"] == 0
    assert rows["sptt_fp32"]["parts"]["tower"]["ms"] == 0 and rows["dmt_cr4_fp32"]["parts"]["tower"]["ms"] > 0
    # CR 4 sends a quarter: the main thread cannot be blocked for longer than at CR 1.
    assert rows["dmt_cr4_fp32"]["idle"]["peer"]["ms"] < rows["sptt_fp32"]["idle"]["peer"]["ms"]


def test_unknown_variants_are_refused() -> None:
    done = run_program("benchmarks.step.breakdown", "--variants", "torchrec_tw_fp32,fast")
    assert done.returncode == 2 and "no variants of this project" in " ".join(done.stderr.split())
