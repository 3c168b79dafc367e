"""On ranks: tables in 16 bits under DeepSpeed, in training, in checkpoints, on every way in and out of an engine."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.core.update_rule import Rule
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env
from tests.test_weight_type_laws import OneShortTable

ROWS, MANY, WIDTH, SAMPLES, STEPS, LR, EPS = 300, 3000, 8, 8, 20, 0.01, 1e-4
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = FP32, rows: int = ROWS) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, WIDTH, dtype=dtype) for _ in range(4))
        self.top = nn.Linear(4 * WIDTH, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)
        return self.top(rows.to(self.top.weight.dtype)).squeeze(1)


def model(dtype: torch.dtype = FP32, rows: int = ROWS) -> Net:
    torch.manual_seed(0)
    return Net(dtype, rows)


def batch(step: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, ROWS, (SAMPLES, 4), generator=torch.Generator().manual_seed(step))
    return ids, (ids[:, 0] % 2).float()


def start(flat: Net, topology: str = "2x1", placement: str = "table_wise", ds: Any = None, **lookup: Any) -> Any:
    import dmt_plugin

    hosts, lanes = map(int, topology.split("x"))
    given = {key: lookup.pop(key) for key in ("weights",) if key in lookup}
    config = {
        "train_micro_batch_size_per_gpu": SAMPLES // 2,
        "gradient_clipping": 0.0,
        "steps_per_print": 100000,
        "optimizer": {"type": "Adam", "params": {"lr": LR, "torch_adam": True, "weight_decay": 0.0, "eps": EPS}},
        "dmt": {
            "topology": {"hosts": hosts, "ranks_per_host": lanes},
            "towers": {"module": "none"},
            "placement": {"strategy": placement},
            "lookup": lookup,
        },
        **(ds or {}),
    }
    engine, *_ = dmt_plugin.initialize(model=flat, config=config, example_batch=(batch(0)[0],), **given)
    return engine


def train(engine: Any, steps: range) -> None:
    rank = engine.dmt.groups.rank
    for step in steps:
        ids, label = (x.chunk(2)[rank] for x in batch(step))
        engine.backward(nn.functional.binary_cross_entropy_with_logits(engine(ids).float(), label))
        engine.step()


@contextlib.contextmanager
def lines() -> Iterator[list[str]]:
    """What the package's loggers say."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("dmt_plugin")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def whole(engine: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = engine.gather_state(ranks="all")
    return {name: value for name, value in found.items() if name.startswith("tables")}


def same(one: dict[str, Tensor], other: dict[str, Tensor], what: str) -> list[str]:
    wrong = [n for n in one if one[n].dtype != other[n].dtype or not torch.equal(one[n], other[n])]
    return [f"{what}: {name} {one[name].dtype} {other[name].dtype}" for name in wrong]


def adam_in(dtype: Any) -> list[str]:
    """Adam for everything, by key: the single process under the same rule, up to entries that lie in the middle."""
    problems = []
    for topology, placement in (("2x1", "table_wise"), ("1x2", "row_wise"), ("1x2", "column_wise")):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            engine = start(model(), topology, placement, dtype=dtype)
        on_torch = "dmt: 4 table(s) such as 'tables.0' on PyTorch instead of FBGEMM: its rule adam "
        if (on_torch in said.getvalue()) != (engine.dmt.groups.rank == 0):
            problems.append("the start does not say once, of the tables of all ranks, why they are on PyTorch")
        flat = model()
        rule = Rule("adam", LR, EPS, dtype=dtype, stochastic_rounding=True)
        tables = [OneShortTable(rule, t.weight, f"tables.{i}.weight") for i, t in enumerate(flat.tables)]
        dense = torch.optim.Adam(flat.top.parameters(), lr=LR, eps=EPS)
        if engine(batch(0)[0]).dtype != FP32:
            problems.append("the rows of an fp32 model are not fp32")
        engine.dmt.lookup.zero_grad()
        train(engine, range(STEPS))
        for step in range(STEPS):
            flat.zero_grad()
            ids, label = batch(step)
            nn.functional.binary_cross_entropy_with_logits(flat(ids), label).backward()
            dense.step()
            for table in tables:
                table.step()
        found = whole(engine)
        expected = {name: value for name, value in flat.state_dict().items() if name in found}
        off = torch.cat([(found[name].float() - value).flatten().abs() for name, value in expected.items()])
        share, most = float((off != 0).float().mean()), float(off.max())
        if share > 0.01 or most > 0.05:
            problems.append(f"{dtype} {topology} {placement}: {share:.2%} differ, by up to {most:.3g}")
        engine.destroy()
    return problems


