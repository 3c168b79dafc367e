"""Plain data, as JSON gives it, read entry by entry: each of its type and within its range, or refused by its path.

Types are strict, as in the configuration: a number is not made of a string, ``true`` is no number, ``1.0`` is no whole
one. An entry that nobody reads is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from dmt_plugin.core.errors import DMTError
from dmt_plugin.core.limits import LARGEST, MOST, fault_of_text
from dmt_plugin.core.words import did_you_mean, listing, shown


@dataclass(frozen=True)
class Entry:
    """A value, and where it stands.

    Attributes:
        value: as it was read.
        about: what messages begin with, such as ``"not a tower plan"``.
        error: what is raised.
        path: where it stands, such as ``"tables[1].rows"``; empty for the whole.
    """

    value: Any
    about: str
    error: type[DMTError]
    path: str = ""

    def fail(self, text: str) -> NoReturn:
        """Raises the error, with the path in front of a text."""
        raise self.error(f"{self.about}: {self.path}{': ' if self.path else ''}{text}.")

    def refuse(self, expected: str) -> NoReturn:
        """Raises the error: what was found, what was expected."""
        self.fail(f"found {shown(self.value)}, expected {expected}")

    def whole(self, least: int = 0, most: int = MOST) -> int:
        """A whole number from ``least`` to ``most``."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not least <= self.value <= most:
            self.refuse(f"a whole number from {least} to {most}")
        return self.value

    def number(self, least: float = 0.0, most: float = LARGEST) -> float:
        """A number from ``least`` to ``most``."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            self.refuse(f"a number from {least:g} to {most:g}")
        return value

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            self.refuse("true or false")
        return self.value

    def text(self, empty: bool = False) -> str:
        """A text that may be a name; an empty one only where that is said."""
        if not isinstance(self.value, str) or not (self.value or empty):
            self.refuse("a text" if empty else "a text that is not empty")
        if fault := fault_of_text(self.value):
            self.fail(f"found a text with {fault}")
        return self.value

    def word(self, known: Sequence[str]) -> str:
        """One of the ``known`` words."""
        if not isinstance(self.value, str) or self.value not in known:
            self.fail(f"found {shown(self.value)}{did_you_mean(self.value, known)}, expected {listing(known)}")
        return self.value

    def items(self) -> list[Entry]:
        """The entries of a list."""
        if not isinstance(self.value, (list, tuple)):
            self.refuse("a list")
        return [self._at(f"[{i}]", value) for i, value in enumerate(self.value)]

    def named(self) -> dict[str, Entry]:
        """The entries of an object, under names that are the user's own."""
        if not isinstance(self.value, Mapping):
            self.refuse("an object")
        for key in self.value:
            self._at("", key).text()
        return {key: self._at(f"[{shown(key)}]", value) for key, value in self.value.items()}

    def section(self, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Entry]:
        """The entries of an object with known keys; those that are not required may be missing."""
        if not isinstance(self.value, Mapping):
            self.refuse("an object")
        due = tuple(required)
        known = (*due, *optional)
        missing = [key for key in due if key not in self.value]
        unknown = [key for key in self.value if key not in known]
        if missing or unknown:
            meant = did_you_mean(unknown[0], known) if unknown else ""
            self.fail(f"missing entries {missing}, unknown entries {unknown}{meant}; expected {listing(known)}")
        dot = "." if self.path else ""
        return {key: self._at(f"{dot}{key}", value) for key, value in self.value.items()}

    def _at(self, step: str, value: Any) -> Entry:
        return Entry(value, self.about, self.error, self.path + step)
