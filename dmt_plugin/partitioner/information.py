"""Affinity from raw ids alone: how much one feature's value says about another's. No label, no trained model.

1. Keep a sample of at most ``max_samples`` values per feature (the only thing that grows with the data, up to there).
   Where only embeddings can be seen, the bits of a row stand for its id: ids with other rows are other ids.
2. Of each feature the most frequent values keep a symbol of their own, the others share one.
3. ``I(i; j)`` from the joint counts of each pair. Many values in few samples look related by chance: the same figure
   with one feature's samples shuffled is taken off.
4. Divide by what two equal features of these entropies would have, ``sqrt(H_i H_j)``, less the same chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from tqdm import tqdm

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.affinity import Affinity
from dmt_plugin.partitioner.cosine import refuse_absent

Symbols = NDArray[np.int64]


class ValueSample:
    """The first values of every feature, as symbols.

    Args:
        features: names of the features.
        max_samples: how many samples to keep.
    """

    def __init__(self, features: Sequence[str], max_samples: int = 50_000) -> None:
        self.features = tuple(features)
        self.max_samples = max_samples
        self._parts: dict[str, list[Symbols]] = {name: [] for name in features}
        self.samples = 0

    @property
    def full(self) -> bool:
        """Whether further batches would be ignored."""
        return self.samples >= self.max_samples

    def update(self, rows: Mapping[str, Tensor]) -> None:
        """Adds a batch of embeddings ``(B, N)`` per feature; each distinct row is one value.

        Raises:
            PlanError: a feature's rows are not finite.
        """
        room = self.max_samples - self.samples
        taken = 0
        for name in self.features:
            values = rows[name].detach().to("cpu").float().numpy()[:room]
            if not np.isfinite(values).all():
                raise PlanError(
                    f"the embeddings of {name!r} are not finite; the model has diverged. Measure an earlier checkpoint."
                )
            self._parts[name].append(_symbols_of_rows(values))
            taken = len(values)
        self.samples += taken

    def values(self) -> dict[str, Symbols]:
        """``(n,)`` symbols of every feature."""
        return {name: np.concatenate(parts or [np.zeros(0, np.int64)]) for name, parts in self._parts.items()}


def mutual_information(
    ids: Mapping[str, ArrayLike],
    model: str = "",
    *,
    most_values: int = 128,
    seed: int = 0,
    missing: str = "error",
    progress: bool = False,
) -> Affinity:
    """Affinity of features from a sample of their values.

    Args:
        ids: for every feature its value in each of ``n`` samples, ``(n,)``; a bag of ids is one value: give each
            distinct bag a number.
        model: fingerprint of the model, if there is one.
        most_values: symbols per feature.
        seed: of the shuffle that measures chance.
        missing: a feature with one value in all samples tells nothing: ``"error"``, or ``"zero"`` for no affinity.
        progress: show a progress bar.

    Raises:
        PlanError: no samples, unequal numbers of samples, or features that have one value only.
    """
    names = tuple(ids)
    order = sorted(range(len(names)), key=names.__getitem__)  # the result must not depend on the order given
    columns = [np.asarray(ids[names[i]]).reshape(-1) for i in order]
    lengths = {names[i]: len(column) for i, column in zip(order, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        raise PlanError(f"the features have different numbers of samples: {lengths}. Give the same samples for all.")
    samples = min(lengths.values(), default=0)
    if not samples:
        raise PlanError("no samples, so there is no affinity to measure. Give at least one batch.")
    symbols = [_frequent(column, most_values) for column in columns]
    constant = [names[i] for i, s in zip(order, symbols, strict=True) if s.max() == 0]
    refuse_absent(constant, samples, missing, "have one value, or none, in all of")
    shuffle = np.random.default_rng(seed).permutation(samples)
    sizes = [int(s.max()) + 1 for s in symbols]
    entropies = [_entropy(np.bincount(s)) for s in symbols]
    values = np.eye(len(names))
    for a in tqdm(range(len(names)), desc="pairs of features", unit="feature", disable=not progress):
        shuffled = symbols[a][shuffle]
        for b in range(a):
            both = entropies[a] + entropies[b]
            found = both - _entropy(np.bincount(symbols[a] * sizes[b] + symbols[b]))
            chance = both - _entropy(np.bincount(shuffled * sizes[b] + symbols[b]))
            most = np.sqrt(entropies[a] * entropies[b]) - chance
            values[order[a], order[b]] = np.clip((found - chance) / most, 0.0, 1.0) if most > 0 else 0.0
    values = np.maximum(values, values.T)
    return Affinity(names, values, "mutual_information", samples, model, {"most_values": most_values})


def _symbols_of_rows(rows: NDArray[np.float32]) -> Symbols:
    """One 64-bit number per row ``(B, N)``; equal rows get equal numbers, others almost surely different ones."""
    bits = (np.ascontiguousarray(rows, dtype=np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64)  # -0 is 0
    factors = np.random.default_rng(0).integers(1, 1 << 63, rows.shape[1], dtype=np.uint64) | np.uint64(1)
    mixed = (bits * factors) ^ ((bits * factors) >> np.uint64(29))
    return (mixed * factors).sum(1, dtype=np.uint64).view(np.int64)


def _frequent(values: np.ndarray, most: int) -> Symbols:
    """Numbers values by frequency, then by who came first; all beyond ``most - 1`` share the last number.

    What a value is called must not matter: the bits of embedding rows differ from one initialisation to the next.
    """
    _, first, inverse, counts = np.unique(values, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(counts))
    return np.minimum(rank[inverse.reshape(-1)], most - 1)


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
