"""Cases of a run's records: the files that ``dmt report`` reads.

1. Records of a made-up run on one to eight ranks, some without the last half of a line or without a rank's file, and
   with names that would be a script in a page: they must be read as they were written, summed up in finite numbers, and
   some shown in a page without a script.
2. A line of them that no run has written must be refused.
3. One entry with an odd value, gone, twice or swapped; text that is cut or has a bit flipped: read, or refused.
"""

from __future__ import annotations

import json
import math
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from benchmarks.faults import odd
from benchmarks.faults.judge import Outcome, attempt, expect, settled
from dmt_plugin.core.errors import ReportError
from dmt_plugin.core.run_files import record_path
from dmt_plugin.report.run.page import page_of
from dmt_plugin.report.run.records import Run, read_run
from dmt_plugin.report.run.summary import summary_of
from dmt_plugin.topology.shape import Topology

Draw = random.Random
Lines = list[dict[str, Any]]
NAMES = ("users", "items.0", '<script>alert("x")</script>', "a&b", "\"><img src=x onerror='x'>", "größe", "%s {0}")
PARTS = ("between", "forward", "backward", "reduce", "step")
EXCHANGES = ("peers/forward", "peers/backward", "lanes/forward", "dense/backward")


def run(draw: Draw, room: Path, shared: Path) -> Outcome:
    """One case."""
    topology = Topology(draw.choice([1, 2, 4]), draw.choice([1, 2]))
    lines = {rank: made(random.Random(f"{draw.random()}"), topology, rank) for rank in range(topology.world_size)}
    which = draw.random()
    must: Any = "taken"
    what, torn = "right", -1
    if which < 0.5:
        if which < 0.1 and len(lines) > 1:
            what = "right, without a rank"
            del lines[draw.choice(sorted(lines))]
        elif which < 0.25:
            what, torn = "right, with half a line", draw.choice(sorted(lines))
    elif which < 0.7:
        must, what = "refused", _spoilt(draw, lines)
    elif which < 0.9:
        must, what = "either", "odd entry"
        one = lines[draw.choice(sorted(lines))]
        odd.change_one(draw, one, list(odd.ways(one)))
    for rank, own in lines.items():
        text = "".join(json.dumps(line) + "\n" for line in own)
        if rank == torn:
            text += json.dumps(own[-1])[: draw.randrange(1, 60)]
        record_path(room, rank).write_text(text)
    if which >= 0.9:
        must, what = "either", _text(draw, record_path(room, draw.choice(sorted(lines))))
    found, error = attempt(lambda: read_run(room), ReportError)
    if found is not None:
        _check_figures(found, page=draw.random() < 0.15)
        if must == "taken":
            for rank, own in lines.items():
                expect(found.ranks[rank].records == own[1:], f"rank {rank}: other records than were written")
            expect(str(found.topology) == str(topology), "another topology", found.topology)
            expect(
                bool(found.notes) == (what != "right"), "what is missing is not said, or something else", found.notes
            )
    return settled(must, what, error)


def made(draw: Draw, topology: Topology, rank: int) -> Lines:
    """Lines of one rank: a header, and records."""
    header = {
        "run": 1, "at": 1.7e9, "rank": rank, "host": topology.host_of(rank), "lane": topology.lane_of(rank),
        "topology": str(topology), "plan": "abc", "source": NAMES[2], "device": "cpu", "route": "hierarchical",
        "towers": [[name] for name in NAMES[: topology.hosts]], "tower_hosts": list(range(topology.hosts)),
        "every": 10, "batch_per_rank": 8, "versions": {"torch": "2"},
    }  # fmt: skip
    return [header, *(_record(draw, topology, rank, step) for step in (10, 20, 30))]


