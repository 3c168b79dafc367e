"""The plane: known configurations come back, the stress is that of a reference solver or less, the seed decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.manifold import smacof

from dmt_plugin.partitioner.layout import _gradient, distances, lay_out
from tests.partitioner.planted import planted


def apart(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=2)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_points_come_back(dimensions: int) -> None:
    wanted = apart(np.random.default_rng(0).normal(size=(15, dimensions)))
    found = lay_out(wanted, dimensions=dimensions)
    assert found.stress < 1e-6 * (wanted**2).sum()
    np.testing.assert_allclose(apart(found.points), wanted, atol=1e-3)
    np.testing.assert_allclose(found.points.mean(0), 0, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_as_good_as_smacof(seed: int) -> None:
    affinity, _ = planted(24, 4, 1.5, seed)
    wanted = distances(affinity.values, "coherent", stretched=False)
    _, reference = smacof(wanted, n_components=2, n_init=8, random_state=seed, normalized_stress=False)
    found = lay_out(wanted, seed=seed)
    assert found.stress <= reference * 1.01
    assert found.stress == pytest.approx(((apart(found.points) - wanted) ** 2).sum() / 2)
    assert found.stress_1 == pytest.approx(np.sqrt(2 * found.stress / (wanted**2).sum()))


def test_the_gradient_is_that_of_the_stress() -> None:
    points = torch.randn(3, 7, 2, dtype=torch.float64, requires_grad=True)
    wanted = torch.rand(7, 7, dtype=torch.float64)
    wanted = (wanted + wanted.t()).fill_diagonal_(0)
    pairs = torch.triu_indices(7, 7, offset=1)
    d = (points[:, pairs[0]] - points[:, pairs[1]]).norm(dim=2)
    ((d - wanted[pairs[0], pairs[1]]) ** 2).sum().backward()
    torch.testing.assert_close(_gradient(points.detach(), wanted), points.grad)


def test_the_seed_decides() -> None:
    wanted = distances(planted(12, 3, 2.0, 0)[0].values, "diverse", stretched=True)
    a, b, c = lay_out(wanted, seed=1), lay_out(wanted, seed=1), lay_out(wanted, seed=2)
    np.testing.assert_array_equal(a.points, b.points)
    assert a.restarts == b.restarts != c.restarts
    assert a.stress == min(a.restarts)


@pytest.mark.parametrize("count", [1, 2])
def test_few_features(count: int) -> None:
    found = lay_out(1 - np.eye(count))
    assert found.points.shape == (count, 2) and np.isfinite(found.points).all()
    assert found.stress < 1e-9


def test_equal_distances_of_zero_have_no_direction() -> None:
    found = lay_out(np.zeros((5, 5)))
    assert np.isfinite(found.points).all() and found.stress_1 == 0


def test_distances() -> None:
    values = np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.3], [0.4, 0.3, 1.0]])
    np.testing.assert_allclose(distances(values, "coherent", stretched=False)[0], [0, 0.8, 0.6])
    np.testing.assert_allclose(distances(values, "diverse", stretched=False)[0], [0, 0.2, 0.4])
    np.testing.assert_allclose(distances(values, "coherent", stretched=True), [[0, 1, 0], [1, 0, 0.5], [0, 0.5, 0]])
    np.testing.assert_allclose(distances(np.ones((2, 2)), "coherent", stretched=True), 0)
