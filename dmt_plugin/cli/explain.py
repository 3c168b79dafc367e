"""``dmt explain``: what the transformation does to a model, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmt_plugin.cli.load import find_config, importable_here, load_model_and_batch
from dmt_plugin.cli.shape import topology_shape
from dmt_plugin.config import load_ds_config, read_dmt_config
from dmt_plugin.errors import ConfigError
from dmt_plugin.loading import load_factory


def explain_data(
    model: str,
    config: str,
    hosts: int | None = None,
    ranks_per_host: int | None = None,
    *,
    batch: str | None = None,
    batch_size: int | None = None,
    rank: int = 0,
) -> dict[str, Any]:
    """What ``dmt explain`` shows, as plain data.

    Args:
        model: ``package.module:factory`` or ``path/to/file.py:factory``.
        config: a DeepSpeed configuration with a ``"dmt"`` section.
        hosts: hosts to explain for; default: the config, else the number of towers, else 2.
        ranks_per_host: ranks on each; default: the config, else 2.
        batch: factory of an example batch.
        batch_size: samples per rank; default: the config's micro batch, else the example's.
        rank: whose exchanges to show.

    Raises:
        DMTError: anything that cannot be found, read or transformed.
    """
    importable_here()
    path = find_config(config, load_factory(model, "--model"))
    ds_config = load_ds_config(path)
    section = read_dmt_config(ds_config, str(path))
    if section is None:
        raise ConfigError(f'{path} has no "dmt" section, or "enabled" is false: the stock engine would run.')
    built, example, _ = load_model_and_batch(model, batch, section.transform.example_batch)
    from dmt_plugin.explain import explain
    from dmt_plugin.topology import Topology

    samples = batch_size or ds_config.get("train_micro_batch_size_per_gpu")
    return explain(
        built,
        example,
        section,
        Topology(*topology_shape(section, hosts, ranks_per_host)),
        rank=rank,
        batch_size=samples if isinstance(samples, int) else None,
    )


def command(
    model: Annotated[str, typer.Option(help="package.module:factory or path/to/file.py:factory.")],
    config: Annotated[
        str, typer.Option(help='DeepSpeed JSON with a "dmt" section; looked for here and beside the model.')
    ],
    batch: Annotated[
        str | None, typer.Option(help="Factory of an example batch; default: example_batch() beside the model.")
    ] = None,
    hosts: Annotated[int | None, typer.Option(min=1, help="Hosts; default: the config, else 2.")] = None,
    ranks_per_host: Annotated[int | None, typer.Option(min=1, help="Ranks per host; default 2.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples per rank for the byte counts.")] = None,
    rank: Annotated[int, typer.Option(min=0, help="Whose exchanges to list.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    svg: Annotated[
        Path | None, typer.Option(help="Also draw the graphs: NAME.svg gives NAME-before.svg and NAME-after.svg.")
    ] = None,
) -> None:
    """Show the tower plan, the graph around the towers before and after, every exchange and every finding."""
    data = explain_data(
        model, config, hosts, ranks_per_host, batch=batch, batch_size=batch_size, rank=rank
    )
    if svg is not None:
        _write_pictures(data, svg)
    if as_json:
        typer.echo(json.dumps(data, indent=2))
        return
    show(data, Console())


def show(data: dict[str, Any], console: Console) -> None:
    """Prints what :func:`explain_data` found."""
    hosts, lanes = data["topology"].split("x")
    ratio = data["compression"]
    console.print(
        f"[bold]{hosts} host(s) x {lanes} rank(s)[/bold], route {data['route']}, "
        f"{len(data['towers'])} tower(s), strategy {data['plan']['provenance'].get('strategy', 'file')}, "
        + (f"compression ratio {ratio:.2f}" if ratio else "no tower modules: the same numbers by another route")
    )
    console.print(f"plan {data['plan_fingerprint']} for model {data['plan']['model']}")
    _towers(data, console)
    _groups(data, console)
    _graph("graph around the towers, before", data["nodes_before"], console)
    _graph(f"graph around the towers, after (rank {data['rank']})", data["nodes_after"], console)
    _collectives(data, console)
    _repairs(data, console)
    _findings(data, console)


def _towers(data: dict[str, Any], console: Console) -> None:
    lanes = data["plan"]["table_lanes"]
    features = {f["name"]: f for f in data["plan"]["features"]}
    table = Table("tower", "host", "features", "rows", "width", "features and the lane of their tables", title="towers")
    for tower in data["towers"]:
        names = [f"{n} ({','.join(str(lanes[t]) for t in features[n]['tables'])})" for n in tower["features"]]
        table.add_row(
            str(tower["tower"]),
            str(tower["host"]),
            str(len(tower["features"])),
            f"{tower['rows']:,}",
            str(tower["width"]),
            escape(", ".join(names)),
        )
    console.print(table)


def _groups(data: dict[str, Any], console: Console) -> None:
    module = data["plan"]["module"]
    table = Table("group", "kind", "features", "width", "branches meet at", "note", title="groups of features")
    for group in data["groups"]:
        note = group["reason"] or (
            f"module {module['kind']}"
            + (f", c={module['c']}, p={module['p']}, D={module['dim']}" if module["kind"] == "dlrm" else "")
        )
        table.add_row(
            group["name"], group["kind"], str(group["features"]), str(group["width"]), group["meets_at"], escape(note)
        )
    console.print(table)


def _graph(title: str, lines: list[tuple[str, str, str]], console: Console) -> None:
    table = Table("node", "operation", title=title)
    table.add_column("shape", no_wrap=True)
    for name, operation, shape in _folded(lines):
        table.add_row(escape(name), escape(operation), escape(shape))
    console.print(table)


def _folded(lines: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Runs of nodes of one shape and one kind of operation become one line."""
    folded: list[tuple[str, str, str]] = []
    run: list[tuple[str, str, str]] = []

    def kind(line: tuple[str, str, str]) -> tuple[str, str]:
        return "".join(c for c in line[1] if not c.isdigit()).rsplit(".", 1)[0], line[2]

    def close() -> None:
        if len(run) > 3:
            folded.append((f"{run[0][0]} ... {run[-1][0]}", f"{run[0][1]} ... ({len(run)} nodes)", run[0][2]))
        else:
            folded.extend(run)
        run.clear()

    for line in lines:
        if run and kind(run[-1]) != kind(line):
            close()
        run.append(tuple(line))  # type: ignore[arg-type]
    close()
    return folded


