"""Compares two checkouts: ``python -m benchmarks.versions facts|steps BEFORE AFTER``.

Each is a folder with a ``.venv`` of its own (``make venv``).

- ``facts``: schema, help texts, finding codes, what ``dmt explain`` says of every model of the zoo (bytes,
  fingerprints, graphs, repairs), with ``--zoo`` the survey. Prints what differs; exit status 1 if anything does.
- ``steps``: times of a training step on two ranks, SPTT and a compression ratio of 4. Both versions' ranks live at the
  same time and take steps in turn, in the order A B B A; prints the ratio of the medians, repeat by repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).resolve().parent
WARMUP, STEPS = 30, 60
IGNORED = {"seconds"}

console = Console(soft_wrap=True, markup=False, highlight=False)


def run(checkout: Path, script: str, *arguments: str, variables: dict[str, str] | None = None, **options: Any) -> Any:
    """A process of one checkout, by its own Python."""
    command = [str(checkout / ".venv" / "bin" / "python"), str(HERE / script), *arguments]
    path = os.pathsep.join([str(checkout / ".venv" / "bin"), os.environ["PATH"]])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout), "PATH": path, **(variables or {})}
    return subprocess.Popen(command, cwd=checkout, env=env, text=True, **options)


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Paths and values of what differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(k for k in after if k not in before)]:
            if key in IGNORED:
                continue
            if key not in before or key not in after:
                yield f"{place}/{key}: only {'before' if key in before else 'after'}"
            else:
                yield from differences(before[key], after[key], f"{place}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            yield from differences(a, b, f"{place}/{i}")
    elif before != after:
        yield f"{place}: {str(before)[:300]!r} -> {str(after)[:300]!r}"


def compare_facts(before: Path, after: Path, zoo: bool) -> int:
    """Prints what differs; 1 if anything does."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("before.json", "after.json")]
        for checkout, file in zip((before, after), files, strict=True):
            process = run(checkout, "facts.py", str(file), *(["--zoo"] if zoo else []), stdout=subprocess.DEVNULL)
            if process.wait():
                raise SystemExit(f"{checkout}: the facts could not be found out")
        facts = [json.loads(file.read_text()) for file in files]
    for part in facts[0]:
        found = list(differences(facts[0][part], facts[1][part]))
        console.print(f"{part}: {len(facts[0][part])} compared, {len(found)} differences")
        for line in found:
            console.print(f"  {line}")
    return int(any(True for _ in differences(*facts)))


class Ranks:
    """The two ranks of one version, which wait until they are asked for steps."""

    def __init__(self, checkout: Path, variant: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.processes = []
        for rank in range(2):
            place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": port}
            variables = {**place, "MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.processes.append(run(checkout, "steps.py", variant, variables=variables, **pipes))
        for process in self.processes:
            if not process.stdout.readline():
                raise SystemExit(f"{checkout}: a rank ended before its first step")

    def median_of(self, steps: int) -> float:
        """Seconds of a step, the median over ``steps`` of the slower rank's."""
        for process in self.processes:
            process.stdin.write(json.dumps({"steps": steps}) + "\n")
            process.stdin.flush()
        seconds = [json.loads(process.stdout.readline())["seconds"] for process in self.processes]
        return statistics.median(max(both) for both in zip(*seconds, strict=True))

    def end(self) -> None:
        """Ends both."""
        for process in self.processes:
            process.kill()
            process.wait()


def compare_steps(before: Path, after: Path, repeats: int) -> int:
    """Prints the ratio after / before of step times."""
    for variant in ("SPTT", "CR 4"):
        old, new = Ranks(before, variant), Ranks(after, variant)
        for ranks in (old, new):
            ranks.median_of(WARMUP)
        times: list[tuple[float, float]] = []
        for repeat in range(repeats):
            order = (old, new) if repeat % 2 == 0 else (new, old)
            found = {id(ranks): ranks.median_of(STEPS) for ranks in order}
            times.append((found[id(old)], found[id(new)]))
        old.end()
        new.end()
        ratios = sorted(b / a for a, b in times)
        a, b = (statistics.median(x) * 1e3 for x in zip(*times, strict=True))
        console.print(
            f"{variant}: after / before, median of {repeats}: {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}); {a:.2f} ms before, {b:.2f} ms after"
        )
    return 0


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["facts", "steps"])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--zoo", action="store_true", help="also the survey of the zoo, minutes")
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args()
    before, after = options.before.resolve(), options.after.resolve()
    if options.what == "facts":
        return compare_facts(before, after, options.zoo)
    return compare_steps(before, after, options.repeats)


if __name__ == "__main__":
    sys.exit(main())
