"""How strongly features belong together: a symmetric matrix with the features' names, and its file.

An affinity is measured once and used for many partitions, so it is a file of its own. It carries the fingerprint of
the model it was measured on, and :meth:`Affinity.check` refuses any other model by naming what differs.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from dmt_plugin.core.errors import PlanError

Kind = Literal["cosine", "mutual_information"]
KINDS: tuple[Kind, ...] = ("cosine", "mutual_information")
FORMAT = 1


@dataclass(frozen=True)
class Affinity:
    """Affinity of every pair of features.

    Attributes:
        features: names, in the order of rows and columns.
        values: ``(F, F)`` float64, symmetric, in ``[0, 1]``, 1 on the diagonal.
        kind: ``"cosine"`` or ``"mutual_information"``.
        samples: how many samples it was measured on.
        model: fingerprint of the model, ``""`` when it was measured without one.
        notes: how it was measured, e.g. what was done about rows of unequal width.

    Raises:
        PlanError: not a matrix of this form; names the features at fault.
    """

    features: tuple[str, ...]
    values: NDArray[np.float64]
    kind: Kind
    samples: int
    model: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.features)
        if self.kind not in KINDS:
            raise PlanError(f"unknown kind of affinity {self.kind!r}; expected one of {list(KINDS)}.")
        if len(set(self.features)) != count:
            twice = sorted({name for name in self.features if self.features.count(name) > 1})
            raise PlanError(f"the affinity names the features {twice} more than once.")
        if self.values.shape != (count, count):
            raise PlanError(
                f"an affinity of {count} features is a {count} x {count} matrix; found the shape {self.values.shape}."
            )
        bad = ~np.isfinite(self.values)
        if bad.any():
            names = [self.features[i] for i in np.flatnonzero(bad.any(1))]
            raise PlanError(
                f"the affinity is not finite at the features {names}. Measure it on a model with finite embeddings."
            )
        outside = (self.values < -1e-6) | (self.values > 1 + 1e-6) | (np.abs(self.values - self.values.T) > 1e-6)
        if outside.any():
            i, j = np.argwhere(outside)[0]
            raise PlanError(
                f"the affinity of {self.features[i]!r} and {self.features[j]!r} is {self.values[i, j]:g}, and "
                f"{self.values[j, i]:g} the other way round; expected one number between 0 and 1."
            )

    def select(self, names: Sequence[str]) -> NDArray[np.float64]:
        """``(n, n)`` affinities of the given features, in their order."""
        place = {name: i for i, name in enumerate(self.features)}
        rows = np.array([place[name] for name in names], dtype=np.intp)
        return self.values[np.ix_(rows, rows)]

    def check(self, features: Sequence[str], model: str = "", source: str = "the affinity") -> None:
        """Refuses to be used for another model.

        Args:
            features: names of the model's features.
            model: the model's fingerprint; ``""`` compares the names only.
            source: where the affinity came from, for messages.

        Raises:
            PlanError: names the features that differ, or says that the tables do.
        """
        missing = sorted(set(features) - set(self.features))
        unknown = sorted(set(self.features) - set(features))
        way_out = "Measure it on this model: dmt partition --model ... --data ... --save-affinity FILE."
        if missing or unknown:
            raise PlanError(
                f"{source} was measured on another model: it lacks the features {missing} and has {unknown}, which "
                f"this model has not. {way_out}"
            )
        if model and self.model and model != self.model:
            raise PlanError(
                f"{source} was measured on the model {self.model}, this model is {model}: the features have the same "
                f"names, their tables other shapes. {way_out}"
            )

    def save(self, path: str | Path) -> Path:
        """Writes one ``.npz`` file: plain arrays and a JSON text, no pickled objects."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "format": FORMAT, "kind": self.kind, "samples": self.samples, "model": self.model, "notes": self.notes,
        }  # fmt: skip
        with target.open("wb") as file:  # given a path, numpy would append .npz to any other ending
            np.savez_compressed(
                file, values=self.values, features=np.array(self.features), about=np.array(json.dumps(about))
            )
        return target

    @classmethod
    def load(cls, path: str | Path) -> Affinity:
        """Reads what :meth:`save` wrote.

        Raises:
            PlanError: no such file, or not an affinity.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as data:
                about = json.loads(str(data["about"]))
                if about["format"] != FORMAT:
                    raise PlanError(f"{path} has format {about['format']}, this release reads format {FORMAT}.")
                return cls(
                    tuple(str(name) for name in data["features"]),
                    np.asarray(data["values"], dtype=np.float64),
                    cast(Kind, about["kind"]),
                    int(about["samples"]),
                    str(about["model"]),
                    dict(about["notes"]),
                )
        except FileNotFoundError as error:
            raise PlanError(
                f"no such file: {path}. dmt.partition.affinity names a file that dmt partition --save-affinity writes."
            ) from error
        except (zipfile.BadZipFile, EOFError, KeyError, ValueError, OSError, TypeError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(
                f"{path} is not an affinity file ({type(error).__name__}: {error}). dmt partition --save-affinity "
                "writes one."
            ) from error
