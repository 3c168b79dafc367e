"""Models of the published package ``deepctr-torch``, where it is installed; it is no dependency of this project."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from tests.zoo.spec import DENSE, FEATURES, WIDTH, Batch, Built, Variant, dense_of, ids_of, rows_of, sequence_of

INSTALLED = importlib.util.find_spec("deepctr_torch") is not None
LENGTH = 4


def _matrix(features: int, sequence: bool) -> Batch:
    def batch(n: int, seed: int = 0) -> tuple[Tensor]:
        parts = [ids_of(n, features, seed).float(), dense_of(n, seed)]
        if sequence:
            parts.append(sequence_of(n, LENGTH, 23, seed).float())
        return (torch.cat(parts, dim=1),)

    return batch


def _variant(model: str, sequence: bool = False, **options: Any) -> Variant:
    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        from deepctr_torch import models
        from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat

        columns: list[Any] = [
            SparseFeat(f"C{i}", vocabulary_size=rows_of(i), embedding_dim=width) for i in range(features)
        ]
        columns += [DenseFeat(f"I{i}", 1) for i in range(DENSE)]
        if sequence:
            own = SparseFeat("history", vocabulary_size=23, embedding_dim=width)
            columns.append(VarLenSparseFeat(own, maxlen=LENGTH, combiner="mean"))
        hidden = {} if model in ("AFM", "AFN") else {"dnn_hidden_units": (16, 8), "dnn_dropout": 0.1}
        vectors = [c for c in columns if not isinstance(c, DenseFeat)] if model in ("AFM", "AFN") else columns
        first = () if model == "PNN" else (columns,)
        network = getattr(models, model)(*first, vectors, **hidden, **options)
        with torch.no_grad():  # the package starts its tables at 1e-4, where nothing can be told apart
            for parameter in network.parameters():
                parameter.normal_(0.0, 0.2)
        return network, _matrix(features, sequence)

    name = f"package_{model.lower()}" + ("_sequence" if sequence else "")
    return Variant(name, f"deepctr-torch {model}", build, None, "inputs and tables of the package have other names")


_OPTIONS: dict[str, dict[str, Any]] = {
    "DeepFM": {}, "WDL": {}, "DCN": {"cross_parameterization": "matrix"}, "DCNMix": {"num_experts": 2, "low_rank": 3},
    "xDeepFM": {"cin_layer_size": (8, 6)}, "AutoInt": {}, "FiBiNET": {}, "PNN": {}, "AFM": {}, "NFM": {},
    "ONN": {}, "AFN": {"ltl_hidden_size": 9, "afn_dnn_hidden_units": (16, 8)}, "IFM": {}, "DIFM": {},
}  # fmt: skip

VARIANTS = (
    [_variant(m, **o) for m, o in _OPTIONS.items()] + [_variant("DeepFM", sequence=True)] if INSTALLED else []
)
