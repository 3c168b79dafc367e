"""``python -m benchmarks.cluster``: an emulated cluster by hand.

    python -m benchmarks.cluster up --hosts 4 --rate 100mbit
    python -m benchmarks.cluster run -- python train.py
    python -m benchmarks.cluster status
    python -m benchmarks.cluster down
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from benchmarks.cluster import needs, network, processes, ssh, state
from benchmarks.cluster.cluster import Cluster, sweep, take_down
from benchmarks.cluster.errors import ClusterError
from benchmarks.cluster.shape import PREFIX

app = typer.Typer(add_completion=False, help="Hosts as network namespaces on this machine, with links of a given rate.")

Name = Annotated[str, typer.Option(help="Which cluster; several can be up at once.")]


def _plainly(command: Callable[..., Any]) -> Callable[..., Any]:
    """Errors of the cluster are a line of text here, not a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (ClusterError, ValueError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None

    return run


@app.command()
@_plainly
def up(
    hosts: Annotated[int, typer.Option(min=1, help="Hosts.")] = 2,
    lanes: Annotated[int, typer.Option(min=1, help="Ranks on each host.")] = 2,
    rate: Annotated[str, typer.Option(help="Rate of each host's link, each way.")] = "100mbit",
    latency: Annotated[float, typer.Option(min=0, help="Milliseconds added to every packet, one way.")] = 0.0,
    name: Name = "main",
    with_ssh: Annotated[
        bool | None, typer.Option("--ssh/--no-ssh", help="An sshd on every host; default: where OpenSSH is installed.")
    ] = None,
) -> None:
    """Bring a cluster up, and verify it; it stays until it is taken down."""
    use_ssh = with_ssh if with_ssh is not None else not ssh.missing()
    cluster = Cluster(hosts, lanes, rate, latency_ms=latency, name=name, ssh=use_ssh, stays=True).up()
    typer.echo(f"{name}: {hosts} hosts x {lanes} ranks, links of {rate}; verified")
    for host in range(hosts):
        typer.echo(f"  {cluster.shape.hostname(host)}  {cluster.shape.address(host)}  {cluster.shape.namespace(host)}")
    if use_ssh:
        typer.echo(f"  ssh between hosts: yes; hostfile {cluster.hostfile}")
    else:
        absent = ", ".join(ssh.missing())
        reason = "off" if with_ssh is False else f"{absent} not installed (apt-get install openssh-server)"
        typer.echo(f"  ssh between hosts: no, {reason}")


@app.command(context_settings={"allow_interspersed_args": False})
@_plainly
def run(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after --.")],
    name: Name = "main",
    host: Annotated[int | None, typer.Option(min=0, help="Run it once, on this host, not per rank.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds until it is ended.")] = 3600.0,
) -> None:
    """Verify the links, run a command on every rank, and say how many bytes crossed each link."""
    cluster = Cluster.attach(name)
    cluster.check()
    before = cluster.bytes()
    if host is None:
        outcomes = processes.run_ranks(cluster.shape, command, timeout_s=timeout, echo=typer.echo)
    else:
        outcomes = [cluster.run_on(host, command, timeout_s=timeout, echo=typer.echo)]
    for number, (now, then) in enumerate(zip(cluster.bytes(), before, strict=True)):
        used = now - then
        typer.echo(
            f"h{number}: sent {used.sent:,} bytes, received {used.received:,}, inside the host {used.inside:,}",
            err=True,
        )
    failed = [outcome for outcome in outcomes if outcome.code]
    for outcome in failed:
        typer.echo(f"{outcome.label}: exit code {outcome.code}, ended by {outcome.ended_by}", err=True)
    if failed:
        sys.exit(1)


@app.command()
@_plainly
def status() -> None:
    """List the clusters of this machine, and whether their links are as they should be."""
    needs.require()
    for name in state.names():
        record = state.read(name)
        if record is None:
            continue
        shape = record.shape
        owner = "stays" if record.owner is None else f"owner {record.owner}" + " (gone)" * record.abandoned
        try:
            found = ", ".join(f"{rate / 1e6:.1f}" for rate in Cluster.attach(name).check())
            links = f"links as asked for, Mbit/s of payload: {found}"
        except ClusterError as error:
            links = f"NOT as it should be: {error}"
        typer.echo(f"{name}: {shape.hosts} x {shape.lanes}, {shape.rate_bit / 1e6:g} Mbit/s, {owner}; {links}")
    known = [f"{PREFIX}{name}-" for name in state.names()]
    for namespace in network.namespaces():
        if not namespace.startswith(tuple(known)):
            typer.echo(f"left over: namespace {namespace}; remove it with: down --name {_name_of(namespace)}")


@app.command()
@_plainly
def down(name: Name = "main") -> None:
    """Take a cluster away, whatever state it is in, and every other one whose owner is gone."""
    needs.require()
    removed = take_down(name) + sweep()
    typer.echo(f"removed: {', '.join(removed)}" if removed else "nothing to remove")


def _name_of(namespace: str) -> str:
    return namespace.removeprefix(PREFIX).rpartition("-")[0]


if __name__ == "__main__":
    app()
