"""``dmt checkpoint``: what is in a checkpoint, the flat model in it, and the same for another topology."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dmt_plugin.checkpoint import reshard as resharding
from dmt_plugin.checkpoint.compare import check_towers
from dmt_plugin.checkpoint.delta import write_delta
from dmt_plugin.checkpoint.delta_apply import apply_delta, size_of_delta
from dmt_plugin.checkpoint.folder import check_content
from dmt_plugin.checkpoint.pieces import stored_tensors
from dmt_plugin.checkpoint.safetensors_file import SUFFIX
from dmt_plugin.checkpoint.single import check_whole, the_checkpoint, write_flat
from dmt_plugin.checkpoint.state import MODEL
from dmt_plugin.core.sizes import parse_bytes, say_bytes
from dmt_plugin.plan.places import place_of
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.topology.shape import Topology

app = typer.Typer(
    name="checkpoint",
    help="Look at checkpoints of tower-decomposed models, and take them elsewhere.",
    no_args_is_help=True,
)


class FlatFormat(str, enum.Enum):
    """How ``to-flat`` writes."""

    torch = "torch"
    safetensors = "safetensors"


Folder = Annotated[
    Path, typer.Argument(help="The folder that save_checkpoint was given, or that of one checkpoint in it.")
]
Tag = Annotated[str | None, typer.Option(help="Name of the checkpoint; default: the newest whole one.")]


@app.command("inspect")
def inspect(
    folder: Folder,
    tag: Tag = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole manifest as JSON.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Also compare every file with its checksum.")] = False,
) -> None:
    """Print plan, topology, steps and tensors of a checkpoint."""

    found = the_checkpoint(folder, tag)
    if check:
        check_content(found, found.manifest.files)
    if as_json:
        data = {"path": str(found.path), "ignored": list(found.ignored), **dataclasses.asdict(found.manifest)}
        data["plan_fingerprint"] = found.manifest.tower_plan.fingerprint
        typer.echo(json.dumps(data, indent=2))
        return
    console = Console()
    for line in summary(found):
        console.print(line, highlight=False, markup=False)
    if check:
        console.print(f"{len(found.manifest.files)} files are as they were written")
    console.print(tensors(found.manifest))


@app.command("to-flat")
def to_flat(
    folder: Folder,
    output: Annotated[
        str,
        typer.Argument(
            help="FILE.safetensors; a folder, if it is there or ends in /, for .safetensors files with an index; any "
            "other name: a file for torch.load, a dict of tensors by name."
        ),
    ],
    tag: Tag = None,
    kind: Annotated[
        FlatFormat | None, typer.Option("--format", help="torch or safetensors, whatever the name says.")
    ] = None,
    file_size: Annotated[str, typer.Option(help="Of each file in a folder at most, such as 4GiB.")] = "4GiB",
) -> None:
    """Write the trained model as one state dict with the user's own names.

    Without tower modules it is the flat model's: model.load_state_dict(torch.load(FILE)). With them, it is that of the
    tower model which dmt_plugin.transform makes in one process. It is written block by block: no table is ever whole in
    memory.
    """

    try:
        limit = parse_bytes(file_size)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--file-size") from error
    found = the_checkpoint(folder, tag)
    names = [name for name in found.manifest.tensors if name.startswith(MODEL)]
    total = sum(found.manifest.tensors[name].bytes for name in names)
    safetensors = output.endswith((SUFFIX, "/")) or Path(output).is_dir()
    chosen = kind or (FlatFormat.safetensors if safetensors else FlatFormat.torch)
    with _bar("to-flat", total) as bar:
        size = say_bytes(write_flat(found, output, chosen.value, limit, bar.update))
    whose = "the flat model" if found.manifest.semantic_preserving else "the tower model (dmt_plugin.transform)"
    typer.echo(f"{output}: {len(names)} tensors, {size}, of {whose} after {found.manifest.steps['global_steps']} steps")
    unread = [*found.manifest.never_run, *found.manifest.left_out]
    if unread:
        typer.echo(f"not in it, as no rank trains them: {', '.join(unread)}")


@app.command("reshard")
def reshard(
    folder: Folder,
    to: Annotated[str, typer.Option("--to", help='Hosts x ranks per host, such as "4x2".')],
    tag: Tag = None,
    plan: Annotated[
        Path | None, typer.Option(help="A plan for that topology (dmt explain writes plan.json); default: made here.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the new checkpoint; default: only look.")
    ] = None,
) -> None:
    """Show how a checkpoint's towers and tables lie on another topology, and write it for that.

    A load reshards by itself: to go on elsewhere, name the folder in "dmt": {"partition": {"strategy": "file", "file":
    FOLDER}} and call load_checkpoint. Without --output this verifies that every tensor is there as a whole and that the
    topology can hold the towers. With it, a checkpoint is written whose files follow the new placement, block by block,
    so that ranks read no more than they need; the run's placement is then the one that was shown.
    """

    found = the_checkpoint(folder, tag)
    manifest, topology = found.manifest, Topology.parse(to)
    if plan is None:
        made = resharding.plan_for(manifest.tower_plan, topology)
    else:
        made = TowerPlan.load(plan)
        saved = manifest.tower_plan
        made.check(model=saved.model, topology=topology)
        made.check_model(saved.tables, saved.features)
        check_towers(made, manifest, str(found.path))
    table = Table(title=f"{found.path.name} on {topology} instead of {manifest.topology}")
    for heading in ("rank", "host", "towers", "tables", "bytes of tables and their state"):
        table.add_column(heading, justify="right")
    for rank, size in enumerate(resharding.table_bytes(made, manifest.tensors)):
        host, lane = topology.host_of(rank), topology.lane_of(rank)
        own = [t.name for t in made.tables if any((s.host, s.lane) == (host, lane) for s in made.shards_of(t.name))]
        towers = ", ".join(map(str, made.towers_on(host)))
        table.add_row(str(rank), str(host), towers, str(len(own)), say_bytes(size))
    console = Console()
    console.print(table)
    if output is None:
        check_content(found, manifest.files)
        check_whole(found, stored_tensors(found.state))
        console.print(f"all {len(manifest.tensors)} tensors are there as a whole and have a place; nothing was written")
        return
    place = resharding.reshard(found, made, output)
    console.print(f"written: {place}", highlight=False)


@app.command("delta")
def delta(
    old: Annotated[Path, typer.Argument(help="The older checkpoint: its folder.")],
    new: Annotated[Path, typer.Argument(help="The newer checkpoint: its folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
) -> None:
    """Write what changed from one checkpoint to another, as one file.

    Of tables and of their optimizer's state it has the rows that changed, of the rest all that changed. `dmt checkpoint
    apply-delta` makes the newer checkpoint of the older one and this file. It is written block by block: no table is
    ever whole in memory.
    """

    before, after = the_checkpoint(old), the_checkpoint(new)
    total = sum(entry.bytes for entry in after.manifest.tensors.values())
    with _bar("delta", total) as bar:
        made = write_delta(before, after, output, bar.update)
    shown = Table(title=f"{before.path.name} to {after.path.name}")
    for heading in ("table", "rows", "changed", "", "bytes, with optimizer state"):
        shown.add_column(heading, justify="left" if heading == "table" else "right")
    for name, table in made.tables.items():
        share = f"{table.changed / max(1, table.rows):.1%}"
        shown.add_row(name, f"{table.rows:,}", f"{table.changed:,}", share, say_bytes(table.bytes))
    console = Console()
    console.print(shown)
    rows, changed = (sum(getattr(t, key) for t in made.tables.values()) for key in ("rows", "changed"))
    for line in (
        f"{changed:,} of {rows:,} rows of tables changed; of the other {made.others} tensors, states included, "
        f"{len(made.changed)} ({say_bytes(made.other_bytes)})",
        f"{output}: {say_bytes(made.bytes)}; the checkpoint has {say_bytes(made.whole)}",
    ):
        console.print(line, highlight=False, markup=False)


@app.command("apply-delta")
def apply(
    old: Annotated[Path, typer.Argument(help="The older checkpoint, which the delta was made from: its folder.")],
    file: Annotated[Path, typer.Argument(help="What `dmt checkpoint delta` wrote.", metavar="DELTA")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder that gets the checkpoint, by its tag.")],
) -> None:
    """Make the newer checkpoint of a delta and the older checkpoint; its files are the same byte for byte."""

    before = the_checkpoint(old)
    with _bar("apply-delta", size_of_delta(file)) as bar:
        place = apply_delta(before, file, output, bar.update)
    typer.echo(f"written: {place}")


def _bar(what: str, total: int) -> Any:
    """Progress, for people who look at a terminal."""
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=not sys.stderr.isatty())


def summary(found: Any) -> list[str]:
    """What a person wants to know first."""
    manifest = found.manifest
    plan, steps, training = manifest.tower_plan, manifest.steps, manifest.training
    tables = training["tables"]
    module = "no tower modules" if manifest.semantic_preserving else f"tower module {plan.module.kind}"
    sizes = "+".join(str(len(names)) for names in plan.towers)
    kinds = sorted({plan.kind_of(table.name) for table in plan.tables})
    lines = [
        f"{found.path}",
        f"saved {manifest.saved_at} by {', '.join(f'{k} {v}' for k, v in manifest.versions.items())}",
        f"step {steps['global_steps']}, {steps['global_samples']} samples, {steps['skipped_steps']} skipped",
        f"topology {manifest.topology}, plan {plan.fingerprint}: {len(plan.towers)} tower(s) of {sizes} features on "
        f"host(s) {', '.join(map(str, plan.tower_hosts))}, {module}",
        f"{len(plan.tables)} table(s), {', '.join(kinds)}; {tables['optimizer']}, lr {tables['lr']:g}",
        f"dense and towers: {training['optimizer']}, ZeRO {training['zero_stage']}, "
        f"{'bf16' if training['bf16'] else 'fp32'}, scheduler {training['scheduler'] or 'none'}",
        f"random numbers, buffers and positions of {manifest.rank_states} rank(s)",
    ]
    if manifest.left_out:
        lines.append(f"left out as not trained: {', '.join(manifest.left_out)}")
    return [*lines, *(f"ignored beside it: {reason}" for reason in found.ignored)]


def tensors(manifest: Any) -> Table:
    """Every parameter and buffer with the state that optimizers keep for it."""

    plan = manifest.tower_plan
    where: dict[str, list[str]] = {}
    for table in plan.tables:
        where.setdefault(table.parameter, []).append(place_of(plan, table.name))
    states: dict[str, list[tuple[str, Any]]] = {}
    for name, entry in manifest.tensors.items():
        if entry.kind in ("optimizer", "table_optimizer"):
            _, key, parameter = name.split(".", 2)
            states.setdefault(parameter, []).append((key, entry))
    shown = Table()
    for heading in ("tensor", "kind", "shape", "type", "bytes", "optimizer state", "bytes of it", "placed"):
        shown.add_column(heading, justify="right" if heading.startswith("bytes") else "left")
    total = kept = 0
    for name, entry in manifest.tensors.items():
        if entry.kind in ("optimizer", "table_optimizer"):
            continue
        plain = name.removeprefix("model.")
        own = states.get(plain, [])
        size = sum(state.bytes for _, state in own)
        total, kept = total + entry.bytes, kept + size
        shown.add_row(
            plain, entry.kind, " x ".join(map(str, entry.shape)) or "one number", entry.dtype, say_bytes(entry.bytes),
            ", ".join(key for key, _ in own) or "-", say_bytes(size) if own else "-",
            "; ".join(where.get(plain, ["-"])),
        )  # fmt: skip
    shown.add_section()
    shown.add_row("together", "", "", "", say_bytes(total), "", say_bytes(kept), "")
    return shown
