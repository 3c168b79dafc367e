"""When each part of a step runs: list scheduling over resources that do one thing, or a few, at a time.

1. A task is ready when all tasks before it are done.
2. A resource does one task at a time, or as many as it has servers. One that is free takes the most urgent of its ready
   tasks; of equally urgent ones the one that was listed first.
3. What has started runs to its end, whatever becomes ready in the meantime: so do collectives of one communicator.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Span = tuple[float, float]


@dataclass(frozen=True)
class Task:
    """One part of a step.

    Attributes:
        name: unique name.
        on: the resource that does it.
        seconds: how long it takes with the resource for itself.
        after: names of the tasks that have to be done before.
        urgency: the smaller, the more urgent.
    """

    name: str
    on: str
    seconds: float
    after: tuple[str, ...] = ()
    urgency: int = 0


@dataclass(frozen=True)
class Timeline:
    """When each task ran.

    Attributes:
        spans: by task its start and end, in seconds from the start of the step.
        on: by task its resource.
        seconds: end of the last task.
    """

    spans: dict[str, Span]
    on: dict[str, str]
    seconds: float

    def busy(self, resource: str) -> float:
        """Seconds in which a resource works."""
        return sum(end - start for name, (start, end) in self.spans.items() if self.on[name] == resource)

    def exposed(self, tasks: Iterable[str], behind: str) -> float:
        """Seconds in which one of ``tasks`` runs while the resource ``behind`` does nothing."""
        wanted = _union(self.spans[name] for name in tasks if name in self.spans)
        hidden = _union(span for name, span in self.spans.items() if self.on[name] == behind)
        covered = sum(max(0.0, min(end, other) - max(start, first)) for start, end in wanted for first, other in hidden)
        return sum(end - start for start, end in wanted) - covered

    def critical(self, tasks: Sequence[Task]) -> list[str]:
        """The tasks that the end of the last one follows from: each began when the one before it in the list ended.

        Args:
            tasks: that were scheduled.
        """
        before = {task.name: task.after for task in tasks}
        order = list(self.spans)
        place = {name: i for i, name in enumerate(order)}
        chain = [max(order, key=lambda name: self.spans[name][1])] if order else []
        while chain and (start := self.spans[chain[-1]][0]) > 0.0:
            last = chain[-1]
            earlier = [n for n in order[: place[last]] if self.on[n] == self.on[last] or n in before[last]]
            chain.append(next(n for n in reversed(earlier) if self.spans[n][1] == start))
        return chain[::-1]


def schedule(tasks: Sequence[Task], servers: Mapping[str, int] | None = None) -> Timeline:
    """Runs tasks as early as the rules of the module allow.

    Args:
        tasks: every task, in the order in which equally urgent ones run.
        servers: by resource how many tasks it does at a time; 1 where not given.

    Raises:
        ValueError: names that are used twice or are not there, tasks that wait for each other, a time below zero.
    """
    _check(tasks)
    place = {task.name: i for i, task in enumerate(tasks)}
    # A task that is named twice is waited for once.
    waits = [len(set(task.after)) for task in tasks]
    behind: list[list[int]] = [[] for _ in tasks]
    for i, task in enumerate(tasks):
        for name in set(task.after):
            behind[place[name]].append(i)
    free = {task.on: (servers or {}).get(task.on, 1) for task in tasks}
    ready: dict[str, list[tuple[bool, int, int]]] = {on: [] for on in free}
    running: list[tuple[float, int]] = []
    spans: dict[str, Span] = {}
    now = 0.0

    def add(i: int) -> None:
        # What takes no time goes first: what waits for it may be ready at the same moment, and more urgent.
        heapq.heappush(ready[tasks[i].on], (tasks[i].seconds > 0.0, tasks[i].urgency, i))

    def finish(i: int) -> None:
        free[tasks[i].on] += 1
        for other in behind[i]:
            waits[other] -= 1
            if not waits[other]:
                add(other)

    for i, count in enumerate(waits):
        if not count:
            add(i)
    while True:
        if first := min((own[0] for on, own in ready.items() if own and free[on]), default=None):
            task = tasks[first[2]]
            heapq.heappop(ready[task.on])
            free[task.on] -= 1
            end = now + task.seconds
            spans[task.name] = (now, end)
            if end > now:
                heapq.heappush(running, (end, first[2]))
            else:
                finish(first[2])
        elif running:
            now = running[0][0]
            while running and running[0][0] == now:
                finish(heapq.heappop(running)[1])
        else:
            break
    if len(spans) < len(tasks):
        raise ValueError(f"tasks wait for each other: {sorted(t.name for t in tasks if t.name not in spans)}")
    return Timeline(spans, {task.name: task.on for task in tasks}, max((end for _, end in spans.values()), default=0.0))


def _check(tasks: Sequence[Task]) -> None:
    names = {task.name for task in tasks}
    if len(names) != len(tasks):
        raise ValueError(f"tasks of the same name: {sorted(task.name for task in tasks)}")
    for task in tasks:
        if not task.seconds >= 0.0:
            raise ValueError(f"task {task.name} takes {task.seconds} seconds")
        if not names.issuperset(task.after):
            raise ValueError(f"task {task.name} comes after {sorted(set(task.after) - names)}, which are not there")


def _union(spans: Iterable[Span]) -> list[Span]:
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
