from __future__ import annotations

import pytest

from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.sizes import parse_bytes, say_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("16GiB", 16 * 2**30), ("1.5 GB", 1_500_000_000), ("512 mib", 512 * 2**20), ("7B", 7), ("2TiB", 2 * 2**40)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected
    assert DMTConfig.model_validate({"placement": {"memory_per_rank": text}}).placement.memory_limit == expected


@pytest.mark.parametrize("text", ["", "16", "GiB", "-1GiB", "16 GiBs", "1,5GiB", "1e3KB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a number with a unit out of B, KB, .*TiB"):
        parse_bytes(text)


def test_limits() -> None:
    assert DMTConfig().placement.memory_limit is None
    assert DMTConfig.model_validate({"placement": {"memory_per_rank": 5}}).placement.memory_limit == 5


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 2**20, "1.5 GiB"), (2**42, "4.0 TiB")]
)
def test_words(count: int, text: str) -> None:
    assert say_bytes(count) == text
