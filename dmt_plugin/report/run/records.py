"""The records of a run, read back: one file of JSON lines per rank (``dmt.report.dir``).

1. Every file begins with a header that says which run, rank and host it is of; a run that was started again in the same
   folder goes on in the same file, with a header of its own.
2. A process that was killed may leave half a line: at the end of a file, or before the next header. It is left out, and
   said. Any other line that cannot be read is an error.
3. The last start says which run it is. Records of earlier starts count up to where it went on from (its first record
   begins there), if they had the same topology and plan; others are left out, and said.
4. Ranks without a file, ranks that stopped earlier than others, and ranks with other versions are said.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from dmt_plugin.core.errors import ReportError
from dmt_plugin.core.json_text import parse
from dmt_plugin.core.run_files import FORMAT, record_files, record_path
from dmt_plugin.report.run.checks import check_header, check_record
from dmt_plugin.topology.shape import Topology

_SHOWN = 8
"""Ranks that a note names."""


@dataclass
class Start:
    """One start of a rank's process: its header and its records, by step."""

    header: Mapping[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class RankRun:
    """What one rank wrote.

    Attributes:
        header: of its last start.
        records: in the order of steps.
        warm: the records without the first of each start, which holds the making of the engine; all of them where
            there are no others.
    """

    header: Mapping[str, Any]
    records: list[dict[str, Any]]
    warm: list[dict[str, Any]]


@dataclass
class Run:
    """What all ranks wrote.

    Attributes:
        topology: hosts and ranks per host.
        ranks: by rank; only those that have records.
        notes: what a reader should know: ranks that are missing, lines that were left out.
    """

    topology: Topology
    ranks: dict[int, RankRun]
    notes: list[str]

    @property
    def header(self) -> Mapping[str, Any]:
        """Of the lowest rank."""
        return self.ranks[min(self.ranks)].header


def read_run(folder: str | Path) -> Run:
    """Read the records of all ranks.

    Args:
        folder: the ``dmt.report.dir`` of a run; of a run without a shared file system, all hosts' files together.

    Raises:
        ReportError: there are none, or they cannot be read.
    """
    place = Path(folder)
    files = record_files(place)
    if not files:
        what = "has no run_rank*.jsonl" if place.is_dir() else "is no folder"
        raise ReportError(
            f'{place} {what}: expected the records of a run. Train with "report": {{"dir": "FOLDER"}} in the "dmt" '
            "section, and give that folder."
        )
    notes: list[str] = []
    starts = {rank: _starts_of(file, rank, notes) for rank, file in files.items()}
    last = [found[-1].header for found in starts.values() if found]
    if not last:
        raise ReportError(f"no file in {place} has a header yet: the run has just begun, or was killed at once.")
    newest = max(last, key=lambda header: float(header["at"]))
    ranks = {rank: _joined(found, newest) for rank, found in starts.items()}
    if others := sorted(rank for rank, found in starts.items() if any(not _same(s.header, newest) for s in found)):
        notes.append(f"earlier runs of {say_ranks(others)} in this folder had another topology or plan; left out")
    found = {rank: one for rank, one in ranks.items() if one is not None}
    if not found:
        raise ReportError(f"there are no records in {place} yet: the first comes after {newest['every']} steps.")
    topology = Topology.parse(newest["topology"])
    _check_alike(starts, newest, place)
    notes += _said_of(found, topology)
    return Run(topology, found, notes)


def _starts_of(file: Path, rank: int, notes: list[str]) -> list[Start]:
    starts: list[Start] = []
    for number, entry in _entries(file, notes):
        if "run" in entry:
            _check_header(entry, file, number, rank)
            starts.append(Start(entry))
        elif not starts:
            raise ReportError(f"{file}, line {number}: expected a header; found a line with the keys {sorted(entry)}.")
        else:
            check_record(entry, len(starts[-1].header["towers"]), f"{file}, line {number}")
            starts[-1].records.append(entry)
    return starts


def _entries(file: Path, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise ReportError(f"{file} cannot be read: {error}.") from error
    while lines and not lines[-1]:
        lines.pop()
    torn: tuple[int, str] | None = None
    for number, line in enumerate(lines, 1):
        try:
            entry = parse(line)
        except json.JSONDecodeError as error:
            if torn is not None:
                raise ReportError(f"{file}, line {torn[0]}: not a line of JSON: {torn[1]}") from error
            torn = number, str(error)
            continue
        except ValueError as error:
            raise ReportError(f"{file}, line {number}: {error}.") from error
        if not isinstance(entry, dict):
            raise ReportError(f"{file}, line {number}: expected a JSON object; found {type(entry).__name__}.")
        if torn is not None and "run" not in entry:
            raise ReportError(f"{file}, line {torn[0]}: not a line of JSON: {torn[1]}")
        if torn is not None:
            notes.append(f"{file.name}: line {torn[0]} is half a line, before the run was started again; left out")
            torn = None
        yield number, entry
    if torn is not None:
        notes.append(f"{file.name}: the last line is half a line; left out")


def _check_header(header: Mapping[str, Any], file: Path, number: int, rank: int) -> None:
    if header["run"] != FORMAT:
        raise ReportError(
            f"{file}, line {number}: records of format {header['run']!r}; this version of dmt-plugin reads format "
            f"{FORMAT}. Use the version that wrote them: {_versions(header)}."
        )
    check_header(header, f"{file}, line {number}")
    if header["rank"] != rank:
        raise ReportError(f"{file} has the records of rank {header['rank']}: it was renamed.")


def _check_alike(starts: Mapping[int, list[Start]], newest: Mapping[str, Any], place: Path) -> None:
    """Ranks of one plan have the same towers on the same hosts."""
    for rank, found in starts.items():
        for header in (start.header for start in found if _same(start.header, newest)):
            if other := [key for key in ("towers", "tower_hosts") if header[key] != newest[key]]:
                raise ReportError(
                    f"{record_path(place, rank)} has another {' and '.join(other)} than the other ranks, under the "
                    f"same plan {newest['plan']}: the file was changed."
                )


def _versions(header: Mapping[str, Any]) -> str:
    versions = header.get("versions")
    return ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else "not said"


def _same(header: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(header[key] == other[key] for key in ("topology", "plan"))


def _joined(starts: list[Start], newest: Mapping[str, Any]) -> RankRun | None:
    records: list[dict[str, Any]] = []
    first: list[int] = []
    header = newest
    for start in starts:
        if start.records and _same(start.header, newest):
            header = start.header
            begun = start.records[0]["step"] - start.records[0]["steps"]
            records = [r for r in records if r["step"] <= begun] + start.records
            first.append(id(start.records[0]))
    warm = [r for r in records if id(r) not in first]
    return RankRun(header, records, warm or records) if records else None


def _said_of(ranks: Mapping[int, RankRun], topology: Topology) -> list[str]:
    notes = []
    if missing := topology.world_size - len(ranks):
        first = islice((rank for rank in range(topology.world_size) if rank not in ranks), _SHOWN)
        notes.append(
            f"no records of {say_ranks(first, missing)}, of {topology.world_size}: sums over ranks are without them. "
            "Each host writes into its own folder, unless all share it: put all files into one."
        )
    ends = {rank: one.records[-1]["step"] for rank, one in ranks.items()}
    if behind := sorted(rank for rank, end in ends.items() if end < max(ends.values())):
        notes.append(
            f"{say_ranks(behind)} stopped earlier, at step {min(ends.values())}; others at {max(ends.values())}"
        )
    versions = Counter(_versions(one.header) for one in ranks.values())
    if len(versions) > 1:
        usual = versions.most_common(1)[0][0]
        other = sorted(rank for rank, one in ranks.items() if _versions(one.header) != usual)
        notes.append(f"{say_ranks(other)} had other versions: {_versions(ranks[other[0]].header)}; others: {usual}")
    return notes


def say_ranks(ranks: Iterable[int], count: int | None = None) -> str:
    """``rank 3``, or ``ranks 0, 1, 4``; the first eight of many.

    Args:
        ranks: the ranks; of many, the first eight will do.
        count: how many there are, where these are not all.
    """
    shown = sorted(ranks)
    more = (len(shown) if count is None else count) - _SHOWN
    last = f" and {more} more" if more > 0 else ""
    return f"rank{'s' * (len(shown) > 1)} {', '.join(map(str, shown[:_SHOWN]))}{last}"
