"""Ranks that must agree, and errors that must not leave the others waiting.

:func:`together` runs a local piece of work on every rank and then lets all ranks know how it went: where one
failed, every rank raises within one small collective, whose wait is bounded by ``comm.timeout_s``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch.distributed as dist

from dmt_plugin.core.errors import DMTError, PlanError
from dmt_plugin.topology.groups import RankGroups
from dmt_plugin.topology.lost_ranks import Reporter, reporting

T = TypeVar("T")


class Meet(Protocol):
    """A gathering of all ranks: :func:`gather` in their usual group, or in one of another thread's."""

    def __call__(self, value: T, doing: str, /) -> list[T]:
        """The values of all ranks, in rank order; ``doing`` is for the message of one that fails."""


def speaks() -> bool:
    """Whether this process is the one to log what all ranks know: rank 0, or any without process groups."""
    return not dist.is_initialized() or dist.get_rank() == 0


def gather(groups: RankGroups, value: T, doing: str = "comparing the ranks", by: Reporter | None = None) -> list[T]:
    """The (picklable) values of all ranks, in rank order, on every rank.

    Args:
        groups: This rank's groups.
        value: This rank's.
        doing: What for, for the message.
        by: Who makes the message; by default the groups.

    Raises:
        ExchangeError: A rank is gone, or ``comm.timeout_s`` is over.
    """
    with reporting(by or groups, doing):
        return all_values(value, groups.world)


def all_values(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """:func:`gather` where there are no groups of ours yet: by default over all ranks; alone without any.

    Raises:
        RuntimeError: As the backend has it.
    """
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values  # type: ignore[return-value]


def meeting(groups: RankGroups) -> Meet:
    """:func:`gather` in the group of all ranks."""
    return functools.partial(gather, groups)


@contextmanager
def together(groups: RankGroups, doing: str, meet: Meet | None = None) -> Iterator[None]:
    """Run the block on every rank; if it raises on any of them, raise on all.

    The block itself must not use collectives. A rank whose own block failed raises its own error; the others
    name the first rank that failed.

    Args:
        groups: This rank's groups.
        doing: What the block does, for the message ("building the model of this rank").
        meet: Where the ranks let each other know; by default in the group of all ranks.

    Raises:
        DMTError: On ranks whose own block went well while another's did not.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    reports = (meet or meeting(groups))(None if error is None else f"{type(error).__name__}: {error}", doing)
    if error is not None:
        raise error
    failed = [(rank, report) for rank, report in enumerate(reports) if report is not None]
    if failed:
        rank, report = failed[0]
        others = "" if len(failed) == 1 else f" (and {len(failed) - 1} more rank(s))"
        raise DMTError(f"rank {rank}{others} failed while {doing}, so all ranks stop: {report}")


def check_same_plan(groups: RankGroups, fingerprint: str) -> None:
    """Stop all ranks unless every rank has made the same tower plan.

    Args:
        groups: This rank's groups.
        fingerprint: Of this rank's plan.

    Raises:
        PlanError: On every rank, if two plans differ.
    """
    found = gather(groups, fingerprint)
    others = [rank for rank, one in enumerate(found) if one != found[0]]
    if others:
        raise PlanError(
            f"rank {others[0]} has made the tower plan {found[others[0]]}, rank 0 the plan {found[0]} ({len(others)} "
            f"of {len(found)} ranks differ from rank 0): features would be sent to the wrong hosts. Build the same "
            'model with the same configuration and files on every rank, or make the plan once ("dmt partition ... '
            '--topology") and name it in dmt.partition.file.'
        )
