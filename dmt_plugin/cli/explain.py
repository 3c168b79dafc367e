"""``dmt explain``: what the transformation does to a model, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dmt_plugin.cli.load import load
from dmt_plugin.cli.options import Batch, Config, Hosts, Model
from dmt_plugin.cli.partition_inputs import batches_of
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.plan.file import write_json
from dmt_plugin.report.explain.content import Explanation
from dmt_plugin.report.explain.explanation import explain
from dmt_plugin.report.explain.graph_picture import Graph, picture_of_graph
from dmt_plugin.report.explain.page import page_of
from dmt_plugin.report.explain.text import show
from dmt_plugin.topology.shape import Topology


def explained(
    model: str,
    config: str | None,
    hosts: int | None = None,
    ranks_per_host: int | None = None,
    *,
    batch: str | None = None,
    batch_size: int | None = None,
    rank: int = 0,
    data: str | None = None,
    data_steps: int = 20,
) -> Explanation:
    """What ``dmt explain`` shows.

    Args:
        model: ``package.module:factory`` or ``path/to/file.py:factory``.
        config: a DeepSpeed configuration with a ``"dmt"`` section; ``None``: the default section.
        hosts: hosts to explain for; default: the config, else the number of towers, else 2.
        ranks_per_host: ranks on each; default: the config, else 1.
        batch: factory of an example batch.
        batch_size: samples per rank; default: the config's micro batch, else the example's.
        rank: whose exchanges to show.
        data: factory of an iterable of batches, to count distinct rows on.
        data_steps: the most steps of all ranks that are counted.

    Returns:
        ``refused`` says whether the model was refused.

    Raises:
        DMTError: anything that cannot be found or read, or does not fit.
    """
    loaded = load(model, config, batch)
    topology = Topology(*loaded.config.shape_without_launcher(hosts, ranks_per_host))
    if rank >= topology.world_size:
        raise ConfigError(f"--rank {rank}: the topology {topology} has the ranks 0 to {topology.world_size - 1}.")
    samples = batch_size or loaded.ds_config.get("train_micro_batch_size_per_gpu")
    return explain(
        loaded.model,
        loaded.batch,
        loaded.config,
        topology,
        rank=rank,
        batch_size=samples if isinstance(samples, int) else None,
        ds_config=loaded.ds_config,
        data=batches_of(data)() if data is not None else None,
        data_steps=data_steps,
        data_source=data or "",
    )


def command(
    model: Model,
    config: Config = None,
    batch: Batch = None,
    hosts: Hosts = None,
    ranks_per_host: Annotated[
        int | None, typer.Option(min=1, help="Ranks per host; default: the config, else 1.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples per rank for the byte counts; default: the config's micro batch.")
    ] = None,
    rank: Annotated[int, typer.Option(min=0, help="Whose graph and exchanges to show.")] = 0,
    data: Annotated[
        str | None,
        typer.Option(help="Function that returns an iterable of batches, to count their distinct rows (comm.dedup)."),
    ] = None,
    data_steps: Annotated[int, typer.Option(min=1, help="With --data: the most steps of all ranks to count.")] = 20,
    save_shares: Annotated[
        Path | None, typer.Option(help="With --data: where the counts go, as a file for dmt.comm.dedup_shares.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of tables.")] = False,
    svg: Annotated[
        Path | None,
        typer.Option(help="Also draw the graphs: NAME.svg gives NAME-before.svg, NAME-after.svg and NAME-rank0.svg."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write one page with everything, pictures included.")] = None,
) -> None:
    """Show what would be made of a model: towers, graphs before and after, bytes, findings. Starts no process.

    Exit status: 0, or 1 if the model is refused (the findings say why), or 2 if something cannot be found.
    """
    found = explained(
        model, config, hosts, ranks_per_host, batch=batch, batch_size=batch_size, rank=rank, data=data,
        data_steps=data_steps,
    )  # fmt: skip
    written = [*_write_shares(found, save_shares)] if save_shares is not None else []
    written += [*_write_pictures(found, svg)] if svg is not None else []
    if html is not None:
        written.append(page_of(found, model, config).write(html))
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        console = Console() if Console().is_terminal else Console(width=140)
        show(found, console)
        for path in written:
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    if found.refused:
        raise typer.Exit(1)


def _write_shares(data: Explanation, path: Path) -> list[Path]:
    if data.distinct_rows is None:
        raise ConfigError(
            "--save-shares: no distinct rows were counted. Give --data, for a model whose rows can travel once (its "
            "tower modules do not read all of them by sample)."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, data.distinct_rows.shares.to_dict())
    return [path]


def _write_pictures(data: Explanation, path: Path) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    graphs = {"before": data.graph_before, "after": data.graph_after, f"rank{data.rank}": data.graph_placed}
    for when, graph in graphs.items():
        if graph is not None:
            target = path.with_name(f"{path.stem}-{when}.svg")
            target.write_text(picture_of_graph(Graph.from_dict(graph), title=f"graph {when}"))
            written.append(target)
    return written
