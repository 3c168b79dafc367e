"""A torchrec collection becomes its bags; every way of reading its output that is understood, and the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import TransformError
from tests.passes.flat import found, only, towers
from tests.zoo.models import _collection, jagged_batch

FEATURES, WIDTH = 4, 3


class Reads(nn.Module):
    def __init__(self, read: Any) -> None:
        super().__init__()
        self.collection = _collection(FEATURES, WIDTH)
        self.read = read
        self.top = nn.Linear(FEATURES * WIDTH, 1)

    def forward(self, dense: Tensor, features: Any) -> Tensor:
        return self.top(self.read(self.collection(features))) + dense.sum(1, keepdim=True)


KEYS = [f"cat_{f}" for f in range(FEATURES)]
READS = {
    "by key": lambda kt: torch.cat([kt[k] for k in KEYS], 1),
    "by its own keys": lambda kt: torch.cat([kt[k] for k in kt.keys()], 1),  # noqa: SIM118
    "as a dict": lambda kt: torch.cat([kt.to_dict()[k] for k in KEYS], 1),
    "dict items": lambda kt: torch.cat([v for _, v in kt.to_dict().items()], 1),
    "values": lambda kt: kt.values(),
    "values cut by the widths": lambda kt: kt.values().reshape(-1, len(kt.keys()), kt.length_per_key()[0]).flatten(1),
}


@pytest.mark.parametrize("name", sorted(READS))
def test_reads_of_a_collection(name: str) -> None:
    torch.manual_seed(0)
    flat, batch = Reads(READS[name]), jagged_batch(FEATURES)
    model = towers(flat, *batch(5, 0), towers={"module": "none"})
    assert [g.kind for g in model.plan.groups] == ["tower"]
    assert {n.target for n in model.graph.nodes if n.op == "call_module"} >= {
        f"collection.embedding_bags.t{f}" for f in range(FEATURES)
    }
    assert set(model.state_dict()) == set(flat.state_dict())
    assert torch.equal(model(*batch(9, 1)), flat(*batch(9, 1)))
    towered = towers(flat, *batch(5, 0), towers={"dim": 2})
    assert towered(*batch(9, 1)).shape == (9, 1)


def test_columns_by_their_offsets() -> None:
    model = Reads(lambda kt: kt.values()[:, : kt.offset_per_key()[-1]])
    batch = jagged_batch(FEATURES)(5, 0)
    assert torch.equal(transform(model, batch, {"dmt": {"towers": {"module": "none"}}})(*batch), model(*batch))


def test_a_whole_output_handed_on_is_a_finding() -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.collection = _collection(FEATURES, WIDTH)

        def forward(self, dense: Tensor, features: Any) -> Any:
            return self.collection(features)

    with pytest.raises(TransformError) as caught:
        found(Returns(), *jagged_batch(FEATURES)(5, 0))
    finding = only(caught.value.findings, "DMT210")
    assert finding.module == "collection" and finding.hint


def test_weighted_collections_and_shared_features() -> None:
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            configs = [("a", ["x", "y"]), ("b", ["x"]), ("c", ["z"])]
            self.collection = EmbeddingBagCollection(
                tables=[
                    EmbeddingBagConfig(
                        name=n, embedding_dim=3, num_embeddings=9, feature_names=f, pooling=PoolingType.SUM
                    )
                    for n, f in configs
                ],
                is_weighted=True,
            )

        def forward(self, dense: Tensor, features: Any) -> Tensor:
            return self.collection(features).values() * dense

    def batch(n: int) -> tuple[Any, Any]:
        lengths = torch.arange(3 * n) % 3
        total = int(lengths.sum())
        weights = torch.linspace(0.5, 2.0, total)
        return torch.ones(n, 1), KeyedJaggedTensor(["x", "y", "z"], torch.arange(total) % 9, weights, lengths=lengths)

    flat = Weighted()
    model = towers(flat, *batch(5), towers={"module": "none"})
    assert torch.equal(model(*batch(8)), flat(*batch(8)))
    ctx = found(flat, *batch(5), towers={"module": "none"})
    assert [(x.table.rpartition(".")[2], x.feature, x.weighted) for x in ctx.facts.lookups] == [
        ("a", "x", True), ("a", "y", True), ("b", "x", True), ("c", "z", True),
    ]  # fmt: skip
