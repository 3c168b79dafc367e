"""``python -m benchmarks.gpu_step``: what one rank's device does in a step, part by part, against a plain copy.

Needs torch and one device: the accelerator that torch finds, or the CPU; FBGEMM's lookups are measured where it is
installed. ``benchmarks.gpu_step_parts`` says what the parts are.

1. Every part is warmed up and then timed ``repeats`` times, in turn with the parts that it is compared with, and with
   a copy on the device of as many bytes as each of its steps handles: all meet the same state of the machine.
2. One timing is ``iterations`` calls: between two events of the device's stream on CUDA, else between two
   synchronisations by the clock.
3. Medians with minimum and maximum go to the terminal and, with every single timing, to a JSON file. "of copy" is the
   time of the copy divided by that of the step: 1.0 is as fast as a copy of the same rows.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_step_parts import Part, Sizes, parts_of

HEADER = ("part", "rows", "step", "MiB", "ms", "min", "max", "GB/s", "copy", "of copy")
_WARM = 3


class Clock:
    """Seconds of work on a device.

    Args:
        device: its type decides how time is taken.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def seconds(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Time of ``work``, and what it returned."""
        if self._device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            result = work()
            end.record()
            torch.cuda.synchronize(self._device)
            return begin.elapsed_time(end) / 1e3, result
        self._wait()
        begun = time.perf_counter()
        result = work()
        self._wait()
        return time.perf_counter() - begun, result

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


def measure(
    parts: Sequence[Part], clock: Clock, device: torch.device, repeats: int, iterations: int
) -> list[dict[str, Any]]:
    """Times the steps of some parts in turn, each part with copies of as many bytes.

    Returns:
        For each step of each part a row of the table.
    """
    taken: dict[tuple[int, str], list[float]] = {}
    copied: dict[tuple[int, int], list[float]] = {}
    copies = {size: _copy_of(size, device) for size in {step.size for part in parts for step in part.steps}}
    for repeat in range(_WARM + repeats):
        for number, part in enumerate(parts):
            results: list[Any] = [None] * iterations
            for step in part.steps:
                seconds, results = clock.seconds(lambda run=step.run, given=results: [run(value) for value in given])
                if repeat >= _WARM:
                    taken.setdefault((number, step.name), []).append(seconds / iterations)
            del results
            for size in dict.fromkeys(step.size for step in part.steps):
                seconds, _ = clock.seconds(lambda run=copies[size]: [run() for _ in range(iterations)])
                if repeat >= _WARM:
                    copied.setdefault((number, size), []).append(seconds / iterations)
    return [
        _row(part, step.name, step.size, taken[number, step.name], copied[number, step.size])
        for number, part in enumerate(parts)
        for step in part.steps
    ]


def _copy_of(size: int, device: torch.device) -> Callable[[], torch.Tensor]:
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def _row(part: Part, step: str, size: int, seconds: list[float], copied: list[float]) -> dict[str, Any]:
    median, copy = statistics.median(seconds), statistics.median(copied)
    return {
        "part": part.name,
        "rows": part.dtype,
        "step": step,
        "bytes": size,
        "ms": [1e3 * value for value in seconds],
        "median_ms": 1e3 * median,
        "min_ms": 1e3 * min(seconds),
        "max_ms": 1e3 * max(seconds),
        "gb_per_s": size / median / 1e9,
        "copy_ms": [1e3 * value for value in copied],
        "copy_gb_per_s": size / copy / 1e9,
        "of_copy": copy / median,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a terminal."""
    cells = [HEADER] + [
        (
            row["part"],
            row["rows"],
            row["step"],
            f"{row['bytes'] / 2**20:.2f}",
            *(f"{row[key]:.3f}" for key in ("median_ms", "min_ms", "max_ms")),
            *(f"{row[key]:.1f}" for key in ("gb_per_s", "copy_gb_per_s")),
            f"{row['of_copy']:.2f}",
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADER))]
    sides = [str.ljust] * 3 + [str.rjust] * (len(HEADER) - 3)
    return "\n".join(
        "  ".join(align(cell, width) for align, cell, width in zip(sides, line, widths, strict=True)) for line in cells
    )


def device_of(text: str) -> torch.device:
    """The device that was asked for; ``"auto"`` is the accelerator that torch finds, else the CPU."""
    if text != "auto":
        return torch.device(text)
    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None else found


def about(device: torch.device, arguments: Sequence[str]) -> dict[str, Any]:
    """Machine, versions and command, for the file."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": f"{device.type}: {name}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "fbgemm": importlib.util.find_spec("fbgemm_gpu") is not None,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m benchmarks.gpu_step", *arguments]),
    }


def main(arguments: Sequence[str]) -> None:
    """Measures, prints the table and writes the file."""
    options = _parser().parse_args(arguments)
    if options.repeats < 1 or options.iterations < 1:
        raise SystemExit("error: --repeats and --iterations must be at least 1")
    device = device_of(options.device)
    try:
        sizes = Sizes(**{field.name: getattr(options, field.name) for field in fields(Sizes)})
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    torch.manual_seed(0)
    clock, rows = Clock(device), []
    for together in parts_of(sizes, device, options.compile):
        chosen = [p for p in together if options.only in p.name and options.rows_dtype in ("both", p.dtype)]
        rows += measure(chosen, clock, device, options.repeats, options.iterations)
    if not rows:
        raise SystemExit(f"error: no part has {options.only!r} in its name")
    timing = {"repeats": options.repeats, "iterations": options.iterations}
    setting = {**asdict(sizes), **timing, **about(device, arguments)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"setting": setting, "rows": rows}, indent=2) + "\n")
    sys.stdout.write(
        f"{setting['device']}, torch {setting['torch']}, {setting['threads']} thread(s); one rank of {sizes.hosts} x "
        f"{sizes.lanes}, {sizes.batch} samples per rank; medians of {options.repeats}; {options.output}\n"
        f"{table(rows)}\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_step", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="auto", help='such as "cuda" or "cpu"; the accelerator where there is one')
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--iterations", type=int, default=5, help="calls of one timing")
    parser.add_argument("--only", default="", help="parts whose name holds this text")
    parser.add_argument("--rows-dtype", choices=("both", "fp32", "bf16"), default="both")
    parser.add_argument("--compile", action="store_true", help="tower modules also through torch.compile")
    parser.add_argument("--output", type=Path, default=Path("build/bench/gpu_step.json"))
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
