"""A resumed run is the run that was not interrupted, bit for bit; on other topologies and ZeRO stages to rounding.

Everything is on real ranks. A load that does not fit says what, and changes nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from tests._util.ranks import run_ranks
from tests.integrations.runs import BY_ID, GLOBAL, differences, everything, logical, make, moved, refused, train
from tests.test_placed_laws import launcher_env
from tests.zoo.models import ZOO

TOWERS = {"module": "dlrm", "c": 1, "p": 1, "dim": 4}

BF16 = {"bf16": {"enabled": True}}
SUMS_IN_FP32 = {"data_types": {"grad_accum_dtype": "fp32"}}

#: ZeRO stage and what else there is to be resumed; the model has dropout and running statistics.
RUNS: dict[str, dict[str, Any]] = {
    "0, adam, one rate": {
        "stage": 0, "tables": {"optimizer": "rowwise_adagrad", "backend": "fbgemm", "schedule": "follow"},
    },
    "0, adagrad, rows": {
        "stage": 0, "dense": "adagrad", "tables": {"optimizer": "adagrad", "backend": "torch"},
        "dmt": {"placement": {"strategy": "row_wise"}},
    },
    "1, adagrad, columns": {
        "stage": 1, "dense": "adagrad", "tables": {"optimizer": "adagrad", "backend": "fbgemm"},
        "dmt": {"placement": {"strategy": "column_wise"}},
    },
    "1, momentum, accumulation": {
        "stage": 1, "dense": "momentum", "tables": {"optimizer": "sgd", "backend": "fbgemm", "schedule": "follow"},
        "ds": {"gradient_accumulation_steps": 2},
    },
    "2, adam, unequal towers, rows": {
        "stage": 2, "tables": {"optimizer": "rowwise_adagrad", "backend": "fbgemm"},
        "dmt": {"towers": {**TOWERS, "overrides": {"1": {"c": 2, "p": 2}}}, "placement": {"strategy": "row_wise"}},
    },
    "2, adam, round robin": {
        "stage": 2, "tables": {"optimizer": "adagrad", "backend": "torch"},
        "ds": {"zero_optimization": {"stage": 2, "round_robin_gradients": True}},
    },
    "1, adagrad, rows by modulo": {
        "stage": 1, "model": "dlrm", "dense": "adagrad", "tables": {"optimizer": "adagrad", "backend": "torch"},
        "dmt": {"towers": {"module": "none"}}, "rows": {f"tables.{i}": 8.0 if i == 1 else 1.0 for i in range(6)},
    },
    "1, adam, rows by id in ranges": {
        "stage": 1, "model": BY_ID, "tables": {"optimizer": "adam", "backend": "torch"},
        "dmt": {"towers": {"module": "none", "count": 4}, "placement": {"strategy": "row_wise"}},
    },
    "0, bf16": {"model": "dlrm", "ds": {**BF16}},
    "1, bf16, sums in fp32": {"model": "dlrm", "stage": 1, "ds": {**BF16, **SUMS_IN_FP32}},
    "2, bf16": {"model": "dlrm", "stage": 2, "dense": "momentum", "ds": {**BF16}},
}  # fmt: skip


def drawn() -> tuple[float, float, float]:
    return torch.rand(1).item(), random.random(), float(numpy.random.random())


def resumed(rank: int, world: int, folder: str, runs: dict[str, dict[str, Any]]) -> list[str]:
    """Every run, interrupted and not; lists what differs."""
    wrong = []
    for number, (name, run) in enumerate(runs.items()):
        place = f"{folder}/{name}"
        engine, batch = make("2x2", **run)
        train(engine, batch, 2)
        engine.save_checkpoint(place, client_state={"of rank": rank})
        saved, draws = everything(engine), drawn()
        losses = train(engine, batch, 2)
        end = everything(engine)
        again, batch = make("2x2", **{**run, "seed": 50 + rank})
        train(again, batch, number % 2)  # whatever there is, is replaced
        _, client = again.load_checkpoint(place)
        checks = {
            "client state": client == {"of rank": rank},
            "random numbers": draws == drawn(),
            "it trains": bool(differences(saved, end)),
        }
        wrong += [f"{name}: {what}" for what, right in checks.items() if not right]
        wrong += [f"{name}, loaded: {what}" for what in differences(saved, everything(again))]
        pairs = zip(losses, train(again, batch, 2), strict=True)
        wrong += [f"{name}: the loss is {a} and {b}" for a, b in pairs if not torch.equal(a, b)]
        wrong += [f"{name}, trained: {what}" for what in differences(end, everything(again))]
        for used in (engine, again):
            used.destroy()  # its groups have threads that look around a hundred times a second
        wrong += moved(rank, place, run) if "rows" in run or run.get("model") == BY_ID else []
    return wrong


STAGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("2x2", {"ds": BF16}),
    ("2x2", {"stage": 1, "ds": {**BF16, **SUMS_IN_FP32}}),
    ("1x4", {"stage": 2, "ds": BF16}),
    ("4x1", {"ds": BF16}),
    ("2x2", {"stage": 1, "ds": BF16}),
    ("2x2", {"stage": 2, "ds": {}}),
)
"""Ways in which DeepSpeed keeps parameters and their masters; the last has no masters."""


def passed_on(rank: int, world: int, folder: str) -> list[str]:
    """From one to the next without training: what is saved again is what was loaded, bit for bit."""
    from dmt_plugin.checkpoint import find_checkpoint
    from dmt_plugin.checkpoint.single import read_tensors

    wrong: list[str] = []
    before: dict[str, Any] = {}
    for number, (topology, run) in enumerate(STAGES):
        towers = {"towers": {**TOWERS, "count": 4}}
        engine, batch = make(topology, "dlrm", seed=number, dmt=towers, **run)
        if number:
            engine.load_checkpoint(folder, str(number - 1))
        else:
            train(engine, batch, 2)
        engine.save_checkpoint(folder, tag=number)
        if rank == 0:
            found = find_checkpoint(folder, str(number))
            assert found is not None
            after = read_tensors(found, list(found.manifest.tensors))
            wrong += [f"{number}: {what}" for what in differences(before or after, after)]
            wrong += [] if any(name.startswith("optimizer.exp_avg.") for name in after) else ["no states"]
            before = after
        engine.destroy()
    return wrong + resharded(rank, folder, before)


def resharded(rank: int, folder: str, before: dict[str, Any]) -> list[str]:
    """Written again for one tower a host, and trained there with the plan that was made for it."""
    from dmt_plugin.checkpoint import find_checkpoint, reshard
    from dmt_plugin.checkpoint.single import read_tensors
    from dmt_plugin.topology.shape import Topology

    place = f"{folder}/resharded"
    if rank == 0:
        found = find_checkpoint(folder)
        assert found is not None
        plan = reshard.plan_for(found.manifest.tower_plan, Topology(4, 1))
        reshard.reshard(found, plan, place)
    torch.distributed.barrier()
    section = {"towers": TOWERS, "partition": {"strategy": "file", "file": place}}
    engine, batch = make("4x1", "dlrm", stage=2, seed=99, dmt=section)
    engine.load_checkpoint(place)
    wrong = [] if engine.dmt.plan.tower_hosts == (0, 1, 2, 3) else [f"resharded: {engine.dmt.plan}"]
    engine.save_checkpoint(place, tag="again")
    if rank == 0:
        found = find_checkpoint(place)
        assert found is not None and found.path.name == "again"
        assert found.manifest.plan == find_checkpoint(place, "5").manifest.plan  # type: ignore[union-attr]
        wrong += [f"resharded: {x}" for x in differences(before, read_tensors(found, list(found.manifest.tensors)))]
    train(engine, batch, 1)
    return wrong


@pytest.mark.processes
def test_what_is_loaded_is_what_is_saved_again(tmp_path: Path) -> None:
    wrong, *_ = run_ranks(4, passed_on, str(tmp_path), timeout=240, env=partial(launcher_env, "2x2"))
    assert not wrong, "\n".join(wrong[:8])


@pytest.mark.processes
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    found = run_ranks(4, resumed, str(tmp_path), RUNS, timeout=240, env=partial(launcher_env, "2x2"))
    assert not any(found), "\n".join(f"rank {rank}: {line}" for rank, lines in enumerate(found) for line in lines[:8])


CHAIN = (("2x2", 1), ("4x1", 2), ("1x1", 0), ("2x2", 2), ("1x4", 1))
"""Topologies and ZeRO stages that one run goes through, two steps on each."""


RANKS_OF = {"2x2": 4, "4x1": 4, "1x4": 4, "1x1": 1}


class Late:
    """An object of the user's that is registered behind the load."""

    def __init__(self, value: str) -> None:
        self.value = value

    def state_dict(self) -> str:
        return self.value

    def load_state_dict(self, state: str) -> None:
        self.value = state


