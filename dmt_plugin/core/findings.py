"""Findings: what the transform has to say about one place in the user's model.

A finding has a stable code ("DMT201"), a severity, the place it speaks of, a reason and a way out. Passes
collect them; ``dmt explain`` prints them; errors of severity "error" end in a ``TransformError``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["error", "warning", "info"]

_CODE = re.compile(r"DMT\d{3}")
_RANK: dict[str, int] = {name: position for position, name in enumerate(get_args(Severity))}


@dataclass(frozen=True)
class Finding:
    """One coded statement about one place in the model.

    Attributes:
        code: "DMT" and three digits. The first digit names the stage.
        severity: "error" (the transform refuses), "warning" (it went on, look at this) or "info".
        module: Module path or graph node the finding is about, "" for the model as a whole.
        reason: What was found and why that matters.
        hint: What to change, "" where nothing has to be changed.
        source: The line of the user's code, "" where it is none or the reason has it.

    Raises:
        ValueError: If the code or the severity is not one of the above.
    """

    code: str
    severity: Severity
    module: str
    reason: str
    hint: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if not _CODE.fullmatch(self.code):
            raise ValueError(f"finding code {self.code!r} is not 'DMT' and three digits")
        if self.severity not in _RANK:
            raise ValueError(f"finding severity {self.severity!r} is none of {', '.join(_RANK)}")

    def __str__(self) -> str:
        text = f"{self.code} {self.severity}: {self.module or '(model)'}: {self.reason}"
        if self.source:
            text += f" (at {self.source})"
        if self.hint:
            text += f" | {self.hint}"
        return " ".join(text.split())


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Order findings for a reader: errors first, then warnings, then notes; then by code and module."""
    return tuple(sorted(findings, key=lambda f: (_RANK[f.severity], f.code, f.module)))
