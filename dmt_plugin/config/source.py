"""A DeepSpeed configuration as users hand it over: a dict, a JSON file, or base64 of one.

A file may have comments and trailing commas, as DeepSpeed allows them.
"""

from __future__ import annotations

import base64
import binascii
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.json_text import check_levels, parse


def load_ds_config(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Read a DeepSpeed configuration.

    Args:
        source: A mapping (it is copied), the path of a JSON file, or base64 of its text.

    Returns:
        The whole configuration as a new dict.

    Raises:
        ConfigError: For a missing file, bad JSON (with line and column), a key given twice, data nested over 100
            levels, or anything that is not a JSON object.
    """
    if isinstance(source, Mapping):
        return _copied(source)
    if not isinstance(source, str | Path):
        raise ConfigError(f"a configuration is a dict or the path of a JSON file, not {type(source).__name__}")
    name = str(source)
    try:
        text = Path(source).read_text(encoding="utf-8")
    except FileNotFoundError:
        decoded = _from_base64(name)
        if decoded is None:
            raise ConfigError(f"{name}: configuration file not found") from None
        name, text = "configuration (base64)", decoded
    except (OSError, ValueError) as error:
        decoded = _from_base64(name)
        if decoded is None:
            raise ConfigError(f"{name}: configuration file cannot be read: {error}") from None
        name, text = "configuration (base64)", decoded
    return _parse(text, name)


def _from_base64(text: str) -> str | None:
    try:
        decoded = base64.urlsafe_b64decode(text.encode()).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    return decoded if decoded.lstrip().startswith("{") else None


def _copied(source: Mapping[str, Any]) -> dict[str, Any]:
    try:
        check_levels(source)
        return copy.deepcopy(dict(source))
    except Exception as error:  # what is in it may refuse to be copied in its own way
        raise ConfigError(f"config: cannot be copied ({error}); expected plain data, as a JSON file has it") from error


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        content = parse(text)
    except json.JSONDecodeError as error:
        content = _parse_lenient(text, name)
        if content is None:
            where = f"line {error.lineno}, column {error.colno}"
            raise ConfigError(f"{name}: not valid JSON at {where}: {error.msg}") from None
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{name}: a configuration is a JSON object, found {type(content).__name__}")
    return content


def _parse_lenient(text: str, name: str) -> dict[str, Any] | None:
    # DeepSpeed reads its file with hjson, so comments and trailing commas are legal there and must be here.
    try:
        import hjson
    except ImportError:
        return None
    try:
        content = parse(text, hjson.loads)
    except hjson.HjsonDecodeError:
        return None
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    return content if isinstance(content, dict) and content else None
