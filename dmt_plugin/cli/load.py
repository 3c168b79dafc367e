"""Finds what a command line names: a function by import path or file, a configuration file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmt_plugin.errors import ConfigError


def load_factory(spec: str, option: str) -> Callable[..., Any]:
    """The callable behind ``package.module:name`` or ``path/to/file.py:name``.

    The current directory is importable, as for ``python -m``.

    Raises:
        ConfigError: says which part could not be found.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ConfigError(
            f"{option} is {spec!r}; expected package.module:function or path/to/file.py:function."
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{option} {spec!r}: {error}. Run from the folder that holds it, or give a path to the .py file."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        functions = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise ConfigError(f"{option} {spec!r}: {place} has no function {name!r}. It has {functions}.")
    return found


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"no such file: {path} (looked in {Path.cwd()}).")
    name = f"dmt_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)
    return module


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
