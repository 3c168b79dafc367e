"""A batch that was announced and never came: what failed on its way is not lost with it."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dmt_plugin.core.errors import ExchangeError, IdRangeError
from dmt_plugin.model.id_prefetch import IdPrefetcher


def prefetcher(error: Exception | None) -> IdPrefetcher:
    """One whose exchange fails, or brings nothing."""

    def distribute(*_: Any) -> None:
        if error is not None:
            raise error

    made = IdPrefetcher.__new__(IdPrefetcher)
    wire = SimpleNamespace(step=0, device=torch.device("cpu"))
    made.__dict__.update(
        _exchanges={"index": SimpleNamespace(distribute=distribute)}, _transport=wire, _graph_module=None,
        possible=True,
        _programs=(lambda *_: {"index": ()}, None), _announced=None, _job=None, _warned=False,
    )  # fmt: skip
    return made


def announce_two(error: Exception | None) -> IdPrefetcher:
    """The first batch never comes: another is announced."""
    made = prefetcher(error)
    for step in (1, 2):
        made.announce([torch.tensor([step])], step)
        made.begin()
    return made


def test_a_rank_that_was_gone_is_no_secret() -> None:
    with pytest.raises(ExchangeError, match="rank 1 is gone"):
        announce_two(ExchangeError("rank 1 is gone"))


def test_any_other_error_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        announce_two(IdRangeError("id 99 of table t"))
    assert "id 99 of table t" in caplog.text and "never came" in caplog.text


def test_a_batch_that_went_well_and_never_came(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = announce_two(None)
    assert len(caplog.records) == 1 and "never came" in caplog.text
    made.close()
    made.announce([torch.tensor([3])], 3)
    assert made._announced is None, "it is closed"
