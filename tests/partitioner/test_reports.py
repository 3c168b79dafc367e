"""What a person sees of a partition: every feature is named, in the PNG, on the page and in the terminal."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dmt_plugin.partitioner import Partition
from dmt_plugin.report.partition.page import page_of
from dmt_plugin.report.partition.picture import MOST_NAMES, save_png, tower_style
from dmt_plugin.report.partition.view import table_of, view_of
from tests.partitioner.planted import made, planted


def partition(features: int = 12, towers: int = 3, **config: object) -> Partition:
    return made(planted(features, towers, 1.0, 0)[0], features, towers, **config)


def text_of(shown: Partition) -> str:
    stream = io.StringIO()
    view = view_of(shown)
    Console(file=stream, width=120).print(table_of(view).to_rich(view.headline))
    return stream.getvalue()


@pytest.mark.parametrize("config", [{}, {"balance": "cost"}, {"strategy": "graph"}, {"strategy": "random"}])
def test_the_page_stands_alone_and_names_everything(config: dict[str, object], tmp_path: Path) -> None:
    shown = partition(**config)
    html = page_of(view_of(shown)).write(tmp_path / "p.html").read_text()
    names = [name for tower in shown.towers for name in tower]
    assert all(name in html for name in names)
    assert not re.search(r'(src|href)="(?!#|data:)', html) and "<script" not in html
    assert html.count("<svg") == (
        3
        if config.get("strategy", "learned") == "learned"
        else 2
        if "balance" in config or config.get("strategy") == "graph"
        else 1
    )


@pytest.mark.parametrize("features", [12, MOST_NAMES + 10])
def test_the_picture(features: int, tmp_path: Path) -> None:
    file = save_png(view_of(partition(features)), tmp_path / "deep" / "p.png", dpi=50)
    assert file.read_bytes()[:4] == b"\x89PNG" and file.stat().st_size > 20_000
    again = save_png(view_of(partition(features)), tmp_path / "q.png", dpi=50)
    assert file.read_bytes() == again.read_bytes()


def test_the_terminal_table() -> None:
    text = text_of(partition(balance="cost"))
    assert "12 features in 3 towers, strategy learned, objective coherent" in text and "balance by cost" in text
    assert all(f"f{i:04d}" in text for i in range(12))
    assert "affinity" in text_of(partition()) and "cost" not in text_of(partition()).replace("mean |cos|", "")


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """What is markup or a formula to those who draw is a name to us."""
    names = ("hist[item]", "hist[/x]", "price$usd_$", "a$x$", "<b>&amp;")
    shown = Partition((names[:3], names[3:]), {"strategy": "file"})
    text = text_of(shown)
    assert all(name in text for name in names), text
    pictured = view_of(partition(len(names), 2))
    order = [int(name[-4:]) for name in pictured.names]
    pictured = dataclasses.replace(pictured, names=tuple(names[i] for i in order))
    assert save_png(pictured, tmp_path / "names.png").stat().st_size > 5_000
    page = page_of(pictured).render()
    assert "price$usd_$" in page and "&lt;b&gt;&amp;amp;" in page


def test_figures_of_the_view() -> None:
    shown = partition()
    view = view_of(shown)
    assert [len(t) for t in shown.towers] == list(view.sizes) == [int(x) for x in view.loads]
    assert view.points is not None and view.affinity is not None and shown.layout is not None
    first = shown.towers[0][0]
    np.testing.assert_array_equal(view.points[0], shown.layout.points[shown.features.index(first)])
    assert view.affinity[0, 1] == planted(12, 3, 1.0, 0)[0].select([first, view.names[1]])[0, 1]


def test_a_shared_path_is_left_out_of_names() -> None:
    from dmt_plugin.report.partition.view import _short

    assert _short(["model.tables.a", "model.tables.b.c"]) == ["a", "b.c"]
    assert _short(["a", "b"]) == ["a", "b"] and _short(["x.a"]) == ["a"]


def test_tower_styles_differ() -> None:
    assert len({tower_style(t) for t in range(100)}) == 100