def checkpoints(folder: str) -> list[str]:
    from dmt_plugin.checkpoint import find_checkpoint

    problems, sizes = [], {}
    for dtype in ("fp32", "bf16"):
        engine = start(model(rows=MANY), optimizer="sgd", lr=0.1, dtype=dtype)
        train(engine, range(10))
        engine.save_checkpoint(f"{folder}/{dtype}")
        found = find_checkpoint(f"{folder}/{dtype}")
        assert found is not None
        kinds = {entry.dtype for entry in found.manifest.tensors.values() if entry.kind == "table"}
        if kinds != {{"fp32": "float32", "bf16": "bfloat16"}[dtype]}:
            problems.append(f"the manifest says {kinds}")
        sizes[dtype] = sum(entry.bytes for entry in found.manifest.files.values() if entry.bytes > 4000)
        if dtype == "bf16":
            train(engine, range(10, STEPS))
            uninterrupted = whole(engine)
        else:
            in_fp32 = whole(engine)
        engine.destroy()
    if not 0.45 < sizes["bf16"] / sizes["fp32"] < 0.62:
        problems.append(f"sizes {sizes}")

    options = {"optimizer": "sgd", "lr": 0.1}
    for topology, placement in (("2x1", "table_wise"), ("1x2", "row_wise"), ("1x2", "column_wise")):
        engine = start(model(rows=MANY), topology, placement, dtype="bf16", **options)
        with lines() as said:
            engine.load_checkpoint(f"{folder}/bf16")
        loaded = whole(engine)
        train(engine, range(10, STEPS))
        if topology == "2x1":
            stored = loaded
            problems += same(whole(engine), uninterrupted, "resumed")
        problems += same(loaded, stored, f"loaded by {topology} {placement}")
        problems += [f"said {line}" for line in said if "stored as" in line]
        engine.destroy()

    rank = torch.distributed.get_rank()
    for place, dtype, expected, word in (
        ("bf16", "fp32", {n: v.float() for n, v in stored.items()}, "the same numbers"),
        ("fp32", "bf16", {n: v.bfloat16() for n, v in in_fp32.items()}, "rounded to nearest"),
        ("bf16", "fp16", {n: v.half() for n, v in stored.items()}, "rounded to nearest"),
    ):
        engine = start(model(rows=MANY), dtype=dtype, **options)
        with lines() as said:
            engine.load_checkpoint(f"{folder}/{place}")
        problems += same(whole(engine), expected, f"{place} into {dtype}")
        if rank == 0 and not any("4 tensor(s) (tables.0.weight" in line and word in line for line in said):
            problems.append(f"{place} into {dtype} is not said: {said}")
        engine.destroy()
    return problems


def own_type(dtype: torch.dtype) -> list[str]:
    """Tables that are 16-bit in the model: rows as the flat model has them, and every way out and in."""
    import dmt_plugin

    problems = []
    flat = model(dtype)
    engine = start(model(dtype), "1x2", "row_wise")
    if engine.dmt.lookup.row_dtype != dtype:
        problems.append(f"rows are {engine.dmt.lookup.row_dtype}")
    ids = batch(3)[0]
    with torch.no_grad():
        if not torch.allclose(engine(ids), flat(ids), atol=1e-6):
            problems.append("other outputs than the flat model's")
    train(engine, range(3))
    found = whole(engine)
    trained = dmt_plugin.to_flat(engine, ranks="all")
    problems += same({n: v for n, v in trained.state_dict().items() if n in found}, found, "to_flat")
    if any(value.dtype != dtype for value in found.values()):
        problems.append("another type")
    numbers = torch.tensor([5, 0, ROWS - 1])
    rows = engine.table_rows("tables.1", numbers)
    if not torch.equal(rows, found["tables.1.weight"][numbers].float()):
        problems.append("table_rows")
    engine.set_table_rows("tables.1", numbers.flip(0), rows)
    if not torch.equal(whole(engine)["tables.1.weight"][numbers.flip(0)].float(), rows):
        problems.append("set_table_rows")
    state = {name: value + 1 if value.is_floating_point() else value for name, value in model().state_dict().items()}
    with lines() as said:
        engine.load_flat_state(state)
    problems += same(whole(engine), {n: state[n].to(dtype) for n in found}, "load_flat_state")
    if engine.dmt.groups.rank == 0 and not any("stored as float32" in line for line in said):
        problems.append(f"load_flat_state of another type is not said: {said}")
    engine.destroy()
    return problems


