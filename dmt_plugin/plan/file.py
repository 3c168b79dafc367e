"""Plans and partitions as JSON files, and their fingerprint: a short hash of all they say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmt_plugin.core.errors import PlanError
from dmt_plugin.core.files import whole_file
from dmt_plugin.core.json_text import parse
from dmt_plugin.core.words import shown


def read_json(path: str | Path, key: str = "dmt.partition.file", holds: str = "a plan or partition") -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
        path: of the file.
        key: that names the file, for messages.
        holds: what the file should hold, for messages.

    Raises:
        PlanError: no file that can be read, no JSON (with line and column), a key given twice, or something else than
            an object.
    """
    try:
        data = parse(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PlanError(f"no such file: {path}. Set {key} to {holds} in JSON.") from error
    except json.JSONDecodeError as error:
        raise PlanError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from error
    except (OSError, ValueError) as error:  # a folder, a path that cannot be, bytes that are no text
        raise PlanError(f"{shown(str(path))} cannot be read: {error}. Set {key} to {holds} in JSON.") from error
    if not isinstance(data, dict):
        raise PlanError(f"{path} holds a {type(data).__name__}; expected an object: {holds}.")
    return data


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Writes plain data as indented JSON: the file is there as a whole, or as it was before."""
    with whole_file(Path(path)) as stream:
        stream.write((json.dumps(data, indent=2) + "\n").encode())


def short_hash(data: Any) -> str:
    """Sixteen hexadecimal digits that stand for plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
