"""Few cases that show every pair of values of any two factors together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Case = dict[str, Any]


def pairs_of(case: Mapping[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Every two (factor, value) of a case."""
    return set(itertools.combinations(sorted(case.items()), 2))


def all_pairs(factors: Mapping[str, Sequence[Any]]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Every pair of values of two different factors."""
    return {
        ((one, a), (other, b))
        for one, other in itertools.combinations(sorted(factors), 2)
        for a, b in itertools.product(factors[one], factors[other])
    }


def pairwise(factors: Mapping[str, Sequence[Any]]) -> list[Case]:
    """Cases, found greedily and the same each time, that together show every pair.

    1. Take the first pair that is missing, in the order of the factors.
    2. Give every other factor, in order, the value that shows most missing pairs with what is set; at a tie the one
       that was used least.
    """
    missing, cases = all_pairs(factors), []
    used: dict[tuple[str, Any], int] = {}
    order = {name: i for i, name in enumerate(factors)}
    while missing:
        first = min(missing, key=lambda pair: [(order[name], factors[name].index(value)) for name, value in pair])
        case = dict(first)
        for name, values in factors.items():
            if name not in case:
                gain = {v: len(missing & pairs_of({**case, name: v})) for v in values}
                case[name] = max(values, key=lambda v: (gain[v], -used.get((name, v), 0)))
        for chosen in case.items():
            used[chosen] = used.get(chosen, 0) + 1
        missing -= pairs_of(case)
        cases.append({name: case[name] for name in factors})
    return cases
