"""What passes find out is found once, and outlives copying and pickling; changes own the map between two states."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.capture import CapturedModel, ExampleBatch, copy_graph
from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import DMTError
from dmt_plugin.fxtools.names import BLOCK_META, EXCHANGE_META, SHAPE_META
from dmt_plugin.model.placed import PlacedModel, place, place_graph
from dmt_plugin.passes.base import PassContext, run_passes
from dmt_plugin.passes.facts import Change
from dmt_plugin.passes.pipeline import KNOWN_OF_A_RANK, rank_passes
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWorld
from tests.passes.flat import Flat, ids, towers
from tests.passes.test_place import DLRM, case

WHOLE = Topology(2, 2)
WAYS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda model: model,
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("way", WAYS)
def test_facts_are_about_the_nodes_of_the_graph_that_is_asked_about(way: str) -> None:
    logical, config, _ = case("multi_hot_dlrm", "2x2", DLRM)
    model = WAYS[way](logical)
    facts = model.stored_facts.over(model.graph)
    nodes = set(model.graph.nodes)
    assert facts.lookups and {x.node for x in facts.lookups} <= nodes
    assert {n for x in facts.lookups for n in x.ids[1] if isinstance(n, torch.fx.Node)} <= nodes
    assert {n for region in facts.regions.values() for n in (*region.nodes, *region.lookups, *region.ids)} <= nodes
    assert [g.name for g in facts.groups] == [g.name for g in model.plan.groups]
    assert tuple(facts.changes) == model.repairs
    expected = place_graph(logical, config, WHOLE, 1).graph_module.code
    assert place_graph(model, config, WHOLE, 1).graph_module.code == expected


def test_what_is_found_is_not_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    logical, config, _ = case("dlrm", "2x2", DLRM)
    searches = [
        "logical.find_lookups.FindLookups", "logical.find_regions.FindRegions", "logical.find_joins.FindJoins",
    ]  # fmt: skip
    for path in searches:
        monkeypatch.setattr(f"dmt_plugin.passes.{path}.run", lambda self, ctx: pytest.fail(f"{self.name} runs again"))
    names = [result.name for result in place_graph(logical, config, WHOLE, 0).passes]
    assert names[:2] == ["remove_pass_through", "place"] and names[-1] == "schedule"


def test_passes_keep_no_state_on_themselves() -> None:
    logical, config, _ = case("dlrm", "2x2", DLRM, comm={"micro_blocks": 2})
    steps = rank_passes()
    codes = {}
    for rank in (0, 3, 0):
        own = CapturedModel(copy_graph(logical.graph_module), logical.binder, ExampleBatch(), logical.batch_size)
        facts = logical.stored_facts.over(own.graph_module.graph)
        ctx = PassContext(own, config, WHOLE, rank, facts, plan=logical.plan, tags=set(KNOWN_OF_A_RANK))
        run_passes(steps, ctx)
        assert codes.setdefault(rank, ctx.gm.code) == ctx.gm.code
        assert ctx.placement.sites == place_graph(logical, config, WHOLE, rank).placement.sites
        assert not any(vars(step) for step in steps)


@pytest.mark.parametrize(
    ("name", "dmt"), [("dlrm", {}), ("multi_hot_dlrm", {"comm": {"micro_blocks": 2}}), ("torchrec_dcn", {})], ids=str
)
def test_a_placed_graph_is_pickled(name: str, dmt: dict[str, Any]) -> None:
    logical, config, batches = case(name, "2x2", DLRM, **dmt)
    graph = place_graph(logical, config, WHOLE, 1)
    again = pickle.loads(pickle.dumps(graph))
    assert again.graph_module.code == graph.graph_module.code
    for old, new in zip(graph.graph_module.graph.nodes, again.graph_module.graph.nodes, strict=True):
        notes = [{k: v for k, v in n.meta.items() if k in (EXCHANGE_META, BLOCK_META, SHAPE_META)} for n in (old, new)]
        assert old.name == new.name and notes[0] == notes[1]

    def outputs(models: list[PlacedModel]) -> list[Tensor]:
        def program(wire: Any) -> Tensor:
            models[wire.rank].bind(wire)
            return models[wire.rank].eval()(*batches[wire.rank])

        with torch.no_grad():
            return SimulatedWorld(WHOLE).run(program)

    models = [place(copy.deepcopy(logical), config, WHOLE, rank) for rank in range(4)]
    twins = pickle.loads(pickle.dumps(models))
    for expected, found in zip(outputs(models), outputs(twins), strict=True):
        assert torch.equal(expected, found)


def test_a_model_that_an_earlier_version_pickled_is_refused_by_name_where_facts_are_needed() -> None:
    saved = Path(__file__).parents[1] / "data" / "version_0_1_0" / "logical.pickle"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = pickle.loads(saved.read_bytes())
    logical, config, _ = case("dlrm", "2x2", DLRM)
    with pytest.raises(DMTError, match="pickled by an earlier version"):
        place_graph(model, config, Topology.parse(model.plan.topology), 0)
    with pytest.raises(DMTError, match="pickled by an earlier version"):
        model.load_flat_state(logical.to_flat().state_dict())


# -- changes and states --------------------------------------------------------------------


class Bilinear(nn.Module):
    """Vectors of all features, beside a dense vector, into ``nn.Bilinear``."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10, 8) for _ in range(4))
        self.pair = nn.Bilinear(3, 32, 5)
        self.top = nn.Linear(5, 1)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.top(self.pair(x, torch.cat([t(index[:, f]) for f, t in enumerate(self.tables)], 1)))


def test_a_bilinear_layer_keeps_its_trained_bias() -> None:
    flat, other = Bilinear(), Bilinear()
    model = transform(flat, (torch.randn(5, 3), ids(4, 5)), {"dmt": {"towers": {"module": "dlrm", "dim": 4}}}, "2x1")
    assert [r.target for r in model.repairs] == ["pair"]
    found = model.load_flat_state(other.state_dict())
    assert "pair.bias" in found.loaded and "pair.bias" not in found.anew
    assert torch.equal(model.get_parameter("pair.bias"), other.pair.bias)
    assert "pair.weight" in found.anew and "pair.bias" not in model.state_map.new


def test_what_two_states_share_is_the_same_in_both_directions() -> None:
    flat = Flat(lambda streams, _: torch.cat(streams, 1))
    model = towers(flat, ids(4, 5), towers={"module": "dlrm", "dim": 2})
    shared = model.state_map
    assert set(shared.same) | set(shared.new) == set(model.state_dict()) and "top.bias" in shared.same
    assert shared.new["top.weight"] == model.repairs[0]
    trained = {name: torch.rand_like(value) for name, value in flat.state_dict().items()}
    model.load_flat_state(trained)
    back = shared.shared(model.state_dict())
    assert back.keys() == shared.shared(trained).keys()
    assert all(torch.equal(back[name], trained[name]) for name in back)


def test_what_a_change_keeps_does_not_depend_on_its_words() -> None:
    change = Change("head.top", "anything", "anything", kept=("bias",))
    names = ["head.top.weight", "head.top.bias", "head.top2.weight"]
    assert [change.covers(n) for n in names] == [True, True, False]
    assert [change.keeps(n) for n in names] == [False, True, False]
