"""Models of the published package ``deepctr-torch``, where it is installed; it is no dependency of this project."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from tests.zoo.spec import DENSE, FEATURES, WIDTH, Batch, Built, Oracle, Variant, dense_of, ids_of, rows_of, sequence_of

INSTALLED = importlib.util.find_spec("deepctr_torch") is not None
LENGTH = 4


def _matrix(index: dict[str, tuple[int, int]]) -> Batch:
    """Calls ``model(X)``, the columns of ``X`` where the model expects them."""

    def batch(n: int, seed: int = 0) -> tuple[Tensor]:
        ids, numbers = ids_of(n, 16, seed), dense_of(n, seed)
        X = torch.zeros(n, max(stop for _, stop in index.values()))
        for name, (start, stop) in index.items():
            if name == "history":
                X[:, start:stop] = sequence_of(n, LENGTH, 23, seed).float()
            else:
                X[:, start] = (ids if name[0] == "C" else numbers)[:, int(name[1:])].float()
        return (X,)

    return batch


def _variant(model: str, sequence: bool = False, **options: Any) -> Variant:
    def made(features: int, width: int, first_order: int, sequence: bool) -> Built:
        from deepctr_torch import models
        from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat

        def columns(count: int) -> list[Any]:
            found: list[Any] = [
                SparseFeat(f"C{i}", vocabulary_size=rows_of(i), embedding_dim=width) for i in range(count)
            ]
            found += [DenseFeat(f"I{i}", 1) for i in range(DENSE)]
            if sequence:
                own = SparseFeat("history", vocabulary_size=23, embedding_dim=width)
                found.append(VarLenSparseFeat(own, maxlen=LENGTH, combiner="mean"))
            return found

        bare = model in ("AFM", "AFN")
        hidden = {} if bare else {"dnn_hidden_units": (16, 8), "dnn_dropout": 0.1}
        vectors = [c for c in columns(features) if not (bare and isinstance(c, DenseFeat))]
        first = () if model == "PNN" else (columns(first_order),)
        network = getattr(models, model)(*first, vectors, **hidden, **options)
        with torch.no_grad():  # the package starts its tables at 1e-4, where nothing can be distinguished
            for parameter in network.parameters():
                parameter.normal_(0.0, 0.2)
        return network, _matrix(network.feature_index)

    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return made(features, width, features, sequence)

    def tables(streams: int) -> list[str]:
        return [f"embedding_dict.C{i}" for i in range(streams)]

    name = f"package_{model.lower()}" + ("_sequence" if sequence else "")
    if model == "ONN":
        return Variant(name, "deepctr-torch ONN", build, None, "every pair of fields has tables of its own")
    oracle = Oracle(lambda streams, dim, features: made(streams, dim, features, False), tables)
    return Variant(name, f"deepctr-torch {model}", build, oracle)


_OPTIONS: dict[str, dict[str, Any]] = {
    "DeepFM": {}, "WDL": {}, "DCN": {"cross_parameterization": "matrix"}, "DCNMix": {"num_experts": 2, "low_rank": 3},
    "xDeepFM": {"cin_layer_size": (8, 6)}, "AutoInt": {}, "FiBiNET": {}, "PNN": {}, "AFM": {}, "NFM": {},
    "ONN": {}, "AFN": {"ltl_hidden_size": 9, "afn_dnn_hidden_units": (16, 8)}, "IFM": {}, "DIFM": {},
}  # fmt: skip

VARIANTS = [_variant(m, **o) for m, o in _OPTIONS.items()] + [_variant("DeepFM", sequence=True)] if INSTALLED else []
