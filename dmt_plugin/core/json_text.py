"""JSON that people hand over: read as the standard has it, and refused where a value would be lost or never end.

1. A key that is given twice in one object is an error: of two values one would be taken without a word.
2. So is data nested over a hundred levels: what goes through it would run out of stack.
3. So is a number of more digits than Python reads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

MOST_LEVELS = 100


def parse(text: str, load: Callable[..., Any] = json.loads) -> Any:
    """The data that a text holds.

    Args:
        text: JSON.
        load: what reads it, with an argument ``object_pairs_hook``.

    Raises:
        json.JSONDecodeError: it is not JSON, with line and column.
        ValueError: it is, but cannot be taken; says why.
    """
    try:
        data = load(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    check_levels(data)
    return data


def check_levels(data: Any) -> None:
    """Refuses data that are nested over a hundred levels, or hold themselves.

    Raises:
        ValueError: they are, or do.
    """
    level = [data]
    for _ in range(MOST_LEVELS):
        below: dict[int, Any] = {}
        for value in level:
            inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
            below.update((id(item), item) for item in inside if isinstance(item, (Mapping, list, tuple)))
        if not below:
            return
        level = list(below.values())
    raise ValueError(_TOO_DEEP)


_TOO_DEEP = f"nested over {MOST_LEVELS} levels; expected at most {MOST_LEVELS}"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f'the key "{key}" is given twice in one object')
    return found
