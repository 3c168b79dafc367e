"""One training of the quality benchmark: data by path, a flat DLRM or its towers, one process, scores on the test part.

1. Data are arrays: ids, dense columns, label, split. The batches of a run and the initial weights depend on its seed
   alone, so runs of one seed are pairs.
2. A run of towers is the flat model of its seed, transformed: the logical graph, which computes what any number of
   ranks would.
3. Tables and dense layers have a learning rate each; one pass over the training part unless said otherwise.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import dmt_plugin
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.partitioner import Partition
from dmt_plugin.partitioning.partition_model import plan_data
from examples.dlrm import DLRM

WIDTH = 16
TRAIN, VALIDATION, TEST = 0, 1, 2
FORMS = ("tower", "feature", "tower:torch", "feature:torch")
"""What a tower gives, and how it is initialised where that is not the default; see `tower_shape`."""


@dataclass(frozen=True)
class Data:
    """One data set.

    Attributes:
        name: how it is called in tables.
        sparse: `(rows, F)` int64 ids.
        dense: `(rows, K)` float32, at least one column.
        label: `(rows,)` float32.
        split: `(rows,)` 0 training, 1 validation, 2 test.
        tables: rows of each table by the name of its field.
    """

    name: str
    sparse: Tensor
    dense: Tensor
    label: Tensor
    split: NDArray[np.int64]
    tables: dict[str, int]

    def rows(self, part: int, most: int | None = None) -> Tensor:
        """Row numbers of a part, at most `most` of them, evenly spread over it: files are sorted by time or by user."""
        found = torch.from_numpy(np.flatnonzero(self.split == part))
        if most is None or most >= len(found):
            return found
        return found[torch.arange(most) * len(found) // most]


def load(path: Path) -> Data:
    """Reads an `.npz` with `X`, `dense`, `y`, `split`, `card` and, if it has names, `fields`.

    Raises:
        ValueError: an entry is missing, or ids are outside their tables.
    """
    with np.load(path, allow_pickle=False) as file:
        missing = {"X", "dense", "y", "split", "card"} - set(file.files)
        if missing:
            raise ValueError(f"{path} lacks the entries {sorted(missing)}; it has {sorted(file.files)}.")
        ids, card = file["X"], [int(n) for n in file["card"]]
        names = [str(n) for n in file["fields"]] if "fields" in file.files else [f"field{i}" for i in range(len(card))]
        outside = [names[i] for i in range(len(card)) if ids[:, i].max() >= card[i]]
        if outside:
            raise ValueError(f"{path}: ids of {outside} are outside the {card} rows of their tables.")
        return _data(path.stem, ids, file["dense"], file["y"], file["split"], dict(zip(names, card, strict=True)))


def load_flights(cache: Path) -> Data:
    """The demo's own data."""
    from examples import flights

    found = flights.load(cache)
    tables = dict(zip(flights.CATEGORICAL, found.table_sizes, strict=True))
    return _data("flights", found.sparse, found.dense, found.label, found.split, tables)


def _data(name: str, sparse: Any, dense: Any, label: Any, split: Any, tables: dict[str, int]) -> Data:
    columns = np.asarray(dense, dtype=np.float32)
    if not columns.shape[1]:  # the model wants a dense input; a column of zeros carries nothing
        columns = np.zeros((len(columns), 1), dtype=np.float32)
    return Data(
        name,
        torch.from_numpy(np.asarray(sparse, dtype=np.int64)),
        torch.from_numpy(columns),
        torch.from_numpy(np.asarray(label, dtype=np.float32)),
        np.asarray(split, dtype=np.int64),
        tables,
    )


@dataclass(frozen=True)
class Tuning:
    """What the flat model was tuned for, and what every run uses.

    Attributes:
        batch: samples per step.
        lr_tables: Adam's learning rate of the tables.
        lr_dense: Adam's learning rate of everything else.
        init_std: standard deviation of fresh embeddings.
        epochs: passes over the training part.
        most_rows: training rows to use, `None` for all.
    """

    batch: int = 512
    lr_tables: float = 1e-2
    lr_dense: float = 3e-3
    init_std: float = 0.02
    epochs: int = 1
    most_rows: int | None = None


