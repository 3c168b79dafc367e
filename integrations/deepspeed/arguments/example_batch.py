"""Where the example batch comes from: one call of the user's model, for capture.

1. ``example_batch=`` of ``initialize``, if given: a batch, or a function without arguments that returns one;
2. otherwise ``dmt.transform.example_batch`` in the configuration, ``"path/to/file.py:factory"`` or
   ``"package.module:factory"``: a function without arguments that returns a batch;
3. otherwise a few samples of ``training_data``, collated the way the data loader will;
4. the batch is then mapped to the arguments of ``forward`` by
   :func:`dmt_plugin.capture.example_call.fitting`, and it is checked that these fit its signature.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import default_collate

from dmt_plugin.capture.example_call import fitting
from dmt_plugin.capture.inputs import ExampleBatch
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.user_code import load_factory
from dmt_plugin.topology.agreement import speaks

logger = logging.getLogger(__name__)

#: A prime, so that no other size of a model is likely to be a multiple of it.
SAMPLES = 7

_DATA = "training_data"

THREE_WAYS = (
    "Give one of: example_batch=(a batch as your training loop passes it to the model) in the call of initialize; "
    'training_data= (a few samples are collated); or "dmt": {"transform": {"example_batch": "file.py:factory"}} in the '
    "DeepSpeed configuration, a function without arguments that returns a batch."
)


def find_example(
    model: nn.Module,
    *,
    example_batch: Any = None,
    factory: str | None = None,
    training_data: Any = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> ExampleBatch:
    """Returns the arguments of one call of ``model.forward``.

    Args:
        model: The user's model.
        example_batch: A batch, or a function that returns one.
        factory: ``"file.py:function"`` or ``"package.module:function"``.
        training_data: A map-style or iterable dataset.
        collate_fn: Makes a batch of a list of samples; torch's default otherwise.

    Raises:
        ConfigError: If there is no source, the source fails, or the batch does not fit ``forward``.
    """
    if example_batch is not None:
        source = "example_batch="
        value = example_batch
        if inspect.isfunction(value) or inspect.ismethod(value):
            value = _call(value, source)
    elif factory is not None:
        source = f"dmt.transform.example_batch = {factory!r}"
        value = _call(load_factory(factory, "dmt.transform.example_batch"), source)
    elif training_data is not None:
        source = _DATA
        value = collate_samples(training_data, collate_fn)
    else:
        raise ConfigError(f"the model is captured with an example batch, and there is none. {THREE_WAYS}")
    return map_batch(value, model, source)


def map_batch(value: Any, model: nn.Module, source: str, what: str = "example batch") -> ExampleBatch:
    """Maps a batch to the arguments of ``model.forward`` and checks that they fit.

    Args:
        value: The batch.
        model: The model.
        source: Where it comes from, for messages.
        what: What it is, for messages.

    Raises:
        ConfigError: Naming what was found and the signature it should fit.
    """
    example = fitting(value, model, source, what, labelled=source == _DATA)
    if what == "example batch":
        _log_dropped(value, example, source)
    return example


def _log_dropped(value: Any, example: ExampleBatch, source: str) -> None:
    if not speaks():
        return
    if isinstance(value, dict):
        dropped = [str(key) for key in value if key not in example.kwargs] if example.kwargs else []
        if dropped:
            logger.info("example batch from %s: keys that are no arguments of forward: %s", source, ", ".join(dropped))
    elif isinstance(value, (list, tuple)) and len(value) > len(example.args):
        used, total = len(example.args), len(value)
        logger.info("example batch from %s: forward takes the first %d of its %d items", source, used, total)


def collate_samples(training_data: Any, collate_fn: Callable[[list[Any]], Any] | None) -> Any:
    """A batch of the first few samples of a dataset.

    Raises:
        ConfigError: If the dataset is empty or its samples cannot be read or collated.
    """
    try:
        if hasattr(training_data, "__getitem__") and hasattr(training_data, "__len__"):
            samples = [training_data[i] for i in range(min(SAMPLES, len(training_data)))]
        else:
            samples = list(itertools.islice(iter(training_data), SAMPLES))
        if samples:
            return (collate_fn or default_collate)(samples)
    except Exception as error:
        how = "collate_fn" if collate_fn else "torch's default_collate (no collate_fn= was given)"
        raise ConfigError(
            f"no example batch could be made of the first samples of training_data with {how}: "
            f"{type(error).__name__}: {error}. {THREE_WAYS}"
        ) from error
    raise ConfigError(f"training_data is empty, so that no example batch can be made of it. {THREE_WAYS}")


def _call(factory: Callable[[], Any], source: str) -> Any:
    try:
        return factory()
    except Exception as error:
        raise ConfigError(
            f"{source}: the function that makes the example batch failed: {type(error).__name__}: {error}. It is "
            "called without arguments and returns one batch."
        ) from error
