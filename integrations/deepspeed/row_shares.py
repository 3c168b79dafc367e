"""Distinct rows that are counted before a run under ``"dedup": "auto"``, the same on every rank.

1. A plan, a partition or a file that holds counts is read by the passes on every rank; ranks that read others than
   rank 0 are refused.
2. Otherwise the first rank that has data counts on them, and sends the counts to the others: what each of them
   would count on its own data differs by chance. The others wait for as long as ``comm.timeout_s`` allows; the count
   ends before.
3. What is known of the link's speed is rank 0's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from dmt_plugin.capture import ExampleBatch
from dmt_plugin.compiler import count_rows_of, partition_on_disk
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.link import bytes_per_second
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.integrations.deepspeed.arguments.data_to_count import can_count, data_to_count
from dmt_plugin.integrations.deepspeed.share_watch import SAME_SIZE
from dmt_plugin.passes.logical.count_rows import known_shares
from dmt_plugin.passes.rank_facts import Placement
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.topology.agreement import gather, together
from dmt_plugin.topology.groups import RankGroups
from dmt_plugin.topology.shape import Topology

_LONGEST_S = 60.0
_SHARE_OF_TIMEOUT = 0.25
"""What of ``comm.timeout_s`` the count may take: capturing the model comes on top."""


@dataclass(frozen=True)
class AgreedShares:
    """What all ranks know of distinct rows.

    Attributes:
        shares: what was counted on data; None where a plan or a file says it, or nobody does.
        why: why nobody does, or what else there is to say of them, for people; may be empty.
    """

    shares: RowShares | None = None
    why: str = ""


def micro_batch(settings: DeepSpeedSettings, ranks: int) -> int | None:
    """Samples per rank and step, as DeepSpeed will have them; None where the configuration does not say."""
    own, whole = (settings.at(key) for key in ("train_micro_batch_size_per_gpu", "train_batch_size"))
    if isinstance(own, int) and not isinstance(own, bool):
        return own
    return max(whole // (ranks * settings.micro_batches), 1) if isinstance(whole, int) else None


def agreed_link(config: DMTConfig, groups: RankGroups) -> DMTConfig:
    """The configuration with the speed of the link as a number, rank 0's; all ranks call it together.

    Raises:
        ConfigError: Ranks have other keys about rows that travel once, so that not all of them would count.
    """
    comm, link = config.comm, None
    with together(groups, "reading dmt.comm.link"):
        if comm.link is not None and groups.rank == 0:
            link = bytes_per_second(comm.link, groups.topology.by_machine.ranks_per_host)
    keys = {"route": comm.route, "dedup": comm.dedup, "dedup_features": comm.dedup_features}
    found = gather(groups, (keys, link))
    for rank, (own, _) in enumerate(found):
        if other := [f"dmt.comm.{key}" for key in keys if own[key] != found[0][0][key]]:
            raise ConfigError(
                f"rank {rank} has another {', '.join(other)} than rank 0: rows would travel in two ways. Give every "
                "rank the same dmt.comm section."
            )
    return config.model_copy(update={"comm": comm.model_copy(update={"link": found[0][1]})})


def agreed_shares(
    model: nn.Module,
    example: ExampleBatch,
    config: DMTConfig,
    settings: DeepSpeedSettings,
    groups: RankGroups,
    *,
    shares_from: Any,
    training_data: Any,
    collate_fn: Any,
) -> AgreedShares:
    """Counts distinct rows where that is needed and possible; all ranks call it together.

    Args:
        model: the user's model.
        example: one call of it.
        config: the ``"dmt"`` section.
        settings: the configuration around it.
        groups: this rank's groups.
        shares_from: of ``initialize``.
        training_data: of ``initialize``.
        collate_fn: of ``initialize``.

    Raises:
        ConfigError: the data are no batches; or ranks read other files.
        DMTError: another rank failed.
    """
    topology = groups.topology
    lanes = topology.by_machine.ranks_per_host
    if not config.comm.may_travel_once(topology.by_machine.hosts, topology.world_size):
        return AgreedShares()
    with together(groups, "reading counts of distinct rows"):
        given = partition_on_disk(config.partition.file, topology)
        known, certain = known_shares(config.comm.dedup_shares, given)
        samples = micro_batch(settings, topology.world_size)
        has = can_count(shares_from, training_data)
    found = gather(groups, (None if known is None else known.to_dict(), certain, samples, has))
    for rank, (own, *_) in enumerate(found):
        if (own, found[rank][1]) != (found[0][0], found[0][1]):
            raise ConfigError(
                f"rank {rank} reads other counts of distinct rows than rank 0 (dmt.comm.dedup_shares, "
                "dmt.partition.file): rows would travel in two ways. Give every host the same files."
            )
    if certain:
        if known is not None:
            return AgreedShares(why=_of_another_batch(known, found[0][2], config, topology))
        return AgreedShares(why="the checkpoint's plan has no counts, and was made without")
    counter = next((rank for rank, own in enumerate(found) if own[3]), None)
    if counter is None:
        return AgreedShares()
    if (size := found[counter][2]) is None:
        return AgreedShares(why="the configuration does not say how many samples a micro-batch has")
    count = None
    with together(groups, "counting distinct rows"):
        if groups.rank == counter:
            seconds = min(_LONGEST_S, _SHARE_OF_TIMEOUT * config.comm.timeout_s)
            data = data_to_count(
                model, shares_from=shares_from, training_data=training_data, collate_fn=collate_fn, samples=size,
                lanes=lanes, seconds=seconds,
            )  # fmt: skip
            assert data is not None
            count = count_rows_of(model, example, data, lanes)
    counted = gather(groups, None if count is None else count.to_dict())[counter]
    if counted is None:
        needed = size * lanes
        return AgreedShares(why=f"the data gave fewer than the {needed} samples that a step of a host takes, in time")
    return AgreedShares(RowShares.from_dict(counted))


def _of_another_batch(shares: RowShares, samples: int | None, config: DMTConfig, topology: Topology) -> str:
    """That counts are of other batches than those of this run, whose shares are others; empty where they fit."""
    flat = config.comm.route == "flat"
    counted = shares.samples * (1 if flat else shares.lanes)
    if samples is None:
        return ""
    here = samples * (1 if flat else topology.by_machine.ranks_per_host)
    if abs(counted - here) <= SAME_SIZE * here:
        return ""
    return (
        f"they were counted for {counted} samples, and a {'rank' if flat else 'host'} has {here} here, of which other "
        "shares are distinct: count again"
    )


def check_same_rows(groups: RankGroups, placement: Placement) -> None:
    """Stops all ranks unless all of them have decided alike whose rows travel once.

    Raises:
        ConfigError: on every rank.
    """
    found = gather(groups, [(choice.tables, choice.on, choice.at_samples) for choice in placement.choices])
    others = [rank for rank, own in enumerate(found) if own != found[0]]
    if others:
        raise ConfigError(
            f"rank {others[0]} would send rows otherwise than rank 0: {found[others[0]]} against {found[0]}. Give "
            "every rank the same dmt.comm section."
        )
