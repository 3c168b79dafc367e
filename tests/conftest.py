"""How the tests are spread over the workers of ``make test``; alone, in one process, they run in the same order.

1. Tests that share a fixture of a module or of the session run on one worker, so that it is made once: a group by the
   name of its file. All tests on emulated clusters are one group; each cluster sweeps away what dead owners left.
2. What starts processes, or is otherwise slow, runs first, so that no worker is alone with it at the end.
3. No test depends on either: each worker has folders, ports and a server for ranks of its own.
"""

from __future__ import annotations

import pytest

CLUSTERS = "clusters"
SLOW = ("launcher", "processes", "slow")
"""Markers, in the order in which tests that have them run."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    groups = {item.nodeid: _group(item) for item in items}
    for item in items:
        if name := groups[item.nodeid]:
            item.add_marker(pytest.mark.xdist_group(name))
    rank: dict[str, int] = {}
    for item in items:  # a group is as slow as the slowest of its tests
        name = groups[item.nodeid] or item.nodeid
        rank[name] = min(_rank(item), rank.get(name, len(SLOW)))
    items.sort(key=lambda item: rank[groups[item.nodeid] or item.nodeid])


def _group(item: pytest.Item) -> str:
    if marker := item.get_closest_marker("xdist_group"):
        return str(marker.args[0])
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009 - no public way to it
    shared = {d.baseid for of_name in definitions for d in of_name if d.scope != "function" and d.baseid}
    return CLUSTERS if any(base.startswith("tests/benchmarks") for base in shared) else max(shared, default="")


def _rank(item: pytest.Item) -> int:
    return next((n for n, marker in enumerate(SLOW) if item.get_closest_marker(marker)), len(SLOW))
