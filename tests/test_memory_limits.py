"""What this process may still take: from the texts of the kernel, and from a tree of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmt_plugin.core.memory import (
    available_in_group,
    available_of_machine,
    memory_limits,
    own_groups,
    smallest,
)

MEMINFO = "MemTotal:       24684096 kB\nMemFree:        100 kB\nMemAvailable:   22854528 kB\nBuffers:  7 kB\n"
FILES = ("active_file", "inactive_file")


def test_of_the_machine() -> None:
    assert available_of_machine(MEMINFO) == 22854528 * 1024
    assert available_of_machine("MemTotal:       24684096 kB\n") is None
    assert available_of_machine("") is None


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("0::/user.slice/run.scope\n", ("/user.slice/run.scope", None)),
        ("5:cpu,cpuacct:/a\n4:memory:/b:c\n0::/\n", ("/", "/b:c")),
        ("1:name=systemd:/\n", (None, None)),
        ("", (None, None)),
    ],
)
def test_own_groups(text: str, groups: tuple[str | None, str | None]) -> None:
    assert own_groups(text) == groups


@pytest.mark.parametrize(
    ("limit", "usage", "stat", "available"),
    [
        ("1000\n", "600\n", "anon 400\ninactive_file 150\nactive_file 50\nfile 300\n", 600),
        ("1000\n", "600\n", "", 400),
        ("1000\n", "1200\n", "anon 1200\n", 0),
        ("max\n", "600\n", "", None),
        (f"{2**63 - 4096}\n", "600\n", "", None),
        ("", "", "", None),
        ("1000\n", "", "", None),
    ],
)
def test_in_a_group(limit: str, usage: str, stat: str, available: int | None) -> None:
    assert available_in_group(limit, usage, stat, FILES) == available


def written(place: Path, **files: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name.replace("__", ".")).write_text(text)


def test_of_a_tree(tmp_path: Path) -> None:
    """Each group from the process's own upwards limits it, of either version; the keys tell them apart."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    written(proc, meminfo=MEMINFO)
    written(proc / "self", cgroup="4:memory:/old/run\n0::/new/run\n")
    written(proc / "sys/kernel/random", boot_id="machine\n")
    written(groups / "new", memory__max="5000", memory__current="2000", memory__stat="inactive_file 1000\n")
    written(groups / "new/run", memory__max="max", memory__current="1000")
    stat = "inactive_file 7\ntotal_inactive_file 100\n"
    old = {"memory__limit_in_bytes": "3000", "memory__usage_in_bytes": "500", "memory__stat": stat}
    written(groups / "memory/old/run", **old)
    written(groups / "memory/old", memory__limit_in_bytes=str(2**63 - 4096), memory__usage_in_bytes="1")
    found = memory_limits(proc, groups)
    assert [limit.available for limit in found] == [22854528 * 1024, 4000, 2600]
    assert found[0].key == "machine" and len({limit.key for limit in found}) == 3
    assert [str(groups / "new") in found[1].source, str(groups / "memory/old/run") in found[2].source] == [True, True]
    least = smallest(found)
    assert least is not None and least.available == 2600


def test_in_a_container_the_own_group_is_the_root(tmp_path: Path) -> None:
    written(tmp_path / "proc/self", cgroup="0::/docker/4711\n")
    written(tmp_path / "groups", memory__max="5000", memory__current="2000")
    (found,) = memory_limits(tmp_path / "proc", tmp_path / "groups")
    assert found.available == 3000


def test_where_nothing_is_known(tmp_path: Path) -> None:
    assert memory_limits(tmp_path, tmp_path) == [] and smallest([]) is None


def test_of_this_machine() -> None:
    for limit in memory_limits():
        assert 0 <= limit.available < 2**50 and limit.key
