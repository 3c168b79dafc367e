"""Values that stand where others belong, and ways to change one entry of plain data."""

from __future__ import annotations

import copy
import functools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

Way = tuple[Any, ...]

PLAIN: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 30, 2**16, 2**31, 2**63, 2**64, 10**400, 0.0, -0.5, 0.5, 1.0, 1e-320, 1e38,
    1e300, math.nan, math.inf, "", "0", "1", "auto", "2x2", "4x1", "a\0b", "\ud800", "x" * 5000, "1e5", "none",
    "dlrm", "fp16", "row_wise", "native", "os:system", "pkg.mod:Class", "{}", "../../etc/passwd", "<script>",
    [], {}, [[]], [0], [1, 2], [0.9, 0.99], {"0": {}}, {"a": "on"}, {"a": 1}, {"a": [1, 2]}, ["tables.0"], "tables.1",
]  # fmt: skip
"""What a JSON file can hold."""

OBJECTS: list[Any] = [b"bytes", {1: 2}, object(), (1, 2), {1}, 1j]
"""What only a dict in memory can."""


def ways(value: Any, way: Way = ()) -> Iterator[Way]:
    """Ways to every entry of plain data."""
    for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*way, key)
        if isinstance(inside, (dict, list)):
            yield from ways(inside, (*way, key))


def at(data: Any, way: Way) -> Any:
    """The entry at the end of a way."""
    return functools.reduce(lambda entry, step: entry[step], way, data)


def change_one(draw: random.Random, data: Any, choices: Sequence[Way], values: Sequence[Any] = PLAIN) -> str:
    """Changes one entry in place: another value, gone, twice, or swapped with its neighbour.

    Returns:
        What was done, in words.
    """
    way = draw.choice(choices)
    *before, last = way
    parent = at(data, tuple(before))
    what = draw.choice(["value", "value", "value", "gone", "twice", "swapped"])
    if what == "gone":
        del parent[last]
    elif isinstance(parent, list) and what == "twice":
        parent.insert(last, copy.deepcopy(parent[last]))
    elif isinstance(parent, list) and what == "swapped":
        parent[last - 1], parent[last] = parent[last], parent[last - 1]
    else:
        parent[last] = draw.choice(values)
    return f"{what} at {'.'.join(map(str, way))}"


def misspelt(draw: random.Random, name: str) -> str:
    """A name with one letter doubled, dropped, or two of them swapped."""
    place = draw.randrange(len(name))
    one = name[place]
    near = name[place + 1 : place + 2]
    return draw.choice([name[:place] + one + name[place:], name[:place] + near + one + name[place + 2 :] + "_"])
