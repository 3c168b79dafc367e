"""Affinity from files of ids and from checkpoints: the same as from the arrays, and errors that name the feature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.cosine import cosine_from_tables
from dmt_plugin.partitioner.information import mutual_information
from dmt_plugin.partitioner.samples import affinity_of_ids, read_ids, tables_of


def ids_file(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "ids.npz", **arrays)
    return folder / "ids.npz"


def test_cosines_are_those_of_the_tables(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bags = rng.integers(-1, 5, (40, 3))
    ids = read_ids(ids_file(tmp_path, user=rng.integers(0, 9, 40).astype(np.int32), item=bags))
    state = {"net.user.weight": torch.randn(9, 4), "item": torch.randn(5, 4), "head.bias": torch.zeros(3)}
    found = affinity_of_ids(ids, "cosine", state, samples=30)
    direct = cosine_from_tables(
        {"user": state["net.user.weight"], "item": state["item"]},
        {name: torch.from_numpy(values[:30]) for name, values in ids.items()},
    )
    np.testing.assert_array_equal(found.values, direct.values)
    assert found.samples == 30 and found.features == ("user", "item")


def test_a_bag_is_one_value_whatever_its_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 6, 200)
    bags = np.stack([plain, plain + 10, np.full(200, -1)], axis=1)
    mixed = np.stack([rng.permutation(row) for row in bags])
    mixed[mixed < 0] = -rng.integers(1, 9)  # any negative number is no id
    ids = read_ids(ids_file(tmp_path, plain=plain, bag=mixed, other=rng.integers(0, 6, 200)))
    found = affinity_of_ids(ids, "mutual_information")
    assert found.select(["plain", "bag"])[0, 1] == pytest.approx(1.0)
    expected = mutual_information({"plain": plain, "bag": plain, "other": ids["other"]})
    np.testing.assert_allclose(found.values, expected.values, atol=1e-12)


def test_tables_are_found_by_name() -> None:
    state = {"a": torch.zeros(2, 3), "m.b.weight": torch.ones(2, 3), "n.bb.weight": torch.zeros(2, 3)}
    assert tables_of(state, ["a", "b"])["b"] is state["m.b.weight"]
    with pytest.raises(PlanError, match="no table for the feature 'c'; its matrices are"):
        tables_of(state, ["a", "c"])
    with pytest.raises(PlanError, match=r"the tables \['m\.b\.weight', 'n\.b\.weight'\] for the feature 'b'"):
        tables_of({**state, "n.b.weight": torch.zeros(2, 3)}, ["b"])


def test_files_that_hold_no_ids(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="'user' holds float64 of shape"):
        read_ids(ids_file(tmp_path, user=np.zeros(3)))
    with pytest.raises(PlanError, match="'user' holds int64 of shape"):
        read_ids(ids_file(tmp_path, user=np.zeros((3, 2, 1), np.int64)))
    with pytest.raises(PlanError, match="has no entry"):
        read_ids(ids_file(tmp_path))
    with pytest.raises(PlanError, match="no such file"):
        read_ids(tmp_path / "gone.npz")
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_text("")
    np.save(tmp_path / "one.npy", np.arange(3))
    for name in ("text.npz", "empty.npz", "one.npy"):
        with pytest.raises(PlanError, match="is not a file of ids"):
            read_ids(tmp_path / name)
    hashed = np.array([2**63 + 1, 2**63 + 2], dtype=np.uint64)
    with pytest.raises(PlanError, match=r"'user' holds ids up to 9223372036854775810, which no int64 holds"):
        read_ids(ids_file(tmp_path, user=hashed))
    assert read_ids(ids_file(tmp_path, user=hashed - np.uint64(2**63)))["user"].tolist() == [1, 2]


def test_what_a_sample_cannot_tell(tmp_path: Path) -> None:
    ids = read_ids(ids_file(tmp_path, a=np.arange(4), never=np.full((4, 2), -1)))
    with pytest.raises(PlanError, match=r"\['never'\] have one value, or none"):
        affinity_of_ids(ids, "mutual_information")
    state = {"a": torch.ones(4, 2), "never": torch.ones(4, 2)}
    with pytest.raises(PlanError, match=r"\['never'\] do not occur"):
        affinity_of_ids(ids, "cosine", state)
    with pytest.raises(PlanError, match="id 3 of 'a' is outside its table of 2 rows"):
        affinity_of_ids(ids, "cosine", {**state, "a": torch.ones(2, 2)})
    with pytest.raises(PlanError, match="needs embeddings"):
        affinity_of_ids(ids, "cosine")
