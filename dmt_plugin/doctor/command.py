"""``dmt doctor`` as a command: its options, where its findings go, and how the process ends."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from dmt_plugin.doctor.program import alone, as_rank
from dmt_plugin.doctor.text import written
from dmt_plugin.topology.discovery import launched_as


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything found as JSON.")] = False,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds that one check may take.")] = 120.0,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = -1,
    play_hosts: Annotated[int, typer.Option(hidden=True, help="Play so many hosts on one machine.")] = 0,
    write_to: Annotated[Path | None, typer.Option(hidden=True, help="Rank 0 writes the JSON here.")] = None,
) -> None:
    """Check whether training with towers works here: versions, compiler, backends, hosts, links, a tiny training.

    Alone it starts two ranks on this machine. On a cluster, start it as you start your training:

        deepspeed --hostfile hosts --module dmt_plugin.doctor

        torchrun --nnodes 2 --nproc-per-node 8 ... -m dmt_plugin.doctor

    Exit status: 0, or 1 if a check failed. Paste what it prints into an issue.
    """
    del local_rank  # the launcher's environment says it too
    place = launched_as()
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed logs to standard output
        diagnosis = alone(timeout) if place is None else as_rank(*place, timeout, play_hosts or None)
    speaks = place is None or place[0] == 0
    if speaks and write_to is not None:
        write_to.write_text(json.dumps(diagnosis.as_dict()))
    elif speaks:
        typer.echo(json.dumps(diagnosis.as_dict(), indent=2) if as_json else written(diagnosis))
    elif diagnosis.stuck:
        typer.echo(f"rank {place[0] if place else 0}\n{written(diagnosis)}", err=True)
    if place is not None or diagnosis.stuck:
        # Threads of checks that never came back, and the groups of ranks that did not, must not hold this process up.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(diagnosis.exit_status)
    raise typer.Exit(diagnosis.exit_status)