def at(topology: str, stage: int, seed: int) -> Any:
    """The run of the chain: four towers, no layer that sees how samples are spread over ranks."""
    return make(
        topology, "dlrm", stage=stage, dense="momentum", seed=seed,
        tables={"optimizer": "rowwise_adagrad", "eps": 0.01, "backend": "torch" if stage == 2 else "fbgemm"},
        dmt={
            "towers": {**TOWERS, "count": 4},
            "placement": {"strategy": "row_wise" if topology == "2x2" else "table_wise"},
            "transform": {"faster_dot": False},
        },
    )  # fmt: skip


def stage_of_chain(rank: int, world: int, folder: str, links: list[int], reference: bool) -> dict[str, Any]:
    """Goes through some links of the chain; the reference stays on the first topology."""
    said: dict[str, Any] = {}
    for link in links:
        engine, batch = at(*CHAIN[link], seed=link)
        if link:
            if link == 3:  # of as many ranks: a state waits, but not for what is loaded next
                engine.load_checkpoint(folder, "global_step2")
            _, client = engine.load_checkpoint(folder)
            engine.register_state("late", late := Late(f"new on {rank}"))
            alike = len({RANKS_OF[CHAIN[n][0]] for n in (link, link - 1)}) == 1
            said[f"late {link}"] = late.value == (f"{link - 1} on {rank}" if alike else f"new on {rank}")
        else:
            engine.register_state("late", late := Late(""))
        late.value = f"{link} on {rank}"
        if link:
            before = torch.load(Path(folder) / "logical.pt")
            owner = rank if "1x1" not in (CHAIN[link][0], CHAIN[link - 1][0]) else 0
            said[f"steps {link}"] = engine.global_steps == 2 * link and client == {"link": link - 1, "rank": owner}
            said[f"loaded {link}"] = [k for k, v in logical(engine).items() if not torch.equal(v, before[k])]
        train(engine, batch, 2)
        engine.save_checkpoint(folder, client_state={"link": link, "rank": rank})
        state = logical(engine)
        if rank == 0:
            torch.save(state, Path(folder) / "logical.pt")
    if reference:
        engine, batch = at(*CHAIN[0], seed=0)
        train(engine, batch, 2 * len(CHAIN))
        said["reference"] = logical(engine)
    said["state"] = state
    return said


