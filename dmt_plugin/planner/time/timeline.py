"""When each part of a step runs: list scheduling over resources that do one thing at a time.

1. A task is ready when all tasks before it are done.
2. A resource that is free takes the most urgent of its ready tasks; of equally urgent ones the one that was listed
   first.
3. What has started runs to its end, whatever becomes ready in the meantime: so do collectives of one communicator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def schedule(tasks: Sequence[Task]) -> Timeline:
    """Runs tasks as early as the rules of the module allow.

    Args:
        tasks: every task, in the order in which equally urgent ones run.

    Raises:
        ValueError: names that are used twice or are not there, tasks that wait for each other, a time below zero.
    """
    _check(tasks)
    # What takes no time goes first: what waits for it may be ready at the same moment, and more urgent.
    waiting = sorted(tasks, key=lambda task: (task.seconds > 0.0, task.urgency))
    free = dict.fromkeys((task.on for task in tasks), 0.0)
    ends: dict[str, float] = {}
    spans: dict[str, Span] = {}
    now = 0.0

    def ready(task: Task) -> bool:
        return free[task.on] <= now and all(name in ends and ends[name] <= now for name in task.after)

    while waiting:
        task = next(filter(ready, waiting), None)
        if task is not None:
            waiting.remove(task)
            free[task.on] = ends[task.name] = now + task.seconds
            spans[task.name] = (now, ends[task.name])
        elif ahead := [end for end in ends.values() if end > now]:
            now = min(ahead)
        else:
            raise ValueError(f"tasks wait for each other: {sorted(task.name for task in waiting)}")
    return Timeline(spans, {task.name: task.on for task in tasks}, max(ends.values(), default=0.0))


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
