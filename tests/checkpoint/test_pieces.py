"""What was written in any pieces is read in any others."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException

from dmt_plugin.checkpoint.compare import check_tensors
from dmt_plugin.checkpoint.manifest import Manifest, TensorEntry
from dmt_plugin.checkpoint.pieces import Piece, blocks, read_pieces, stored_tensors, vector
from dmt_plugin.checkpoint.single import volumes_of
from dmt_plugin.checkpoint.state import Targets
from dmt_plugin.checkpoint.writes import write_pieces
from dmt_plugin.core.errors import CheckpointError


@st.composite
def cuts(draw: st.DrawFn, size: int) -> list[tuple[int, int]]:
    """Ranges that cover ``0 .. size`` once."""
    inner = draw(st.sets(st.integers(1, size - 1), max_size=3)) if size > 1 else set()
    ends = [0, *sorted(inner), size]
    return list(itertools.pairwise(ends))


@st.composite
def halves(draw: st.DrawFn) -> tuple[int, int, list, list, list, list]:
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    return rows, columns, draw(cuts(rows)), draw(cuts(columns)), draw(cuts(rows)), draw(cuts(columns))


def rectangles(whole: torch.Tensor, rows: list, columns: list, copy: bool) -> list[Piece]:
    found = []
    for (a, b), (c, d) in itertools.product(rows, columns):
        values = whole[a:b, c:d]
        found.append(
            Piece("t", "table", tuple(whole.shape), (a, c), values.clone() if copy else torch.full_like(values, -1))
        )
    return found


@settings(max_examples=25, deadline=None)
@given(halves())
def test_rectangles(case: tuple[int, int, list, list, list, list]) -> None:
    rows, columns, row_cuts, column_cuts, other_rows, other_columns = case
    whole = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
    with tempfile.TemporaryDirectory() as folder:
        write_pieces(rectangles(whole, row_cuts, column_cuts, copy=True), Path(folder), None)
        wanted = rectangles(whole, other_rows, other_columns, copy=False)
        read_pieces(wanted, Path(folder), None)
        assert volumes_of(stored_tensors(Path(folder))) == {"t": whole.numel()}
    for piece in wanted:
        a, c = piece.offsets
        assert torch.equal(piece.values, whole[a : a + piece.values.shape[0], c : c + piece.values.shape[1]])


def test_vectors_in_ranges_views_and_other_types(tmp_path: Path) -> None:
    """As ZeRO cuts them; into a part of a padded tensor, into bf16, and a number without dimensions."""
    whole = torch.randn(3, 4)
    count = torch.tensor(7)
    write_pieces(
        [
            *(
                Piece("w", "dense", (12,), (first,), whole.view(-1)[first:end].clone(), (3, 4))
                for first, end in ((0, 5), (5, 6), (6, 12))
            ),
            vector("count", "buffer", count),
        ],
        tmp_path,
        None,
    )
    padded, low, number = torch.zeros(3, 6), torch.zeros(3, 4, dtype=torch.bfloat16), torch.tensor(0)
    part = torch.zeros(8)
    targets = Targets()
    targets.add("w", "dense", padded[:, :4])
    targets.add("w", "dense", low)
    targets.add("count", "buffer", number)
    targets.pieces.append(Piece("w", "dense", (12,), (4,), part[1:6], (3, 4)))
    read_pieces(targets.pieces, tmp_path, None)
    targets.finish()
    assert torch.equal(padded[:, :4], whole) and not padded[:, 4:].any()
    assert torch.equal(low, whole.bfloat16()) and number == 7
    assert torch.equal(part[1:6], whole.view(-1)[4:9]) and part[0] == part[6] == 0


def test_long_pieces_are_cut_into_blocks_of_rows() -> None:
    whole = torch.arange(70).view(10, 7)
    cut = blocks([Piece("t", "table", (20, 7), (5, 0), whole)], limit=21)
    assert [piece.offsets for piece in cut] == [(5, 0), (8, 0), (11, 0), (14, 0)]
    assert torch.equal(torch.cat([piece.values for piece in cut]), whole)
    assert len(blocks([Piece("t", "table", (10, 7), (0, 0), whole)], limit=3)) == 10, "a row is never cut"


def entry(*shape: int, dtype: str = "float32") -> TensorEntry:
    return TensorEntry("dense", shape, dtype)


STORED = {"model.a": entry(2, 3), "model.b": entry(4), "optimizer.sum.a": entry(2, 3), "model.n": entry(dtype="int64")}
VOLUMES = {"model.a": 6, "model.b": 4, "optimizer.sum.a": 6, "model.n": 1}


def check(wanted: dict[str, TensorEntry], volumes: dict[str, int] = VOLUMES, ignored: tuple[str, ...] = ()) -> None:
    manifest = Manifest("", 1, True, "", {}, "1x1", {}, True, {}, {}, STORED)
    check_tensors(wanted, manifest, volumes, ignored, "here")


def test_what_fits_and_what_does_not() -> None:
    check(STORED)
    check({**STORED, "model.a": entry(2, 3, dtype="bfloat16")})
    check({k: v for k, v in STORED.items() if k.startswith("model")}, ignored=("optimizer.",))
    for changed, message in (
        ({"model.c": entry(1)}, "it lacks model.c"),
        ({"model.a": entry(3, 2)}, r"model.a \[2, 3\] float32 instead of \[3, 2\]"),
        ({"model.n": entry()}, r"model.n \[\] int64 instead of \[\] float32"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check({**STORED, **changed})
    with pytest.raises(CheckpointError, match=r"it has optimizer\.sum\.a, for which there is no place"):
        check({k: v for k, v in STORED.items() if k.startswith("model")})
    with pytest.raises(CheckpointError, match=r"not all entries are stored of model\.b"):
        check(STORED, {**VOLUMES, "model.b": 3})


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    write_pieces([vector("a", "dense", torch.zeros(2))], tmp_path, None)
    with pytest.raises((KeyError, CheckpointException)):
        read_pieces([vector("b", "dense", torch.zeros(2))], tmp_path, None)