@pytest.mark.processes
def test_a_run_goes_from_topology_to_topology(tmp_path: Path) -> None:
    results = []
    for links in ([0, 1], [2], [3, 4]):
        ranks = 1 if links == [2] else 4
        results += run_ranks(
            ranks, stage_of_chain, str(tmp_path), links, 4 in links, timeout=240,
            env=partial(launcher_env, "1x1" if ranks == 1 else "2x2"),
        )  # fmt: skip
    for said in results:
        for key, value in said.items():
            assert not key.startswith(("steps", "late")) or value, key
            assert not key.startswith("loaded") or value == [], (key, value)
    end, reference = results[-1]["state"], results[-1]["reference"]
    assert set(end) == set(reference)
    worst = max((float((end[k] - reference[k]).abs().max()), k) for k in end)
    assert worst[0] <= 1e-6, worst
    assert max(float((end[k] - results[0]["state"][k]).abs().max()) for k in end) > 1e-3


def add_a_layer(model: nn.Module) -> None:
    model.head = nn.Sequential(model.head, nn.Linear(1, 1))


def freeze(model: nn.Module) -> None:
    for parameter in model.bottom.parameters():
        parameter.requires_grad_(False)


def other_behaviour(rank: int, world: int, folder: str) -> dict[str, Any]:
    """What is refused, what is left out, what is registered; the engine is unchanged by every refusal."""
    from dmt_plugin.checkpoint import load_checkpoint, read_state

    said: dict[str, Any] = {}
    engine, batch = make("2x2", stage=1)
    said["nothing there"] = engine.load_checkpoint(f"{folder}/nowhere")
    train(engine, batch, 1)
    engine.save_checkpoint(folder, tag="first")
    saved = everything(engine)
    for name, changed in (
        ("other optimizer", {"dense": "adagrad"}),
        ("other table optimizer", {"tables": {"optimizer": "adagrad"}}),
        ("other scheduler", {"warmup": False}),
        ("other width", {"dmt": {"towers": {**TOWERS, "dim": 2}}}),
        ("other features", {"dmt": {"towers": TOWERS, "partition": {"strategy": "contiguous"}}}),
        ("another layer", {"prepare": add_a_layer}),
    ):
        other, _ = make("2x2", **{"stage": 1, **changed})
        before = everything(other)
        said[name] = refused(lambda other=other: other.load_checkpoint(folder))
        said[f"changed by {name}"] = differences(before, everything(other))
        if name.endswith("optimizer"):
            other.load_checkpoint(folder, load_optimizer_states=False)
            said[f"{name}, without states"] = (other.global_steps, [*differences(logical(engine), logical(other))])
    plan = {"towers": TOWERS, "partition": {"strategy": "file", "file": folder}}
    same, _ = make("2x2", stage=1, dmt=plan, seed=7)
    same.load_checkpoint(folder)
    said["plan from the checkpoint"] = differences(saved, everything(same))
    one_host, _ = make("1x4", stage=2, dmt=plan, seed=8)
    one_host.load_checkpoint(folder)
    said["on one host"] = (len(one_host.dmt.plan.towers), differences(logical(engine), logical(one_host)))
    said["on four hosts"] = refused(lambda: make("4x1", dmt=plan))
    said["strict"] = refused(lambda: engine.load_checkpoint(folder, load_module_strict=False))
    said["tag"] = refused(lambda: engine.load_checkpoint(folder, "second"))
    said["tags differ"] = refused(lambda: engine.save_checkpoint(folder, tag=f"of rank {rank // 2}"))
    said["a path as tag"] = refused(lambda: engine.save_checkpoint(folder, tag="a/b"))
    module, _ = make("2x2", stage=0, seed=3)
    module.load_checkpoint(folder, load_module_only=True)
    said["module only"] = (module.global_steps, differences(logical(engine), logical(module)))

    sptt = {"towers": {"module": "none"}}
    frozen, _ = make("2x2", "dlrm", prepare=freeze, dmt=sptt)
    frozen.save_checkpoint(f"{folder}/frozen", exclude_frozen_parameters=True)
    thawed, _ = make("2x2", "dlrm", seed=9, prepare=freeze, dmt=sptt)
    before = logical(thawed)
    thawed.load_checkpoint(f"{folder}/frozen")
    after = logical(thawed)
    said["left out"] = {name.partition(".")[0] for name in after if torch.equal(after[name], before[name])}
    said["not left out"] = {what.partition(".")[0] for what in differences(logical(frozen), after)}

    gas, batch = make("2x2", ds={"gradient_accumulation_steps": 2})
    inputs = batch(2, 1)
    gas.backward(gas(*inputs).sum())
    gas.step()
    said["within a step"] = refused(lambda: gas.save_checkpoint(folder))

    engine.save_16bit_model(folder, "model.bin")
    in_one, from_files = torch.load(f"{folder}/model.bin"), read_state(folder)
    said["one file"] = differences(in_one, from_files)
    if rank == 0:
        said["in one process"] = one_process(folder, in_one, load_checkpoint)

    train(engine, batch_of("dcn_v2"), 1)
    engine.save_checkpoint(folder, tag="first")  # replaces the other
    engine.save_checkpoint(folder, tag="aside", save_latest=False)
    said["latest"] = (Path(folder) / "latest").read_text()
    fresh, _ = make("2x2", stage=1, seed=4)
    path, _ = fresh.load_checkpoint(folder)
    said["newest"] = (Path(path).name, differences(everything(engine), everything(fresh)))
    engine.dmt.groups.world.allreduce([torch.zeros(1)]).wait()
    if rank == 0:
        file = next((Path(folder) / "aside" / "state").glob("__1_*"))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    before = everything(fresh)
    said["flipped"] = refused(lambda: fresh.load_checkpoint(folder, "aside"))
    said["changed by flipped"] = differences(before, everything(fresh))
    return said


