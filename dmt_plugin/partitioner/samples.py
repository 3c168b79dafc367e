"""Affinity without a model: from a file of ids, and for cosines the tables of a checkpoint.

1. Read ids: an ``.npz`` with one array per feature, all of the same samples.
2. For cosines, find each feature's table among the checkpoint's entries by its name.
3. For mutual information, a bag is one value: each distinct set of ids gets a number.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.affinity import Affinity, Kind
from dmt_plugin.partitioner.cosine import cosine_from_tables
from dmt_plugin.partitioner.information import mutual_information

Ids = NDArray[np.int64]


def read_ids(path: str | Path) -> dict[str, Ids]:
    """Ids of every feature: ``(n,)``, or ``(n, L)`` of bags; a negative id is no id.

    Raises:
        PlanError: no such file, or an entry that holds no ids; names it.
    """
    found: dict[str, Ids] = {}
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            for name in file.files:
                values = file[name]
                if values.dtype.kind not in "iu" or values.ndim not in (1, 2):
                    raise PlanError(
                        f"{path}: {name!r} holds {values.dtype} of shape {values.shape}; expected whole numbers, one "
                        "per sample, or a row of them per sample with negative numbers where a bag has ended."
                    )
                if values.dtype.kind == "u" and values.size and values.max() > np.iinfo(np.int64).max:
                    raise PlanError(
                        f"{path}: {name!r} holds ids up to {values.max()}, which no int64 holds. Number its "
                        "values, for example with numpy.unique(values, return_inverse=True)[1]."
                    )
                found[name] = values.astype(np.int64)
    except FileNotFoundError as error:
        raise PlanError(f"no such file: {path}. Write one with numpy.savez(file, user=..., item=...).") from error
    except (zipfile.BadZipFile, EOFError, TypeError, ValueError, OSError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(
            f"{path} is not a file of ids ({type(error).__name__}: {error}). Write one with "
            "numpy.savez(file, user=..., item=...): one array per feature."
        ) from error
    if not found:
        raise PlanError(f"{path} has no entry; expected one array of ids per feature.")
    return found


def tables_of(state: Mapping[str, Tensor], features: list[str]) -> dict[str, Tensor]:
    """The table ``(rows, N)`` of every feature, by name: ``<name>``, ``<name>.weight``, or either behind one path.

    Args:
        state: a state dict.
        features: names of the features.

    Raises:
        PlanError: a feature with no table, or with several that its name could mean; names it and the tables there are.
    """
    matrices = {name: value for name, value in state.items() if value.dim() == 2}
    found = {}
    for feature in features:
        named = [name for name in matrices if name in (feature, f"{feature}.weight")]
        named = named or [name for name in matrices if name.removesuffix(".weight").endswith(f".{feature}")]
        if len(named) != 1:
            raise PlanError(
                f"the checkpoint has {'no table' if not named else f'the tables {sorted(named)}'} for the feature "
                f"{feature!r}; its matrices are {sorted(matrices)}. Name the array in the file of ids as the table."
            )
        found[feature] = matrices[named[0]]
    return found


def affinity_of_ids(
    ids: Mapping[str, Ids],
    kind: Kind,
    state: Mapping[str, Tensor] | None = None,
    *,
    samples: int = 50_000,
    missing: str = "error",
    progress: bool = False,
) -> Affinity:
    """Affinity from ids alone, or from ids and a checkpoint.

    Args:
        ids: see :func:`read_ids`.
        kind: ``"mutual_information"`` needs the ids alone; ``"cosine"`` needs ``state`` too.
        state: a state dict with a table per feature.
        samples: how many samples to look at, from the first on.
        missing: what to do about features that never occur: ``"error"`` or ``"zero"``.
        progress: show a progress bar.

    Raises:
        PlanError: unequal numbers of samples, no tables, ids outside them, features that never occur; names them.
    """
    some = {name: values[:samples] for name, values in ids.items()}
    if kind == "mutual_information":
        return mutual_information(
            {name: _one_value(values) for name, values in some.items()}, missing=missing, progress=progress
        )
    if state is None:
        raise PlanError("a cosine needs embeddings: give the checkpoint too, or ask for mutual information.")
    return cosine_from_tables(
        tables_of(state, list(some)), {name: from_numpy(values) for name, values in some.items()}, missing=missing
    )


def _one_value(values: Ids) -> Ids:
    """``(n,)``: ids as they are; of bags a number for each distinct set, whatever its order."""
    values = np.maximum(values, -1)
    if values.ndim == 1:
        return values
    _, numbers = np.unique(np.sort(values, axis=1), axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64)
