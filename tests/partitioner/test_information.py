"""Affinity from ids: between 0 for what is unrelated and 1 for what is the same, whatever the ids are called."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.information import ValueSample, mutual_information


def columns(samples: int = 4000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    city = rng.integers(0, 40, samples)
    return {
        "city": city,
        "twin": (city * 7) % 41,  # another name for the same
        "country": city // 8,
        "noise": rng.integers(0, 40, samples),
        "fine noise": rng.integers(0, 3000, samples),
    }


def test_known_relations() -> None:
    found = mutual_information(columns())
    value = dict(zip(found.features, found.values, strict=True))
    city = dict(zip(found.features, value["city"], strict=True))
    assert city["twin"] == pytest.approx(1.0)
    assert 0.5 < city["country"] < 1.0
    assert city["noise"] < 0.01
    assert city["fine noise"] < 0.02  # many values in few samples look related, but for the shuffle
    np.testing.assert_array_equal(found.values, found.values.T)


def test_names_and_order_of_ids_and_features_do_not_matter() -> None:
    before = mutual_information(columns())
    renamed = {name: 1000 - 3 * column for name, column in reversed(columns().items())}
    after = mutual_information(renamed)
    np.testing.assert_allclose(after.select(before.features), before.values, atol=1e-12)


def test_rows_stand_for_ids() -> None:
    ids = columns(1500)
    tables = {name: torch.randn(int(column.max()) + 1, 8) for name, column in ids.items()}
    sample = ValueSample(list(ids), max_samples=1200)
    for start in range(0, 1500, 500):
        sample.update({n: tables[n][torch.from_numpy(c[start : start + 500])] for n, c in ids.items()})
    assert sample.full and sample.samples == 1200
    expected = mutual_information({name: column[:1200] for name, column in ids.items()})
    np.testing.assert_allclose(mutual_information(sample.values()).values, expected.values, atol=1e-12)


def test_bad_input() -> None:
    with pytest.raises(PlanError, match=r"\['same'\] have one value, or none, in all of 3 samples"):
        mutual_information({"a": [1, 2, 3], "same": [5, 5, 5]})
    allowed = mutual_information({"a": [1, 2, 3], "same": [5, 5, 5]}, missing="zero")
    np.testing.assert_array_equal(allowed.values, np.eye(2))
    with pytest.raises(PlanError, match="different numbers of samples"):
        mutual_information({"a": [1, 2], "b": [1]})
    with pytest.raises(PlanError, match="no samples"):
        mutual_information({})
    with pytest.raises(PlanError, match="embeddings of 'a' are not finite"):
        ValueSample(["a"]).update({"a": torch.tensor([[torch.nan]])})
