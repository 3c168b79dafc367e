"""A rank that raises, hangs or dies anywhere in a step: the other ends in time, with one message: what, and who."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dmt_plugin.comm.wire.failure_notes import PATIENCE_S
from dmt_plugin.data import prefetched
from dmt_plugin.doctor import tiny
from dmt_plugin.topology.shape import Topology
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env

LIMIT = 4.0
BAD, AT = 1, 2
"""The rank that fails, and the step in which it does."""


def engine_of(stage: int, dies: bool = False) -> Any:
    import dmt_plugin

    config = tiny.config({"module": "dlrm", "dim": 4}, Topology(2, 1), LIMIT)
    config |= {"zero_optimization": {"stage": stage}, "gradient_clipping": 0.5, "zero_allow_untested_optimizer": True}
    model = tiny.build()

    def example() -> Any:
        if dies:
            os._exit(3)
        return tiny.batch(0, tiny.SAMPLES)[:2]

    return dmt_plugin.initialize(
        model=model, model_parameters=model.parameters(), config=config, example_batch=example
    )[0]


class Broken(torch.autograd.Function):
    """The identity, whose backward fails."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("a broken backward")


def batches(fails: bool, known: bool) -> Any:
    def stream() -> Iterator[Any]:
        for k in range(50):
            if fails and k == AT:
                raise OSError("a broken loader")
            yield tiny.batch(k, tiny.SAMPLES)

    class Sized:
        def __iter__(self) -> Iterator[Any]:
            return stream()

        def __len__(self) -> int:
            return 50

    return Sized() if known else stream()


def broken_optimizer(*_: Any, **__: Any) -> None:
    raise ArithmeticError("a broken optimizer")


def train(rank: int, how: str, stage: int, begun: list[float]) -> None:
    """Trains until something fails, the bad rank in its way; notes when each step begins."""
    bad = rank == BAD
    engine = engine_of(stage, bad and how == "dies at the start")
    loader = prefetched(batches(bad and how in ("loader", "stream"), how != "stream"), engine, lambda b: b[:2])
    for step, (dense, ids, label) in enumerate(loader):
        begun.append(time.monotonic())
        now = bad and step == AT
        if now and how == "forward":
            head = next(m for m in engine.module.modules() if isinstance(m, torch.nn.Linear))
            head.register_forward_pre_hook(lambda *_: 1 / 0)
        if now and how == "hangs":
            time.sleep(LIMIT + PATIENCE_S + 1)
        out = engine(dense, ids)
        if now and how == "script":
            raise LookupError("a broken script")
        if now and how == "backward":
            out = Broken.apply(out)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(out, label)
        if now and how == "dies in backward":
            os._exit(3)
        engine.backward(loss)
        if now and how == "optimizer":
            engine.optimizer.step = broken_optimizer
        if now and how == "dies in step":
            os._exit(3)
        engine.step()


def failing(rank: int, world: int, cases: tuple[tuple[str, int], ...]) -> dict[str, tuple[str, float]]:
    """One case after the other, each with an engine of its own: its groups are what a failure leaves behind broken."""
    said: dict[str, tuple[str, float]] = {}
    for how, stage in cases:
        begun = [time.monotonic()]
        try:
            train(rank, how, stage, begun)
        except Exception as error:
            said[how] = f"{type(error).__name__}: {error}", time.monotonic() - begun[-1]
            if rank == BAD:
                sys.excepthook(type(error), error, None)  # as Python does where nobody catches it
        if how != "stream" and not how.startswith("dies"):
            dist.barrier()
    return said


WORDS = {
    "forward": "ZeroDivisionError: division by zero",
    "script": "LookupError: a broken script",
    "backward": "ArithmeticError: a broken backward",
    "loader": "OSError: a broken loader",
    "optimizer": "ArithmeticError: a broken optimizer",
}


@pytest.mark.processes
def test_whatever_a_rank_fails_at_the_other_ends_and_says_who_it_was() -> None:
    cases = tuple((how, 0) for how in (*WORDS, "stream", "hangs"))
    good, bad = run_ranks(2, failing, cases, timeout=150, env=partial(launcher_env, "2x1"))
    for how, words in WORDS.items():
        text, seconds = good[how]
        assert bad[how][0] == words, "the rank that fails keeps its own error"
        assert text.startswith("ExchangeError: rank 0 (host 0, lane 0), step "), text
        assert f"Rank 1 failed, step {AT}: {words}. " in text, text
        assert "exchange '" in text or "the sum over ranks of the gradients" in text, text
        assert f"dmt.comm.timeout_s = {LIMIT:g} s" in text and seconds < LIMIT + PATIENCE_S + 15
    # All say before each batch of a stream whether they have another: nobody has to wait for the limit.
    text, _ = good["stream"]
    assert text == "DataError: the loader of rank 1 failed, so all ranks stop: OSError: a broken loader"
    assert bad["stream"][0] == "OSError: a broken loader"
    text, seconds = good["hangs"]
    assert text.startswith(f"ExchangeError: rank 0 (host 0, lane 0), step {AT}: exchange '"), text
    assert "Nothing was heard of rank 1: dead, hanging, or far behind. " in text
    assert seconds < LIMIT + PATIENCE_S + 15


@pytest.mark.processes
def test_a_rank_that_dies_before_there_is_an_engine() -> None:
    cases = (("dies at the start", 0),)
    good, _ = run_ranks(2, failing, cases, timeout=100, env=partial(launcher_env, "2x1"), may_die=(BAD,))
    text, seconds = good["dies at the start"]
    doing = "waiting for the other ranks while building its part of the model failed: "
    assert text.startswith(f"ExchangeError: rank 0 (host 0, lane 0): {doing}"), text
    assert f"dmt.comm.timeout_s = {LIMIT:g} s" in text and seconds < LIMIT + 15


@pytest.mark.processes
@pytest.mark.parametrize(("how", "stage"), [("dies in step", 1), ("dies in backward", 2)])
def test_a_rank_that_dies_within_deepspeeds_own_sums(how: str, stage: int) -> None:
    good, _ = run_ranks(2, failing, ((how, stage),), timeout=100, env=partial(launcher_env, "2x1"), may_die=(BAD,))
    text, seconds = good[how]
    assert text.startswith(f"ExchangeError: rank 0 (host 0, lane 0), step {AT}: "), text
    places = ("DeepSpeed's ", "exchange '", "the reduction of the dense gradients", "the verdict whether all")
    assert any(place in text for place in places), text
    assert "Nothing was heard of rank 1" in text, text
    assert seconds < LIMIT + PATIENCE_S + 15
