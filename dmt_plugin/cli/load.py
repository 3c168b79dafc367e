"""Finds what a command line names: the model, an example batch, a configuration file.

1. The model's module is loaded, once; the configuration is looked for here, then beside it.
2. The factory is called, and what it returns is checked.
3. The batch comes from ``--batch``, from the factory, from ``example_batch()`` beside it, or from the
   configuration. The model is called on it once: whether they fit each other is not the compiler's business.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from dmt_plugin.capture.example_call import fitting
from dmt_plugin.capture.inputs import ExampleBatch
from dmt_plugin.config.section import DMTConfig, load_ds_config, read_dmt_config
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.user_code import call_factory, load_factory, load_module
from dmt_plugin.model.same_outputs import ANOTHER_BATCH, why_not_taken


@dataclass(frozen=True)
class Loaded:
    """What a command works on.

    Attributes:
        model: the user's ``nn.Module``.
        batch: one call of it.
        config: the ``"dmt"`` section.
        ds_config: the whole configuration.
        source: where it came from.
    """

    model: nn.Module
    batch: ExampleBatch
    config: DMTConfig
    ds_config: dict[str, Any]
    source: str


def load(model: str, config: str | None, batch: str | None) -> Loaded:
    """Loads what ``--model``, ``--config`` and ``--batch`` name.

    Args:
        model: ``package.module:factory`` or ``path/to/file.py:factory``.
        config: a DeepSpeed configuration with a ``"dmt"`` section; ``None``: the defaults.
        batch: factory of an example batch; ``None``: looked for.

    Raises:
        ConfigError: anything that cannot be found, read or called, or does not fit.
    """
    importable_here()
    module = load_module(model, "--model")
    factory = load_factory(model, "--model")
    dmt, ds_config, read = DMTConfig(), {}, "defaults"
    if config is not None:
        path = find_config(config, module)
        read, ds_config = str(path), load_ds_config(path)
        found = read_dmt_config(ds_config, read)
        if found is None:
            raise ConfigError(f'{path} has no "dmt" section, or "enabled" is false: the stock engine would run.')
        dmt = found
    built = call_factory(factory, model, "--model")
    own = None
    if isinstance(built, tuple) and len(built) == 2:
        built, own = built
    _require_module(built, model)
    source, value = _batch(module, model, batch, own, dmt.transform.example_batch)
    return Loaded(built, _fitting(value, built, source, dmt), dmt, ds_config, read)


def importable_here() -> None:
    """Makes the current directory importable, as ``python -m`` does."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def find_config(path: str, module: ModuleType) -> Path:
    """A configuration file, looked for here and beside the file that defines the model.

    Raises:
        ConfigError: it is in neither place.
    """
    given = Path(path)
    source = getattr(module, "__file__", None)
    places = [given] + ([Path(source).parent / given] if source and not given.is_absolute() else [])
    for place in places:
        if place.is_file():
            return place
    looked = " nor ".join(dict.fromkeys(os.path.abspath(p) for p in places))
    raise ConfigError(f"--config {path}: no such configuration file: {looked}.")


def _require_module(built: Any, spec: str) -> None:
    if isinstance(built, nn.Module):
        return
    hint = " Did you name the class without calling it?" if isinstance(built, type) else ""
    raise ConfigError(
        f"--model {spec}: {spec.rpartition(':')[2]}() returned {_what(built)}; expected a torch.nn.Module, or the pair "
        f"(module, example batch).{hint}"
    )


def _what(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def _batch(module: ModuleType, model: str, batch: str | None, own: Any, configured: str | None) -> tuple[str, Any]:
    """Where the batch comes from, in words, and the batch."""
    beside: Callable[[], Any] | None = getattr(module, "example_batch", None)
    if batch is not None:
        return f"--batch {batch}", call_factory(load_factory(batch, "--batch"), batch, "--batch")
    if own is not None:
        return f"--model {model}", own
    if callable(beside):
        spec = f"{model.rpartition(':')[0]}:example_batch"
        return spec, call_factory(beside, spec, "the example batch of")
    if configured is not None:
        key = "dmt.transform.example_batch"
        return f"{key} = {configured!r}", call_factory(load_factory(configured, key), configured, key)
    raise ConfigError(
        f"no example batch for {model}: give --batch package.module:function, define example_batch() beside the "
        "model's factory, let the factory return (model, batch), or set dmt.transform.example_batch."
    )


def _fitting(value: Any, model: nn.Module, source: str, config: DMTConfig) -> ExampleBatch:
    """The batch as a call of the model that works, on a model that can be called."""
    example = fitting(value, model, source)
    if (why := why_not_taken(model, example, config.lookup)) is not None:
        raise ConfigError(f"{why}. {ANOTHER_BATCH}; this one is from {source}.")
    return example
