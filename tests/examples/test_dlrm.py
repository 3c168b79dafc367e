"""The model of the example: a plain flat DLRM."""

from __future__ import annotations

import ast
from pathlib import Path

import torch

from examples import dlrm


def test_forward_gives_one_logit_per_sample() -> None:
    torch.manual_seed(0)
    model = dlrm.build()
    dense, sparse = dlrm.example_batch(5)
    assert dense.shape == (5, 9) and sparse.shape == (5, 21) and sparse.dtype == torch.int64
    assert model(dense, sparse).shape == (5,)


def test_interactions_are_all_pairs() -> None:
    torch.manual_seed(0)
    model = dlrm.DLRM({"a": 3, "b": 4}, 2, width=4)
    seen: list[torch.Tensor] = []
    model.top.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    dense, sparse = torch.randn(2, 2), torch.tensor([[1, 2], [0, 3]])
    model(dense, sparse)
    x = model.bottom(dense)
    a, b = model.tables["a"](sparse[:, 0]), model.tables["b"](sparse[:, 1])
    expected = torch.cat(
        [x, (x * a).sum(1, keepdim=True), (x * b).sum(1, keepdim=True), (a * b).sum(1, keepdim=True)], 1
    )
    torch.testing.assert_close(seen[0], expected)


def test_same_seed_same_weights() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(dlrm.build().state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_model_file_needs_nothing_but_torch() -> None:
    tree = ast.parse(Path(dlrm.__file__).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} == {"__future__", "collections", "itertools", "torch"}
