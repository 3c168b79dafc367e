"""The ways in which a model can be rewritten for a cluster, each rewritten and placed once, without weights or ranks.

1. The model is captured once. For each way the passes make the tower model and one rank's placement: which ids and rows
   travel, and how wide, is read off there, and not calculated a second time.
2. FLOPs are counted once per kind of tower modules and number of towers: how rows travel does not change them.
3. What a way needs beside that (wire formats, micro-blocks, ZeRO stage) costs no further pass.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dmt_plugin.capture.example_call import example_of
from dmt_plugin.compiler import captured_of, transform_captured
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.update_rule import WeightType
from dmt_plugin.model.memory import sizes_of
from dmt_plugin.model.placed import PlacedGraph, place_graph
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.planner.buffers import ModelSizes
from dmt_plugin.planner.distinct_needs import needs_of
from dmt_plugin.planner.time.links import Layout
from dmt_plugin.planning.flops import GraphFlops, flops_of
from dmt_plugin.topology.shape import Topology


@dataclass(frozen=True)
class Way:
    """A way to rewrite a model.

    Attributes:
        name: for people, e.g. ``"SPTT"``.
        section: keys of the ``"dmt"`` section that make it, beside those that the user gave.
        ratio: compression ratio that its tower modules have; 0 where the model stays the same.
        dedup: whether rows travel once.
    """

    name: str
    section: Mapping[str, Mapping[str, Any]]
    ratio: int = 0
    dedup: bool = False

    @property
    def group(self) -> str:
        """``"exact"``, or what its tower modules change."""
        return f"CR {self.ratio}" if self.ratio else "exact"


@dataclass(frozen=True)
class Variant:
    """A model, rewritten one way for one topology.

    Attributes:
        way: how.
        config: the ``"dmt"`` section.
        topology: hosts and lanes.
        placed: one rank's graph; any rank's placement serves.
        layout: where rows are.
        sizes: what memory depends on.
        flops: of a sample.
        row_type: of the rows that leave the tables.
        shares: the distinct rows that were counted, if any.
    """

    way: Way
    config: DMTConfig
    topology: Topology
    placed: PlacedGraph
    layout: Layout
    sizes: ModelSizes
    flops: GraphFlops
    row_type: WeightType
    shares: RowShares | None = field(repr=False)

    @property
    def flat(self) -> bool:
        """Whether rows go from every rank to every other."""
        return self.layout.route == "flat"

    @property
    def widths_once(self) -> dict[str, int]:
        """By table whose rows travel once how wide they are on the way."""
        found: dict[str, int] = {}
        for group in self.layout.groups:
            for table in group.tables:
                name = table.name.partition("[columns ")[0]
                found[name] = found.get(name, 0) + group.width
        return found


class Rewriter:
    """Rewrites one model in several ways.

    Args:
        model: the user's model; its weights may be on the meta device, and are not read.
        batch: one call of it.
        config: the ``"dmt"`` section that every way begins with.
        ds_config: the DeepSpeed configuration around it.

    Raises:
        CaptureError: the model cannot be captured.
    """

    def __init__(self, model: nn.Module, batch: Any, config: DMTConfig, ds_config: Mapping[str, Any]) -> None:
        self.model, self.config, self.settings = model, config, DeepSpeedSettings(ds_config)
        self.example = example_of(batch, model)
        self._captured = captured_of(model, self.example, config)
        self._flops: dict[tuple[str, int], GraphFlops] = {}

    def under(self, config: DMTConfig, ds_config: Mapping[str, Any]) -> Rewriter:
        """The same model under another configuration; it is not captured again.

        Args:
            config: the ``"dmt"`` section.
            ds_config: the DeepSpeed configuration around it.
        """
        found = copy.copy(self)
        found.config, found.settings = config, DeepSpeedSettings(ds_config)
        return found

    def variant(self, way: Way, topology: Topology, samples: int, shares: RowShares | None = None) -> Variant:
        """The model rewritten.

        Args:
            way: how.
            topology: hosts and lanes.
            samples: per rank.
            shares: distinct rows that were counted for so many samples and lanes.

        Raises:
            TransformError: it cannot be rewritten so; carries coded findings.
            ConfigError: a table does not fit, or the towers do not.
        """
        config = merged(self.config, way.section)
        counted = shares if way.dedup else None
        # How tower modules start, and what the example batch gives, changes neither bytes nor FLOPs.
        towers = config.towers.model_copy(update={"init": "torch"})
        quick = config.model_copy(update={"towers": towers})
        logical = transform_captured(self._captured, self.model, quick, topology, row_shares=counted)
        placed = place_graph(logical, quick, topology, 0)
        row_type = self.settings.row_dtype(placed.plan.row_dtype)
        key = (config.towers.model_dump_json(), len(placed.plan.towers))
        if key not in self._flops:
            self._flops[key] = flops_of(logical)
        layout = layout_of(placed, counted)
        sizes = sizes_of(placed, samples)
        return Variant(way, config, topology, placed, layout, sizes, self._flops[key], row_type, counted)


def layout_of(placed: PlacedGraph, shares: RowShares | None) -> Layout:
    """Where the rows of a placed model are.

    Args:
        placed: one rank's graph.
        shares: distinct rows that were counted; None: of rows that travel once the most that can be.
    """
    placement = placed.placement
    hierarchical = placement.route == "hierarchical"
    return Layout(
        placed.topology,
        placement.route,
        placement.slots,
        placement.rank_widths if any(placement.rank_widths) else (),
        tuple(sum(column.width for column in own) for own in placement.host_columns) if hierarchical else (),
        placement.rank_gradients if any(placement.rank_widths) else None,
        placement.host_gradients if hierarchical else None,
        placement.groups,
        placement.distinct_slots,
        None if shares is None else needs_of(placement.groups, shares, placed.topology),
    )


def merged(config: DMTConfig, section: Mapping[str, Mapping[str, Any]]) -> DMTConfig:
    """A configuration with other values for some keys, checked as a whole.

    Args:
        config: the ``"dmt"`` section.
        section: by part the keys to set.

    Raises:
        ValidationError: the whole cannot be.
    """
    given = config.model_dump(exclude_unset=True)
    for part, keys in section.items():
        before = given.get(part, {})
        if part == "towers":  # what was said of other tower modules does not hold for these
            before = {key: before[key] for key in _ANY_TOWERS if key in before}
        given[part] = {**before, **keys}
    found = DMTConfig.model_validate(given)
    return found.model_copy(update={"lookup": config.lookup})  # it knows the optimizer of the dense part


_ANY_TOWERS = ("count", "init", "seed")
"""Keys of ``dmt.towers`` that hold for every kind of module."""
