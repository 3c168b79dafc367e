"""The need per rank: what a rank's lookup really holds, by hand where it is DeepSpeed's; and the check of it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from dmt_plugin.compiler import transform
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.section import DMTConfig, read_dmt_config
from dmt_plugin.core.errors import MemoryNeedError
from dmt_plugin.core.memory import MemoryLimit
from dmt_plugin.doctor import tiny
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.memory import memory_need_of
from dmt_plugin.model.placed import PlacedModel, place, place_graph
from dmt_plugin.planner.buffers import Entries
from dmt_plugin.planner.memory import MemoryNeed, trained_bytes, written_bytes
from dmt_plugin.planner.memory_check import Share, check_memory, shortage
from dmt_plugin.topology.shape import Topology

BATCH = 32
MODULES = {"module": "dlrm", "c": 1, "p": 1, "dim": 4}


class Mixed(tiny.Tiny):
    """With tables of widths that are no multiple of 4, and of other sizes than the rest."""

    def __init__(self) -> None:
        super().__init__(tiny.TABLES)
        self.tables[1] = nn.EmbeddingBag(37, 6, mode="sum")
        self.tables[2] = nn.EmbeddingBag(90, 8, mode="mean")
        self.fit = nn.Linear(6, 8)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """See :class:`dmt_plugin.doctor.tiny.Tiny`."""
        rows = [table(ids[:, i : i + 1] % table.num_embeddings) for i, table in enumerate(self.tables)]
        rows[1] = self.fit(rows[1])
        return self.over(nn.functional.relu(sum(rows, self.bottom(dense))).repeat(1, tiny.TABLES + 1)).squeeze(1)


def section(**parts: Any) -> DMTConfig:
    config = read_dmt_config({"dmt": {"towers": {"module": "none"}, **parts}})
    assert config is not None
    return config


def logical_of(config: DMTConfig, topology: str, model: nn.Module | None = None) -> TowerModel:
    return transform(model or tiny.build(), tiny.batch(0, 4)[:2], config, topology)


def need_of(config: DMTConfig, topology: str, model: nn.Module | None = None, **ds_config: Any) -> MemoryNeed:
    logical = logical_of(config, topology, model)
    graph = place_graph(logical, config, Topology.parse(topology), 0)
    return memory_need_of(graph, config, DeepSpeedSettings(ds_config), BATCH)


def held(placed: PlacedModel) -> tuple[int, int]:
    """Bytes that a rank's lookup holds: storage of the tables, and of their optimizer's state."""
    storages: list[dict[int, int]] = [{}, {}]
    for name in placed.lookup.tables:
        for kind, tensors in enumerate(
            ([placed.lookup.table_weight(name)], placed.lookup.optimizer_state(name).values())
        ):
            for tensor in tensors:
                storage = tensor.untyped_storage()
                storages[kind][storage.data_ptr()] = storage.nbytes()
    return sum(storages[0].values()), sum(storages[1].values())


NEAREST = {"dtype": "fp16", "stochastic_rounding": False}


@pytest.mark.parametrize(
    ("optimizer", "backend", "types"),
    [
        *((name, backend, {}) for name in ("rowwise_adagrad", "adagrad", "sgd") for backend in ("auto", "torch")),
        ("rowwise_adagrad", "auto", {"dtype": "bf16"}),
        ("adagrad", "auto", NEAREST),
        ("adagrad", "torch", {"tables": {"tables.2": {"dtype": "fp16"}}}),
    ],
    ids=str,
)
def test_tables_are_what_the_lookup_holds(optimizer: str, backend: str, types: dict[str, Any]) -> None:
    """Whole tables, one by rows, one by columns; FBGEMM's padding counts."""
    overrides = {"tables.0": "row_wise"} | ({} if optimizer == "rowwise_adagrad" else {"tables.3": "column_wise"})
    config = section(lookup={"optimizer": optimizer, "backend": backend, **types}, placement={"overrides": overrides})
    topology = Topology(1, 2)
    logical = logical_of(config, "1x2", Mixed())
    for rank in range(2):
        placed = place(logical, config, topology, rank)
        need = memory_need_of(place_graph(logical, config, topology, rank), config, DeepSpeedSettings({}), BATCH)
        own = need.ranks[rank]
        assert (own.tables, own.table_states) == held(placed)


