"""Short runs with checkpoints, on ranks, and everything that two runs are compared by."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch import Tensor

from dmt_plugin.plan.row_shares import RowShares, TableRows
from dmt_plugin.topology.shape import Topology
from tests.zoo.catalogue import CATALOGUE
from tests.zoo.models import ZOO

BY_ID = "seq_candidates"
"""Rows by id, of a matrix of candidates for each sample."""
GLOBAL = 8
"""Samples of a step, over all ranks."""


def dense_rule(name: str) -> dict[str, Any]:
    return {
        "adam": {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True}},
        "adagrad": {"type": "Adagrad", "params": {"lr": 0.05}},
        "sgd": {"type": "SGD", "params": {"lr": 0.05}},
        "momentum": {"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9}},
    }[name]


def make(
    topology: str,
    model: str = "dcn_v2",
    *,
    stage: int = 0,
    dense: str = "adam",
    tables: dict[str, Any] | None = None,
    seed: int = 0,
    warmup: bool = True,
    dmt: dict[str, Any] | None = None,
    ds: dict[str, Any] | None = None,
    prepare: Any = None,
    rows: dict[str, float] | None = None,
) -> Any:
    """An engine and its batches, on this rank; ``rows`` that travel once, by table, are what was counted."""
    import dmt_plugin

    torch.manual_seed(seed)
    flat, draw = (CATALOGUE[BY_ID].build if model == BY_ID else ZOO[model])()
    bf16 = (ds or {}).get("bf16", {}).get("enabled", False)

    def batch(samples: int, seed: int) -> Any:
        return tuple(x.bfloat16() if bf16 and x.is_floating_point() else x for x in draw(samples, seed))

    if prepare is not None:
        prepare(flat)
    where = Topology.parse(topology)
    hosts, lanes = where.hosts, where.ranks_per_host
    section = {
        "towers": {"module": "dlrm", "c": 1, "p": 1, "dim": 4},
        "lookup": {"optimizer": "rowwise_adagrad", "lr": 0.1, **(tables or {})},
        **copy.deepcopy(dmt or {}),
        "topology": dataclasses.asdict(where),
    }
    config = {
        "train_micro_batch_size_per_gpu": GLOBAL // (hosts * lanes),
        "optimizer": dense_rule(dense),
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.5,
        "steps_per_print": 100000,
        **(ds or {}),
        "dmt": section,
    }
    if rows is not None:
        counted = [TableRows(table, count, count) for table, count in rows.items()]
        with NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(RowShares("a test", GLOBAL // (hosts * lanes), lanes, 1, (), tuple(counted)).to_dict(), file)
        section["comm"] = {"dedup": "on", "dedup_shares": file.name}
    if warmup:
        config["scheduler"] = {"type": "WarmupLR", "params": {"warmup_num_steps": 10, "warmup_max_lr": 0.05}}
    engine, *_ = dmt_plugin.initialize(model=flat, config=config, example_batch=draw(5, 0))
    return engine, batch


def refused(call: Callable[[], Any]) -> str:
    from dmt_plugin.core.errors import DMTError

    try:
        call()
    except DMTError as error:
        return f"{type(error).__name__}: {error}"
    return "it went through"


def part_of(values: Any, rank: int, world: int) -> Any:
    """A rank's share of a batch of ``GLOBAL`` samples."""
    size = GLOBAL // world
    return tuple(value[rank * size : (rank + 1) * size] for value in values)


def train(engine: Any, batch: Any, steps: int) -> list[Tensor]:
    """Trains on the batches that come next by the engine's count."""
    rank, world = engine.dmt.groups.rank, engine.dmt.topology.world_size
    losses = []
    for _ in range(steps * engine.gradient_accumulation_steps()):
        seed = 1000 + engine.micro_steps
        inputs = tuple(x.to(engine.device) for x in part_of(batch(GLOBAL, seed), rank, world))
        labels = torch.randint(0, 2, (GLOBAL,), generator=torch.Generator().manual_seed(seed)).float()
        (label,) = part_of((labels,), rank, world)
        out = engine(*inputs).reshape(len(label), -1).mean(1).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(out, label.to(out.device))
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())
    return losses


def logical(engine: Any) -> dict[str, Tensor]:
    """Parameters and tables by their names in the model, from all ranks."""
    from dmt_plugin.checkpoint import gather_state

    return gather_state(engine.dmt.placed, engine.dmt.groups)


def everything(engine: Any) -> dict[str, Any]:
    """All that decides how training goes on, on this rank."""
    from dmt_plugin.checkpoint.state import module_targets, own_buffers, parameter_names, table_pieces
    from dmt_plugin.integrations.deepspeed.checkpoint.optimizer_state import OptimizerState

    dmt = engine.dmt
    view = OptimizerState(engine.optimizer, parameter_names(dmt.placed))
    pieces = [*table_pieces(dmt.lookup, dmt.plan), *module_targets(dmt.placed, view.masters()).pieces, *view.pieces()]
    found: dict[str, Any] = {f"{i} {p.name} {p.offsets}": p.values.detach().clone() for i, p in enumerate(pieces)}
    for name, scalars in view.scalars().items():
        found.update({f"{name} {key}": torch.as_tensor(value) for key, value in scalars.items()})
    for number, group in enumerate(view.options()):
        found[f"options {number}"] = str(group)
    found.update({f"buffer {name}": value for name, value in own_buffers(dmt.placed).items()})
    found["scheduler"] = str(engine.lr_scheduler.state_dict()) if engine.lr_scheduler is not None else ""
    found["counters"] = str((engine.global_steps, engine.global_samples, engine.skipped_steps, engine.micro_steps))
    found["learning rate"] = str(engine.get_lr())
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names whose values are not the same bit for bit."""
    if set(one) != set(other):
        return [f"only in one of both: {sorted(set(one) ^ set(other))[:6]}"]
    return [
        f"{key}: {a if isinstance(a, str) else ''} {other[key] if isinstance(a, str) else ''}"
        for key, a in one.items()
        if not (torch.equal(a, other[key]) if isinstance(a, Tensor) else a == other[key])
    ]


def moved(rank: int, place: str, run: dict[str, Any]) -> list[str]:
    """Other ranks own the rows on other hosts, bit for bit; heavy tables that were counted are in rows by modulo."""
    import dmt_plugin
    from dmt_plugin.checkpoint import find_checkpoint
    from dmt_plugin.checkpoint.single import read_state, read_tensors

    engine, _ = make("4x1", **run)
    engine.load_checkpoint(place)
    engine.save_checkpoint(place, tag="moved")
    flat = dmt_plugin.to_flat(engine)
    engine.load_flat_state(f"{place}/global_step2")
    engine.save_checkpoint(place, tag="again")
    engine.destroy()
    if rank:
        return []
    first, second = find_checkpoint(place, "global_step2"), find_checkpoint(place, "moved")
    assert first is not None and second is not None
    wrong = []
    if "rows" in run:
        plans = [found.manifest.tower_plan for found in (first, second)]
        steps = [[plan.shards_of("tables.1")[0].step, len(plan.table_hosts) > 0] for plan in plans]
        wrong = [] if steps == [[4, True], [4, True]] else [f"moved: {steps}"]
    states = [read_tensors(found, list(found.manifest.tensors)) for found in (first, second)]
    wrong += [f"moved: {what}" for what in differences(*states)]
    whole = read_state(place, "global_step2")
    assert flat is not None
    wrong += [f"to_flat: {what}" for what in differences(whole, flat.state_dict())]
    return wrong + [f"load_flat_state: {what}" for what in differences(whole, read_state(place, "again"))]
