"""The placed graphs of all ranks together compute what the logical graph computes, on more ranks than a machine has."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import PlanError
from dmt_plugin.fxtools.names import LOOKUP
from dmt_plugin.model.placed import place
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWorld
from tests.passes.flat import ROWS, Flat, cat, ids
from tests.passes.world import differences, run_placed, settings, towered
from tests.zoo.models import ZOO

DLRM = {"module": "dlrm", "c": 1, "p": 1, "dim": 4}
UNEVEN = (3, 1, 2, 4, 2, 5, 1, 2)
WITH_EMPTY = (3, 0, 2, 4, 0, 5, 1, 2)


def case(name: str, topology: str, towers: dict[str, Any], **dmt: Any) -> tuple[Any, DMTConfig, list[Any]]:
    torch.manual_seed(0)
    model, batch = ZOO[name]()
    config = settings(towers=towers, **dmt)
    logical = towered(model, batch(5, 0), topology, config)
    count = Topology.parse(topology).world_size
    return logical, config, [batch(UNEVEN[rank], 10 + rank) for rank in range(count)]


@pytest.mark.parametrize(
    ("name", "topology", "towers", "route"),
    [
        ("dlrm", "2x2", DLRM, "hierarchical"),
        ("dlrm", "2x2", {**DLRM, "count": 4}, "flat"),
        ("dlrm", "3x2", {**DLRM, "count": 6}, "hierarchical"),
        ("dlrm", "4x1", {"module": "none", "count": 4}, "hierarchical"),
        ("multi_hot_dlrm", "3x2", DLRM, "hierarchical"),
        ("multi_hot_dlrm", "3x2", DLRM, "flat"),
        ("multi_hot_dlrm", "2x4", {**DLRM, "count": 4}, "hierarchical"),
        ("deepfm", "2x2", {"module": "dcn"}, "hierarchical"),
        ("deepfm", "3x1", {"module": "none"}, "flat"),
        ("torchrec_dcn", "2x3", DLRM, "hierarchical"),
        ("torchrec_dlrm", "1x2", DLRM, "hierarchical"),
    ],
    ids=str,
)
def test_placed_is_logical(name: str, topology: str, towers: dict[str, Any], route: str) -> None:
    logical, config, batches = case(name, topology, towers, comm={"route": route})
    placed = run_placed(logical, config, SimulatedWorld(Topology.parse(topology)), batches)
    assert differences(logical, placed, batches) == []


@pytest.mark.parametrize("blocks", [1, 2])
def test_overlap_changes_the_order_and_nothing_else(blocks: int) -> None:
    results = []
    for overlap in (True, False):
        logical, config, batches = case("dlrm", "2x2", DLRM, comm={"overlap": overlap, "micro_blocks": blocks})
        results.append(run_placed(logical, config, SimulatedWorld(Topology(2, 2)), batches))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a.output, b.output)
        for group in ("dense", "tables"):
            left, right = getattr(a, group), getattr(b, group)
            assert left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("towers", [DLRM, {"module": "none"}], ids=["modules", "sptt"])
@pytest.mark.parametrize("mutation", ["groups", "order"])
def test_a_mutated_exchange_is_seen(mutation: str, towers: dict[str, Any]) -> None:
    """Equal sizes everywhere, so that only values can tell."""
    torch.manual_seed(0)
    flat = Flat(cat, features=8, width=4)
    config = settings(towers=towers)
    logical = towered(flat, (ids(8, 5),), "2x2", config)
    batches = [(ids(8, 3, seed=rank),) for rank in range(4)]
    good = run_placed(logical, config, SimulatedWorld(Topology(2, 2)), batches)
    assert differences(logical, good, batches) == []
    swapped = {"peers": "lanes", "lanes": "peers", "world": "world"}
    options: dict[str, Any] = {"groups": {"regroup": swapped.get}, "order": {"reorder": lambda blocks: blocks[::-1]}}
    world = SimulatedWorld(Topology(2, 2), 10, **options[mutation])
    assert "outputs" in differences(logical, run_placed(logical, config, world, batches), batches)


def shared_tables(model: Any, index: Tensor) -> list[Tensor]:
    t = model.tables
    return [t[0](index[:, 0]), t[0](index[:, 1]), t[1](index[:, 2]), t[2](index[:, 3]), t[3](index[:, 3])]


@pytest.mark.parametrize("route", ["hierarchical", "flat"])
def test_shared_tables_one_feature_in_two_tables_and_ranks_without_any(route: str) -> None:
    """Four tables on eight ranks; two features read one of them, one feature reads two."""
    torch.manual_seed(0)
    config = settings(comm={"route": route}, towers={"module": "none"})
    logical = towered(Flat(cat, look=shared_tables), (ids(4, 5),), "2x4", config)
    assert logical.plan.host_of_table("tables.2") == logical.plan.host_of_table("tables.3")
    batches = [(ids(4, WITH_EMPTY[rank], seed=rank),) for rank in range(8)]
    placed = run_placed(logical, config, SimulatedWorld(Topology(2, 4)), batches)
    assert sum(not step.tables for step in placed) == 4
    assert differences(logical, placed, batches) == []


@pytest.mark.parametrize("route", ["hierarchical", "flat"])
def test_padding_weights_and_mean(route: str) -> None:
    torch.manual_seed(0)
    bags = [
        nn.EmbeddingBag(ROWS, 4, mode="mean"), nn.Embedding(ROWS, 4, padding_idx=0), nn.Embedding(ROWS, 4),
        nn.EmbeddingBag(ROWS, 4, mode="sum", padding_idx=1), nn.EmbeddingBag(ROWS, 4, mode="mean", padding_idx=2),
    ]  # fmt: skip

    def look(model: Any, index: Tensor) -> list[Tensor]:
        t = model.tables
        weights = (index[:, :3] % 4 + 0.5).float()
        single = [t[0](index[:, :2]), t[1](index[:, 2]), t[2](index[:, 3:4]).squeeze(1)]
        return [*single, t[3](index[:, :3], per_sample_weights=weights), t[4](index[:, 1:4])]

    config = settings(comm={"route": route}, towers=DLRM)
    logical = towered(Flat(cat, bags, look), (ids(4, 5),), "2x2", config)
    batches = [(ids(4, WITH_EMPTY[rank], seed=rank),) for rank in range(4)]
    placed = run_placed(logical, config, SimulatedWorld(Topology(2, 2)), batches)
    assert differences(logical, placed, batches) == []


def test_an_operation_in_place_stays_where_it_was() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rest = Flat(cat)
            self.side = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))

        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            side = self.side(x)
            before = side.sum(1, keepdim=True)
            side.mul_(3.0)
            return self.rest(index) + side.sum(1, keepdim=True) * before

    torch.manual_seed(0)
    config = settings(towers={"module": "none"})
    x = torch.randn(3, 3)
    logical = towered(InPlace(), (torch.randn(5, 3), ids(4, 5)), "2x1", config)
    batches = [(x, ids(4, 3, seed=rank)) for rank in range(2)]
    placed = run_placed(logical, config, SimulatedWorld(Topology(2, 1)), batches)
    assert differences(logical, placed, batches) == []


def test_a_lookup_nobody_uses() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rest, self.spare = Flat(cat), nn.Embedding(ROWS, 4)

        def forward(self, index: Tensor) -> Tensor:
            self.spare(index[:, 0] % 5)
            return self.rest(index)

    torch.manual_seed(0)
    config = settings(towers=DLRM)
    logical = towered(Unused(), (ids(4, 5),), "2x1", config)
    batches = [(ids(4, 3, seed=rank),) for rank in range(2)]
    placed = run_placed(logical, config, SimulatedWorld(Topology(2, 1)), batches)
    assert differences(logical, placed, batches) == []


# -- the graph of one rank ---------------------------------------------------------------------


def test_each_rank_holds_its_own_tables_and_towers_only() -> None:
    logical, config, _ = case("dlrm", "2x2", {**DLRM, "count": 4})
    tables: list[str] = []
    for rank in range(4):
        model = place(logical, config, Topology(2, 2), rank)
        host = rank // 2
        assert model.tower_paths == tuple(f"dmt_towers.group0.tower{t}" for t in (2 * host, 2 * host + 1))
        kept = {n for n, _ in model.named_parameters() if n.startswith("dmt_towers")}
        assert {n.rpartition(".per")[0] for n in kept} == set(model.tower_paths)
        assert not [n for n, _ in model.named_parameters() if n.startswith("tables.")]
        tables += model.lookup.tables
    assert sorted(tables) == sorted(logical.table_names)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_exchanges_of_each_route_are_nodes(blocks: int) -> None:
    """Ids are distributed once; every micro-block has exchanges of its own behind that."""
    names = {"hierarchical": ["lanes", "peers"], "flat": ["world"]}
    for route, behind in names.items():
        logical, config, _ = case("dlrm", "2x2", DLRM, comm={"route": route, "micro_blocks": blocks})
        model = place(logical, config, Topology(2, 2), 1)
        targets = [str(n.target) for n in model.graph.nodes if n.op == "call_module"]
        starts = Counter(t.split(".")[1] for t in targets if t.endswith(".start"))
        waits = Counter(t.split(".")[1] for t in targets if t.endswith(".wait"))
        assert starts == waits == {"index": 1, **dict.fromkeys(behind, blocks)}
        assert targets.count(LOOKUP) == 1 and not [t for t in targets if t.startswith("tables")]


def test_the_logical_model_is_left_as_it_was() -> None:
    logical, config, batches = case("dlrm", "2x2", DLRM)
    logical.eval()
    before = (str(logical.graph), set(logical.state_dict()), logical(*batches[0]))
    place(logical, config, Topology(2, 2), 3)
    assert (str(logical.graph), set(logical.state_dict())) == before[:2]
    assert torch.equal(logical(*batches[0]), before[2])


def test_another_topology_or_table_type_is_refused() -> None:
    logical, config, _ = case("dlrm", "2x2", DLRM)
    with pytest.raises(PlanError, match="made for 2x2"):
        place(logical, config, Topology(4, 1), 0)
    with pytest.raises(PlanError, match="float32"):
        place(logical.double(), config, Topology(2, 2), 0)
