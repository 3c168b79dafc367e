"""What an entry of the zoo is, and the batches and small layers that its models share.

A variant has a builder ``build(features=6, width=8) -> (model, batch)``; ``batch(n, seed)`` makes a call of
the model for ``n`` samples: a tuple of arguments, or ``(arguments, keywords)``. Dense inputs and the ids of
feature ``f`` depend on the seed (and ``f``) only, so models with other numbers of features see the same data.

An :class:`Oracle` says how the author's own constructor makes the model that a rewrite to ``streams`` vectors of
width ``dim`` must equal, once its tables hand out the outputs of the tower modules.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]
Batch = Callable[[int, int], Any]
Built = tuple[nn.Module, Batch]

FEATURES = 6
WIDTH = 8
DENSE = 5


@dataclass(frozen=True)
class Oracle:
    """The same architecture from its own constructor.

    Attributes:
        build: ``(streams, dim, features of the flat model)`` to the model and its batches.
        tables: for a number of streams, the modules that hand out one stream each, in the order of the join; one name
            only if a single module hands out all of them as ``(B, streams, dim)``.
        copied: modules whose output is taken from the flat model (first-order weights, say), as it is the same.
        skipped: prefixes of state that no longer matters, besides that of ``tables`` and ``copied``.
    """

    build: Callable[[int, int, int], Built]
    tables: Callable[[int], Sequence[str]]
    copied: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def by_size(build: Callable[..., Built]) -> Callable[[int, int, int], Built]:
    """A builder of a model without parts that keep the number of features of the flat model."""
    return lambda streams, dim, features: build(streams, dim)


def numbered(path: str) -> Callable[[int], list[str]]:
    """Tables ``path.0``, ``path.1``, ..."""
    return lambda streams: [f"{path}.{i}" for i in range(streams)]


@dataclass(frozen=True)
class Variant:
    """One entry of the zoo.

    Attributes:
        name: unique.
        family: the public model or code base in whose style it is written.
        build: see the module's docstring.
        oracle: how its constructor makes the rewritten model, if it can.
        why_no_oracle: the reason if not.
    """

    name: str
    family: str
    build: Callable[..., Built]
    oracle: Oracle | None = None
    why_no_oracle: str = ""


def call_of(value: Any) -> Call:
    """A batch as arguments and keywords."""
    pair = isinstance(value, tuple) and len(value) == 2
    if pair and isinstance(value[0], tuple) and isinstance(value[1], dict):
        return value
    return tuple(value), {}


def rows_of(feature: int) -> int:
    """Rows of a feature's table."""
    return 11 + 7 * feature


def generator(*seeds: int) -> torch.Generator:
    """Random numbers of one purpose."""
    return torch.Generator().manual_seed(sum(s * p for s, p in zip(seeds, (1, 7919, 104729), strict=False)))


def dense_of(n: int, seed: int, width: int = DENSE) -> Tensor:
    """Numeric inputs ``(n, width)``."""
    return torch.randn(n, width, generator=generator(seed))


def ids_of(n: int, features: int, seed: int) -> Tensor:
    """One id per feature and sample, ``(n, features)``."""
    own = [torch.randint(0, rows_of(f), (n,), generator=generator(seed, f + 1)) for f in range(features)]
    return torch.stack(own, 1)


def bags_of(n: int, features: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Offsets and ids of bags of zero to three ids."""
    offsets, ids = [], []
    for f in range(features):
        g = generator(seed, f + 1, 1)
        lengths = torch.randint(0, 4, (n,), generator=g)
        offsets.append(torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)[:-1]]))
        ids.append(torch.randint(0, rows_of(f), (int(lengths.sum()),), generator=g))
    return offsets, ids


def sequence_of(n: int, length: int, rows: int, seed: int) -> Tensor:
    """Ids ``(n, length)``, padded behind with 0; every sample has at least one."""
    g = generator(seed, 97)
    ids = torch.randint(1, rows, (n, length), generator=g)
    lengths = torch.randint(1, length + 1, (n, 1), generator=g)
    return ids * (torch.arange(length) < lengths)


def dense_and_ids(features: int) -> Batch:
    """Calls ``model(dense, ids)``."""
    return lambda n, seed=0: (dense_of(n, seed), ids_of(n, features, seed))


def only_ids(features: int) -> Batch:
    """Calls ``model(ids)``."""
    return lambda n, seed=0: (ids_of(n, features, seed),)


def mlp(sizes: Sequence[int], *, last: bool = False, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU between them (behind the last too if ``last``)."""
    layers: list[nn.Module] = []
    pairs = list(itertools.pairwise(sizes))
    for i, (a, b) in enumerate(pairs):
        layers.append(nn.Linear(a, b))
        if i == len(pairs) - 1 and not last:
            break
        if norm:
            layers.append(nn.BatchNorm1d(b))
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)
