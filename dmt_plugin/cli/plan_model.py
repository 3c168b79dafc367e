"""``dmt plan --model``: what a model would gain on a cluster, as tables, JSON, page and picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from dmt_plugin.cli.load import load
from dmt_plugin.cli.partition_inputs import batches_of
from dmt_plugin.config.messages import one_of
from dmt_plugin.config.towers import TOWER_MODULES
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.plan.file import read_json
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.planner.cluster.cluster import Cluster
from dmt_plugin.planner.cluster.files import cluster_of
from dmt_plugin.planning.distinct import SharesOf, Stated, counted_on, stated
from dmt_plugin.planning.estimate import RATIOS, Planner
from dmt_plugin.planning.outcome import Estimate
from dmt_plugin.planning.simulation import Simulation, simulate
from dmt_plugin.planning.sweep import Axis, axis_of, sweep
from dmt_plugin.report.plan import choice, simulation
from dmt_plugin.report.plan.choice_page import page_of
from dmt_plugin.report.plan.sweep_picture import save

NOTHING_FITS = 1


@dataclass(frozen=True)
class Asked:
    """What the command line says.

    Attributes:
        model: factory of the model.
        cluster: a preset with hosts, or a file.
        config: a DeepSpeed configuration; None for the defaults.
        batch: factory of an example batch; None: looked for.
        batch_size: samples per rank; None: the configuration's micro batch.
        links: path of a probe; None for none.
        data: factory of batches to count distinct rows on; None for none.
        share: stated shares of distinct rows; None for none.
        towers: kinds of tower modules, with commas.
        ratios: compression ratios, with commas.
        swept: what to vary; None for nothing.
        simulated: name of the choice to simulate; None for none.
    """

    model: str
    cluster: str | None
    config: str | None = None
    batch: str | None = None
    batch_size: int | None = None
    links: str | None = None
    data: str | None = None
    share: str | None = None
    towers: str | None = None
    ratios: str | None = None
    swept: str | None = None
    simulated: str | None = None


@dataclass(frozen=True)
class Told:
    """What is answered.

    Attributes:
        found: the estimate; of a sweep None.
        axis: what was varied; None without a sweep.
        swept: by value the estimate.
        ran: of a simulation what came out; None without one.
    """

    found: Estimate | None
    axis: Axis | None
    swept: dict[float, Estimate]
    ran: Simulation | None = None

    @property
    def status(self) -> int:
        """Exit status: 1 if nothing fits, at any value, or ranks of a simulation do not agree."""
        every = [self.found] if self.found is not None else list(self.swept.values())
        agree = self.ran is None or self.ran.agrees
        return 0 if agree and any(own.fits for own in every) else NOTHING_FITS


def planned(asked: Asked) -> Told:
    """The estimate, or those of a sweep.

    Raises:
        DMTError: anything that cannot be found or read, or does not fit.
    """
    if asked.cluster is None:
        raise ConfigError('dmt plan --model: on which cluster? Add --cluster, such as "h100-dgx:8" or cluster.yaml.')
    if asked.swept is not None and asked.simulated is not None:
        raise ConfigError("--simulate looks at one cluster, and --sweep at several; keep one.")
    axis = None if asked.swept is None else axis_of(asked.swept)
    cluster = _cluster(asked, axis)
    ratios, share = _ratios(asked.ratios), None if asked.share is None else stated(asked.share)
    if asked.data is not None and share is not None:
        raise ConfigError("--data and --distinct-share are two answers to one question; keep one.")
    loaded = load(asked.model, asked.config, asked.batch)
    samples = asked.batch_size or loaded.ds_config.get("train_micro_batch_size_per_gpu")
    if not isinstance(samples, int):
        raise ConfigError("--batch-size: how many samples per rank? The configuration has no micro batch.")
    shares: SharesOf | Stated | None = share
    if asked.data is not None:
        shares = counted_on(loaded.model, loaded.batch, batches_of(asked.data), asked.data)
    elif share is None and loaded.config.comm.dedup_shares is not None:
        shares = _from_file(loaded.config.comm.dedup_shares)
    given = loaded.config.towers.module
    towers = _towers(asked.towers or (given if given not in ("none", "preserve") else "dlrm"))
    planner = Planner(
        loaded.model, loaded.batch, loaded.config, loaded.ds_config, shares=shares, ratios=ratios, towers=towers
    )
    if axis is None:
        found = planner.estimate(cluster, samples)
        ran = None
        if asked.simulated is not None and found.fits:
            ran = simulate(found, asked.simulated)
        return Told(found, None, {}, ran)
    return Told(None, axis, sweep(planner, axis, cluster, samples))


def write(asked: Asked, html: Path | None, picture: Path | None, as_json: bool) -> int:
    """Answers on the terminal, and in files.

    Args:
        asked: the question.
        html: where a page goes, if anywhere.
        picture: where a picture of a sweep goes, if anywhere.
        as_json: whether everything is printed as JSON instead of tables.

    Returns:
        The exit status.
    """
    if picture is not None and asked.swept is None:
        raise ConfigError("--picture shows a sweep; add --sweep, such as hosts=2,4,8.")
    told = planned(asked)
    notes = []
    if html is not None:
        notes.append(f"wrote {page_of(told.found, told.axis, told.swept, asked.model, told.ran).write(html)}")
    if picture is not None and told.axis is not None:
        notes.append(f"wrote {save(told.axis, told.swept, picture)}")
    if as_json:
        swept = [{"value": value, **own.as_dict()} for value, own in told.swept.items()]
        data: dict[str, Any] = {"sweep": asked.swept, "estimates": swept}
        if told.found is not None:
            data = told.found.as_dict()
        if told.ran is not None:
            data["simulation"] = told.ran.as_dict()
        typer.echo(json.dumps(data, indent=2))
    else:
        _show(told)
        for note in notes:
            typer.echo(note)
    return told.status


def _show(told: Told) -> None:
    console = Console() if Console().is_terminal else Console(width=180)
    if told.found is None:
        assert told.axis is not None
        first = next(iter(told.swept.values()))
        console.print(choice.headline(first), style="bold", highlight=False)
        console.print(choice.sweep_table(told.axis, told.swept).to_rich(f"by {told.axis.key}"))
        for value, own in told.swept.items():
            console.print(f"{told.axis.key} {value:g}: {own.findings[0]}", highlight=False, markup=False)
        return
    found = told.found
    console.print(choice.headline(found), style="bold", highlight=False)
    for group, rows in found.groups.items():
        console.print(choice.choices_table(group, rows, found.best).to_rich(choice.title_of(group)))
    console.print(choice.cluster_table(found.cluster).to_rich("the cluster's numbers"))
    if found.best is not None:
        console.print(f"for {found.best.name}, {found.best.wire}, in the DeepSpeed configuration:", style="bold")
        console.print(choice.block(found.best), highlight=False, markup=False)
    for finding in found.findings:
        console.print(f"- {finding}", highlight=False, markup=False)
    if told.ran is not None:
        console.print(simulation.headline(told.ran), style="bold", highlight=False, markup=False)
        console.print(simulation.exchanges_table(told.ran).to_rich("exchanges of a step, by every rank"))
        console.print(simulation.schedule_table(told.ran).to_rich("parts of a step"))


def _cluster(asked: Asked, axis: Axis | None) -> Cluster:
    """The cluster; a sweep over hosts says their number."""
    assert asked.cluster is not None
    text = asked.cluster
    if axis is not None and axis.key == "hosts" and ":" not in text:
        text = f"{text}:{int(axis.values[-1])}"
    return cluster_of(text, asked.links)


def _ratios(text: str | None) -> tuple[int, ...]:
    if text is None:
        return RATIOS
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 1 for part in parts):
        raise ConfigError(f"--ratios {text}: expected compression ratios above 1, such as 2,4.")
    return tuple(sorted({int(part) for part in parts}))


def _towers(text: str) -> tuple[str, ...]:
    known = [kind for kind in TOWER_MODULES if kind not in ("none", "preserve")]
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for kind in kinds:
        if kind not in known and ":" not in kind:
            raise ConfigError(f'--towers: {one_of(kind, known)}, or "pkg.mod:Class".')
    return kinds


def _from_file(path: str) -> SharesOf:
    """Counts of a file, for the batches that they were counted for."""
    counted = RowShares.from_dict(read_json(path))

    def shares(samples: int, lanes: int) -> RowShares | None:
        return counted if (counted.samples, counted.lanes) == (samples, lanes) else None

    return shares
