"""How the tests are spread over the workers of ``make test``; alone, in one process, they run in the same order.

1. A file with a fixture of its module runs on one worker, so that the fixture is made once. So do all files that make
   emulated clusters, as each cluster sweeps away what dead owners left, and those that read the demo's data.
2. Every other test is handed out by itself. What starts processes, or is otherwise slow, comes first, so that no worker
   is alone with it at the end.
3. What is there once the tests are found (torch, and modules that are never let go) is left alone by the garbage
   collector: its walks over millions of such objects would be a tenth of a run.
4. No test depends on either: each worker has folders, ports and a server for ranks of its own. Nor does one depend on
   how fast the machine is: examples of a property may take as long as they take.
"""

from __future__ import annotations

import gc
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("whatever the machine", deadline=None)
settings.load_profile("whatever the machine")

ROOT = Path(__file__).parents[1]
SLOW = ("launcher", "processes", "slow")
"""Markers, in the order in which tests that have them run."""
TOGETHER = {"_able": "clusters", "cluster: Callable": "clusters", "flights.Flights": "flights"}
"""What a file's text has, and the group that it belongs to."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((n for n, name in enumerate(SLOW) if item.get_closest_marker(name)), len(SLOW)))


def pytest_collection(session: pytest.Session) -> None:
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0]) or nodeid

    config.option.loadscopereorder = False
    return ByGroup(config, log)


@cache
def group_of(file: str) -> str:
    """The group that a file's tests run in, one after the other; empty where each runs by itself."""
    text = (ROOT / file).read_text(encoding="utf-8")
    named = [name for part, name in TOGETHER.items() if part in text]
    return named[0] if named else file if 'scope="module"' in text else ""