def batch_of(name: str) -> Any:
    return ZOO[name]()[1]


def one_process(folder: str, state: dict[str, Any], load: Callable[..., Any]) -> Any:
    """Into the logical tower model; the flat one cannot hold it."""
    from dmt_plugin.compiler import transform

    flat, batch = ZOO["dcn_v2"]()
    message = refused(lambda: load(flat, folder))
    model = transform(flat, batch(5, 0), {"dmt": {"towers": TOWERS}}, "2x1")
    load(model, folder)
    return message, differences({k: v.clone() for k, v in model.state_dict().items()}, state)


@pytest.mark.processes
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path: Path) -> None:
    wrong: list[Any] = []
    for rank, said in enumerate(
        run_ranks(4, other_behaviour, str(tmp_path), timeout=240, env=partial(launcher_env, "2x2"))
    ):
        for key, parts in {
            "other optimizer": ("it is of the optimizer AdamW, this engine has LazyAdagrad", "nothing was loaded"),
            "other table optimizer": ("table_optimizer.sum.tables.0.weight [", "instead of ["),
            "other scheduler": ("scheduler is WarmupLR, that of this engine is none", "load_lr_scheduler_states=False"),
            "other width": ("towers", "module", "'dim': 4", "'dim': 2", '"partition"'),
            "other features": ("towers [[", "instead of [["),
            "another layer": ("head.0.bias [1] is not in it", "head.1.weight", "head.bias [1] is only in it"),
            "on four hosts": ("dmt.towers.count is 2 on 4 host(s)",),
            "strict": ("load_module_strict=False", "to-flat"),
            "tag": ("no checkpoint 'second'", "there are first"),
            "tags differ": ("'of rank 0', rank 2 'of rank 1'",),
            "a path as tag": ("found 'a/b'",),
            "within a step": ("within a step", "engine.step()"),
            "flipped": ("has changed since it was saved",),
        }.items():
            wrong += [(rank, key, part, said[key]) for part in parts if part not in said[key]]
        expected = {
            "nothing there": (None, None),
            "other optimizer, without states": (1, []),
            "other table optimizer, without states": (1, []),
            "plan from the checkpoint": [],
            "on one host": (2, []),
            "module only": (0, []),
            "one file": [],
            "left out": {"bottom"},
            "not left out": {"bottom"},
            "latest": "first",
            "newest": ("first", []),
            **{key: [] for key in said if key.startswith("changed by")},
        }
        wrong += [(rank, key, said[key]) for key, value in expected.items() if said[key] != value]
        if rank == 0:
            message, differing = said["in one process"]
            wrong += [] if "tower modules" in message and differing == [] else [said["in one process"]]
    assert not wrong, "\n".join(map(str, wrong[:20]))
    manifest = json.loads((tmp_path / "first" / "dmt_checkpoint.json").read_text())
    assert manifest["topology"] == "2x2" and manifest["steps"]["global_steps"] == 2


