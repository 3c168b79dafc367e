"""Functions of the user's that a configuration or a command line names."""

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

    A file's own folder is importable while it runs, as for ``python file.py``.

    Args:
        spec: what the user wrote.
        option: the option or key it was written for, for messages.

    Raises:
        ConfigError: says which part could not be found, or how loading it failed.
    """
    key = f"{option} = {spec!r}"
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ConfigError(f"{key}: expected package.module:function or path/to/file.py:function.")
    try:
        module = _load_file(Path(place), key) if place.endswith(".py") else importlib.import_module(place)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{key} cannot be loaded: {type(error).__name__}: {error}. A module must be importable from "
            f"{Path.cwd()}; or give the path of a .py file."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        functions = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise ConfigError(f"{key}: {place} has no function {name!r}. It has {functions}.")
    return found


def _load_file(path: Path, key: str) -> Any:
    if not path.is_file():
        raise ConfigError(f"{key}: no such file: {path} (looked in {Path.cwd()}).")
    name = f"dmt_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # true for every .py file
    module = importlib.util.module_from_spec(spec)
    # Registered, so that classes of the file can be pickled and found again by their module's name.
    sys.modules[name] = module
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