def by_key_of_an_fp32_model(folder: str) -> list[str]:
    """``to_flat`` gives the model's type; files and rules are read into the key's."""
    from safetensors.torch import save_file

    import dmt_plugin

    problems = []
    torch.manual_seed(0)
    with dmt_plugin.tables_on_meta():
        on_meta = Net()
    made = dmt_plugin.materialize(model_on_meta(), seed=5).state_dict()
    engine = start(on_meta, "1x2", "row_wise", dtype="fp16", seed=5)
    expected = {name: value.half() for name, value in made.items() if name.startswith("tables")}
    problems += same(whole(engine), expected, "rules of an fp32 model")
    flat = dmt_plugin.to_flat(engine, ranks="all")
    problems += same(
        {n: v for n, v in flat.state_dict().items() if n in expected}, {n: v.float() for n, v in expected.items()},
        "to_flat in the model's type",
    )  # fmt: skip
    engine.destroy()

    engine = start(model_on_meta(BF16), "1x2", "column_wise", seed=5)
    made = dmt_plugin.materialize(model_on_meta(BF16), seed=5).state_dict()
    problems += same(whole(engine), {n: v for n, v in made.items() if n in expected}, "rules of a bf16 model")
    engine.destroy()

    file = f"{folder}/weights.safetensors"
    short = {name: (value + 0.3).bfloat16() for name, value in model().state_dict().items()}
    if torch.distributed.get_rank() == 0:
        save_file(short, file)
    torch.distributed.barrier()
    engine = start(model_on_meta(), "1x2", "row_wise", weights=file, tables={"*.1": {"dtype": "bf16"}})
    expected = {n: v if ".1." in n else v.float() for n, v in short.items() if n.startswith("tables")}
    problems += same(whole(engine), expected, "weights by table")
    engine.destroy()
    return problems


def model_on_meta(dtype: torch.dtype = FP32) -> Net:
    import dmt_plugin

    with dmt_plugin.tables_on_meta():
        return model(dtype)


def under_bf16() -> list[str]:
    """DeepSpeed's bf16: rows are bf16, whatever the tables are."""
    problems = []
    for flat, key in ((model(), "bf16"), (model(FP16), "auto"), (model(BF16), "fp32")):
        ds = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}
        engine = start(flat, ds=ds, dtype=key, optimizer="rowwise_adagrad", lr=0.05)
        if engine.dmt.lookup.row_dtype != BF16 or engine(batch(0)[0]).dtype != BF16:
            problems.append(f"{key}: rows are {engine.dmt.lookup.row_dtype}")
        engine.dmt.lookup.zero_grad()
        before = whole(engine)
        train(engine, range(2))
        after = whole(engine)
        if not any(not torch.equal(before[n], after[n]) for n in after):
            problems.append(f"{key}: not trained")
        engine.destroy()
    return problems


def grown_and_deltas(folder: str) -> list[str]:
    from dmt_plugin.checkpoint import find_checkpoint
    from dmt_plugin.checkpoint.delta import write_delta
    from dmt_plugin.checkpoint.delta_apply import apply_delta
    from dmt_plugin.checkpoint.single import read_state

    problems = []
    options = {"optimizer": "adagrad", "lr": 0.1, "dtype": "bf16"}
    engine = start(model(), "1x2", "row_wise", **options)
    train(engine, range(2))
    engine.save_checkpoint(f"{folder}/grown", tag="first")
    train(engine, range(2, 3))
    now = whole(engine)
    engine.save_checkpoint(f"{folder}/grown", tag="second", asynchronous=True)
    train(engine, range(3, 4))  # what is written is a copy of before
    engine.destroy()
    more = start(model(rows=ROWS + 50), "2x1", **options)
    before = whole(more)
    more.load_checkpoint(f"{folder}/grown", changes={"grow": ["tables.*"]})
    after = whole(more)
    problems += same({n: v[:ROWS] for n, v in after.items()}, now, "grown")
    problems += same({n: v[ROWS:] for n, v in after.items()}, {n: v[ROWS:] for n, v in before.items()}, "added rows")
    more.destroy()
    if torch.distributed.get_rank() == 0:
        first, second = (find_checkpoint(f"{folder}/grown/{tag}") for tag in ("first", "second"))
        assert first is not None and second is not None
        write_delta(first, second, Path(folder) / "1-2.delta")
        made = apply_delta(first, Path(folder) / "1-2.delta", Path(folder) / "mirror")
        problems += same({n: v for n, v in read_state(made).items() if n in now}, now, "delta")
    torch.distributed.barrier()
    return problems


def check_all(rank: int, world: int, folder: str) -> list[str]:
    checks: dict[str, Any] = {
        "adam in bf16": partial(adam_in, "bf16"),
        "checkpoints": partial(checkpoints, folder),
        "bf16 in the model": partial(own_type, BF16),
        "fp16 in the model": partial(own_type, FP16),
        "by key": partial(by_key_of_an_fp32_model, folder),
        "under DeepSpeed's bf16": under_bf16,
        "grown and deltas": partial(grown_and_deltas, folder),
    }
    return [f"{name}: {problem}" for name, check in checks.items() for problem in check()]


@pytest.mark.processes
def test_tables_in_16_bits(tmp_path: Path) -> None:
    found = run_ranks(2, check_all, str(tmp_path), timeout=240, env=partial(launcher_env, "2x1"))
    problems = [f"rank {rank}, {problem}" for rank, list_of in enumerate(found) for problem in list_of]
    assert not problems, "\n" + "\n".join(problems)
