from __future__ import annotations

from pathlib import Path

import pytest

from examples import flights


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flights") / "flights.npz"
    flights.load(path)
    return path


@pytest.fixture(scope="session")
def data(data_file: Path) -> flights.Flights:
    return flights.load(data_file)
