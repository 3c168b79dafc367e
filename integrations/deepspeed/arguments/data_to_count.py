"""Data on which distinct rows are counted before a run, read so that the run finds them as they were.

1. ``shares_from=`` of ``initialize``, if given: batches as the model is called with them, in anything that can be gone
   through again, or a function that starts a pass over them. What can be read only once is refused: its batches would
   be lost to the training.
2. Otherwise the samples of ``training_data``, in the order in which DeepSpeed's loader shuffles them at first.
3. Random numbers are drawn from fixed seeds meanwhile, and every generator that a loader names is put back.

The example batch is never counted on: it may be smaller than the batches of the run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils.data import default_collate

from dmt_plugin.capture import ExampleBatch
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.modes import undisturbed_random_numbers
from dmt_plugin.core.user_code import call_factory, load_factory
from dmt_plugin.integrations.deepspeed.arguments.example_batch import map_batch
from dmt_plugin.passes.base import DataToCount

STEPS = 8
"""Steps of a host that are counted at most."""

_MOST_SHUFFLED = 2**24
"""The longest dataset whose order is drawn as a whole; of longer ones single samples are drawn."""


def data_to_count(
    model: nn.Module,
    *,
    shares_from: Any,
    training_data: Any,
    collate_fn: Callable[[list[Any]], Any] | None,
    samples: int,
    lanes: int,
    seconds: float,
) -> DataToCount | None:
    """What distinct rows are counted on.

    Args:
        model: the user's model.
        shares_from: see the module's docstring; also ``"file.py:factory"``.
        training_data: a dataset.
        collate_fn: makes a batch of a list of samples; torch's default otherwise.
        samples: per rank and step.
        lanes: ranks per host.
        seconds: after which no further batch is read.

    Returns:
        None where there are no data that can be read without loss.

    Raises:
        ConfigError: ``shares_from`` is none of that.
    """
    if shares_from is not None:
        return DataToCount("shares_from", _batches(shares_from, model), samples, STEPS, seconds)
    if not _indexed(training_data):
        return None

    def calls() -> Iterator[ExampleBatch]:
        with undisturbed_random_numbers():
            own = _samples(training_data, samples * lanes * STEPS)
            while some := list(itertools.islice(own, samples)):
                yield map_batch((collate_fn or default_collate)(some), model, "training_data", "batch")

    return DataToCount("training_data", calls, samples, STEPS, seconds)


def _indexed(data: Any) -> bool:
    """Whether single samples can be read, and nothing is used up by that; DeepSpeed's loader takes no others."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def can_count(shares_from: Any, training_data: Any) -> bool:
    """Whether there are data that can be read without loss."""
    return shares_from is not None or _indexed(training_data)


def _samples(data: Any, count: int) -> Iterator[Any]:
    seeded, size = torch.Generator().manual_seed(0), len(data)
    if size <= _MOST_SHUFFLED:
        order = torch.randperm(size, generator=seeded)[:count]
    else:
        order = torch.randint(size, (count,), generator=seeded)
    return (data[int(i)] for i in order)


def _batches(given: Any, model: nn.Module) -> Callable[[], Iterator[ExampleBatch]]:
    source = given if isinstance(given, str) else "a function"
    if isinstance(given, str):
        given = load_factory(given, "shares_from")
    if callable(given) and not hasattr(given, "__iter__"):
        return lambda: _calls(_iterable(call_factory(given, source, "shares_from")), model)
    if isinstance(given, Iterator):
        raise ConfigError(
            f"shares_from= is a {type(given).__name__}, which can be read only once, so that the batches on which "
            "distinct rows are counted would be lost to your training. Give a list, a loader, or a function that "
            "starts a pass over the data."
        )
    batches = _iterable(given)
    return lambda: _calls(batches, model)


def _iterable(found: Any) -> Iterable[Any]:
    single = isinstance(found, (tuple, list)) and len(found) > 0 and isinstance(found[0], Tensor)
    if isinstance(found, (Tensor, dict, str)) or single or not isinstance(found, Iterable):
        raise ConfigError(
            f"shares_from= gives a {type(found).__name__}; expected an iterable of batches, such as a loader, a list "
            "or a generator that a function returns. For a single batch give [batch]."
        )
    return found


def _calls(batches: Iterable[Any], model: nn.Module) -> Iterator[ExampleBatch]:
    with undisturbed_random_numbers(), _generators_put_back(batches):
        for batch in batches:
            yield map_batch(batch, model, "shares_from", "batch")


@contextmanager
def _generators_put_back(loader: Any) -> Iterator[None]:
    """A loader, and its samplers, go on with the random numbers that they had."""
    parts = [loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler"))]
    parts.append(getattr(parts[2], "sampler", None))
    found = [own for part in parts if isinstance(own := getattr(part, "generator", None), Generator)]
    kept = [(generator, generator.get_state()) for generator in found]
    try:
        yield
    finally:
        for generator, state in kept:
            generator.set_state(state)
