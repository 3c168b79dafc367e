"""Runs that were recorded, as the planner sees them: the model rewritten as the run had it, and what a rank did.

The first line of a run's records has its configuration and what came of it. From the model and that the same graph is
made as in the run; where it is another one, the records are of another model, and refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from dmt_plugin.config.link import bytes_per_second
from dmt_plugin.config.section import DMTConfig, read_dmt_config
from dmt_plugin.core.errors import ReportError
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.planner.gradient_cost import GradientSums
from dmt_plugin.planner.time.step import Load
from dmt_plugin.planning.loads import Wire, load_of, moved, sums_of
from dmt_plugin.planning.variants import Rewriter, Variant, Way
from dmt_plugin.topology.shape import Topology

_NEEDED = ("configuration", "batch_per_rank", "micro_blocks", "once", "tables", "wire", "zero_stage")
_SHOWN = 3


@dataclass(frozen=True)
class RunLoad:
    """What a rank of a run did in a step.

    Attributes:
        load: bytes, FLOPs, blocks.
        variant: the model as the run had it.
        sums: who summed gradients.
        nic: bytes/s of a rank's link, where the configuration says it; else None.
        bf16: whether the dense part was in bf16.
    """

    load: Load
    variant: Variant
    sums: GradientSums
    nic: float | None
    bf16: bool


class RunReader:
    """Reads the first lines of runs of one model.

    Args:
        model: the user's model; its weights may be on the meta device.
        batch: one call of it.

    Raises:
        CaptureError: the model cannot be captured.
    """

    def __init__(self, model: nn.Module, batch: Any) -> None:
        self._rewriter = Rewriter(model, batch, DMTConfig(), {})

    def load(self, header: Mapping[str, Any], name: str, shares: RowShares | None, shared_nic: bool) -> RunLoad:
        """What a rank did.

        Args:
            header: the first line.
            name: of the run, for messages.
            shares: the distinct rows that the run's plan was made from.
            shared_nic: whether the ranks of a host share a link.

        Raises:
            ReportError: records of an earlier version, or of another model.
            TransformError, ConfigError: the configuration does not take the model.
        """
        if missing := [key for key in _NEEDED if key not in header]:
            raise ReportError(
                f"{name}: was recorded by an earlier version: its first line does not say {', '.join(missing)}. Record "
                "a run again to compare it."
            )
        kept = header["configuration"]
        config, topology = read_dmt_config(kept) or DMTConfig(), Topology.parse(header["topology"])
        rewriter = self._rewriter.under(config, kept)
        way = Way(name, {}, 0, bool(header["once"]))
        variant = rewriter.variant(way, topology, header["batch_per_rank"], shares)
        _check(variant, header, name)
        wire = Wire(config.comm.formats_of("world" if variant.flat else "peers")[0], config.comm.formats_of("lanes")[0])
        sums = sums_of(kept, variant, header["zero_stage"])
        samples, lanes = header["batch_per_rank"], topology.ranks_per_host
        found = load_of(variant, samples, wire, moved(variant, samples, wire, shared_nic), sums, lanes)
        link = config.comm.link
        nic = None if link is None else bytes_per_second(link, lanes) / lanes
        return RunLoad(
            replace(found, blocks=header["micro_blocks"]), variant, sums, nic, header.get("dense_dtype") == "bf16"
        )


def _check(variant: Variant, header: Mapping[str, Any], name: str) -> None:
    """Refuses records of another model."""
    tables = {table.name: [table.rows, table.dim] for table in variant.placed.plan.tables}
    if tables != header["tables"]:
        raise ReportError(f"{name}: was recorded with another model: {_difference(tables, header['tables'])}.")
    groups = [group for group in variant.layout.groups if group.once]
    once = sorted({table.name.partition("[columns ")[0] for group in groups for table in group.tables})
    if once != sorted(header["once"]):
        raise ReportError(
            f"{name}: rows of {len(header['once'])} table(s) travelled once in the run, and of {len(once)} in this "
            "model with its configuration; expected the plan.json that the run wrote beside its records."
        )


def _difference(tables: Mapping[str, Sequence[int]], recorded: Mapping[str, Sequence[int]]) -> str:
    both = sorted(set(tables) | set(recorded))
    found = [
        f"table {table} has {_size(recorded.get(table))} there and {_size(tables.get(table))} here"
        for table in both
        if tables.get(table) != recorded.get(table)
    ]
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _size(size: Sequence[int] | None) -> str:
    return "no rows" if size is None else f"{size[0]} rows of width {size[1]}"
