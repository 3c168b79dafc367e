"""A diagnosis as plain text, to be read in a terminal and pasted into an issue."""

from __future__ import annotations

import textwrap
from datetime import datetime, timezone

from dmt_plugin.doctor.program import Diagnosis

WIDTH = 110
_NAME = 15


def written(diagnosis: Diagnosis) -> str:
    """The page: a line for each check, what is expected and what to change below those that need it."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    lines = [f"dmt doctor, {now}, {diagnosis.device or 'unknown device'}, {diagnosis.how}", ""]
    for check in diagnosis.checks:
        finding = check.finding
        mark = finding.status if finding.status != "fail" else "FAIL"
        lines += _wrapped(f"{mark:<5} {check.name:<{_NAME}}", f"{finding.found}  [{check.seconds:.1f} s]")
        if finding.status in ("warn", "fail"):
            for label, text in (("expected", finding.expected), ("change", finding.change)):
                if text:
                    lines += _wrapped(f"{'':<6}{label:>{_NAME}}", text)
    counted = {status: sum(c.status == status for c in diagnosis.checks) for status in ("ok", "warn", "fail", "skip")}
    said = ", ".join(f"{n} {status}" for status, n in counted.items() if n)
    return "\n".join([*lines, "", f"{said}; exit status {diagnosis.exit_status}"])


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{head} {text}",
        WIDTH,
        subsequent_indent=" " * (_NAME + 7),
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=True,
    )
