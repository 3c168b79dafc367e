"""One batch ahead: what is announced when, the position, the ends, errors. One process; the ranks are in test_ranks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from dmt_plugin.capture.inputs import ExampleBatch
from dmt_plugin.core.errors import DataError
from dmt_plugin.data import prefetched
from tests.data.engines import Engine, _alone, others_say

alone = pytest.mark.usefixtures("_alone")
__all__ = ["_alone"]


def pairs(n: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.full((2, 3), float(k)), torch.full((2, 4), k)) for k in range(n)]


def number(batch: Any) -> int:
    return int(batch[0].flatten()[0])


# -- what is announced ---------------------------------------------------------------------


@alone
def test_the_next_batch_is_announced_before_this_one_is_handed_out() -> None:
    engine, batches = Engine(), pairs(4)
    seen = []
    for batch in prefetched(batches, engine):
        seen.append((number(batch), [number(call) for call in engine.announced]))
        assert batch is batches[number(batch)]
    assert seen == [(0, [1]), (1, [1, 2]), (2, [1, 2, 3]), (3, [1, 2, 3])]
    for call, batch in zip(engine.announced, batches[1:], strict=True):
        assert all(a is b for a, b in zip(call, batch, strict=True)), "the very tensors"


@alone
def test_only_one_batch_is_read_ahead() -> None:
    read = []

    def source() -> Iterator[Any]:
        for k, batch in enumerate(pairs(4)):
            read.append(k)
            yield batch

    iterator = iter(prefetched(source(), Engine()))
    next(iterator)
    assert read == [0, 1]


@alone
def test_inputs_and_prepare() -> None:
    engine = Engine()
    data = [{"x": dense, "label": torch.zeros(2), "ids": ids} for dense, ids in pairs(3)]
    prepared: list[Any] = []

    def prepare(batch: Any) -> Any:
        prepared.append({name: value.clone() for name, value in batch.items()})
        return prepared[-1]

    out = list(prefetched(data, engine, lambda b: (b["x"], b["ids"]), prepare=prepare))
    assert [id(batch) for batch in out] == [id(batch) for batch in prepared]
    assert len(engine.announced) == 2
    for call, batch in zip(engine.announced, out[1:], strict=True):
        assert call[0] is batch["x"] and call[1] is batch["ids"]
    engine = Engine()
    list(prefetched(data, engine, lambda b: {"dense": b["x"], "ids": b["ids"]}))
    assert [sorted(call) for call in engine.announced] == [["dense", "ids"]] * 2


@alone
def test_the_batch_itself_as_the_call() -> None:
    for form in (list, tuple, lambda b: {"dense": b[0], "ids": b[1]}):
        engine = Engine()
        list(prefetched([form(batch) for batch in pairs(2)], engine))
        (call,) = engine.announced
        assert [int(t.flatten()[0]) for t in (call.values() if isinstance(call, dict) else call)] == [1, 1]
    one = Engine(example=ExampleBatch((torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.long))))
    with pytest.raises(DataError, match=r"the batch is a tuple of 3 \(Tensor, Tensor, Tensor\).*dense, ids.*inputs="):
        list(prefetched([(*batch, torch.zeros(2)) for batch in pairs(2)], one))
    with pytest.raises(DataError, match=r"a dict with the keys \['dense', 'label'\]"):
        list(prefetched([{"dense": b[0], "label": b[1]} for b in pairs(2)], one))
    with pytest.raises(DataError, match=r"what inputs=.* makes of the batch is a list of 2"):
        list(prefetched(pairs(2), one, lambda batch: list(batch)))
    assert not one.announced


@alone
def test_without_prefetch_nothing_is_announced() -> None:
    engine = Engine(prefetches=False)
    assert [number(b) for b in prefetched(pairs(3), engine)] == [0, 1, 2] and not engine.announced


class Stock:
    """An engine without DMT, which looks in the model for what it has not got, as DeepSpeed's does."""

    def __getattr__(self, name: str) -> Any:
        return f"the model's {name}"


