"""Does a run survive the death of a rank at any moment, and does it go on as if nothing had happened?

    python -m benchmarks.kill_resume                 # 20 kills; table, build/kill_resume.json
    python -m benchmarks.kill_resume --kills 5 --seed 1

1. Four ranks on two hosts train and save a checkpoint after every second step; two are kept. One rank, drawn from the
   seed, is killed with SIGKILL a moment, also drawn, after it began a save or a step, in turn.
2. The other ranks must end by themselves, with an error that names a rank and the step, within 60 s.
3. The next run loads without a tag. It must find a checkpoint of at least the last step whose save returned on any
   rank; and a step that a run before has taken must lead to the same loss and state, bit for bit.
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
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

from dmt_plugin.report.parts.tables import Column, Table

HOSTS, LANES = 2, 2
BATCH, DENSE, FEATURES, ROWS, WIDTH = 8, 4, 6, 500, 16
TIMEOUT_S, LIMIT_S = 20.0, 60.0
STARTING, STEPPING, SAVING = 0, 1, 2
PHASES = {STEPPING: "step", SAVING: "save"}
KEPT, EVERY = 2, 2


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


def rank_main(rank: int, folder: str, run: int, stage: int, phases: Any) -> None:
    """One rank: load, then train and save until it, or another, dies."""
    world = HOSTS * LANES
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank % LANES), LOCAL_SIZE=str(LANES),
        CROSS_RANK=str(rank // LANES), CROSS_SIZE=str(HOSTS),
    )  # fmt: skip
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with Path(folder, f"run{run}.rank{rank}").open("a", buffering=1) as log:
        try:
            train(rank, world, folder, run, stage, phases, log)
        except BaseException as error:
            last = traceback.format_exception(error)[-1].strip().splitlines()[0]
            log.write(json.dumps({"error": last}) + "\n")
    os._exit(1)


def train(rank: int, world: int, folder: str, run: int, stage: int, phases: Any, log: Any) -> None:
    """Writes what it does into ``log``, one JSON object a line."""
    import dmt_plugin

    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{run}", rank=rank, world_size=world,
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
                "towers": {"module": "dlrm", "c": 1, "p": 1, "dim": 8},
                "lookup": {"optimizer": "rowwise_adagrad", "lr": 0.05},
                "comm": {"timeout_s": TIMEOUT_S},
            },
        },
        example_batch=batch_of(0, rank)[:2],
    )
    saves = Path(folder, "checkpoints")
    path, _ = engine.load_checkpoint(str(saves))
    if path is None:
        torch.manual_seed(rank)
        engine.save_checkpoint(str(saves))
    log.write(json.dumps({"loaded": engine.global_steps, "from": path}) + "\n")
    while True:
        phases[rank] = STEPPING
        dense, ids, label = batch_of(engine.global_steps, rank)
        loss = nn.functional.binary_cross_entropy_with_logits(engine(dense, ids), label)
        engine.backward(loss)
        engine.step()
        log.write(json.dumps({"step": engine.global_steps, "state": digest(engine, loss)}) + "\n")
        if engine.global_steps % EVERY:
            continue
        phases[rank] = SAVING
        engine.save_checkpoint(str(saves))
        log.write(json.dumps({"saved": engine.global_steps}) + "\n")
        old = saves / f"global_step{engine.global_steps - KEPT * EVERY}"
        if rank == 0 and old.exists():
            shutil.rmtree(old)


def digest(engine: Any, loss: Tensor) -> str:
    """Of the loss, and of this rank's parameters, tables and optimizer states."""
    from dmt_plugin.checkpoint.state import module_targets, parameter_names, table_pieces
    from dmt_plugin.integrations.deepspeed.checkpoint.optimizer_state import OptimizerState

    dmt = engine.dmt
    view = OptimizerState(engine.optimizer, parameter_names(dmt.placed))
    total = hashlib.sha256(loss.detach().numpy().tobytes())
    for piece in (*table_pieces(dmt.lookup, dmt.plan), *module_targets(dmt.placed, {}).pieces, *view.pieces()):
        total.update(piece.values.detach().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def one_run(folder: str, run: int, stage: int, draw: random.Random) -> dict[str, Any]:
    """Starts the ranks, kills one, and waits for the others."""
    context = multiprocessing.get_context("fork")
    phases = context.Array("b", HOSTS * LANES, lock=False)
    ranks = [
        context.Process(target=rank_main, args=(rank, folder, run, stage, phases), daemon=True)
        for rank in range(HOSTS * LANES)
    ]
    for process in ranks:
        process.start()
    victim, phase = draw.randrange(len(ranks)), (STEPPING, SAVING)[run % 2]
    passes, delay = draw.randrange(1, 4), draw.uniform(0.0, 0.03)
    try:
        _wait_for(lambda: phases[victim] != STARTING, ranks, LIMIT_S)
        for _ in range(passes):  # some steps later
            _wait_for(lambda: phases[victim] != phase, ranks, LIMIT_S)
            _wait_for(lambda: phases[victim] == phase, ranks, LIMIT_S)
        time.sleep(delay)
        ranks[victim].kill()
        killed = time.monotonic()
        hit = PHASES.get(phases[victim], "start")
        while any(process.is_alive() for process in ranks) and time.monotonic() - killed < LIMIT_S:
            time.sleep(0.005)
        seconds = time.monotonic() - killed
        hung = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    finally:
        for process in ranks:
            process.kill()
            process.join()
    signals = {rank: process.exitcode for rank, process in enumerate(ranks) if process.exitcode == -signal.SIGKILL}
    return {"run": run, "victim": victim, "in": hit, "seconds": seconds, "hung": hung, "killed": sorted(signals)}


def _wait_for(what: Any, ranks: Sequence[Any], limit: float) -> None:
    end = time.monotonic() + limit
    while not what():
        if time.monotonic() > end or not all(process.is_alive() for process in ranks):
            return  # reported by the ranks' logs
        time.sleep(0.0005)


def read_logs(folder: str, run: int) -> list[list[dict[str, Any]]]:
    """What each rank wrote; the last line of one that was killed may be cut off."""
    found = []
    for rank in range(HOSTS * LANES):
        file = Path(folder, f"run{run}.rank{rank}")
        lines = file.read_text().splitlines() if file.exists() else []
        found.append([json.loads(line) for line in lines if line.endswith("}")])
    return found


def soak(kills: int, seed: int, stage: int = 1) -> dict[str, Any]:
    """``kills`` runs with a kill each; see the module's docstring.

    Args:
        kills: number of runs.
        seed: of victims and moments.
        stage: of ZeRO.

    Returns:
        ``runs``, and ``problems`` in words.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(1)
    import dmt_plugin.integrations.deepspeed  # noqa: F401 - so that ranks, which are forked, have it

    draw = random.Random(seed)
    runs: list[dict[str, Any]] = []
    problems: list[str] = []
    states: dict[tuple[int, int], list[str]] = {}
    saved = 0
    with tempfile.TemporaryDirectory(prefix="dmt-kills-") as folder:
        for run in range(kills):
            found = one_run(folder, run, stage, draw)
            found["left over"] = sorted(p.name for p in Path(folder, "checkpoints").glob("*.*"))
            logs = read_logs(folder, run)
            problems += [f"run {run}: {text}" for text in check_run(found, logs, states, saved)]
            saved = max([saved, *(line["saved"] for log in logs for line in log if "saved" in line)])
            found["last saved"] = saved
            runs.append(found)
    again = sum(len(taken) - 1 for taken in states.values())
    return {"runs": runs, "problems": problems, "states": len(states), "compared": again}


def check_run(
    found: dict[str, Any], logs: list[list[dict[str, Any]]], states: dict[tuple[int, int], list[str]], saved: int
) -> list[str]:
    """What one run did wrong; notes the states it went through."""
    problems = [f"rank {rank} still ran after {LIMIT_S:g} s" for rank in found["hung"]]
    if found["killed"] != [found["victim"]] and not found["hung"]:
        problems.append(f"rank {found['victim']} was to be killed, {found['killed']} were")
    for rank, log in enumerate(logs):
        loaded = [line["loaded"] for line in log if "loaded" in line]
        found["loaded"] = loaded[0] if loaded else None
        errors = [line["error"] for line in log if "error" in line]
        if not loaded or loaded[0] < saved:
            problems.append(f"rank {rank} loaded step {loaded}, although step {saved} was saved; {errors}")
        for line in log:
            if "step" not in line:
                continue
            taken = states.setdefault((line["step"], rank), [])
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
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", type=int, default=1, choices=(0, 1, 2), help="of ZeRO")
    parser.add_argument("--output", type=Path, default=Path("build/kill_resume.json"))
    options = parser.parse_args(arguments)
    found = soak(options.kills, options.seed, options.stage)
    console = Console()
    columns = [
        Column("run", "run"),
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
    console.print(
        f"{len(rows)} kills; slowest end of the others {worst:.2f} s; {found['states']} states of a rank after a step, "
        f"{found['compared']} of them reached again and compared; {len(found['problems'])} problem(s)"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    made = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    asked = {"kills": options.kills, "seed": options.seed, "stage": options.stage}
    options.output.write_text(json.dumps({"made": made, **asked, **found}, indent=1))
    return bool(found["problems"])


if __name__ == "__main__":
    raise SystemExit(main())
