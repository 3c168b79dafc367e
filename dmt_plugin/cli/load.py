"""Finds what a command line names: the model, an example batch, a configuration file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmt_plugin.errors import ConfigError
from dmt_plugin.loading import load_factory


def importable_here() -> None:
    """Makes the current directory importable, as ``python -m`` does."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def find_config(path: str, model: Callable[..., Any]) -> Path:
    """A configuration file, looked for here and beside the file that defines the model.

    Raises:
        ConfigError: it is in neither place.
    """
    given = Path(path)
    source = getattr(sys.modules.get(getattr(model, "__module__", "")), "__file__", None)
    places = [given] + ([Path(source).parent / given] if source and not given.is_absolute() else [])
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(f"no such configuration file: {' nor '.join(str(p) for p in places)}.")


def load_model_and_batch(
    model_spec: str, batch_spec: str | None, config_batch: str | None
) -> tuple[Any, Any, Callable[..., Any]]:
    """Builds the model and finds an example batch for it.

    The batch comes from ``--batch``, from the factory if it returns ``(model, batch)``, from a function
    ``example_batch`` beside the factory, or from the config.

    Returns:
        The model, the batch, and the factory.

    Raises:
        ConfigError: no batch; names the ways to give one.
    """
    factory = load_factory(model_spec, "--model")
    built = factory()
    batch = None
    if isinstance(built, tuple) and len(built) == 2:
        built, batch = built
    beside = getattr(sys.modules.get(getattr(factory, "__module__", "")), "example_batch", None)
    if batch_spec is not None:
        batch = load_factory(batch_spec, "--batch")()
    elif batch is None and callable(beside):
        batch = beside()
    elif batch is None and config_batch is not None:
        batch = load_factory(config_batch, "dmt.transform.example_batch")()
    if batch is None:
        raise ConfigError(
            f"no example batch for {model_spec}: give --batch package.module:function, define example_batch() beside "
            "the model's factory, let the factory return (model, batch), or set dmt.transform.example_batch."
        )
    return built, batch, factory
