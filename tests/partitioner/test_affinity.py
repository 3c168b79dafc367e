"""Affinities: the formula, streaming, missing values, mixed widths, files that refuse other models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner import Affinity
from dmt_plugin.partitioner.cosine import CosineAccumulator, cosine_from_tables
from tests.partitioner.planted import planted_rows


def measured(*batches: dict[str, Tensor]) -> Affinity:
    found = CosineAccumulator(list(batches[0]))
    for batch in batches:
        found.update(batch)
    return found.result()


def test_the_mean_of_absolute_cosines() -> None:
    rows, _ = planted_rows(5, 2, 1.0, 0, samples=40)
    found = measured(rows)
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            expected = torch.cosine_similarity(rows[a], rows[b], dim=1).abs().mean()
            assert found.values[i, j] == pytest.approx(float(expected), abs=1e-6)
    assert found.samples == 40 and found.kind == "cosine"


def test_batches_add_up() -> None:
    rows, _ = planted_rows(6, 3, 1.0, 1, samples=50)
    parts = [{name: part[a:b] for name, part in rows.items()} for a, b in ((0, 7), (7, 8), (8, 50))]
    np.testing.assert_allclose(measured(*parts).values, measured(rows).values, atol=1e-12)


def test_a_zero_row_takes_part_in_no_pair() -> None:
    rows, _ = planted_rows(3, 1, 0.5, 2, samples=20)
    rows["f0001"][5:] = 0
    found = measured(rows)
    expected = torch.cosine_similarity(rows["f0000"][:5], rows["f0001"][:5], dim=1).abs().mean()
    assert found.values[0, 1] == pytest.approx(float(expected), abs=1e-6)
    rows["f0000"][:5] = 0  # now the two never meet
    assert measured(rows).values[0, 1] == 0


def test_rows_of_unequal_width_are_padded_and_it_is_said() -> None:
    rows = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[1.0, 0.0, 0.0]])}
    found = measured(rows)
    assert found.values[0, 1] == pytest.approx(0.6)
    assert found.notes == {"widths": [2, 3], "mixed_widths": "padded with zeros"}


def test_tables_and_ids_without_a_model() -> None:
    tables = {"a": torch.randn(9, 4), "b": torch.randn(5, 4)}
    ids = {"a": torch.randint(0, 9, (30,)), "b": torch.randint(0, 5, (30, 3))}
    ids["b"][4] = torch.tensor([2, -1, -1])
    rows = {"a": tables["a"][ids["a"]], "b": (tables["b"][ids["b"].clamp(min=0)] * (ids["b"] >= 0)[..., None]).sum(1)}
    found = cosine_from_tables(tables, ids, batch=7)
    np.testing.assert_allclose(found.values, measured(rows).values, atol=1e-6)
    with pytest.raises(PlanError, match="id 9 of 'a' is outside its table of 9 rows"):
        cosine_from_tables(tables, {**ids, "a": torch.full((30,), 9)})
    with pytest.raises(PlanError, match=r"tables without ids: \['b'\]"):
        cosine_from_tables(tables, {"a": ids["a"]})
    with pytest.raises(PlanError, match="different numbers of samples"):
        cosine_from_tables(tables, {**ids, "a": ids["a"][:5]})


def test_features_that_never_occur_are_named() -> None:
    rows = {"a": torch.ones(4, 2), "gone": torch.zeros(4, 2)}
    found = CosineAccumulator(list(rows))
    found.update(rows)
    with pytest.raises(PlanError, match=r"\['gone'\] do not occur in any of 4 samples"):
        found.result()
    np.testing.assert_array_equal(found.result(missing="zero").values, np.eye(2))


def test_what_is_not_finite_is_named() -> None:
    rows = {"a": torch.ones(4, 2), "bad": torch.ones(4, 2)}
    rows["bad"][2, 1] = torch.nan
    with pytest.raises(PlanError, match=r"\['bad'\] are not finite \(first: 'bad' in sample 2\)"):
        measured(rows)


def test_no_samples() -> None:
    with pytest.raises(PlanError, match="no samples"):
        CosineAccumulator(["a"]).result()


def small(**changes: object) -> Affinity:
    fields: dict[str, object] = {
        "features": ("a", "b"), "values": np.array([[1, 0.25], [0.25, 1]]), "kind": "cosine",
        "samples": 3, "model": "m",
    }  # fmt: skip
    return Affinity(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    before = small(notes={"widths": [4]})
    after = Affinity.load(before.save(tmp_path / "deep" / "x.npz"))
    np.testing.assert_array_equal(after.values, before.values)
    assert (after.features, after.kind, after.samples, after.model, after.notes) == (
        before.features, before.kind, before.samples, before.model, before.notes,
    )  # fmt: skip


def test_another_model_is_refused_by_name() -> None:
    small().check(["b", "a"], "m")
    small().check(["b", "a"])
    with pytest.raises(PlanError, match=r"x\.npz was measured on another model: it lacks the features \['c'\] and has"):
        small().check(["a", "b", "c"], "m", "x.npz")
    with pytest.raises(PlanError, match=r"has \['b'\], which this model has not"):
        small().check(["a"], "m")
    with pytest.raises(PlanError, match="measured on the model m, this model is n"):
        small().check(["a", "b"], "n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.array([[1, np.nan], [0.25, 1]])}, r"not finite at the features \['a'\]"),
        ({"values": np.array([[1, 0.5], [0.25, 1]])}, "'a' and 'b' is 0.5, and 0.25 the other way round"),
        ({"values": np.array([[1, 1.5], [1.5, 1]])}, "expected one number between 0 and 1"),
        ({"values": np.eye(3)}, "2 x 2 matrix; found the shape"),
        ({"features": ("a", "a")}, r"\['a'\] more than once"),
        ({"kind": "cos"}, "unknown kind of affinity 'cos'"),
    ],
)
def test_what_is_no_affinity(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        small(**changes)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"no such file: .*gone\.npz"):
        Affinity.load(tmp_path / "gone.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(PlanError, match=r"text\.npz is not an affinity file"):
        Affinity.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(PlanError, match=r"other\.npz is not an affinity file"):
        Affinity.load(tmp_path / "other.npz")
