"""One line of an estimate: a choice with the time of a step, what it moves and needs, and what binds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmt_plugin.planner.cluster.cluster import Cluster
from dmt_plugin.planner.paper.model import FEW_HOSTS
from dmt_plugin.planning.candidates import Priced

FEW = 1.27
"""By what steps with towers took longer in the paper, on up to :data:`FEW_HOSTS` hosts, than the model says."""

_BINDS = {
    "link to other hosts": ("rows out", "rows back", "machines out", "machines back", "next ids"),
    "sums of gradients": ("sums", "sums inside"),
    "links inside hosts": ("lanes out", "lanes back"),
    "dense part": ("dense", "dense backward"),
    "tower modules": ("tower", "tower backward"),
    "memory of the accelerators": ("lookup", "update", "shuffle", "shuffle back"),
    "fixed cost": ("fixed",),
}
_PART_OF = {part: name for name, parts in _BINDS.items() for part in parts}

QUALITY = {
    2: "-0.0012 to +0.0003 (measured with int8)",
    4: "-0.0052 to 0",
    8: "-0.0107 to -0.0002",
}
"""By compression ratio the change of AUC that was measured on four data sets, with a linear layer per feature."""

INT8_QUALITY = "-0.0004 to 0"
"""The same for int8 between hosts, without tower modules."""


@dataclass(frozen=True)
class Row:
    """A choice with its price.

    Attributes:
        name: of the way.
        group: ``"exact"``, or the compression ratio.
        wire: wire formats.
        blocks: micro-blocks.
        stage: of ZeRO.
        ms: of a step, expected.
        range_ms: least and most, over the corners of what is not known.
        speed_up: over the reference.
        range_speed_up: least and most, in the same corner.
        samples_per_s: of all ranks.
        exposed_ms: in which an exchange of rows runs and the accelerator does nothing.
        exposed_by: the same by exchange.
        memory: bytes of the largest rank.
        nic_bytes: of the busiest rank over its link to other hosts, both directions one after the other.
        lanes_bytes: inside its host.
        binds: the part of the step that most of its longest chain is.
        binds_share: how much of it.
        section: keys of the DeepSpeed configuration.
    """

    name: str
    group: str
    wire: str
    blocks: int
    stage: int
    ms: float
    range_ms: tuple[float, float]
    speed_up: float | None
    range_speed_up: tuple[float, float] | None
    samples_per_s: float
    exposed_ms: float
    exposed_by: Mapping[str, float]
    memory: int
    nic_bytes: float
    lanes_bytes: float
    binds: str
    binds_share: float
    section: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **vars(self),
            "range_ms": list(self.range_ms),
            "range_speed_up": list(self.range_speed_up or ()) or None,
        }


def row_of(
    priced: Priced, cluster: Cluster, samples: int, seconds: Sequence[float], base: Sequence[float] | None
) -> Row:
    """The line of a choice.

    Args:
        priced: the choice.
        cluster: that it is for.
        samples: per rank.
        seconds: of a step in the expected world, then in those at the corners.
        base: the same of the reference; None where there is none.
    """
    choice, load, step = priced.choice, priced.load, priced.step
    few = not choice.replicated and not choice.variant.flat and choice.variant.topology.hosts <= FEW_HOSTS
    slower = [own * FEW for own in seconds] if few else list(seconds)
    chain = step.critical()
    parts: dict[str, float] = {}
    for part, own in chain.items():
        name = _PART_OF.get(part, "wire formats")
        parts[name] = parts.get(name, 0.0) + own
    binds = max(parts, key=lambda name: parts[name])
    faster = None if base is None else [b / own for b, own in zip(base, seconds, strict=True)]
    least = None if base is None else min(b / own for b, own in zip(base, slower, strict=True))
    return Row(
        choice.name,
        choice.group,
        choice.wire_text,
        choice.blocks,
        choice.stage,
        1e3 * step.seconds,
        (1e3 * min(seconds), 1e3 * max(slower)),
        None if faster is None else faster[0],
        None if faster is None or least is None else (least, max(faster)),
        samples * cluster.ranks / step.seconds,
        1e3 * step.exposed,
        {name: 1e3 * own for name, own in step.exposed_by().items()},
        priced.memory,
        load.ids + sum(load.rows) + sum(load.machines) + load.sums,
        sum(load.lanes) + load.sums_inside,
        binds,
        parts[binds] / sum(parts.values()),
        choice.section(cluster.hosts, cluster.ranks_per_host),
    )
