"""Layers, parameters and attention behind the streams: what follows them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmt_plugin.api import transform
from dmt_plugin.errors import TransformError
from tests.passes import heads, heads_layers
from tests.passes.flat import only
from tests.passes.heads import DENSE, Recommender, batch
from tests.passes.test_repair_oracle import SIZES, assert_is_the_oracle, repaired
from tests.passes.test_repair_refusals import HALF, MORE, SAME, SAME_FLAT

ANY_WIDTH = (
    heads_layers.GeneratedVectors, heads_layers.FieldGate, heads_layers.FlatGate, heads_layers.TransposedVectors,
    heads_layers.RegroupedLayer, heads_layers.CountedVectors, heads_layers.LayersInOneParameter,
    heads_layers.OwnParameters, heads_layers.ParameterReadTwice, heads_layers.ProjectedAttention,
    heads_layers.NormsOverFields,
)  # fmt: skip
CASES = [(head, size) for head in ANY_WIDTH for size in sorted(SIZES)] + [
    (head, size)
    for head in (heads_layers.AttentionOverStreams, heads_layers.HeadsApart)
    for size in ("more", "same sizes")
]


@pytest.mark.parametrize(("head", "size"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_repair_builds_what_the_constructor_builds(head: type[heads.Head], size: str) -> None:
    model, oracle, streams, dim = repaired(head, size)
    assert_is_the_oracle(model, oracle, streams, dim, SIZES[size][0])
