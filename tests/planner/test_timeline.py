"""List scheduling: nothing runs twice at once or before what it waits for, and nothing waits without a reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_plugin.planner.time.timeline import Task, schedule

ON = ("compute", "lanes", "nic")


@st.composite
def task_lists(draw: Any) -> list[Task]:
    tasks: list[Task] = []
    for i in range(draw(st.integers(0, 9))):
        before = [task.name for task in tasks if draw(st.integers(0, 3)) == 0]
        seconds = draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]))
        tasks.append(Task(f"t{i}", draw(st.sampled_from(ON)), seconds, tuple(before), draw(st.integers(0, 2))))
    return draw(st.permutations(tasks))


@settings(deadline=None, max_examples=150)
@given(task_lists())
def test_laws_of_a_schedule(tasks: list[Task]) -> None:
    found = schedule(tasks)
    assert found.spans.keys() == {task.name for task in tasks}
    for task in tasks:
        start, end = found.spans[task.name]
        assert end - start == task.seconds and all(found.spans[name][1] <= start for name in task.after)
        others = [t for t in tasks if t.on == task.on and t is not task and t.seconds and task.seconds]
        assert all(found.spans[t.name][1] <= start or end <= found.spans[t.name][0] for t in others)
        # It begins when the last of what it waits for is done, or when its resource is handed on.
        reasons = {0.0, *(found.spans[name][1] for name in task.after)}
        assert start in reasons | {found.spans[t.name][1] for t in tasks if t.on == task.on}
        # What took the resource while this one was ready was at least as urgent.
        ready = max((found.spans[name][1] for name in task.after), default=0.0)
        overtook = [t for t in others if ready <= found.spans[t.name][0] < start]
        assert all(t.urgency <= task.urgency for t in overtook)
    assert found.seconds == max((end for _, end in found.spans.values()), default=0.0)
    for on in ON:
        assert found.busy(on) == sum(task.seconds for task in tasks if task.on == on) <= found.seconds


def test_what_has_started_runs_to_its_end() -> None:
    tasks = [Task("ids", "nic", 5.0, urgency=2), Task("lookup", "compute", 1.0), Task("rows", "nic", 2.0, ("lookup",))]
    assert schedule(tasks).spans["rows"] == (5.0, 7.0)


def test_the_more_urgent_goes_first_and_then_the_one_that_is_listed_first() -> None:
    first = Task("first", "nic", 1.0, urgency=1)
    found = schedule([Task("later", "nic", 1.0, urgency=2), first, Task("second", "nic", 1.0, urgency=1)])
    assert [name for name, _ in sorted(found.spans.items(), key=lambda item: item[1])] == ["first", "second", "later"]


def test_exposed_is_what_nothing_hides() -> None:
    tasks = [
        Task("a", "compute", 2.0),
        Task("out", "nic", 3.0),
        Task("near", "lanes", 4.0),
        Task("b", "compute", 1.0, ("near",)),
    ]
    found = schedule(tasks)  # compute works from 0 to 2 and from 4 to 5
    assert found.exposed(["out"], "compute") == 1.0
    assert found.exposed(["out", "near"], "compute") == 2.0  # together, not one after the other
    assert found.exposed(["nothing"], "compute") == 0.0


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([Task("a", "nic", 1.0), Task("a", "nic", 1.0)], "same name"),
        ([Task("a", "nic", 1.0, ("b",))], "not there"),
        ([Task("a", "nic", 1.0, ("b",)), Task("b", "nic", 1.0, ("a",))], "wait for each other"),
        ([Task("a", "nic", -1.0)], "-1.0 seconds"),
        ([Task("a", "nic", float("nan"))], "nan seconds"),
    ],
)
def test_tasks_that_cannot_be(tasks: list[Task], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        schedule(tasks)


def test_what_waits_for_a_task_of_no_time_is_ready_at_once() -> None:
    tasks = [
        Task("slow", "nic", 3.0, urgency=2),
        Task("nothing", "compute", 0.0, urgency=2),
        Task("urgent", "nic", 1.0, ("nothing",)),
    ]
    assert schedule(tasks).spans["urgent"] == (0.0, 1.0)


def test_a_resource_with_two_servers_does_two_tasks_at_a_time() -> None:
    tasks = [Task(name, "cores", 2.0) for name in "abc"] + [Task("send", "nic", 1.0, ("b",))]
    timeline = schedule(tasks, {"cores": 2})
    assert timeline.spans == {"a": (0.0, 2.0), "b": (0.0, 2.0), "c": (2.0, 4.0), "send": (2.0, 3.0)}
    assert timeline.busy("cores") == 6.0
    assert timeline.exposed(["send"], behind="cores") == 0.0