def flat_model(data: Data, tuning: Tuning, seed: int) -> DLRM:
    """A fresh flat model."""
    torch.manual_seed(seed)
    return DLRM(data.tables, data.dense.shape[1], WIDTH, tuning.init_std)


def tower_shape(features: int, towers: int, ratio: float, form: str) -> dict[str, int]:
    """Letters of the tower module that come nearest to a compression ratio.

    With few features in a tower, `p` outputs of the full width cannot reach most ratios, so the width gives way too:
    `p` is the least whole number with `D <= WIDTH`. All outputs have one width, and so has what the model puts beside
    them (the bottom MLP's output).

    Args:
        features: `F`, of all towers.
        towers: `T`.
        ratio: `F*N / (D * outputs)` to aim at.
        form: `"tower"`: `p` outputs of each tower as a whole; `"feature"`: one output per feature, `D = N / ratio`;
            what follows a colon is the initialisation and does not matter here.
    """
    if form.startswith("feature"):
        return {"c": 1, "p": 0, "dim": max(1, round(WIDTH / ratio))}
    p = max(1, math.ceil(features / towers / ratio - 1e-9))
    return {"c": 0, "p": p, "dim": min(WIDTH, max(1, round(features * WIDTH / (towers * p * ratio))))}


def tower_model(
    model: nn.Module, data: Data, partition: Partition, ratio: float | None, form: str | None, seed: int
) -> tuple[nn.Module, float]:
    """The flat model with towers.

    Args:
        model: the flat model; its weights are used.
        data: for an example batch.
        partition: the towers.
        ratio: compression to aim at; `None` for pass-through towers (SPTT).
        form: what a tower gives, see :func:`tower_shape`.
        seed: of the tower modules.

    Returns:
        The tower model, and the compression ratio that it has.
    """
    count, features = len(partition.towers), len(data.tables)
    towers: dict[str, Any] = {"count": count, "module": "none"}
    real = 1.0
    if ratio is not None and form is not None:
        shape = tower_shape(features, count, ratio, form)
        towers |= {"module": "dlrm", "seed": seed, **shape}
        if ":" in form:
            towers["init"] = form.split(":")[1]
        real = features * WIDTH / (shape["dim"] * (shape["c"] * features + shape["p"] * count))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "towers.json"
        file.write_text(json.dumps(plan_data(partition, "")))
        config = DMTConfig.model_validate({"towers": towers, "partition": {"strategy": "file", "file": str(file)}})
        example = (data.dense[:8], data.sparse[:8])
        return dmt_plugin.transform(model, example, config), real


def batches(data: Data, rows: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """`(dense, sparse, label)` of some rows, in their order."""
    for part in rows.split(size):
        yield data.dense[part], data.sparse[part], data.label[part]


def train(model: nn.Module, data: Data, tuning: Tuning, seed: int) -> None:
    """Trains in place; the order of the rows depends on the seed alone."""
    for _ in passes(model, data, tuning, seed):
        pass


def passes(model: nn.Module, data: Data, tuning: Tuning, seed: int) -> Iterator[int]:
    """Trains in place; yields the number of passes so far after each pass over the training rows."""
    tables = [p for n, p in model.named_parameters() if n.startswith("tables.")]
    dense = [p for n, p in model.named_parameters() if not n.startswith("tables.")]
    optimizer = torch.optim.Adam(
        [{"params": tables, "lr": tuning.lr_tables}, {"params": dense, "lr": tuning.lr_dense}], fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    rows = data.rows(TRAIN, tuning.most_rows)
    for epoch in range(1, tuning.epochs + 1):
        model.train()
        order = rows[torch.randperm(len(rows), generator=generator)]
        for x, ids, label in batches(data, order, tuning.batch):
            loss = binary_cross_entropy_with_logits(model(x, ids), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield epoch


@torch.no_grad()
def score(model: nn.Module, data: Data, part: int) -> dict[str, float]:
    """Area under the ROC curve and log loss on a part of the data."""
    from sklearn.metrics import roc_auc_score

    model.eval()
    rows = data.rows(part)
    logits = torch.cat([model(x, ids) for x, ids, _ in batches(data, rows, 8192)])
    label = data.label[rows]
    return {
        "auc": float(roc_auc_score(label.numpy(), logits.numpy())),
        "logloss": float(binary_cross_entropy_with_logits(logits.double(), label.double())),
    }