@pytest.mark.parametrize("engine", [Stock(), Engine(ranks=1)])
def test_batches_pass_through(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = others_say(monkeypatch, lambda mine: [mine])
    read = []

    def source() -> Iterator[Any]:
        for k, batch in enumerate(pairs(3)):
            read.append(k)
            yield (*batch, "label")

    for k, batch in enumerate(prefetched(source(), engine, prepare=lambda batch: batch[1:])):
        assert read == list(range(k + 1)), "nothing is read ahead"
        assert batch[1] == "label"
    assert not words


# -- length and ends -----------------------------------------------------------------------


@alone
def test_length() -> None:
    assert len(prefetched(pairs(3), Engine())) == 3
    with pytest.raises(TypeError):
        len(prefetched(iter(pairs(3)), Engine()))
    assert list(prefetched([], Engine())) == []


def test_unequal_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    words = others_say(monkeypatch, lambda mine: [mine, (2, mine[1]), mine])
    engine = Engine()
    with pytest.raises(DataError, match=r'4 on ranks 0, 2; 2 on rank 1\. Every step.*uneven="stop"'):
        next(iter(prefetched(pairs(4), engine)))
    loader = prefetched(pairs(4), engine, uneven="stop")
    assert [number(b) for b in loader] == [0, 1] and len(loader) == 2
    assert [number(call) for call in engine.announced] == [1], "no rank announces what no other has"
    assert words == [(4, 0), (4, 0)], "nothing more is said where all know their lengths"
    with pytest.raises(DataError, match='uneven is "error" or "stop"'):
        prefetched(pairs(1), engine, uneven="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize("uneven", ["error", "stop"])
def test_streams_that_end_at_different_times(uneven: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    def told(mine: Any) -> list[Any]:
        said.append(mine)
        return [mine, mine if isinstance(mine, tuple) or len(said) < 4 else "over"]

    others_say(monkeypatch, told)
    engine = Engine()
    iterator = iter(prefetched(iter(pairs(5)), engine, uneven=uneven))
    assert [number(next(iterator)) for _ in range(2)] == [0, 1]
    with pytest.raises(StopIteration if uneven == "stop" else DataError) as raised:
        next(iterator)
    if uneven == "error":
        assert "rank(s) 1 ran out after 2 batches while others have more" in str(raised.value)
    assert [number(call) for call in engine.announced] == [1]
    assert said == [(None, 0), "more", "more", "more"]


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        yield from pairs(3)

    def __len__(self) -> int:
        return 100


def test_the_length_of_a_stream_is_not_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    words = others_say(monkeypatch, lambda mine: [mine, mine])
    assert len(list(prefetched(DataLoader(Stream(), batch_size=None), Engine()))) == 3
    assert words == [(None, 0), "more", "more", "more", "over"]


class Says:
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        return iter(pairs(3))

    def __len__(self) -> int:
        return self.length


@alone
@pytest.mark.parametrize(("length", "found", "before"), [(4, "ended after 3", 3), (2, "went on behind them", 2)])
def test_a_wrong_length(length: int, found: str, before: int) -> None:
    seen = []
    with pytest.raises(DataError, match=f"has {length} batches, and {found}"):
        for batch in prefetched(Says(length), Engine()):
            seen.append(number(batch))
    assert seen == list(range(before))


# -- errors --------------------------------------------------------------------------------


def failing(at: int) -> Iterator[Any]:
    for k, batch in enumerate(pairs(5)):
        if k == at:
            raise OSError("the disk is gone")
        yield batch


@alone
def test_an_error_of_the_loader_comes_in_its_turn() -> None:
    engine, seen = Engine(), []
    with pytest.raises(OSError, match="the disk is gone"):
        for batch in prefetched(failing(2), engine):
            seen.append(number(batch))
    assert seen == [0, 1] and [number(call) for call in engine.announced] == [1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(iter(prefetched(failing(0), engine)))

    def prepare(batch: Any) -> Any:
        return next(iter(())) if number(batch) == 1 else batch

    iterator = iter(prefetched(pairs(3), engine, prepare=prepare))
    next(iterator)
    with pytest.raises(RuntimeError, match="StopIteration"):  # an accident in prepare is no end of the data
        next(iterator)


def test_an_error_of_another_ranks_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    others_say(monkeypatch, lambda mine: [mine, mine if isinstance(mine, tuple) else "OSError: the disk is gone"])
    with pytest.raises(DataError, match="the loader of rank 1 failed, so all ranks stop: OSError: the disk is gone"):
        next(iter(prefetched(iter(pairs(3)), Engine())))


# -- position ------------------------------------------------------------------------------


def shuffled(seed: int | None, workers: int = 0) -> Any:
    """A loader that draws its order from its own generator, or from torch's."""
    data = TensorDataset(torch.arange(24.0).view(12, 2).repeat(1, 2)[:, :3], torch.arange(48).view(12, 4))
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(data, batch_size=2, shuffle=True, generator=generator, num_workers=workers)


def again(state: Any) -> Any:
    """Through a file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def order(batches: Any) -> list[list[int]]:
    return [batch[1][:, 0].tolist() for batch in batches]


@alone
@pytest.mark.parametrize("stop", [0, 1, 3, 5, 6])
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("engine", [Engine(), Stock()], ids=["ahead", "plain"])
def test_resumed_is_uninterrupted(engine: Any, seed: int | None, stop: int) -> None:
    torch.manual_seed(0)
    loader = prefetched(shuffled(seed), engine)
    next(iter(loader))
    first = order(loader)  # the second epoch: its order is another one
    iterator = iter(loader)
    before = order(next(iterator) for _ in range(stop))
    state = again(loader.state_dict())
    training = torch.get_rng_state()
    torch.rand(3)
    rest = order(iterator)
    following = order(loader)
    assert state["epoch"] == 2 and state["batches"] == stop and first != before + rest != following

    torch.manual_seed(99)
    loader = prefetched(shuffled(seed), engine)
    loader.load_state_dict(state)
    torch.set_rng_state(training)
    torch.rand(3)
    resumed = order(loader)
    assert resumed == rest
    if seed is not None:
        assert order(loader) == following, "the loader's own generator goes on as well"
    assert loader.epoch == 4 - (seed is None)


@alone
def test_the_trainings_random_numbers_are_left_alone() -> None:
    loader = prefetched(shuffled(None), Engine())
    iterator = iter(loader)
    next(iterator), next(iterator)
    state = loader.state_dict()
    loader = prefetched(shuffled(None), Engine())
    loader.load_state_dict(state)
    torch.manual_seed(123)
    next(iter(loader))
    drawn = torch.rand(4)
    torch.manual_seed(123)
    assert torch.equal(drawn, torch.rand(4))


@alone
def test_position_between_epochs_and_of_epochs_broken_off() -> None:
    loader = prefetched(pairs(3), Engine())
    assert loader.state_dict()["epoch"] == loader.epoch == 0
    list(loader)
    state = loader.state_dict()
    assert (state["epoch"], state["batches"]) == (1, 0)
    for batch in loader:
        assert loader.epoch == 1 and number(batch) == 0
        break
    assert number(next(iter(loader))) == 0 and loader.epoch == 2
    loader.load_state_dict(state)
    assert [number(b) for b in loader] == [0, 1, 2] and loader.epoch == 2


@alone
def test_positions_that_do_not_fit() -> None:
    loader = prefetched(pairs(3), Engine())
    iterator = iter(loader)
    next(iterator), next(iterator)
    state = loader.state_dict()
    with pytest.raises(DataError, match="behind 2 of 3 batches, but this loader has 4"):
        prefetched(pairs(4), Engine()).load_state_dict(state)
    with pytest.raises(DataError, match=r"has the keys .* found"):
        loader.load_state_dict({"batches": 3})
    with pytest.raises(DataError, match="with no generator of its own, this loader has a generator"):
        prefetched(shuffled(5), Engine()).load_state_dict(state)
    short = prefetched(iter(pairs(1)), Engine())
    short.load_state_dict(state)
    with pytest.raises(DataError, match="go on behind 2 batches, but the loader ended after 1"):
        next(iter(short))


def test_ranks_at_different_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    others_say(monkeypatch, lambda mine: [mine, (mine[0], 7)])
    with pytest.raises(DataError, match="different positions: batches handed out are 0 on rank 0; 7 on rank 1"):
        next(iter(prefetched(pairs(3), Engine())))


@alone
@pytest.mark.parametrize("engine", [Engine(), Stock()], ids=["ahead", "plain"])
def test_one_epoch_at_a_time(engine: Any) -> None:
    loader = prefetched(pairs(3), engine)
    older = iter(loader)
    next(older)
    newer = iter(loader)
    assert number(next(newer)) == 0
    with pytest.raises(DataError, match="this iterator is over"):
        next(older)
    assert [number(b) for b in newer] == [1, 2]
