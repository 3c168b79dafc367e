"""Bytes counted at the exchanges equal the formula that ``dmt explain`` prints, exactly."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import pytest
import torch

from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.compiler import transform
from dmt_plugin.config.section import read_dmt_config
from dmt_plugin.model.placed import PlacedModel, place
from dmt_plugin.report.explain.explanation import costs_of
from dmt_plugin.topology.shape import Topology
from tests._util.pairs import pairwise
from tests._util.simulated import SimulatedWire, SimulatedWorld
from tests.zoo.models import ZOO

BATCH = 6


def mean_ids(args: tuple[Any, ...]) -> dict[int, float]:
    """Ids per sample of each varying bag in a call of the multi-hot model."""
    return {k: len(ids) / BATCH for k, ids in enumerate(args[2])}


FORMATS: dict[str, dict[str, str]] = {
    "fp32": {},
    "short": {"peer_dtype": "fp16", "intra_dtype": "bf16"},
    "mixed": {"peer_dtype": "int8", "peer_grad_dtype": "bf16", "intra_dtype": "fp32", "intra_grad_dtype": "int8"},
    "model in bf16": {"peer_grad_dtype": "int8"},
}


PLACEMENTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "rows": {"strategy": "row_wise"},
    "columns": {"strategy": "column_wise"},
    "mixed": {"strategy": "column_wise", "overrides": {"tables.0": "row_wise", "tables.5": "table_wise"}},
}


WAYS = [(route, formats) for route in ("hierarchical", "flat") for formats in FORMATS]
WHOLE = pairwise({"name": ["dlrm", "deepfm"], "topology": ["2x2", "3x1", "1x2", "2x3"], "way": WAYS})
DIVIDED = pairwise(
    {
        "tables": [("dlrm", "rows"), ("dlrm", "columns"), ("dlrm", "mixed"), ("deepfm", "rows")],
        "topology": ["2x2", "1x4", "2x3"],
        "way": WAYS,
    }
)
"""Every route in every format; these with each model, placement and topology, and each two of those."""


@pytest.mark.parametrize(("name", "topology", "way"), [tuple(case.values()) for case in WHOLE], ids=str)
def test_counted_bytes_are_the_formula(name: str, topology: str, way: tuple[str, str]) -> None:
    assert miscounted(name, topology, *way, "whole") == []


@pytest.mark.parametrize(("tables", "topology", "way"), [tuple(case.values()) for case in DIVIDED], ids=str)
def test_counted_bytes_with_divided_tables(tables: tuple[str, str], topology: str, way: tuple[str, str]) -> None:
    assert miscounted(tables[0], topology, *way, tables[1]) == []


FROZEN = {"some": (0, 2, 3, 5), "host 0": (0, 2, 4, 6), "all": range(99)}


@pytest.mark.parametrize(("route", "formats"), [("hierarchical", "mixed"), ("flat", "short")])
@pytest.mark.parametrize("towers", [{"module": "none"}, {}, {"c": 1, "p": 0, "dim": 4}], ids=str)
@pytest.mark.parametrize("frozen", FROZEN)
def test_gradients_of_frozen_tables_are_not_sent(frozen: str, towers: dict[str, Any], route: str, formats: str) -> None:
    """Nor those of towers in which nothing is trained; an exchange without gradients has no backward."""
    chosen, placement = FROZEN[frozen], "mixed" if frozen == "some" else "whole"
    assert miscounted("dlrm", "2x2", route, formats, placement, chosen, {"towers": towers}) == []


def miscounted(
    name: str,
    topology: str,
    route: str,
    formats: str,
    placement: str,
    frozen: Container[int] = (),
    more: dict[str, Any] | None = None,
) -> list[str]:
    torch.manual_seed(0)
    flat, batch = ZOO[name]()
    for number, table in enumerate(flat.tables if frozen else ()):
        table.requires_grad_(number not in frozen)
    config = read_dmt_config(
        {
            "dmt": {
                "comm": {"route": route, **FORMATS[formats]},
                "lookup": {"backend": "torch", "optimizer": "adagrad"},
                "placement": PLACEMENTS[placement],
                **(more or {}),
            }
        }
    )
    assert config is not None
    where = Topology.parse(topology)
    logical = transform(flat, batch(5, 0), config, where)

    models = [place(logical, config, where, rank) for rank in range(where.world_size)]
    short = formats == "model in bf16"
    if short:
        for placed in models:
            placed.bfloat16()  # no table is a parameter
            placed.compute_in(torch.bfloat16)

    def program(wire: SimulatedWire) -> list[str]:
        placed = models[wire.rank]
        placed.bind(wire)
        args = [x.bfloat16() if short and x.is_floating_point() else x for x in batch(BATCH, wire.rank)]
        out = placed(*args)
        assert out.dtype == (torch.bfloat16 if short else torch.float32)
        out.sum().backward()
        counted = wire.traffic.as_dict()
        wrong = []
        for cost in costs_of(placed, BATCH):
            found = counted.get(cost.name, {}).get(cost.phase, {"other_hosts": 0, "same_host": 0})
            if (found["other_hosts"], found["same_host"]) != (cost.other_hosts, cost.same_host):
                wrong.append(f"rank {wire.rank} {cost}: counted {found}")
            if cost.phase == "backward" and not any((cost.other_hosts, cost.same_host)):
                assert cost.phase not in counted.get(cost.name, {}) or any(_gradients(placed, cost.name))
            assert not short or "B, " not in cost.shape or "int" in cost.shape or "bf16" in cost.shape, cost
        unknown = set(counted) - {cost.name for cost in costs_of(placed, BATCH)}
        return wrong + sorted(unknown)

    assert placement == "whole" or logical.plan.table_splits
    return [line for lines in SimulatedWorld(where).run(program) for line in lines]


def _gradients(placed: PlacedModel, exchange: str) -> tuple[int, ...]:
    found = placed.placement.exchanges[exchange]
    assert isinstance(found, OutputDist)
    return found.gradient_widths


def test_varying_bags_are_counted_by_their_mean() -> None:
    """With bags of varying length the formula takes their mean number of ids."""
    torch.manual_seed(0)
    flat, batch = ZOO["multi_hot_dlrm"]()
    config = read_dmt_config({"dmt": {"lookup": {"backend": "torch"}}})
    assert config is not None
    where = Topology(2, 1)
    logical = transform(flat, batch(5, 0), config, where)

    models = [place(logical, config, where, rank) for rank in range(where.world_size)]

    def program(wire: SimulatedWire) -> tuple[int, int]:
        from dmt_plugin.planner.cost import exchange_costs

        placed = models[wire.rank]
        placed.bind(wire)
        args = batch(BATCH, wire.rank)
        placed(*args)
        slots = placed.placement.slots
        means = {slot.name: mean_ids(args)[int(slot.name.rpartition("_")[2])] for slot in slots}
        widths = placed.placement.rank_widths
        costs = exchange_costs(slots, widths, [1, 1], where, wire.rank, BATCH, "hierarchical", means)
        (ids,) = [c for c in costs if c.name == "index.peers.ids"]
        return wire.traffic.totals("index.peers.ids").other_hosts, ids.other_hosts

    for counted, formula in SimulatedWorld(where).run(program):
        assert counted == formula > 0


def test_compression_divides_the_bytes_between_hosts() -> None:
    """CR 2 halves what the peer exchange sends; the flat and the semantic-preserving route send the same."""
    torch.manual_seed(0)
    flat, batch = ZOO["dlrm"]()
    where = Topology(2, 2)

    def bytes_between_hosts(section: dict[str, Any]) -> int:
        config = read_dmt_config({"dmt": section})
        assert config is not None
        placed = place(transform(flat, batch(5, 0), config, where), config, where, 0)
        return sum(c.other_hosts for c in costs_of(placed, 64) if not c.name.startswith("index"))

    towers = bytes_between_hosts({"towers": {"c": 1, "p": 0, "dim": 4}})
    preserving = bytes_between_hosts({"towers": {"module": "none"}})
    assert 2 * towers == preserving
    one_rank = Topology(2, 1)
    where = one_rank
    assert bytes_between_hosts({"towers": {"module": "none"}}) == bytes_between_hosts(
        {"towers": {"module": "none"}, "comm": {"route": "flat"}}
    )