def flat_and_back(rank: int, world: int, folder: str) -> dict[str, Any]:
    """The user's trained flat model goes into the engine and comes back, by way of a checkpoint too."""
    import dmt_plugin
    from dmt_plugin.checkpoint import load_checkpoint

    trained = torch.load(f"{folder}/flat.pt")
    said = {}
    for name in ("dlrm", "deepfm"):

        def fill(flat: nn.Module, name: str = name) -> None:
            flat.load_state_dict(trained[name])

        engine, batch = make("2x2", name, stage=1, dmt={"towers": {"module": "none"}}, prepare=fill)
        back = dmt_plugin.to_flat(engine, ranks="all").state_dict()
        said[f"{name} and back"] = differences(trained[name], dict(back))
        place = f"{folder}/{name}"
        engine.save_checkpoint(place)
        if rank == 0:
            torch.manual_seed(5)
            other, _ = ZOO[name]()
            load_checkpoint(other, place)
            said[f"{name} by a checkpoint"] = differences(trained[name], dict(other.state_dict()))
        train(engine, batch, 1)
        end = dict(dmt_plugin.to_flat(engine, ranks="all").state_dict())
        said[f"{name} trains"] = [] if differences(trained[name], end) else ["it does not"]
    return said


@pytest.mark.processes
def test_a_flat_model_through_towers_and_back(tmp_path: Path) -> None:
    states = {}
    for name in ("dlrm", "deepfm"):
        torch.manual_seed(3)
        states[name] = {k: v + 0.1 * torch.randn_like(v) for k, v in ZOO[name]()[0].state_dict().items()}
    torch.save(states, tmp_path / "flat.pt")
    for said in run_ranks(4, flat_and_back, str(tmp_path), timeout=240, env=partial(launcher_env, "2x2")):
        assert not any(said.values()), said


assert GLOBAL % 4 == 0
