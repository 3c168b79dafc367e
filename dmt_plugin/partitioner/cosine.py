"""Affinity by direction: the mean over samples of ``|cos|`` between the embeddings of two features.

Section 3.3 of the paper: embeddings differ from sample to sample, so it is the affinity that is averaged, never the
embedding. In constant memory, batch by batch:

1. Rows narrower than the widest are padded with zeros (said so in the affinity's notes).
2. Every row is divided by its length. A zero row is a missing value: it takes part in no pair.
3. ``|R R^T|`` of each sample is added to the sums, and counted for the pairs where both features are there.
4. The affinity is sum by count; a pair that never occurred together has affinity 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.affinity import Affinity

_BLOCK = 1 << 22  # entries of R R^T held at once


class CosineAccumulator:
    """Sums of ``|cos|`` over batches.

    Args:
        features: names of the features, in order.
    """

    def __init__(self, features: Sequence[str]) -> None:
        self.features = tuple(features)
        self._sums = torch.zeros(len(features), len(features), dtype=torch.float64)
        self._counts = torch.zeros_like(self._sums)
        self._widths: dict[str, int] = {}
        self.samples = 0

    def update(self, rows: Mapping[str, Tensor]) -> None:
        """Adds a batch.

        Args:
            rows: for every feature its embeddings ``(B, N)``; ``N`` may differ between features.

        Raises:
            PlanError: a feature's rows are not finite, or have changed their width.
        """
        widths = {name: int(rows[name].shape[1]) for name in self.features}
        if self._widths and widths != self._widths:
            changed = [name for name in self.features if widths[name] != self._widths[name]]
            raise PlanError(f"the embeddings of {changed} have another width than in the batches before.")
        self._widths = widths
        batch = len(rows[self.features[0]])
        widest = max(widths.values())
        stacked = torch.zeros(batch, len(self.features), widest)
        for i, name in enumerate(self.features):
            stacked[:, i, : widths[name]] = rows[name].detach().to("cpu", torch.float32)
        bad = ~torch.isfinite(stacked).all(2)
        if bad.any():
            sample, place = (int(x) for x in bad.nonzero()[0])
            names = [self.features[i] for i in bad.any(0).nonzero().flatten().tolist()]
            raise PlanError(
                f"the embeddings of {names} are not finite (first: {self.features[place]!r} in sample "
                f"{self.samples + sample}). The model has diverged; measure an earlier checkpoint."
            )
        lengths = stacked.norm(dim=2, keepdim=True)
        present = (lengths[..., 0] > 0).float()
        directions = stacked / lengths.clamp(min=torch.finfo(torch.float32).tiny)
        size = max(1, _BLOCK // len(self.features) ** 2)
        for part in directions.split(size):
            self._sums += torch.bmm(part, part.transpose(1, 2)).abs_().sum(0, dtype=torch.float64)
        self._counts += (present.t() @ present).double()
        self.samples += batch

    def result(self, model: str = "", *, missing: str = "error") -> Affinity:
        """The affinity so far.

        Args:
            model: fingerprint of the model.
            missing: what to do about a feature that no sample has: ``"error"``, or ``"zero"`` for no affinity to any.

        Raises:
            PlanError: no samples, or features that never occur.
        """
        if not self.samples:
            raise PlanError("no samples, so there is no affinity to measure. Give at least one batch.")
        refuse_absent(
            [name for name, count in zip(self.features, self._counts.diagonal().tolist(), strict=True) if not count],
            self.samples,
            missing,
        )
        values = (self._sums / self._counts.clamp(min=1)).clamp_(0, 1)
        values.fill_diagonal_(1.0)
        widths = sorted(set(self._widths.values()))
        notes = {"widths": widths, "mixed_widths": "padded with zeros" if len(widths) > 1 else "none"}
        return Affinity(self.features, values.numpy(), "cosine", self.samples, model, notes)


def refuse_absent(absent: Sequence[str], samples: int, missing: str, what: str = "do not occur in any of") -> None:
    """An error that names the features that tell nothing, unless that is allowed.

    Args:
        absent: the features.
        samples: how many there were.
        missing: ``"error"`` or ``"zero"``.
        what: is the matter with them, for the message.
    """
    if missing not in ("error", "zero"):
        raise ValueError(f'missing is "error" or "zero", not {missing!r}')
    if absent and missing == "error":
        raise PlanError(
            f"the features {sorted(absent)} {what} {samples} samples, so nothing tells where they "
            'belong. Give more samples, or say missing="zero" (dmt partition --missing zero): no affinity to any other.'
        )


def cosine_from_tables(
    tables: Mapping[str, Tensor], ids: Mapping[str, Tensor], *, batch: int = 4096, missing: str = "error"
) -> Affinity:
    """Affinity from embedding tables and a sample of ids, without a model.

    Args:
        tables: for every feature its table ``(rows, N)``, as a checkpoint holds it.
        ids: for every feature ``(n,)`` ids, or ``(n, L)`` of bags that are summed; a negative id is no id.
        batch: samples at a time.
        missing: see :meth:`CosineAccumulator.result`.

    Raises:
        PlanError: tables and ids do not fit each other, or as in :class:`CosineAccumulator`.
    """
    names = list(tables)
    if set(names) != set(ids):
        raise PlanError(
            f"tables without ids: {sorted(set(names) - set(ids))}; ids without a table: "
            f"{sorted(set(ids) - set(names))}. Give both for every feature."
        )
    lengths = {name: len(ids[name]) for name in names}
    if len(set(lengths.values())) > 1:
        raise PlanError(f"the features have different numbers of samples: {lengths}. Give the same samples for all.")
    for name in names:
        highest = int(ids[name].max()) if ids[name].numel() else -1
        if highest >= len(tables[name]):
            raise PlanError(f"id {highest} of {name!r} is outside its table of {len(tables[name])} rows.")
    found = CosineAccumulator(names)
    for start in range(0, min(lengths.values(), default=0), batch):
        rows = {}
        for name in names:
            part = ids[name][start : start + batch].long()
            bags = part.reshape(len(part), -1)
            rows[name] = (tables[name][bags.clamp(min=0)] * (bags >= 0).unsqueeze(2)).sum(1)
        found.update(rows)
    return found.result(missing=missing)