def test_every_rank_finds_the_same() -> None:
    config = section(towers=MODULES)
    logical, topology = logical_of(config, "2x2"), Topology(2, 2)
    settings = DeepSpeedSettings({})
    found = [memory_need_of(place_graph(logical, config, topology, r), config, settings, BATCH) for r in range(4)]
    tables = [[(r.rank, r.host, r.lane, r.tables, r.towers, r.dense) for r in need.ranks] for need in found]
    assert tables == [tables[0]] * 4
    assert [r.rank for r in found[0].ranks] == [0, 1, 2, 3]
    assert found[0].hosts == [sum(r.total for r in found[0].ranks if r.host == host) for host in (0, 1)]
    assert found[0].ranks[found[0].largest].total == max(r.total for r in found[0].ranks)


def test_the_sum_of_tables_is_the_model() -> None:
    """Whatever the topology and the placement, each entry is on one rank."""
    entries = tiny.TABLES * tiny.ROWS * tiny.WIDTH
    for topology, kind in (("1x1", "auto"), ("2x2", "row_wise"), ("4x1", "auto"), ("1x4", "table_wise")):
        need = need_of(section(placement={"strategy": kind}), topology)
        assert sum(r.tables for r in need.ranks) == 4 * entries
        assert sum(r.table_states for r in need.ranks) == 4 * entries // tiny.WIDTH


def test_tables_in_16_bits_need_half_of_that_and_it_is_said_where_they_do_not_fit() -> None:
    entries = tiny.TABLES * tiny.ROWS * tiny.WIDTH
    short = section(lookup={"dtype": "bf16"})
    need, wide = need_of(short, "2x2"), need_of(section(), "2x2")
    assert sum(r.tables for r in need.ranks) == 2 * entries
    assert sum(r.table_states for r in need.ranks) == 4 * entries // tiny.WIDTH
    assert need.ranks[0].buffers.rows_sent == wide.ranks[0].buffers.rows_sent  # rows of an fp32 model are fp32
    model = tiny.build()
    model.tables.bfloat16()
    of_model = need_of(section(), "2x2", model)
    assert sum(r.tables for r in of_model.ranks) == 2 * entries
    assert of_model.ranks[0].buffers.rows_received * 2 == wide.ranks[0].buffers.rows_received
    limits = [[MemoryLimit("the machine", 1000, "one")]] * 4
    for config, memory, hint in ((section(), wide, True), (short, need, False)):
        text = shortage(logical_of(config, "2x2").plan, config, memory, limits)
        assert text is not None and ("dmt.lookup.dtype" in text) is hint


