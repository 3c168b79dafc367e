"""What one rank does: run the variants in turn, each with and without a trace.

1. Every variant is built from the same weights and labelled; then it trains a few batches untimed.
2. For each repeat, for each variant in turn: a barrier, ``iterations`` steps without a trace, a barrier, as many with
   one. The first shows what tracing costs.
3. A trace becomes spans at once; the spans of every step are kept.

On the first lane of a host a process beside it reads the counts of the host's link all the while, if asked for.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.step.breakdown_labels import PREFIX, STEP, Flight, Labels
from benchmarks.step.breakdown_link import LinkSampler, Sample
from benchmarks.step.breakdown_trace import Span, spans_of
from benchmarks.step.rig import Rig
from benchmarks.step.setting import Setting


@dataclass
class TracedStep:
    """One step of one rank.

    Attributes:
        begun: clock, seconds of ``time.perf_counter``; the same clock for all ranks.
        spans: the main thread.
        flights: exchanges that were under way in this step.
        cpu_seconds: of the main thread.
    """

    begun: float
    spans: list[Span]
    flights: list[Flight]
    cpu_seconds: float

    @property
    def seconds(self) -> float:
        """Time of the step."""
        return self.spans[-1].end


@dataclass
class Traced:
    """What one rank found of one variant.

    Attributes:
        steps: traced steps of all repeats.
        plain_seconds: time of a step without a trace, one per repeat.
    """

    steps: list[TracedStep] = field(default_factory=list)
    plain_seconds: list[float] = field(default_factory=list)


@dataclass
class RankTraces:
    """What one rank found.

    Attributes:
        variants: by name.
        link: counts of the host's link over time; empty where nobody asked, and on lanes other than the first.
    """

    variants: dict[str, Traced]
    link: list[Sample] = field(default_factory=list)


def measure_parts(rank: int, setting: Setting, names: Sequence[str], sample_link: bool) -> RankTraces:
    """Everything, on one rank."""
    sampler = LinkSampler() if sample_link and rank % setting.lanes == 0 else None  # before any thread is there
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler would tell of every trace on stderr
    rig = Rig(rank, setting, names)
    step = rig.step
    labels = {name: Labels(variant.engine) for name, variant in rig.variants.items()}  # type: ignore[attr-defined]
    found = {name: Traced() for name in names}
    for name in names:
        for _ in range(setting.checked):
            step(name)
        _traced(setting, step, name, labels[name])  # the profiler's own first time
    gc.collect()
    gc.disable()
    for _ in range(setting.repeats):
        for name in names:
            dist.barrier()
            begun = time.perf_counter()
            for _ in range(setting.iterations):
                step(name)
            found[name].plain_seconds.append((time.perf_counter() - begun) / setting.iterations)
            dist.barrier()
            found[name].steps += _traced(setting, step, name, labels[name])
    dist.barrier()
    return RankTraces(found, sampler.stop() if sampler else [])


def _traced(setting: Setting, step: Any, name: str, labels: Labels) -> list[TracedStep]:
    clocks = []
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        dist.barrier()  # starting a profiler takes ranks unequally long
        with labels.tracing():
            for _ in range(setting.iterations):
                with record_function(f"{PREFIX}/{STEP}"):
                    clock, cpu = time.perf_counter(), time.thread_time()
                    step(name)
                    clocks.append((clock, time.thread_time() - cpu))
    flights = labels.flights
    found = []
    for spans, (clock, cpu) in zip(spans_of(trace.events(), labels.marks), clocks, strict=True):
        end = clock + spans[-1].end
        own = [f for f in flights if f.started < end and (f.arrived is None or f.arrived > clock)]
        found.append(TracedStep(clock, spans, own, cpu))
    return found
