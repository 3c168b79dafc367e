"""Functions of the user's that a configuration or a command line names.

1. ``package.module:name`` is imported; ``path/to/file.py:name`` is run as ``import file`` would run it, with
   its own folder importable.
2. A file is run once, whatever names it and however often: it is kept in ``sys.modules``, so a second factory of
   the same file, and other files that import it, meet the same classes.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from dmt_plugin.core.errors import ConfigError

_HERE = Path(__file__)


def load_factory(spec: str, option: str) -> Callable[..., Any]:
    """The callable behind ``package.module:name`` or ``path/to/file.py:name``.

    Args:
        spec: what the user wrote.
        option: the option or key it was written for, for messages.

    Raises:
        ConfigError: says which part could not be found, or how loading it failed.
    """
    module = load_module(spec, option)
    place, _, name = spec.rpartition(":")
    found = getattr(module, name, None)
    if not callable(found):
        own = sorted(
            n
            for n, v in vars(module).items()
            if callable(v) and not n.startswith("_") and getattr(v, "__module__", "") == module.__name__
        )
        raise ConfigError(
            f"{_said(spec, option)}: {place} has no function {name!r}. It defines {', '.join(own) or 'none'}."
        )
    return found


def load_module(spec: str, option: str) -> ModuleType:
    """The module before the colon of ``package.module:name`` or ``path/to/file.py:name``.

    Raises:
        ConfigError: it cannot be found or fails while it is loaded.
    """
    key = _said(spec, option)
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ConfigError(f"{key}: expected package.module:function or path/to/file.py:function.")
    return _load_file(Path(place), key) if place.endswith(".py") else _import(place, key)


def call_factory(factory: Callable[..., Any], spec: str, option: str) -> Any:
    """Calls a factory without arguments.

    Raises:
        ConfigError: it raised; names the line of the user's code.
    """
    try:
        return factory()
    except Exception as error:
        raise ConfigError(
            f"{_said(spec, option)}: {spec.rpartition(':')[2]}() raised {type(error).__name__}: "
            f"{error}{line_of(error)}. It is called without arguments."
        ) from error


def _import(place: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
            raise _failed(key, error) from error  # the module is there; something it imports is not
        raise ConfigError(
            f"{key} cannot be loaded: no module {place!r} can be imported from {Path.cwd()}. Give the path of a .py "
            "file, or run in the folder that holds the package."
        ) from error
    except Exception as error:
        raise _failed(key, error) from error


def _load_file(path: Path, key: str) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{key}: no such file: {path} (looked in {Path.cwd()}).")
    path = path.resolve()
    for module in list(sys.modules.values()):
        source = getattr(module, "__file__", None)
        # __main__ may still be running: its functions are not all there yet.
        if source and source.endswith(path.name) and module.__name__ != "__main__" and Path(source).resolve() == path:
            return module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # true for every .py file
    module = importlib.util.module_from_spec(spec)
    # Registered, so that classes of the file can be pickled and found again by their module's name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _failed(key, error) from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_name(path: Path) -> str:
    """The name under which ``import`` finds the file, or one of its own where that name means something else."""
    name = path.stem
    if name.isidentifier() and name not in sys.stdlib_module_names and name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path:
            return name
    return f"dmt_user_{name}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _said(spec: str, option: str) -> str:
    return f"{option} {spec}" if option.startswith("--") else f"{option} = {spec!r}"


def _failed(key: str, error: BaseException) -> ConfigError:
    return ConfigError(f"{key} cannot be loaded: {type(error).__name__}: {error}{line_of(error)}.")


def line_of(error: BaseException) -> str:
    """Where an error rose, as text: the innermost line outside this file and the import machinery."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith("<frozen")
        and not Path(f.filename).is_relative_to(Path(importlib.__file__).parent)
        and Path(f.filename) != _HERE
    ]
    if not frames:
        return ""
    own = [f for f in frames if "site-packages" not in f.filename]
    frame = (own or frames)[-1]
    return f" ({frame.filename}:{frame.lineno})"
