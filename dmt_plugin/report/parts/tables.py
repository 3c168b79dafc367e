"""One table, two looks: a `rich` table for the terminal and an HTML table for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import rich.box
import rich.table
from rich.markup import escape

from dmt_plugin.report.parts.escape import inline


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: where a row keeps its value.
        title: heading.
        format: format specification for numbers, such as `".4f"` or `",.0f"`.
        note: second, smaller line of the heading: a unit, or how the figures were obtained.
        text: cells are text, set flush left and broken into lines, rather than figures.
        styles: how the terminal shows some of the cells, by their text, such as ``{"error": "red"}``.
    """

    key: str
    title: str
    format: str = ""
    note: str = ""
    text: bool = False
    styles: Mapping[str, str] = field(default_factory=dict)

    def show(self, row: Mapping[str, object]) -> str:
        """The text of this column's cell in `row`; a dash where there is no value."""
        value = row.get(self.key)
        if value is None:
            return "-"
        return format(value, self.format)


@dataclass
class Table:
    """Rows under columns.

    Attributes:
        columns: the first one labels the row.
        rows: one mapping per row.
        notes: sentences below the table.
        emphasis: label of a row to set off, if any.
    """

    columns: Sequence[Column]
    rows: Sequence[Mapping[str, object]]
    notes: Sequence[str] = field(default_factory=tuple)
    emphasis: str | None = None

    def to_rich(self, title: str | None = None) -> rich.table.Table:
        """The table for the terminal."""
        shown = rich.table.Table(
            title=None if title is None else escape(title),
            caption=escape("\n".join(self.notes).replace("`", "")) or None,
            box=rich.box.SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
            caption_justify="left",
            title_justify="left",
        )
        for place, column in enumerate(self.columns):
            gap = " " if column.text else "\n"  # narrow columns of figures: a terminal has 80 characters
            heading = column.title.replace(" ", gap)
            heading += f"\n[dim]{column.note.replace(' ', gap)}[/dim]" if column.note else ""
            no_wrap = not (place or column.text)
            justify: Literal["left", "right"] = "right" if place and not column.text else "left"
            shown.add_column(heading, justify=justify, vertical="bottom", overflow="fold", no_wrap=no_wrap)
        for row in self.rows:
            cells = [(column.show(row), column.styles) for column in self.columns]
            marked = [f"[{styles[cell]}]{cell}" if cell in styles else escape(cell) for cell, styles in cells]
            shown.add_row(*marked, style="bold" if cells[0][0] == self.emphasis else None)
        return shown

    def to_html(self) -> str:
        """The table as HTML, in a box that scrolls sideways on a narrow screen."""
        kinds = [' class="text"' if c.text else "" for c in self.columns]
        heading = "".join(
            f'<th scope="col"{kind}>{inline(c.title)}{f"<small>{inline(c.note)}</small>" if c.note else ""}</th>'
            for c, kind in zip(self.columns, kinds, strict=True)
        )
        body = []
        for row in self.rows:
            first, *rest = [_cell(column, row) for column in self.columns]
            mark = ' class="emphasis"' if self.columns[0].show(row) == self.emphasis else ""
            cells = "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
            body.append(f'<tr{mark}><th scope="row"{kinds[0]}>{first}</th>{cells}</tr>')
        notes = "".join(f"<li>{inline(note)}</li>" for note in self.notes)
        return (
            f'<div class="scroll"><table><thead><tr>{heading}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
            + (f'<ul class="notes">{notes}</ul>' if notes else "")
        )


def _cell(column: Column, row: Mapping[str, object]) -> str:
    """A cell as HTML; a dotted name may be broken at its dots."""
    text = inline(column.show(row))
    return text.replace(".", ".<wbr>") if column.text else text
