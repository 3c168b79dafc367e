"""``dmt bench``: finds a source checkout of this project and runs one of its benchmarks there, with this Python.

Benchmarks bring up an emulated cluster and compare with other libraries, so they are not part of the installed package.
A checkout is looked for at ``--checkout``, else in this folder and those above it, else where this package lies when it
was installed in place.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from dmt_plugin.core.errors import ConfigError

_MARK = Path("benchmarks", "step", "__main__.py")


def command(
    context: typer.Context,
    full: Annotated[bool, typer.Option("--full", help="Everything, on 4 x 2: what `make bench` measures.")] = False,
    curve: Annotated[bool, typer.Option("--curve", help="A few variants in many settings.")] = False,
    breakdown: Annotated[bool, typer.Option("--breakdown", help="Where a step's time goes, part by part.")] = False,
    checkout: Annotated[
        Path | None, typer.Option(help="A checkout of this project; default: looked for from here upwards.")
    ] = None,
) -> None:
    """Measure training steps on an emulated cluster on this machine (needs root and a checkout).

    Without an option: the quick comparison of `make bench-quick`. Further options go to the benchmark as they are, such
    as `--repeats 9` or `--rate 500mbit`; `dmt bench -- --help` lists them.
    """
    if full + curve + breakdown > 1:
        raise typer.BadParameter("--full, --curve and --breakdown are different benchmarks; choose one")
    root = _checkout(checkout)
    module = ["benchmarks.step.breakdown"] if breakdown else ["benchmarks.step"]
    kind = ["--curve"] if curve else ["--profile", "full", "--check"] if full else [] if breakdown else ["--check"]
    # Options of a plain run change what its bars are for.
    if kind == ["--check"] and context.args:
        kind = []
    # One thread per rank, set before any library is loaded.
    done = subprocess.run(["env", "OMP_NUM_THREADS=1", sys.executable, "-m", *module, *kind, *context.args], cwd=root)
    raise typer.Exit(done.returncode)


def _checkout(named: Path | None) -> Path:
    if named is not None:
        places = [named.resolve()]
    else:
        here = Path.cwd()
        places = [here, *here.parents, Path(__file__).parents[2]]
    for place in places:
        if (place / _MARK).is_file():
            return place
    raise ConfigError(
        f"dmt bench runs the benchmarks of a checkout, which are not part of the installed package; none is at "
        f"{', '.join(map(str, places[:1]))}{' or above it' if named is None else ''}. Clone the project, run "
        "`make venv` in it, and call dmt bench there or with --checkout PATH."
    )
