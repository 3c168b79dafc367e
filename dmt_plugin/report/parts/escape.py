"""Plain text to HTML: everything is escaped; `code` between backticks is the only markup."""

from __future__ import annotations

import html
import re


def inline(text: str) -> str:
    """One line or paragraph of text as HTML."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
