"""What a run looks like while it runs: times by step part and exchange, bytes, load of towers, hits of tables.

``observer_of`` gives an ``Observer`` where something would read it (a report folder, a monitor, the comms logger), else
None, and then nothing here runs. With one:

1. exchanges are noted by the transport (``dmt_plugin.comm.wire.measured``), the parts of a step by wrapping the
   engine's own ``forward``, ``backward``, ``allreduce_gradients`` inside it, and ``step``; ids by a hook on the lookup
   (their number is the length of a tensor);
2. at the end of a step what has passed on the device is added up; what has not, waits for a later step: nothing is
   synchronised;
3. every ``dmt.report.every`` steps a record is made of the sums, written as one line of JSON to this rank's file, and
   passed to ``engine.monitor``;
4. what a monitor shows of *all* ranks (load of towers, hits of tables, the slowest rank) travels over a gloo group of
   its own, started at one record and read at the next, so that no rank waits for it.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dmt_plugin.comm.wire.measured import MeasuredTransport, Trip, clock_of
from dmt_plugin.comm.wire.transport import Traffic, Transport
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.run_files import record_path
from dmt_plugin.integrations.deepspeed import private
from dmt_plugin.integrations.deepspeed.run_header import header_of
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.topology.groups import RankGroups
from dmt_plugin.topology.lost_ranks import reporting

logger = logging.getLogger(__name__)

BETWEEN, FORWARD, BACKWARD, REDUCE, STEP = PARTS = ("between", "forward", "backward", "reduce", "step")
_AHEAD = " (ahead)"


def observer_of(config: DMTConfig, settings: DeepSpeedSettings, groups: RankGroups) -> Observer | None:
    """An observer for this run, or None where nothing reads what it would say; the same answer on every rank."""
    if config.report.every == 0 or not (config.report.dir or settings.monitored or settings.logs_collectives):
        return None
    return Observer(config, groups, settings)


@dataclass
class _Step:
    """What was noted in one step and is not added up yet."""

    parts: list[tuple[str, Any, Any]] = field(default_factory=list)
    trips: list[Trip] = field(default_factory=list)
    last: Any = None


@dataclass
class _Sums:
    """Sums since the last record."""

    steps: int = 0
    timed: int = 0
    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    trips: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0, 0.0]))
    ids: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Observer:
    """Watches one rank's run; see the module's docstring.

    Args:
        config: The "dmt" section.
        groups: This rank's groups.
        settings: The DeepSpeed configuration: whether a monitor and the comms logger are on.
    """

    def __init__(self, config: DMTConfig, groups: RankGroups, settings: DeepSpeedSettings) -> None:
        self._groups, self._settings = groups, settings
        self._every = config.report.every
        self._logged = settings.logs_collectives
        self._clock = clock_of(groups.device)
        self._path = None if config.report.dir is None else record_path(config.report.dir, groups.rank)
        self._step, self._sums = _Step(), _Sums()
        self._lock = threading.Lock()  # the ids of the next batch travel in a thread of their own
        self._unread: list[_Step] = []
        self._bytes: dict[str, dict[str, dict[str, int]]] = {}
        self._shared = _Shared(groups) if settings.monitored else None
        self._since, self._cpu = time.perf_counter(), time.process_time()
        self._evaluates = False

    def transport(self, groups: RankGroups, traffic: Traffic, ahead: bool = False) -> Transport:
        """A transport whose exchanges are noted; ``ahead``: those of the next batch's ids."""
        note = self._note if ahead else self._note_in_training
        return MeasuredTransport(groups, traffic, self._clock, note, _AHEAD if ahead else "")

    def _note_in_training(self, trip: Trip) -> None:
        if not self._evaluates:
            self._note(trip)

    def _note(self, trip: Trip) -> None:
        with self._lock:
            self._step.trips.append(trip)

    def watch(self, engine: Any) -> None:
        """Begin to watch an engine; its ``dmt`` is there."""
        self._engine, self._plan = engine, engine.dmt.plan
        self._tables = _tables_by_slot(self._plan, engine.dmt.lookup)
        lookup = engine.dmt.lookup
        self._hooks = [
            lookup.register_forward_pre_hook(self._looked_up),
            lookup.distinct.register_forward_pre_hook(self._looked_up_once),
        ]
        for name in (FORWARD, BACKWARD, STEP):
            setattr(engine, name, self._timed(name, getattr(engine, name)))
        engine.allreduce_gradients = self._timed_reduction(engine.allreduce_gradients)
        self._step.last = self._clock.mark()
        if self._path is not None:
            _begin(self._path, header_of(engine, self._settings, self._every))

    def close(self) -> None:
        """Watches the engine no longer; a record that is not complete is not written."""
        for hook in self._hooks:
            hook.remove()
        for name in (FORWARD, BACKWARD, STEP, "allreduce_gradients"):
            vars(self._engine).pop(name, None)
        if self._shared is not None:
            self._shared.close()

    def _looked_up(self, module: Any, arguments: tuple[Any, ...]) -> None:
        del module
        if torch.is_grad_enabled():
            for slot, tables in self._tables.items():
                for table in tables:
                    self._sums.ids[table] += arguments[0].values[slot].numel()

    def _looked_up_once(self, module: Any, arguments: tuple[Any, ...]) -> None:
        del module
        if torch.is_grad_enabled():
            for shard, count in self._engine.dmt.lookup.asked_by_table(arguments[0]).items():
                self._sums.ids[self._plan.shard(shard).table.name] += count

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return self._unwatched(method, *args, **kwargs)
            first = self._clock.mark()
            result = method(*args, **kwargs)
            last = self._clock.mark()
            step = self._step
            step.parts += ((BETWEEN, step.last, first), (name, first, last))
            step.last = last
            if name == STEP and self._engine.was_step_applied():
                self._end_of_step()
            return result

        return call

    def _unwatched(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call that is no part of training: its time, exchanges and bytes are no step's."""
        traffic, begun, cpu = self._engine.dmt.traffic, time.perf_counter(), time.process_time()
        before, self._evaluates = traffic.as_dict(), True
        try:
            return method(*args, **kwargs)
        finally:
            self._evaluates = False
            for name, phases in traffic.as_dict().items():
                for phase, now in phases.items():
                    counted = self._bytes.setdefault(name, {}).setdefault(phase, dict.fromkeys(now, 0))
                    for key, grown in _more(now, before, name, phase).items():
                        counted[key] += grown
            self._since += time.perf_counter() - begun
            self._cpu += time.process_time() - cpu
            self._step.last = self._clock.mark()

    def _timed_reduction(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            first = self._clock.mark()
            result = method(*args, **kwargs)
            self._step.parts.append((REDUCE, first, self._clock.mark()))
            return result

        return call

    def _end_of_step(self) -> None:
        with self._lock:
            done, self._step = self._step, _Step(last=self._step.last)
        self._unread.append(done)
        self._sums.steps += 1
        while self._unread and self._clock.passed(self._unread[0].last):
            self._add(self._unread.pop(0))
        if self._engine.global_steps % self._every == 0:
            self._record()

    def _add(self, step: _Step) -> None:
        sums, seconds = self._sums, self._clock.seconds
        sums.timed += 1
        for name, first, last in step.parts:
            sums.parts[name] += seconds(first, last)
            if name == REDUCE:
                sums.parts[BACKWARD] -= seconds(first, last)
        for trip in step.trips:
            if not self._clock.passed(trip.ended):  # on another stream than the step's
                continue
            total = sums.trips[trip.name, trip.phase]
            flight = seconds(trip.started, trip.ended)
            total[0] += 1
            total[1] += seconds(trip.wanted, trip.ended)
            total[2] += flight
            if self._logged:
                private.log_collective(f"dmt_{trip.name}_{trip.phase}", flight * 1e3, trip.sent)

    def _record(self) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        record = self._as_dict(now - self._since, cpu - self._cpu)
        self._since, self._cpu, self._sums = now, cpu, _Sums()
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        if self._shared is not None:
            events = [(name, value, self._engine.global_samples) for name, value in events_of(record).items()]
            transport = self._engine.dmt.transport
            with reporting(transport, "the figures of all ranks for the monitor", "did not arrive"):
                before = self._shared.exchange(record, self._plan)
            self._engine.monitor.write_events([*events, *before])

    def _as_dict(self, seconds: float, cpu: float) -> dict[str, Any]:
        sums, engine = self._sums, self._engine
        timed = max(sums.timed, 1)
        counted = engine.dmt.traffic.as_dict()
        exchanges = {
            f"{name}/{phase}": {key: n / sums.steps for key, n in _more(now, self._bytes, name, phase).items()}
            for name, phases in counted.items()
            for phase, now in phases.items()
        }
        self._bytes = counted
        for (name, phase), (count, waited, flight) in sums.trips.items():
            entry = exchanges.setdefault(f"{name}/{phase}", {})
            entry |= {"count": count / timed, "waited_s": waited / timed, "in_flight_s": flight / timed}
        towers: dict[str, float] = defaultdict(float)
        for table, ids in sums.ids.items():
            towers[str(_tower_of(self._plan, table))] += ids / sums.steps
        watch = engine.dmt.share_watch
        distinct = {} if watch is None else watch.take()
        return {
            "step": engine.global_steps,
            "samples": engine.global_samples,
            "steps": sums.steps,
            "seconds": seconds / sums.steps,
            "cpu_s": cpu / sums.steps,
            "table_lr": engine.dmt.lookup.lr,
            "parts_s": {name: sums.parts.get(name, 0.0) / timed for name in PARTS},
            "exchanges": exchanges,
            "tower_ids": dict(towers),
            "table_ids": {table: ids / sums.steps for table, ids in sums.ids.items()},
            "distinct": {
                name: {key: n / sums.steps for key, n in vars(found).items()} for name, found in distinct.items()
            },
        }


def events_of(record: Mapping[str, Any]) -> dict[str, float]:
    """What a record says of rank 0 itself, as monitor events: means of one step."""
    events = {"DMT/step/ms": record["seconds"] * 1e3, "DMT/table_lr": record["table_lr"]}
    events |= {f"DMT/step/{name}_ms": s * 1e3 for name, s in record["parts_s"].items()}
    for exchange, entry in record["exchanges"].items():
        name = re.sub(r"\W+", "_", exchange)
        for key, value in entry.items():
            if key.endswith("_s"):
                events[f"DMT/exchange/{name}/{key[:-2]}_ms"] = value * 1e3
            elif key in ("other_hosts", "same_host"):
                events[f"DMT/exchange/{name}/bytes_{key}"] = value
    return events


class _Shared:
    """Figures of all ranks, one record late: a vector of fixed length over a gloo group of its own."""

    def __init__(self, groups: RankGroups) -> None:
        self._world = groups.topology.world_size
        self._limit = timedelta(seconds=groups.timeout_s)
        self._group = dist.new_group(backend="gloo", timeout=self._limit, group_desc="dmt_monitor")
        self._under_way: tuple[dist.Work, torch.Tensor, int] | None = None

    def exchange(self, record: Mapping[str, Any], plan: TowerPlan) -> list[tuple[str, float, int]]:
        """Send this record's figures; give the events of the record before, none at first."""
        towers = [str(i) for i in range(len(plan.towers))]
        tables = [table.name for table in plan.tables]
        own = [record["seconds"], *(record["tower_ids"].get(t, 0.0) for t in towers)]
        own += [record["table_ids"].get(t, 0.0) for t in tables]
        events: list[tuple[str, float, int]] = []
        if self._under_way is not None:
            work, figures, samples = self._under_way
            work.wait(self._limit)
            by_rank = figures.view(self._world, -1)
            seconds, sums = by_rank[:, 0], by_rank.sum(0).tolist()[1:]
            events.append(("DMT/step/slowest_rank_ms", float(seconds.max()) * 1e3, samples))
            events += [(f"DMT/tower/{t}/ids", n, samples) for t, n in zip(towers, sums, strict=False)]
            events += [(f"DMT/table/{t}/ids", n, samples) for t, n in zip(tables, sums[len(towers) :], strict=True)]
        mine = torch.tensor(own, dtype=torch.float64)
        figures = torch.empty(self._world * len(own), dtype=torch.float64)
        work = dist.all_gather_into_tensor(figures, mine, group=self._group, async_op=True)
        assert work is not None
        self._under_way = work, figures, record["samples"]
        return events

    def close(self) -> None:
        """Gives the group back; what is still under way is waited for, and not said."""
        with suppress(RuntimeError, ValueError):  # a rank is gone, or the default group
            if self._under_way is not None:
                self._under_way[0].wait(self._limit)
            dist.destroy_process_group(self._group)


def _tables_by_slot(plan: TowerPlan, lookup: Any) -> dict[int, list[str]]:
    """Tables of this rank that the ids of each slot are for; a part counts as its table, once."""
    by_slot: dict[int, list[str]] = {}
    for site in lookup.sites:
        name = plan.shard(site.table).table.name
        if name not in by_slot.setdefault(site.slot, []):
            by_slot[site.slot].append(name)
    return by_slot


def _tower_of(plan: TowerPlan, table: str) -> int:
    return plan.tower_of(next(feature.name for feature in plan.features if table in feature.tables))


def _more(
    now: Mapping[str, int], before: Mapping[str, Mapping[str, Mapping[str, int]]], name: str, phase: str
) -> dict[str, int]:
    """Bytes counted since ``before``; all of them, if the count was reset meanwhile."""
    then = before.get(name, {}).get(phase, {})
    reset = any(n < then.get(key, 0) for key, n in now.items())
    return {key: n - (0 if reset else then.get(key, 0)) for key, n in now.items()}


def _begin(path: Path, header: Mapping[str, Any]) -> None:
    """Write a header: into a new file, or behind the records of a run that goes on; its last line may be torn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * (bool(before) and not before.endswith(b"\n")) + json.dumps(header) + "\n")
