"""``dmt plan --calibrate``: the numbers of a cluster from the records of runs on it, written as ``cluster.yaml``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from dmt_plugin.cli.load import load
from dmt_plugin.core.errors import ConfigError, ReportError
from dmt_plugin.core.run_files import record_files
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.planner.calibration.constants import constants_of
from dmt_plugin.planner.calibration.fit import Calibration, Observed, calibrate
from dmt_plugin.planner.cluster.cluster import Cluster
from dmt_plugin.planner.cluster.files import cluster_of, keys_of, write_cluster
from dmt_plugin.planning.runs import RunReader
from dmt_plugin.report.plan import calibration as shown
from dmt_plugin.report.run.records import read_run
from dmt_plugin.report.run.times import times_of

_PLAN = "plan.json"


@dataclass(frozen=True)
class AskedToFit:
    """What the command line says.

    Attributes:
        model: factory of the model.
        cluster: that the runs ran on, as far as it is known: a preset with hosts, or a file.
        runs: folders with records, or folders of such.
        output: file to write.
        batch: factory of an example batch; None: looked for.
        links: path of a probe; None for none.
    """

    model: str
    cluster: str
    runs: Sequence[Path]
    output: Path
    batch: str | None = None
    links: str | None = None


def observed_runs(reader: RunReader, folders: Sequence[Path], cluster: Cluster) -> list[Observed]:
    """The runs, read back.

    Args:
        reader: of the model's runs.
        folders: one per run, with its records and its plan.json.
        cluster: that they ran on.

    Raises:
        ReportError: no records, too few, of an earlier version, or of another model.
        ConfigError: of other hosts than the cluster's.
    """
    return [_observed(reader, folder, cluster) for folder in folders]


def run_folders(given: Sequence[Path]) -> list[Path]:
    """Every folder with records among those given and what is right below them, in order.

    Raises:
        ReportError: a folder without any.
    """
    found: list[Path] = []
    for folder in given:
        below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        own = [path for path in (folder, *below) if record_files(path)]
        if not own:
            raise ReportError(
                f"--calibrate {folder}: there are no run_rank*.jsonl in it or right below it. Train with "
                '"report": {"dir": "FOLDER"} in the "dmt" section, and give that folder.'
            )
        found += [path for path in own if path not in found]
    return found


def write(asked: AskedToFit, as_json: bool) -> None:
    """Fits, writes the file, and tells.

    Raises:
        DMTError: anything that cannot be found or read, or does not fit.
    """
    if asked.output.exists():
        raise ConfigError(f"--output {asked.output}: is there already; name a file that is not.")
    cluster, keys = cluster_of(asked.cluster, asked.links), keys_of(asked.cluster)
    loaded = load(asked.model, None, asked.batch)
    folders = run_folders(asked.runs)
    runs = observed_runs(RunReader(loaded.model, loaded.batch), folders, cluster)
    source = f"calibrated {date.today().isoformat()} on {len(runs)} run(s) of {asked.model}"
    found = calibrate(cluster, runs, source)
    write_cluster(str(asked.output), calibrated_keys(keys, found, source))
    if as_json:
        typer.echo(json.dumps(shown.as_data(found, runs, str(asked.output)), indent=2))
        return
    console = Console() if Console().is_terminal else Console(width=180)
    console.print(shown.headline(found, runs), style="bold", highlight=False)
    console.print(shown.constants_table(found, cluster).to_rich("constants"))
    console.print(shown.runs_table(found, runs).to_rich("the runs"))
    console.print(f"wrote {asked.output}", markup=False, highlight=False, soft_wrap=True)


def calibrated_keys(keys: Mapping[str, Any], found: Calibration, source: str) -> dict[str, Any]:
    """The keys of a file with what was fitted.

    Args:
        keys: of the file before.
        found: what was fitted.
        source: what the numbers are called.
    """
    fitted = {one.constant.key: one for one in found.fitted}
    kept = dict(keys.get("uncertainty") or {})
    errors = {**kept, **{key: round(one.error, 4) for key, one in fitted.items()}}
    values = {key: _short(one.value / one.constant.unit) for key, one in fitted.items()}
    own = {constant.key for constant in constants_of(found.cluster)}
    return {**keys, **values, "uncertainty": {k: v for k, v in errors.items() if k in own}, "calibrated": source}


def _observed(reader: RunReader, folder: Path, cluster: Cluster) -> Observed:
    name = str(folder)
    run = read_run(folder)
    times = times_of(run, name)
    plan = folder / _PLAN
    if not plan.exists():
        raise ReportError(f"{name}: there is no {_PLAN} beside the records; rank 0 of the run wrote it.")
    did = reader.load(run.header, name, TowerPlan.load(plan).row_shares, cluster.shared_nic)
    topology = run.topology
    if topology.ranks_per_host != cluster.ranks_per_host and did.nic is None:
        raise ConfigError(
            f"{name}: was recorded with {topology.ranks_per_host} rank(s) per host, and --cluster {cluster.name} has "
            f"{cluster.ranks_per_host}, so that a rank's link is another. Give the cluster it ran on, or say the link "
            'of a host in the run\'s configuration ("comm": {"link": "25 GB/s"}).'
        )
    ring = did.sums.by != "hosts" and topology.hosts > 1
    return Observed(
        name, did.load, topology, did.variant.flat, ring, did.bf16, did.nic, times.seconds, times.quarters, times.busy
    )


def _short(value: float) -> float:
    return float(f"{value:.6g}")
