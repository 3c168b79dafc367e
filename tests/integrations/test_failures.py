"""Whose failure an error is, and the private names of torch that this rests on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dmt_plugin.comm.wire.failure_notes import FailureNotes
from dmt_plugin.core.errors import DMTError, ExchangeError, IdRangeError
from dmt_plugin.integrations.deepspeed import private
from dmt_plugin.integrations.deepspeed.engine.failures import noting
from dmt_plugin.topology.groups import RankGroups
from dmt_plugin.topology.lost_ranks import of_other_ranks, reporting
from dmt_plugin.topology.shape import Topology

CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:9"


def test_errors_of_other_ranks_are_known_by_their_source() -> None:
    assert of_other_ranks(RuntimeError(CLOSED))
    assert of_other_ranks(dist.DistBackendError("NCCL"))
    assert not of_other_ranks(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not of_other_ranks(ValueError(CLOSED))


@pytest.mark.parametrize(
    ("error", "raised", "left"),
    [
        (RuntimeError(CLOSED), ExchangeError, False),
        (RuntimeError("shapes"), RuntimeError, True),
        (ZeroDivisionError("in a layer"), ZeroDivisionError, True),
        (ExchangeError("told already"), ExchangeError, False),
        (IdRangeError("told to all"), IdRangeError, False),
    ],
)
def test_own_errors_go_on_and_are_left_for_the_others(error: Exception, raised: type, left: bool) -> None:
    store = dist.HashStore()
    transport: Any = SimpleNamespace(
        step=4,
        failure_notes=FailureNotes(store, "1", 0, 2),
        failure=lambda where, what, error: ExchangeError(f"{where} {what}"),
    )
    with pytest.raises(raised) as caught, noting(transport, "the step"):
        raise error
    assert (type(caught.value), caught.value is error) == (raised, raised is type(error))
    assert store.check(["dmt_failure_notes/1/0"]) is left
    if left:
        assert store.get("dmt_failure_notes/1/0").decode() == f"failed: step 4: {type(error).__name__}: {error}"


def test_a_wait_for_agreement_is_reported() -> None:
    none: Any = None
    groups = RankGroups(Topology(2, 2), 3, 1, 1, none, none, none, none, none, 20.0)
    said = r"rank 3 \(host 1, lane 1\): waiting .* while comparing failed: .*closed"
    with pytest.raises(ExchangeError, match=said), reporting(groups, "comparing"):
        raise RuntimeError(CLOSED)
    with pytest.raises(DMTError, match=r"^as it is$"), reporting(groups, "comparing"):
        raise ExchangeError("as it is")


@pytest.fixture
def _default_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=77))
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_default_group")
def test_canary_of_torchs_private_names() -> None:
    assert isinstance(private.meeting_store(), dist.Store)
    world: Any = dist.group.WORLD
    options = world._get_backend(torch.device("cpu")).options
    with private.limited_default_group(5):
        assert options._timeout == timedelta(seconds=5)
    assert options._timeout == timedelta(seconds=77)
    with private.limited_default_group(500):
        assert options._timeout == timedelta(seconds=77), "a shorter limit stays"
    assert isinstance(world.group_name, str) and world.group_name
