"""The exchanges between real processes on gloo, 2 hosts x 2 lanes."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch

from dmt_plugin.comm.wire.transport import Transport
from dmt_plugin.core.errors import ExchangeError, IdRangeError
from dmt_plugin.topology.groups import create_groups
from tests._util.ranks import run_ranks
from tests._util.routing import Case, Feature, RankProgram, assert_matches, make_ids

pytestmark = pytest.mark.processes

CASE = Case(
    2,
    2,
    (3, 4, 0, 6),
    (
        Feature("plain", 7, 1, 0, (("p", 0, 4),)),
        Feature("bag", 9, 3, 1, (("b", 1, 8),), "mean"),
        Feature("varying", 11, None, 0, (("v", 1, 4),), "mean"),
        Feature("weighted", 5, None, 1, (("w", 1, 2),), "sum", True),
        Feature("two lanes", 6, 2, 0, (("x", 0, 4), ("y", 1, 4)), "sum", True),
    ),
)
ROUTES = ("hierarchical", "flat")


def widths() -> list[int]:
    return [CASE.width_of(rank) for rank in range(4)]


def all_checks(rank: int, world_size: int) -> dict[Any, Any]:
    groups = create_groups(CASE.topology, timeout_s=60)
    found: dict[Any, Any] = {}
    for route in ROUTES:
        for backend in ("torch", "fbgemm"):
            transport = Transport(groups)
            program = RankProgram(CASE, transport, route, backend=backend)
            found[route, backend] = program.step()
            found[route, backend, "traffic"] = transport.traffic.as_dict()
        transport = Transport(groups)
        transport.step = 5
        program = RankProgram(CASE, transport, route)
        with torch.no_grad():
            evaluated = program.forward()
        found[route, "eval"] = evaluated.requires_grad
        ids = make_ids(CASE, rank)
        if rank == 3:
            ids[1].values[4] = 9
        try:
            program.forward(ids)
        except IdRangeError as error:
            found[route, "bad id"] = str(error)
        found[route, "after bad id"] = program.step()
        # The library's own collective, and every wire format, between real processes.
        found[route, "library"] = RankProgram(CASE, Transport(groups, messages=False), route).step()
        for name in ("bf16", "fp16", "int8"):
            found[route, name] = RankProgram(CASE, Transport(groups), route, formats=(name, name)).step()
    return found


def test_everything_once() -> None:
    results = run_ranks(4, all_checks)
    for route in ROUTES:
        for key in ((route, "torch"), (route, "fbgemm"), (route, "after bad id"), (route, "library")):
            assert_matches(CASE, [found[key] for found in results])
        expected = torch.cat([found[route, "torch"][0] for found in results])
        for name, share in (("bf16", 2**-7), ("fp16", 2**-10), ("int8", 2 / 254)):  # of two exchanges in turn
            outputs = torch.cat([found[route, name][0] for found in results])
            torch.testing.assert_close(outputs, expected, rtol=0, atol=1.01 * share * float(expected.abs().max()))
        assert {found[route, "bad id"] for found in results} == {
            "step 5: rank 3: feature 'bag' has id 9, but its table has 9 rows (valid ids are 0 to 8); "
            "mend the data or enlarge the table"
        }
        assert not any(found[route, "eval"] for found in results)
    for rank, found in enumerate(results):
        check_bytes(rank, found["hierarchical", "torch", "traffic"], found["flat", "torch", "traffic"])


def check_bytes(rank: int, tower: dict[str, Any], flat: dict[str, Any]) -> None:
    host, lane = divmod(rank, 2)
    batch, width = CASE.batches, widths()
    of_lane = [batch[j] + batch[2 + j] for j in range(2)]
    host_width = width[2 * host] + width[2 * host + 1]
    other_host = 1 - host
    peer, other_lane = 2 * other_host + lane, 2 * host + 1 - lane

    intra, peers, rows = tower["intra"], tower["peer"], flat["rows"]
    assert intra["forward"]["same_host"] == 4 * of_lane[1 - lane] * width[rank]
    assert intra["backward"]["same_host"] == 4 * of_lane[lane] * width[other_lane]
    assert peers["forward"]["other_hosts"] == 4 * batch[peer] * host_width
    assert peers["backward"]["other_hosts"] == 4 * batch[rank] * (sum(width) - host_width)
    for count in (intra["forward"], intra["backward"]):
        assert count["other_hosts"] == 0
    for count in (peers["forward"], peers["backward"]):
        assert count["same_host"] == 0
    assert rows["forward"]["other_hosts"] == 4 * width[rank] * (batch[2 * other_host] + batch[2 * other_host + 1])
    assert rows["forward"]["same_host"] == 4 * width[rank] * batch[other_lane]
    assert rows["forward"]["itself"] == 4 * width[rank] * batch[rank]
    assert rows["backward"]["other_hosts"] == 4 * batch[rank] * (sum(width) - host_width)


def fails(rank: int, world_size: int, route: str, how: str) -> tuple[str, float] | None:
    # A dead peer is noticed at once, a hanging one at the time limit.
    transport = Transport(create_groups(CASE.topology, timeout_s=5 if how == "hangs" else 20))
    program = RankProgram(CASE, transport, route)
    started = time.monotonic()
    try:
        for step in range(5):
            transport.step = step
            if rank == 1 and step == 2:
                if how == "dies":
                    os._exit(3)
                if how == "dies in backward":
                    program.forward()
                    os._exit(3)
                time.sleep(9)
                os._exit(3)
            program.step()
    except ExchangeError as error:
        seconds = time.monotonic() - started
        if how == "hangs":
            time.sleep(2)  # a rank that leaves would end the others' wait before their time limit
        return str(error), seconds
    return None


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("how", ["dies", "dies in backward"])
def test_dead_rank_ends_the_others(route: str, how: str) -> None:
    results = run_ranks(4, fails, route, how, may_die=(1,), timeout=60)
    for rank in (0, 2, 3):
        assert results[rank] is not None, f"rank {rank} noticed nothing"
        text, seconds = results[rank]
        assert seconds < 15
        # Rank 2 has no table and no sample in this case: no message ties it to the end of the backward pass.
        steps = (2, 3) if rank == 2 and how == "dies in backward" else (2,)
        where = f"rank {rank} (host {rank // 2}, lane {rank % 2}), step "
        assert any(f"{where}{step}: exchange '" in text for step in steps), text
        assert "dmt.comm.timeout_s = 20" in text and "group of ranks" in text


def test_hanging_rank_ends_the_others() -> None:
    results = run_ranks(4, fails, "flat", "hangs", may_die=(1,), timeout=60)
    for rank in (0, 2, 3):
        text, seconds = results[rank]
        assert 4 < seconds < 15
        assert "exchange 'index.world.header' (forward, world group of ranks 0, 1, 2, 3) did not finish" in text
