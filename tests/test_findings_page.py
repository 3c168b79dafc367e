"""docs/findings.md has one row for every code in the sources, and for nothing else."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "findings.md"
CODE = re.compile(r"\"(DMT\d{3})\"")


def rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| DMT")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({row[0] for row in cells}) == len(cells)
    return {row[0]: row[1:] for row in cells}


def used() -> Counter[str]:
    files = [*ROOT.glob("passes/**/*.py"), *ROOT.glob("dmt_plugin/**/*.py"), *ROOT.glob("integrations/**/*.py")]
    return Counter(code for file in files for code in CODE.findall(file.read_text()))


def test_every_code_is_documented_and_every_documented_code_exists() -> None:
    assert set(rows()) == set(used())


def test_rows_are_complete_and_in_order() -> None:
    assert list(rows()) == sorted(rows())
    for code, cells in rows().items():
        assert len(cells) == 4 and all(cells), code
        assert cells[0] in ("error", "warning", "info", "error or warning"), code


def test_the_severity_is_that_of_the_sources() -> None:
    """Codes whose severity depends on dmt.transform.on_unsupported are written with a condition in the source."""
    text = "\n".join(file.read_text() for file in sorted(ROOT.glob("passes/*.py")))
    for code, cells in rows().items():
        place = text.find(f'"{code}"')
        if place < 0 or code in ("DMT201", "DMT202", "DMT203", "DMT204", "DMT206", "DMT207"):
            continue  # verify.py, and the table of unsupported layers: always errors
        following = text[place : place + 120].split(",")[1].strip()
        conditional = following.startswith('"warning" if')
        assert conditional == (cells[0] == "error or warning"), code
        if not conditional:
            assert following.strip('"') == cells[0], code
