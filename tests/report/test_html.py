"""Pages: valid, escaped, self-contained."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dmt_plugin.report.explain.graph_picture import Edge, Graph, Node, picture_of_graph
from dmt_plugin.report.parts import figures, html
from dmt_plugin.report.parts.tables import Column, Table

VOID = {"meta", "link", "br", "img", "hr", "input", "wbr"}


class Checker(HTMLParser):
    """Collects ids and references and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "data"):
                self.references.append(str(value))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


@pytest.fixture
def page() -> html.Page:
    curve = {"a": ([1.0, 2.0], [0.6, 0.7]), "b": ([1.0, 2.0], [0.5, 0.7])}
    graph = Graph([Node("x", "in <1>", "input"), Node("y", "out", "output")], [Edge("x", "y")])
    page = html.Page("A & B", lead="bytes < before", kicker="k", footer="f")
    page.section("Tiles", html.tiles([html.Tile("5 %", "less", "than `flat`")]))
    page.section(
        "Pictures",
        html.columns(
            html.figure(figures.stacked_bars(["p", "q"], {"u": [1, 2], "v": [3, 4]}, unit="B", name="one"), "bars"),
            html.figure(figures.curves(curve, x_label="x", y_label="y", name="two"), "curves"),
        ),
        html.figure(picture_of_graph(graph), "graph"),
    )
    table = Table(
        [Column("n", "name"), Column("v", "value", ".2f", "unit")], [{"n": "a", "v": 1.0}, {"n": "b"}], ["note"]
    )
    page.section("Table", table.to_html(), html.facts({"date": "today"}), html.code("a < b"), html.paragraph("p"))
    return page


def test_page_is_well_formed_and_self_contained(page: html.Page) -> None:
    text = page.render()
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert all(reference.startswith("#") for reference in checker.references)
    assert {reference[1:] for reference in checker.references} <= set(checker.ids)
    assert not checker.tags & {"script", "link", "img", "iframe", "object"}
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{name}" for name in checker.ids}
    assert "@import" not in text
    # The name of the SVG language is the only address.
    assert set(re.findall(r"https?://[^\"'\s<]*", text)) <= {"http://www.w3.org/2000/svg"}


def test_text_is_escaped(page: html.Page) -> None:
    text = page.render()
    for expected in ("<title>A &amp; B</title>", "bytes &lt; before", "in &lt;1&gt;", "a &lt; b"):
        assert expected in text


def test_figures_follow_the_page(page: html.Page) -> None:
    text = page.render()
    assert text.count("<svg") == 3 and text.count("<figcaption>") == 3
    assert "var(--series-1)" in text and "var(--part-2)" in text
    assert not re.search(r"#0a[0-9a-f]{2}c3", text)  # no placeholder is left
    assert "<metadata" not in text and "<?xml" not in text


def test_page_is_written(page: html.Page, tmp_path: Path) -> None:
    path = page.write(tmp_path / "new" / "index.html")
    assert path.read_text(encoding="utf-8") == page.render()


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_svg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeError, match=r"dmt-plugin\[report\]"):
        figures.curves({"a": ([1], [1])}, x_label="x", y_label="y")


def test_table_for_the_terminal() -> None:
    from rich.console import Console

    table = Table(
        [Column("n", "name"), Column("v", "value", ",.1f")], [{"n": "a", "v": 1234.5}, {"n": "b"}], ["see `x`"]
    )
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table.to_rich("title"))
    text = console.export_text()
    assert "1,234.5" in text and "see x" in text and "-" in text
