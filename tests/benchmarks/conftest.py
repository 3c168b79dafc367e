"""Clusters for tests; where this machine cannot have one, the tests that need one say why they were skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from benchmarks.cluster import Cluster, needs


@pytest.fixture(scope="session")
def _able() -> None:
    if found := needs.missing():
        pytest.skip(f"no emulated cluster here: {'; '.join(found)}")


@pytest.fixture
def cluster(_able: None) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters that are up, and takes them down after the test; slow links, which a busy machine can fill too."""
    made: list[Cluster] = []

    def make(hosts: int = 2, lanes: int = 2, rate: str = "50mbit", **options: object) -> Cluster:
        new = Cluster(hosts, lanes, rate, **options)  # type: ignore[arg-type]
        made.append(new)
        return new.up()

    yield make
    for old in made:
        old.down()
