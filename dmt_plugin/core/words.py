"""Words of messages about values: what was found, what was expected, and what was probably meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence

_LONGEST = 60


def shown(value: object) -> str:
    """A value as JSON has it, shortened."""
    try:
        text = json.dumps(value, default=repr)
    except (ValueError, TypeError, RecursionError):  # too many digits, a circle, keys that are no strings
        text = f"{type(value).__name__} that cannot be shown"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def listing(words: Sequence[str]) -> str:
    """``"a", "b" or "c"``."""
    quoted = [json.dumps(word) for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def did_you_mean(value: object, words: Sequence[str]) -> str:
    """The word that is most like a value, as a question; empty where none is."""
    close = difflib.get_close_matches(value, words, n=1, cutoff=0.6) if isinstance(value, str) else []
    return f' (did you mean "{close[0]}"?)' if close else ""