def _collectives(data: dict[str, Any], console: Console) -> None:
    table = Table(
        title=f"collectives of one step on rank {data['rank']}, {data['batch_size']} samples per rank (bytes)"
    )
    table.add_column("exchange", no_wrap=True)
    for heading in ("between", "pass", "sends"):
        table.add_column(heading)
    for heading in ("to other hosts", "inside host"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cost in data["collectives"]:
        table.add_row(
            cost["name"],
            cost["group"],
            cost["phase"],
            escape(cost["shape"]),
            f"{cost['other_hosts']:,}",
            f"{cost['same_host']:,}",
        )
    away = sum(c["other_hosts"] for c in data["collectives"])
    near = sum(c["same_host"] for c in data["collectives"])
    table.add_section()
    table.add_row("sum", "", "", f"{away / data['batch_size']:,.0f} bytes per sample", f"{away:,}", f"{near:,}")
    console.print(table)


def _repairs(data: dict[str, Any], console: Console) -> None:
    counts = data["parameters"]
    console.print(
        f"parameters: {counts['tables']:,} in tables, {counts['towers']:,} in tower modules, {counts['dense']:,} dense"
    )
    if not data["repairs"]:
        return
    table = Table("parameter", "change", "starts anew from", title="repairs behind the towers")
    for repair in data["repairs"]:
        table.add_row(escape(repair["target"]), escape(repair["what"]), repair["init"])
    console.print(table)


def _findings(data: dict[str, Any], console: Console) -> None:
    if not data["findings"]:
        console.print("findings: none")
        return
    table = Table("code", "severity", "where", "finding", "way out", title="findings")
    for finding in data["findings"]:
        table.add_row(*(escape(str(finding[k])) for k in ("code", "severity", "module", "reason", "hint")))
    console.print(table)


def _write_pictures(data: dict[str, Any], path: Path) -> None:
    from dmt_plugin.report.graph_picture import Graph, picture_of_graph

    for when, key in (("before", "graph_before"), ("after", "graph_placed")):
        target = path.with_name(f"{path.stem}-{when}.svg")
        target.write_text(picture_of_graph(Graph.from_dict(data[key]), title=f"graph {when}"))
