"""Bytes of sequences are those of the rows that a host needs, or of its ids, and are fewer where ids repeat."""

from __future__ import annotations

import pytest

from benchmarks import sequence_bytes


@pytest.mark.campaign
@pytest.mark.processes
def test_bytes_are_those_of_rows() -> None:
    every, once = (sequence_bytes.count(("kaggle", 2), 32, dedup) for dedup in ("off", "on"))
    assert every.ids == once.ids == 2 * 32 * 51 and once.distinct == every.distinct < every.ids
    assert all(0 <= sequence_bytes.off(counted) < 0.01 for counted in (every, once))
