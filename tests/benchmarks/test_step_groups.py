"""Variants share process groups; within one, no two become the same."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from benchmarks.step.groups import SharedGroups


def test_shared_between_variants_and_not_within(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def stock(ranks: object = None, **options: object) -> object:
        made.append(object())
        return made[-1]

    monkeypatch.setattr(dist, "new_group", stock)
    groups = SharedGroups()

    def variant() -> list[object]:
        with groups.one_variant():
            peers = dist.new_group([0, 2], group_desc="peers")
            lanes = dist.new_group([0, 1], group_desc="lanes")
            again = dist.new_group(range(2), group_desc="lanes")
            other = dist.new_group([0, 1])
        return [peers, lanes, again, other]

    first, second = variant(), variant()
    assert first == second == made and len(set(map(id, first))) == 4
    assert dist.new_group is stock
    with groups.one_variant():
        assert dist.new_group([0, 1], group_desc="peers") not in first
