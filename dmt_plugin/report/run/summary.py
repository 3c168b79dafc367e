"""What the records of a run say, as plain data: the terminal, the page and ``--json`` show this and nothing else.

1. Figures are means of one optimizer step, weighted by the steps of a record. The first record after each start is
   left out where there are others: it holds the making of the engine and what warms up.
2. ``parts``, ``exchanges`` and ``ranks`` compare the ranks. In a step all wait for the slowest: it is the one that
   waits least, for exchanges and in the sums of gradients, not the one whose step takes longest.
3. ``towers`` and ``tables`` are sums over ranks: ids are counted where their rows are looked up; ``distinct`` are means
   over ranks.
4. ``over_time`` has one entry for each step at which all ranks wrote a record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from dmt_plugin.report.run.records import RankRun, Run

PARTS = {
    "between": "between calls (loader, loss)",
    "forward": "forward",
    "backward": "backward",
    "reduce": "sums of gradients",
    "step": "optimizer step",
    "rest": "not in a part",
}
"""Parts of a step, by their key in the records."""

Record = Mapping[str, Any]


def summary_of(run: Run) -> dict[str, Any]:
    """Sums up a run.

    Returns:
        ``topology``, ``plan``, ``route``, ``device``, ``source``, ``versions``, ``steps`` (first and last), ``starts``,
        ``step_s``, ``samples_per_s``, ``notes``, and the lists that the module's docstring names. Times are seconds,
        sizes bytes, all per step.
    """
    header, last = run.header, max((one.records[-1] for one in run.ranks.values()), key=lambda r: r["step"])
    ranks = [_rank(rank, one) for rank, one in sorted(run.ranks.items())]
    step = _mean(r["step_s"] for r in ranks)
    lowest = run.ranks[min(run.ranks)]
    first, end = lowest.warm[0], lowest.warm[-1]
    samples = (end["samples"] - first["samples"]) / max(end["step"] - first["step"], 1)
    samples = samples or end["samples"] / end["step"]
    return {
        "topology": str(run.topology),
        "ranks_with_records": len(run.ranks),
        "plan": header["plan"],
        "route": header.get("route"),
        "device": header.get("device"),
        "source": header.get("source"),
        "versions": dict(header.get("versions", {})),
        "every": header["every"],
        "steps": {"first": first["step"] - first["steps"] + 1, "last": last["step"]},
        "step_s": step,
        "samples_per_s": samples / step if step else None,
        "notes": list(run.notes),
        "parts": _parts(run),
        "exchanges": _exchanges(run),
        "ranks": ranks,
        "towers": _towers(run),
        "tables": _tables(run),
        "distinct": _distinct(run),
        "over_time": _over_time(run),
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _per_step(records: Sequence[Record], value: Callable[[Record], float]) -> float:
    """Mean of one step, over records of different numbers of steps."""
    steps = sum(r["steps"] for r in records)
    return sum(value(r) * r["steps"] for r in records) / steps if steps else 0.0


def _over_ranks(run: Run, value: Callable[[Record], float]) -> dict[int, float]:
    return {rank: _per_step(one.warm, value) for rank, one in sorted(run.ranks.items())}


def _spread(by_rank: Mapping[int, float]) -> dict[str, Any]:
    lowest = min(by_rank, key=lambda rank: by_rank[rank])
    highest = max(by_rank, key=lambda rank: by_rank[rank])
    return {
        "mean": _mean(by_rank.values()),
        "min": by_rank[lowest],
        "min_rank": lowest,
        "max": by_rank[highest],
        "max_rank": highest,
    }


def _part(record: Record, name: str) -> float:
    if name == "rest":
        return max(float(record["seconds"]) - sum(record["parts_s"].values()), 0.0)
    return float(record["parts_s"].get(name, 0.0))


def _parts(run: Run) -> list[dict[str, Any]]:
    found = [
        {"part": name, "words": words, **_spread(_over_ranks(run, partial(_part, name=name)))}
        for name, words in PARTS.items()
    ]
    whole = sum(part["mean"] for part in found)
    return [{**part, "share": part["mean"] / whole if whole else 0.0} for part in found]


def _exchanges(run: Run) -> list[dict[str, Any]]:
    names = sorted({name for one in run.ranks.values() for record in one.warm for name in record["exchanges"]})
    found = []
    for name in names:

        def of(key: str, name: str = name) -> dict[str, Any]:
            return _spread(_over_ranks(run, lambda record: float(record["exchanges"].get(name, {}).get(key, 0.0))))

        timed = any("in_flight_s" in r["exchanges"].get(name, {}) for one in run.ranks.values() for r in one.warm)
        waited, flight = of("waited_s"), of("in_flight_s")
        found.append(
            {
                "name": name,
                "count": of("count")["mean"] if timed else None,
                "other_hosts": of("other_hosts"),
                "same_host": of("same_host"),
                "waited_s": waited if timed else None,
                "in_flight_s": flight if timed else None,
                "hidden": 1 - waited["mean"] / flight["mean"] if timed and flight["mean"] else None,
            }
        )
    return found


def _waited(record: Record) -> float:
    waited = sum(entry.get("waited_s", 0.0) for entry in record["exchanges"].values())
    return float(waited + record["parts_s"].get("reduce", 0.0))


def _rank(rank: int, one: RankRun) -> dict[str, Any]:
    seconds = _per_step(one.warm, lambda r: r["seconds"])
    waited = _per_step(one.warm, _waited)

    def sent(key: str) -> float:
        return _per_step(one.warm, lambda r: sum(entry.get(key, 0.0) for entry in r["exchanges"].values()))

    return {
        "rank": rank,
        "host": one.header["host"],
        "lane": one.header["lane"],
        "step_s": seconds,
        "waited_s": waited,
        "busy_s": max(seconds - waited, 0.0),
        "ids": _per_step(one.warm, lambda r: sum(r["tower_ids"].values())),
        "other_hosts": sent("other_hosts"),
        "same_host": sent("same_host"),
        "last_step": one.records[-1]["step"],
    }


def _ids(record: Record, kind: str, name: str) -> float:
    return float(record[kind].get(name, 0.0))


def _towers(run: Run) -> list[dict[str, Any]]:
    header = run.header
    names = map(str, range(len(header["towers"])))
    ids = [sum(_over_ranks(run, partial(_ids, kind="tower_ids", name=name)).values()) for name in names]
    mean = _mean(ids)
    return [
        {
            "tower": t,
            "host": header["tower_hosts"][t],
            "features": len(header["towers"][t]),
            "ids": ids[t],
            "to_mean": ids[t] / mean if mean else None,
        }
        for t in range(len(ids))
    ]


def _tables(run: Run) -> list[dict[str, Any]]:
    names = sorted({name for one in run.ranks.values() for record in one.warm for name in record["table_ids"]})
    found = []
    for name in names:
        by_rank = _over_ranks(run, partial(_ids, kind="table_ids", name=name))
        ranks = [rank for rank, ids in by_rank.items() if ids]
        found.append({"table": name, "ids": sum(by_rank.values()), "ranks": ranks})
    whole = sum(float(entry["ids"]) for entry in found)
    found.sort(key=lambda entry: (-float(entry["ids"]), str(entry["table"])))
    return [{**entry, "share": float(entry["ids"]) / whole if whole else 0.0} for entry in found]


def _distinct(run: Run) -> list[dict[str, Any]]:
    """Of the groups of tables whose rows travel once, distinct rows per id: of a rank's batch, and of a host's."""
    names = sorted({name for one in run.ranks.values() for record in one.warm for name in record.get("distinct", {})})
    found = []
    for name in names:

        def of(key: str, name: str = name) -> float:
            return sum(_over_ranks(run, lambda record: record.get("distinct", {}).get(name, {}).get(key, 0.0)).values())

        ids = of("ids")
        found.append({"group": name, "ids": ids, "rank": of("rank") / (ids or 1), "host": of("asked") / (ids or 1)})
    return found


def _over_time(run: Run) -> list[dict[str, Any]]:
    by_step = {rank: {record["step"]: record for record in one.warm} for rank, one in run.ranks.items()}
    shared = set.intersection(*(set(records) for records in by_step.values()))
    found = []
    for step in sorted(shared):
        records = {rank: by_step[rank][step] for rank in sorted(by_step)}
        busy = {rank: max(float(r["seconds"]) - _waited(r), 0.0) for rank, r in records.items()}
        slowest = max(busy, key=lambda rank: busy[rank])
        towers: dict[str, float] = dict.fromkeys(map(str, range(len(run.header["towers"]))), 0.0)
        for record in records.values():
            for tower, ids in record["tower_ids"].items():
                towers[tower] += ids
        mean_busy, mean_ids = _mean(busy.values()), _mean(towers.values())
        found.append(
            {
                "step": step,
                "step_s": _mean(r["seconds"] for r in records.values()),
                "parts_s": {name: _mean(_part(r, name) for r in records.values()) for name in PARTS},
                "waited_s": _mean(map(_waited, records.values())),
                "other_hosts": sum(
                    e.get("other_hosts", 0.0) for r in records.values() for e in r["exchanges"].values()
                ),
                "slowest_rank": slowest,
                "slowest_to_mean": busy[slowest] / mean_busy if mean_busy else None,
                "heaviest_tower_to_mean": max(towers.values()) / mean_ids if mean_ids else None,
            }
        )
    return found