def _record(draw: Draw, topology: Topology, rank: int, step: int) -> dict[str, Any]:
    exchanges = {
        name: {
            "count": 2.0, "waited_s": draw.random(), "in_flight_s": 1 + draw.random(),
            "other_hosts": draw.choice([0.0, 1e9 * draw.random()]), "same_host": draw.random(),
        }
        for name in draw.sample(EXCHANGES, 3)
    }  # fmt: skip
    return {
        "step": step, "samples": step * 8, "steps": 10, "seconds": 10 * draw.random() + 0.1,
        "parts_s": {name: draw.random() for name in PARTS}, "exchanges": exchanges,
        "tower_ids": {str(topology.host_of(rank)): 100 * draw.random()},
        "table_ids": {name: 30 * draw.random() for name in draw.sample(NAMES, 3)},
    }  # fmt: skip


HEADER: list[tuple[str, Any]] = [
    ("run", 2), ("at", "now"), ("at", math.inf), ("every", -1), ("topology", "two"), ("topology", "0x1"),
    ("rank", 99), ("rank", "0"), ("host", 9), ("lane", -1), ("towers", "ab"), ("towers", []), ("towers", [[3]]),
    ("tower_hosts", []), ("tower_hosts", [99]), ("versions", {"torch": 2}), ("device", 3), ("plan", None),
]  # fmt: skip
RECORD: list[tuple[str, Any]] = [
    ("step", 0), ("step", 1.5), ("steps", 0), ("samples", -1), ("seconds", "1"), ("seconds", math.nan),
    ("seconds", -1), ("parts_s", {"forward": None}), ("parts_s", []), ("exchanges", {"peers": 3}),
    ("exchanges", {"peers": {"waited_s": []}}), ("tower_ids", {"99": 1.0}), ("tower_ids", {"a": 1.0}),
    ("table_ids", {"t": 1e300}), ("distinct", {"g": {"ids": "many"}}), ("cpu_s", -1),
]  # fmt: skip


def _spoilt(draw: Draw, lines: dict[int, Lines]) -> str:
    rank = draw.choice(sorted(lines))
    how = draw.choice(["header", "header", "record", "record", "no header", "no key", "no object"])
    if how == "no header":
        del lines[rank][0]
    elif how == "no key":
        line = draw.choice(lines[rank])
        needed = {"rank", "host", "lane", "at", "topology", "plan", "every", "towers", "tower_hosts"}
        needed |= {"step", "samples", "steps", "seconds", "parts_s", "exchanges", "tower_ids", "table_ids"}
        del line[draw.choice(sorted(needed & line.keys()))]
    elif how == "no object":
        lines[rank].insert(draw.randrange(1, 4), draw.choice([[], 3, "text", None]))
    else:
        key, value = draw.choice(HEADER if how == "header" else RECORD)
        line = lines[rank][0] if how == "header" else draw.choice(lines[rank][1:])
        line[key] = value
    return f"wrong: {how}"


def _text(draw: Draw, file: Path) -> str:
    data = bytearray(file.read_bytes())
    place, how = draw.randrange(len(data)), draw.choice(["cut", "bit", "line twice"])
    if how == "cut":
        del data[place:]
    elif how == "bit":
        data[place] ^= 1 << draw.randrange(8)
    else:
        line = draw.choice(data.splitlines(keepends=True))
        data += line
    file.write_bytes(data)
    return f"text: {how}"


class _Tags(HTMLParser):
    """Tags of a page, and attributes that would run something."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Notes what runs, or loads something."""
        if tag in ("script", "img", "iframe", "link", "object", "embed"):
            self.bad.append(tag)
        self.bad += [name for name, value in attributes if name.startswith("on") or "script" in (value or "")[:20]]


def _check_figures(found: Run, page: bool) -> None:
    data = summary_of(found)
    text = json.dumps(data)
    expect("NaN" not in text and "Infinity" not in text, "figures that are not finite", text[:300])
    if not page:
        return
    tags = _Tags()
    tags.feed(page_of(data, '<script src="x">').render())
    expect(tags.bad == [], "a page with what runs or loads something", tags.bad)
