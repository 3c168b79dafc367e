"""Does a run survive the death of a rank at any moment, and does it go on as if nothing had happened?

    python -m benchmarks.kill_resume                 # 28 kills; table, build/kill_resume.json
    python -m benchmarks.kill_resume --kills 4 --seed 1
    python -m benchmarks.kill_resume --asynchronous --kills 20

1. Four ranks train and save a checkpoint after every second step, in many small blocks; two are kept. One rank, drawn
   from the seed, is killed with SIGKILL a moment, also drawn, after it began, in turn: a save, a load, a load on
   another topology, a step. Every fourth run the topology changes, from 2x2 to 4x1 and back.
2. The other ranks must end by themselves, with an error that names a rank and the step, within 60 s.
   With ``--asynchronous`` checkpoints are written behind the steps, and every kill is aimed at such a write.
3. The next run loads without a tag. It must find a checkpoint of at least the last step whose save returned on any
   rank; what each rank holds then must be what is stored; and a step that a run before has taken on the same
   topologies must lead to the same loss and state, bit for bit.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

from dmt_plugin.report.parts.tables import Column, Table

RANKS, TOPOLOGIES = 4, ("2x2", "4x1")
BATCH, DENSE, FEATURES, ROWS, WIDTH = 8, 4, 6, 4000, 16
BLOCK = 1 << 12
"""Entries that are written, and bytes that are read, at once: many, so that kills fall between them."""
TIMEOUT_S, LIMIT_S = 20.0, 60.0
STARTING, STEPPING, SAVING, LOADING, WRITING = 0, 1, 2, 3, 4
PHASES = {STEPPING: "step", SAVING: "save", LOADING: "load", WRITING: "write"}
TURNS = ((SAVING, 0), (LOADING, 0), (LOADING, 1), (STEPPING, 0))
"""What is killed in turn, and whether on the other topology."""
TURNS_BEHIND = ((WRITING, 0), (WRITING, 1))
FIRST_GUESS_S = 0.03
KEPT, EVERY = 2, 2


@dataclass(frozen=True)
class Shown:
    """What ranks show to their parent, in shared memory, and what it asked for.

    Attributes:
        phases: by rank, what it does.
        writing: by rank, whether it writes a checkpoint behind the steps.
        asynchronous: whether it is to.
    """

    phases: Any
    writing: Any
    asynchronous: bool


class Model(nn.Module):
    """A small DLRM."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(ROWS, WIDTH, mode="sum") for _ in range(FEATURES))
        self.bottom = nn.Linear(DENSE, WIDTH)
        self.top = nn.Sequential(nn.Linear((FEATURES + 1) * WIDTH, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """``(samples, DENSE)`` and ``(samples, FEATURES)`` to ``(samples,)``."""
        rows = [table(ids[:, i : i + 1]) for i, table in enumerate(self.tables)]
        return self.top(torch.cat([*rows, self.bottom(dense)], dim=1)).squeeze(1)


def batch_of(step: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Dense inputs, ids and labels, the same for a step whenever it is run."""
    draw = torch.Generator().manual_seed(1000 * step + rank)
    return (
        torch.randn(BATCH, DENSE, generator=draw),
        torch.randint(0, ROWS, (BATCH, FEATURES), generator=draw),
        torch.randint(0, 2, (BATCH,), generator=draw).float(),
    )


def rank_main(rank: int, folder: str, run: int, topology: str, stage: int, shown: Shown) -> None:
    """One rank: load, then train and save until it, or another, dies."""
    hosts, lanes = map(int, topology.split("x"))
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank % lanes), LOCAL_SIZE=str(lanes),
        CROSS_RANK=str(rank // lanes), CROSS_SIZE=str(hosts),
    )  # fmt: skip
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with Path(folder, f"run{run}.rank{rank}").open("a", buffering=1) as log:
        try:
            train(rank, folder, run, topology, stage, shown, log)
        except BaseException as error:
            last = traceback.format_exception(error)[-1].strip().splitlines()[0]
            log.write(json.dumps({"error": last}) + "\n")
    os._exit(1)


def train(rank: int, folder: str, run: int, topology: str, stage: int, shown: Shown, log: Any) -> None:
    """Writes what it does into ``log``, one JSON object a line."""
    import dmt_plugin

    phases = shown.phases
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{run}", rank=rank, world_size=RANKS,
        timeout=timedelta(seconds=TIMEOUT_S),
    )  # fmt: skip
    torch.manual_seed(7 * run + rank)
    engine, *_ = dmt_plugin.initialize(
        model=Model(),
        config={
            "train_micro_batch_size_per_gpu": BATCH,
            "optimizer": {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True}},
            "zero_optimization": {"stage": stage},
            "steps_per_print": 10**9,
            "dmt": {
                "towers": {"module": "dlrm", "c": 1, "p": 1, "dim": 8, "count": 4},
                "lookup": {"optimizer": "rowwise_adagrad", "lr": 0.05},
                "comm": {"timeout_s": TIMEOUT_S},
            },
        },
        example_batch=batch_of(0, rank)[:2],
    )
    saves = Path(folder, "checkpoints")

    def during(phase: int, action: Callable[[], Any]) -> Any:
        began, phases[rank] = time.monotonic(), phase
        result = action()
        phases[rank] = STARTING
        log.write(json.dumps({"took": PHASES[phase], "seconds": time.monotonic() - began}) + "\n")
        return result

    if shown.asynchronous:
        threading.Thread(target=show_writing, args=(engine, shown.writing, rank, log), daemon=True).start()
    path, client = during(LOADING, lambda: engine.load_checkpoint(str(saves)))
    history = [[topology, 0]] if path is None else list(client["history"])
    if history[-1][0] != topology:
        history.append([topology, engine.global_steps])
    log.write(
        json.dumps(
            {
                "loaded": engine.global_steps, "from": path, "history": json.dumps(history),
                "wrong": wrong(engine, path) if path else [],
            }
        )
        + "\n"
    )  # fmt: skip
    if path is None:
        torch.manual_seed(rank)
        engine.save_checkpoint(str(saves), client_state={"history": history})
    while True:
        phases[rank] = STEPPING
        dense, ids, label = batch_of(engine.global_steps, rank)
        loss = nn.functional.binary_cross_entropy_with_logits(engine(dense, ids), label)
        engine.backward(loss)
        engine.step()
        log.write(json.dumps({"step": engine.global_steps, "state": digest(engine, loss)}) + "\n")
        if engine.global_steps % EVERY:
            continue
        if engine.wait_for_checkpoint() is not None:  # only now is it known that the one before is committed
            log.write(json.dumps({"saved": engine.global_steps - EVERY}) + "\n")
        asked = {"client_state": {"history": history}, "asynchronous": shown.asynchronous}
        during(SAVING, partial(engine.save_checkpoint, str(saves), **asked))
        if not shown.asynchronous:
            log.write(json.dumps({"saved": engine.global_steps}) + "\n")
        old = saves / f"global_step{engine.global_steps - KEPT * EVERY}"
        if rank == 0 and old.exists():
            shutil.rmtree(old)


def show_writing(engine: Any, writing: Any, rank: int, log: Any) -> None:
    """In a thread of its own: whether a checkpoint is being written behind the steps, and how long that took."""
    while True:
        if engine.behind.busy and not writing[rank]:
            began, writing[rank] = time.monotonic(), 1
        elif writing[rank] and not engine.behind.busy:
            writing[rank] = 0
            log.write(json.dumps({"took": PHASES[WRITING], "seconds": time.monotonic() - began}) + "\n")
        time.sleep(0.001)


def held(engine: Any) -> list[Any]:
    """Pieces of this rank's parameters, tables and optimizer states."""
    from dmt_plugin.checkpoint.state import module_targets, parameter_names, table_pieces
    from dmt_plugin.integrations.deepspeed.checkpoint.optimizer_state import OptimizerState

    dmt = engine.dmt
    view = OptimizerState(engine.optimizer, parameter_names(dmt.placed))
    return [*table_pieces(dmt.lookup, dmt.plan), *module_targets(dmt.placed, {}).pieces, *view.pieces()]


def wrong(engine: Any, path: str) -> list[str]:
    """Names of what this rank holds otherwise than a checkpoint does."""
    from dmt_plugin.checkpoint.folder import find_checkpoint
    from dmt_plugin.checkpoint.single import read_tensors

    found = find_checkpoint(path)
    assert found is not None
    stored = read_tensors(found, list(found.manifest.tensors))
    names = []
    for piece in held(engine):
        whole = stored[piece.name].view(piece.size)
        places = tuple(slice(f, f + n) for f, n in zip(piece.offsets, piece.values.shape, strict=True))
        if not torch.equal(piece.values, whole[places]):
            names.append(piece.name)
    return names


def digest(engine: Any, loss: Tensor) -> str:
    """Of the loss, and of what this rank holds."""
    total = hashlib.sha256(loss.detach().numpy().tobytes())
    for piece in held(engine):
        total.update(piece.values.detach().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def one_run(
    folder: str, run: int, stage: int, draw: random.Random, lasts: Mapping[str, float], asynchronous: bool = False
) -> dict[str, Any]:
    """Starts the ranks, kills one, and waits for the others; phases last about as long as ``lasts`` says, in s."""
    context = multiprocessing.get_context("fork")
    phases, writing = (context.Array("b", RANKS, lock=False) for _ in range(2))
    turns = TURNS_BEHIND if asynchronous else TURNS
    phase, other = turns[run % len(turns)]
    topology = TOPOLOGIES[(run // len(turns) + other) % len(TOPOLOGIES)]
    shown = Shown(phases, writing, asynchronous)
    ranks = [
        context.Process(target=rank_main, args=(rank, folder, run, topology, stage, shown), daemon=True)
        for rank in range(RANKS)
    ]
    for process in ranks:
        process.start()
    victim = draw.randrange(len(ranks))
    passes = draw.randrange(1, 4) if phase != LOADING else 1
    delay = draw.uniform(0.0, 0.8 * lasts.get(PHASES[phase], FIRST_GUESS_S))

    def inside() -> bool:
        return bool(writing[victim]) if phase == WRITING else phases[victim] == phase

    try:
        for _ in range(passes):  # some steps later
            _wait_for(lambda: not inside(), ranks, LIMIT_S)
            _wait_for(inside, ranks, LIMIT_S)
        time.sleep(delay)
        ranks[victim].kill()
        killed = time.monotonic()
        hit = PHASES[WRITING] if writing[victim] else PHASES.get(phases[victim], "start")
        while any(process.is_alive() for process in ranks) and time.monotonic() - killed < LIMIT_S:
            time.sleep(0.005)
        seconds = time.monotonic() - killed
        hung = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    finally:
        for process in ranks:
            process.kill()
            process.join()
    signals = {rank: process.exitcode for rank, process in enumerate(ranks) if process.exitcode == -signal.SIGKILL}
    return {
        "run": run, "topology": topology, "victim": victim, "in": hit, "aimed at": PHASES[phase], "seconds": seconds,
        "hung": hung, "killed": sorted(signals),
    }  # fmt: skip


def _wait_for(what: Any, ranks: Sequence[Any], limit: float) -> None:
    end = time.monotonic() + limit
    while not what():
        if time.monotonic() > end or not all(process.is_alive() for process in ranks):
            return  # reported by the ranks' logs
        time.sleep(0.0005)


def read_logs(folder: str, run: int) -> list[list[dict[str, Any]]]:
    """What each rank wrote; the last line of one that was killed may be cut off."""
    found = []
    for rank in range(RANKS):
        file = Path(folder, f"run{run}.rank{rank}")
        lines = file.read_text().splitlines() if file.exists() else []
        found.append([json.loads(line) for line in lines if line.endswith("}")])
    return found


def soak(kills: int, seed: int, stage: int = 1, asynchronous: bool = False) -> dict[str, Any]:
    """``kills`` runs with a kill each; see the module's docstring.

    Args:
        kills: number of runs.
        seed: of victims and moments.
        stage: of ZeRO.
        asynchronous: whether checkpoints are written behind the steps.

    Returns:
        ``runs``, and ``problems`` in words.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(1)
    import dmt_plugin.integrations.deepspeed  # noqa: F401 - so that ranks, which are forked, have it
    from dmt_plugin.checkpoint import pieces, rows

    pieces.BLOCK = rows.BLOCK_BYTES = BLOCK
    draw = random.Random(seed)
    runs: list[dict[str, Any]] = []
    problems: list[str] = []
    states: dict[tuple[str, int, int], list[str]] = {}
    times: dict[str, list[float]] = {}
    saved = 0
    with tempfile.TemporaryDirectory(prefix="dmt-kills-") as folder:
        for run in range(kills):
            lasts = {name: statistics.median(taken) for name, taken in times.items()}
            found = one_run(folder, run, stage, draw, lasts, asynchronous)
            found["left over"] = sorted(p.name for p in Path(folder, "checkpoints").glob("*.*"))
            logs = read_logs(folder, run)
            problems += [f"run {run}: {text}" for text in check_run(found, logs, states, saved)]
            for line in (line for log in logs for line in log if "took" in line):
                times.setdefault(line["took"], []).append(line["seconds"])
            saved = max([saved, *(line["saved"] for log in logs for line in log if "saved" in line)])
            found["last saved"] = saved
            runs.append(found)
        problems += last_problems(Path(folder, "checkpoints"), saved)
    again = sum(len(taken) - 1 for taken in states.values())
    hits = Counter(run["in"] for run in runs)
    return {"runs": runs, "problems": problems, "states": len(states), "compared": again, "hits": dict(hits)}


def last_problems(saves: Path, saved: int) -> list[str]:
    """What is wrong with what the last kill left: the newest whole checkpoint is no older than what was saved.

    Args:
        saves: the folder of the checkpoints.
        saved: the last step whose save returned on any rank; 0: none did.
    """
    from dmt_plugin.checkpoint.unchanged import find_unchanged

    found = find_unchanged(saves)
    step = None if found is None else found.manifest.steps["global_steps"]
    if saved and (step is None or step < saved):
        return [f"after the last kill the newest whole checkpoint is of step {step}, although step {saved} was saved"]
    return []


def check_run(
    found: dict[str, Any], logs: list[list[dict[str, Any]]], states: dict[tuple[str, int, int], list[str]], saved: int
) -> list[str]:
    """What one run did wrong; notes the states it went through."""
    problems = [f"rank {rank} still ran after {LIMIT_S:g} s" for rank in found["hung"]]
    if found["killed"] != [found["victim"]] and not found["hung"]:
        problems.append(f"rank {found['victim']} was to be killed, {found['killed']} were")
    for rank, log in enumerate(logs):
        loads = [line for line in log if "loaded" in line]
        loaded = [line["loaded"] for line in loads]
        found["loaded"] = loaded[0] if loaded else None
        errors = [line["error"] for line in log if "error" in line]
        if loaded and loads[0]["wrong"]:
            problems.append(f"rank {rank} holds something else than is stored of {loads[0]['wrong']}")
        if (loaded and loaded[0] < saved) or not (loaded or found["in"] in ("load", "start")):
            problems.append(f"rank {rank} loaded step {loaded}, although step {saved} was saved; {errors}")
        for line in log:
            if "step" not in line:
                continue
            taken = states.setdefault((loads[0]["history"], line["step"], rank), [])
            taken.append(line["state"])
            if taken[0] != taken[-1]:
                problems.append(f"rank {rank} is in another state after step {line['step']} than a run before")
        if rank != found["victim"] and not any("rank" in error and "step" in error for error in errors):
            problems.append(f"rank {rank} ended without an error that names rank and step: {errors}")
        found.setdefault("errors", []).append(errors[0] if errors else "")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; exit status 1 if something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", type=int, default=1, choices=(0, 1, 2), help="of ZeRO")
    parser.add_argument("--asynchronous", action="store_true", help="write behind the steps, and kill there")
    parser.add_argument("--output", type=Path, default=Path("build/kill_resume.json"))
    options = parser.parse_args(arguments)
    found = soak(options.kills, options.seed, options.stage, options.asynchronous)
    console = Console()
    columns = [
        Column("run", "run"),
        Column("topology", "on", text=True),
        Column("victim", "killed rank"),
        Column("in", "during", text=True),
        Column("loaded", "loaded step"),
        Column("last saved", "last saved step"),
        Column("seconds", "others ended after", ".2f", "s"),
        Column("left", "left over", text=True),
    ]
    rows = [{**run, "left": ", ".join(run["left over"]) or None} for run in found["runs"]]
    console.print(Table(columns, rows).to_rich("one rank killed"))
    for problem in found["problems"]:
        console.print(problem, style="red")
    worst = max(r["seconds"] for r in found["runs"])
    hits = ", ".join(f"{count} in a {name}" for name, count in sorted(found["hits"].items()))
    console.print(
        f"{len(rows)} kills, {hits}; slowest end of the others {worst:.2f} s; {found['states']} states of a rank after "
        f"a step, {found['compared']} of them reached again and compared; {len(found['problems'])} problem(s)"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    made = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    asked = {name: getattr(options, name) for name in ("kills", "seed", "stage", "asynchronous")}
    options.output.write_text(json.dumps({"made": made, **asked, **found}, indent=1))
    return bool(found["problems"])


if __name__ == "__main__":
    raise SystemExit(main())