@pytest.mark.parametrize(
    ("ds_config", "bytes_per_entry"),
    [
        ({"optimizer": {"type": "Adam"}}, 4 + 4 + 4 * (2 + 2)),
        ({"optimizer": {"type": "SGD"}}, 4 + 4 + 4 * 2),
        ({"optimizer": {"type": "SGD", "params": {"momentum": 0.9}}}, 4 + 4 + 4 * 3),
        ({"optimizer": {"type": "Adam"}, "zero_optimization": {"stage": 1}}, 4 + 4 + 4 + 4 * (2 + 2) / 4),
        ({"optimizer": {"type": "Adam"}, "zero_optimization": {"stage": 2, "overlap_comm": True}}, 8 + 8 + 4),
        ({"optimizer": {"type": "Adagrad"}, "zero_optimization": {"stage": 1, "reduce_bucket_size": 100}}, 8.4 + 3),
        ({"optimizer": {"type": "AdamW"}, "bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}, 6 + 4),
    ],
)
def test_dense_by_optimizer_and_stage(ds_config: dict[str, Any], bytes_per_entry: float) -> None:
    assert trained_bytes(Entries(1000, 1000), DeepSpeedSettings(ds_config), 4) == 1000 * bytes_per_entry


def test_the_snapshot_is_what_a_rank_writes_at_most() -> None:
    """Tables with their state, and of what several ranks hold a share and a block, or all of it if that is less."""
    lookup = {"optimizer": "adagrad", "backend": "torch"}
    behind = section(towers=MODULES, lookup=lookup, checkpoint={"asynchronous": True})
    need = need_of(behind, "2x2", optimizer={"type": "Adam"})
    plain = need_of(section(towers=MODULES, lookup=lookup), "2x2", optimizer={"type": "Adam"})
    logical = logical_of(behind, "2x2")
    tables = {table.parameter for table in logical.plan.tables}
    for rank, before in zip(need.ranks, plain.ranks, strict=True):
        rest = {name: p.numel() for name, p in logical.named_parameters() if name not in tables}
        towers = {name: size for name, size in rest.items() if ".tower" in name}
        own = sum(size for name, size in towers.items() if f".tower{rank.host}." in name)
        dense = sum(rest.values()) - sum(towers.values())
        assert before.snapshot == 0 and rank.snapshot == rank.tables + rank.table_states + 4 * 3 * (own + dense)
        assert rank.total == before.total + rank.snapshot
    large, block = Entries(10**9, 10**9), 2**26
    adam = DeepSpeedSettings({"optimizer": {"type": "Adam"}})
    assert written_bytes(large, adam, 5) == 12 * 10**9 // 4 + block
    assert written_bytes(large, adam, 1) == written_bytes(large, adam, 2) == 12 * 10**9


def test_frozen_parameters_have_no_gradients() -> None:
    assert trained_bytes(Entries(1000, 0), DeepSpeedSettings({}), 4) == 4000


def test_buffers_grow_with_batch_and_width_and_what_is_asked_for() -> None:
    """By hand: 1 x 2, every rank looks up half of 8 tables of width 8 for both ranks' samples."""
    plain = need_of(section(comm={"prefetch": False, "route": "flat"}), "1x2").ranks[0].buffers
    rows = 4 * 2 * BATCH * 4 * tiny.WIDTH
    assert (plain.rows_sent, plain.rows_received, plain.gradients) == (rows, rows, 2 * rows)
    assert (plain.wire, plain.held) == (0, 0)
    assert plain.ids == 4 * (BATCH * 8 + 2 * BATCH * 4) + 8 * 2 * BATCH * 4 * 2
    short = need_of(section(comm={"peer_dtype": "bf16", "route": "flat"}), "1x2").ranks[0].buffers
    assert (short.wire, short.ids) == (rows, 2 * plain.ids)  # half as wide, at both ends; ids of the next batch too
    waiting = need_of(section(), "1x2", gradient_accumulation_steps=3).ranks[0].buffers
    assert waiting.held > 3 * 3 * rows
    at_once = section(lookup={"accumulation": "per_micro_batch"})
    assert need_of(at_once, "1x2", gradient_accumulation_steps=3).ranks[0].buffers.held == 0
    on_torch = section(lookup={"backend": "torch"}, comm={"route": "flat"})
    torch = need_of(on_torch, "1x2").ranks[0]
    assert torch.buffers.gradients == 2 * rows + 6 * rows


# -- what there is -----------------------------------------------------------------------------------------------------


def limit(available: int, key: str = "machine") -> MemoryLimit:
    return MemoryLimit(f"the {key}", available, key)


CONFIG = section(lookup={"optimizer": "adagrad"})


@pytest.fixture(scope="module")
def case() -> tuple[Any, MemoryNeed]:
    return logical_of(CONFIG, "2x2").plan, need_of(CONFIG, "2x2")


def test_what_suffices_is_taken(case: tuple[Any, MemoryNeed]) -> None:
    plan, need = case
    total = sum(need.hosts)
    check_memory(plan, CONFIG, need, [[limit(total)]] * 4)
    check_memory(plan, CONFIG, need, [[]] * 4)
    with pytest.raises(MemoryNeedError):
        check_memory(plan, CONFIG, need, [[limit(total - 1)]] * 4)
    check_memory(plan, CONFIG, need, [[limit(total - 4)]] * 4, present=[1] * 4)


def test_only_those_that_share_a_limit_are_added_up(case: tuple[Any, MemoryNeed]) -> None:
    plan, need = case
    of_host = [[limit(need.hosts[host], f"host {host}")] for host in (0, 0, 1, 1)]
    assert shortage(plan, CONFIG, need, of_host) is None
    of_host[3] = [limit(need.hosts[1] - 1, "host 1")]  # the least that any of them has read
    found = shortage(plan, CONFIG, need, of_host)
    assert found is not None and "ranks 2 to 3" in found and "the host 1" in found


def test_what_counts_against_an_accelerator(case: tuple[Any, MemoryNeed]) -> None:
    plan, need = case
    rank = need.ranks[0]
    tables = rank.tables + rank.table_states
    assert Share().of(rank) == rank.total == tables + Share(tables=False).of(rank)
    own = [[limit(Share(tables=False).of(r), f"device {r.rank}")] for r in need.ranks]
    assert shortage(plan, CONFIG, need, own, Share(tables=False)) is None
    found = shortage(plan, CONFIG, need, own)
    assert found is not None and found.startswith("rank ")
    alone = shortage(plan, CONFIG, need, [[limit(0)]] * 4, Share(rest=False))
    assert alone is not None and "tables" in alone and "dense part" not in alone


def test_the_snapshot_counts_against_the_machine_alone() -> None:
    """Also where tables are on an accelerator; and the key that does without it is named."""
    config = section(checkpoint={"asynchronous": True})
    plan, need = logical_of(config, "1x2").plan, need_of(config, "1x2")
    rank = need.ranks[0]
    on_device, on_host = Share(snapshot=False), Share(tables=False, rest=False)
    assert rank.snapshot and on_device.of(rank) + rank.snapshot == rank.total == Share().of(rank)
    assert on_host.of(rank) == rank.snapshot
    snapshots = sum(r.snapshot for r in need.ranks)
    assert shortage(plan, config, need, [[limit(snapshots)]] * 2, on_host) is None
    found = shortage(plan, config, need, [[limit(snapshots - 1)]] * 2, on_host)
    assert found is not None and "needed: snapshot of an asynchronous save" in found
    assert "dmt.checkpoint.asynchronous = false" in found and "tables" not in found.splitlines()[1]
    found = shortage(plan, config, need, [[limit(1)]] * 2, on_device)
    assert found is not None and "snapshot" not in found


def test_the_error_says_what_is_needed_what_is_there_and_what_to_change(case: tuple[Any, MemoryNeed]) -> None:
    plan, need = case
    found = shortage(plan, CONFIG, need, [[limit(2000)]] * 4)
    assert found is not None
    assert "ranks 0 to 3 together need" in found and "the machine has 2.0 KiB left" in found.replace("1.9", "2.0")
    for part in ("tables 12.5 KiB", "their optimizer state 12.5 KiB", "towers", "dense part", "buffers of a step"):
        assert part in found, found
    for way in ("more hosts", '"row_wise"', "rowwise_adagrad", "smaller dim"):
        assert way in found, found
    table = plan.tables[0].name
    assert f"table '{table}' (50 x 8, 3.1 KiB with its optimizer state" in found, found
    assert "where it has several" not in found
    alone = shortage(logical_of(CONFIG, "4x1").plan, CONFIG, need, [[limit(2000)]] * 4)
    assert alone is not None and "where it has several" in alone
    by_rows = section(placement={"strategy": "row_wise"})
    logical = logical_of(by_rows, "2x2")
    found = shortage(logical.plan, by_rows, need, [[limit(2000)]] * 4)
    assert found is not None and '"row_wise" placement' not in found and "rowwise_adagrad" not in found
