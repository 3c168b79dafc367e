"""From a profiler's events to parts of a step: every moment of the main thread belongs to one of them.

1. The step is the event that bears its label; only its thread counts. What other threads do meanwhile (gloo's moving
   of bytes) is no part: the main thread waits for it, or it costs nothing.
2. A moment belongs to the innermost event that says where it belongs: a label, or an autograd node in the backward
   pass. A node belongs to the part of the forward pass that made it, by its number among all nodes. A node that
   accumulates a parameter's gradient belongs to the part of the node before: autograd runs it right behind the one
   that made the gradient.
3. Operators say nothing themselves; they belong to what they run in. Those that run directly in the step are the
   user's own lines, hence the loss: dense.
4. A moment in no event at all is Python of the training loop: ``rest``.

So the parts add up to the step, by construction; what is not known shows as ``rest``, with a name.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.step.breakdown_labels import PREFIX, STEP
from benchmarks.step.breakdown_parts import DENSE, IDLE, REST, Where

_NODE = "autograd::engine::evaluate_function: "
_ACCUMULATE = f"{_NODE}torch::autograd::AccumulateGrad"
_LOOP = Where(REST, "training loop")
_PHASES = {
    Where(REST, "engine forward"): "forward",
    Where(REST, "engine backward"): "backward",
    Where(REST, "engine step"): "step",
}
KNOWN_REST = {_LOOP.detail, *(where.detail for where in _PHASES)}
"""Names of ``rest`` that are Python's and the engine's own time; any other is something that no rule covers."""
_LOSS = Where(DENSE, "loss")
_COLLECTED = f"{_NODE}_WatchedBackward"
"""Where the lookup takes the gradients of its rows, for an update that waits for the end of the step."""


@dataclass(frozen=True)
class Span:
    """A stretch of the main thread in one part.

    Attributes:
        begin: seconds since the step began.
        end: seconds since the step began.
        where: the part.
        phase: ``"forward"``, ``"backward"`` or ``"step"``.
    """

    begin: float
    end: float
    where: Where
    phase: str


@dataclass(frozen=True)
class _Open:
    end: float
    where: Where


def spans_of(events: Sequence[Any], marks: Sequence[tuple[int, Where]]) -> list[list[Span]]:
    """Spans of every step in a trace, without gap or overlap.

    Args:
        events: ``torch.profiler.profile.events()``.
        marks: ``(count of autograd nodes, part)`` in order; see ``breakdown_labels``.
    """
    labels = [e for e in events if e.name == f"{PREFIX}/{STEP}"]
    counts = [count for count, _ in marks]
    result = []
    for step in labels:
        own = [
            e for e in events
            if e.thread == step.thread and not e.is_async and e is not step
            and e.time_range.start >= step.time_range.start and e.time_range.end <= step.time_range.end
        ]  # fmt: skip
        own.sort(key=lambda e: (e.time_range.start, -e.time_range.end))
        result.append(_spans(step, own, counts, [where for _, where in marks]))
    return result


def _spans(step: Any, events: Sequence[Any], counts: Sequence[int], wheres: Sequence[Where]) -> list[Span]:
    zero, end = step.time_range.start, step.time_range.end
    spans: list[Span] = []
    stack = [_Open(end, _LOOP)]
    now, phase, before = zero, "forward", Where(REST, "engine backward")

    def advance(time: float) -> None:
        nonlocal now
        if time > now:
            where = stack[-1].where
            last = spans[-1] if spans else None
            if last is not None and (last.where, last.phase) == (where, phase):
                spans[-1] = Span(last.begin, (time - zero) / 1e6, where, phase)
            else:
                spans.append(Span((now - zero) / 1e6, (time - zero) / 1e6, where, phase))
            now = time

    def close(until: float) -> None:
        while len(stack) > 1 and stack[-1].end <= until:
            advance(stack[-1].end)
            stack.pop()

    for event in events:
        close(event.time_range.start)
        advance(event.time_range.start)
        where = stack[-1].where
        if event.name.startswith(f"{PREFIX}/"):
            where = Where(*event.name.split("/", 2)[1:])
            phase = _PHASES.get(where, phase)
        elif event.name.startswith(_NODE):
            if event.name != _ACCUMULATE:
                before = _maker(event, counts, wheres)
            where = before
        elif where == _LOOP:
            where = _LOSS
        stack.append(_Open(min(event.time_range.end, stack[-1].end), where))
    close(end)
    advance(end)
    return spans


def _maker(event: Any, counts: Sequence[int], wheres: Sequence[Where]) -> Where:
    """The part of the forward pass that made an autograd node."""
    if event.name == _COLLECTED:
        return Where("lookup", "gradients of rows")
    place = bisect.bisect_right(counts, event.sequence_nr) - 1
    if event.sequence_nr < 0 or place < 0:
        return Where(REST, event.name.removeprefix(_NODE))
    where = wheres[place]
    # The last mark closes the graph: what comes behind it is the user's loss.
    return Where(DENSE, "loss") if where.part == REST else where


def totals(spans: Sequence[Span]) -> dict[tuple[Where, str], float]:
    """Seconds by part and phase."""
    result: dict[tuple[Where, str], float] = defaultdict(float)
    for span in spans:
        result[span.where, span.phase] += span.end - span.begin
    return dict(result)


def idle(spans: Sequence[Span]) -> float:
    """Seconds blocked."""
    return sum(span.end - span.begin for span in spans if span.where.part == IDLE)
