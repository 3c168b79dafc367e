"""A self-contained HTML page: text, tables and inline pictures, readable offline, in light and dark.

1. Blocks (`paragraph`, `tiles`, `figure`, `facts`, `columns`, `code`, `details`) turn data into escaped HTML.
2. `Page` collects them under headings.
3. `Page.render` puts the style sheet in front. Nothing is loaded from elsewhere: no scripts, fonts or images.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dmt_plugin.report.parts.escape import inline
from dmt_plugin.report.parts.style import STYLE


@dataclass(frozen=True)
class Tile:
    """A figure set large.

    Attributes:
        value: the figure, with its unit.
        label: what it is.
        note: what it compares with.
    """

    value: str
    label: str
    note: str = ""


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{inline(text)}</p>"


def tiles(entries: Sequence[Tile]) -> str:
    """A row of figures set large."""
    shown = [
        f'<div class="tile"><b>{inline(tile.value)}</b><span>{inline(tile.label)}</span>'
        f"<small>{inline(tile.note)}</small></div>"
        for tile in entries
    ]
    return f'<div class="tiles">{"".join(shown)}</div>'


def figure(svg: str, caption: str, title: str = "") -> str:
    """An inline picture with a caption below and, if given, a title above."""
    heading = f"<h3>{inline(title)}</h3>" if title else ""
    return f'<figure>{heading}<div class="scroll">{svg}</div><figcaption>{inline(caption)}</figcaption></figure>'


def columns(*blocks: str) -> str:
    """Blocks side by side where the screen is wide enough."""
    return f'<div class="columns">{"".join(f"<div>{block}</div>" for block in blocks)}</div>'


def facts(entries: Mapping[str, str]) -> str:
    """Names with their values, one pair a line."""
    pairs = "".join(f"<dt>{inline(name)}</dt><dd>{inline(value)}</dd>" for name, value in entries.items())
    return f'<dl class="facts">{pairs}</dl>'


def code(text: str, title: str = "") -> str:
    """Text in a fixed-width font, as it is."""
    heading = f"<h3>{inline(title)}</h3>" if title else ""
    return f'{heading}<pre class="scroll"><code>{html.escape(text)}</code></pre>'


def details(summary: str, *blocks: str) -> str:
    """Blocks that are folded away until the reader opens them."""
    return f"<details><summary>{inline(summary)}</summary>{''.join(blocks)}</details>"


@dataclass
class Page:
    """A page under construction.

    Attributes:
        title: heading, and the name of the browser's tab.
        lead: a sentence or two below the heading.
        kicker: a line above the heading.
        footer: a line at the end.
    """

    title: str
    lead: str = ""
    kicker: str = ""
    footer: str = ""
    _sections: list[str] = field(default_factory=list)

    def section(self, heading: str, *blocks: str) -> None:
        """Adds blocks of HTML under a heading; an empty heading leaves it out."""
        shown = f"<h2>{inline(heading)}</h2>" if heading else ""
        self._sections.append(f"<section>{shown}{''.join(blocks)}</section>")

    def render(self) -> str:
        """The whole page."""
        kicker = f'<p class="kicker">{inline(self.kicker)}</p>' if self.kicker else ""
        lead = f'<p class="lead">{inline(self.lead)}</p>' if self.lead else ""
        footer = f"<footer>{inline(self.footer)}</footer>" if self.footer else ""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{html.escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<header>{kicker}<h1>{inline(self.title)}</h1>{lead}</header>\n"
            + "\n".join(self._sections)
            + f"\n{footer}\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Writes the page to a file and returns its path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.render(), encoding="utf-8")
        return target
