"""Lines of records, checked before anything is summed up: types, ranges, and that they are of one run.

Keys that nobody reads are left alone: a later release may write more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmt_plugin.core.entries import Entry
from dmt_plugin.core.errors import ReportError, TopologyError
from dmt_plugin.topology.shape import Topology

_HEADER = {"rank", "host", "lane", "at", "topology", "plan", "every", "towers", "tower_hosts"}
_RECORD = {"step", "samples", "steps", "seconds", "parts_s", "exchanges", "tower_ids", "table_ids"}
_LARGEST = 1e18
"""No figure of a step is larger, and sums of such figures are finite."""


def check_header(header: Mapping[str, Any], where: str) -> None:
    """Refuses a header that no run has written.

    Args:
        header: the line.
        where: its file and number, for messages.

    Raises:
        ReportError: naming the entry.
    """
    if missing := _HEADER - set(header):
        raise ReportError(f"{where}: a header without {sorted(missing)}; the file was changed.")
    given = Entry(header, where, ReportError).named()
    rank, host, lane = (given[key].whole() for key in ("rank", "host", "lane"))
    given["at"].number(most=_LARGEST)
    given["plan"].text(empty=True)
    given["every"].whole()
    try:
        topology = Topology.parse(given["topology"].text())
    except TopologyError as error:
        given["topology"].fail(str(error))
    if rank >= topology.world_size or (topology.host_of(rank), topology.lane_of(rank)) != (host, lane):
        raise ReportError(f"{where}: rank {rank} is not lane {lane} of host {host} in a topology of {topology}.")
    for tower in given["towers"].items():
        for name in tower.items():
            name.text()
    hosts = [host.whole(0, topology.hosts - 1) for host in given["tower_hosts"].items()]
    if len(hosts) != len(given["towers"].items()) or not hosts:
        given["tower_hosts"].refuse("the host of each of the towers")
    for key in ("source", "device", "route"):
        if header.get(key) is not None:
            given[key].text(empty=True)
    for version in given["versions"].named().values() if "versions" in given else ():
        version.text(empty=True)


def check_record(record: Mapping[str, Any], towers: int, where: str) -> None:
    """Refuses a record that no run has written.

    Args:
        record: the line.
        towers: how many its header has.
        where: its file and number, for messages.

    Raises:
        ReportError: naming the entry.
    """
    if missing := _RECORD - set(record):
        raise ReportError(f"{where}: a record without {sorted(missing)}; the file was changed.")
    given = Entry(record, where, ReportError).named()
    given["step"].whole(1)
    given["steps"].whole(1)
    given["samples"].whole()
    for key in ("seconds", "cpu_s"):
        if key in given:
            given[key].number(most=_LARGEST)
    for key in ("parts_s", "tower_ids", "table_ids"):
        _figures(given[key])
    for key in ("exchanges", "distinct"):
        for figures in given[key].named().values() if key in given else ():
            _figures(figures)
    known = set(map(str, range(towers)))
    if strange := sorted(set(record["tower_ids"]) - known):
        given["tower_ids"].fail(f"found the tower(s) {strange}, expected numbers below {towers}")


def _figures(entry: Entry) -> None:
    for figure in entry.named().values():
        figure.number(most=_LARGEST)
