"""What users get to read of wrong models and batches: the text itself, and whether its advice can be followed."""

from __future__ import annotations

import pytest

from tests.messages import CASES, GOLDEN, outcome


def written() -> dict[str, str]:
    """The messages in the file, by case."""
    paragraphs = (part.split("\n", 1) for part in GOLDEN.read_text().strip().split("## ")[1:])
    return {name: text.strip() for name, text in paragraphs}


@pytest.mark.parametrize("name", list(CASES))
def test_the_message(name: str) -> None:
    """Another text on purpose: ``python -m tests.messages`` writes the file."""
    said = outcome(CASES[name])
    assert said == written()[name]
    assert "Traceback" not in said and "eval_with_key" not in said and "assert" not in said.lower()


@pytest.mark.campaign
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.followed is not None])
def test_the_advice(name: str) -> None:
    """A model that follows it is taken, or refused for another reason."""
    case = CASES[name]
    assert case.followed is not None
    found = outcome(case.followed)
    assert not found or found.split("DMT")[-1][:3] != written()[name].split("DMT")[-1][:3]


def test_every_case_is_there() -> None:
    assert set(written()) == set(CASES) and len(CASES) >= 30
    assert all(written().values())
