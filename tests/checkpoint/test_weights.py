"""Stored weights: any rows and columns of them, from every place they may be stored in."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from dmt_plugin.checkpoint import rows as rows_module
from dmt_plugin.checkpoint.pieces import vector
from dmt_plugin.checkpoint.rows import RawRows, Reshaped, Rows, TensorRows
from dmt_plugin.checkpoint.stored import stored_rows
from dmt_plugin.checkpoint.weights import open_state, open_weights
from dmt_plugin.checkpoint.writes import write_pieces
from dmt_plugin.core.errors import CheckpointError
from tests.checkpoint.test_pieces import cuts, rectangles

OLD = Path(__file__).parents[1] / "data" / "version_0_1_0"
TABLE = torch.randn(40, 6)
STATE: dict[str, Any] = {
    "tables.0.weight": TABLE,
    "tables.1.weight": TABLE[:9].double(),
    "tables.2.weight": TABLE[:8].half(),
    "top.bias": torch.randn(3),
    "count": torch.tensor(4),
}
WANTED = {name: tuple(value.shape) for name, value in STATE.items() if name.startswith("tables")}


def numbers(length: int) -> st.SearchStrategy[range | Tensor]:
    ranges = st.builds(
        lambda a, b, step: range(min(a, b), max(a, b) + 1, step),
        st.integers(0, length - 1), st.integers(0, length - 1), st.integers(1, 5),
    )  # fmt: skip
    backwards = ranges.map(lambda found: found[::-1])
    return st.one_of(
        ranges, backwards, st.lists(st.integers(0, length - 1), max_size=12).map(lambda ids: torch.tensor(ids).long())
    )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_rows_and_columns(data: st.DataObject) -> None:
    """Of bytes in a file, of parts, of memory, and of a matrix stored as a vector, in blocks of a few rows."""
    count, dim = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 5))
    rows = data.draw(numbers(count))
    left = data.draw(st.integers(0, dim - 1))
    columns = range(left, data.draw(st.integers(left, dim)))
    whole = torch.randn(count, dim)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setattr(rows_module, "BLOCK_BYTES", data.draw(st.sampled_from([8, 100, 1 << 20])))
        patch.setattr(rows_module, "_PAGE", data.draw(st.sampled_from([1, 60])))
        pieces = rectangles(whole, data.draw(cuts(count)), data.draw(cuts(dim)), copy=True)
        write_pieces([*pieces, vector("v", "dense", whole)], folder, None)
        (folder / "raw").write_bytes(b"abc" + whole.numpy().tobytes())
        stored = stored_rows(folder)
        sources: list[Rows] = [
            RawRows(folder / "raw", 3, torch.float32, (count, dim)), stored["t"], TensorRows(whole),
            Reshaped(stored["v"], (count, dim)),
        ]  # fmt: skip
        wanted = whole[torch.as_tensor(list(rows)).long()][:, columns.start : columns.stop]
        for source in sources:
            assert source.shape == (count, dim) and source.dtype == torch.float32
            padded = torch.full((len(rows), len(columns) + 2), 7.0, dtype=data.draw(st.sampled_from([torch.float64])))
            source.fill(rows, columns, padded[:, 1:-1])
            assert torch.equal(padded[:, 1:-1], wanted.double()), source
            assert (padded[:, 0] == 7).all() and (padded[:, -1] == 7).all()


@pytest.mark.parametrize("source", [TensorRows(TABLE), Reshaped(TensorRows(TABLE.view(-1, 1)), (40, 6))])
def test_rows_that_are_not_there(source: Rows) -> None:
    for rows, columns, out in (
        (range(38, 41), range(6), torch.empty(3, 6)),
        (torch.tensor([0, -1]), range(6), torch.empty(2, 6)),
        (range(2), range(5, 7), torch.empty(2, 2)),
        (range(2), range(6), torch.empty(2, 5)),
    ):
        with pytest.raises(IndexError):
            source.fill(rows, columns, out)


def places(folder: Path) -> dict[str, Any]:
    """The same state in every place that can hold one."""
    torch.save(STATE, folder / "a.pt")
    torch.save({"state_dict": STATE, "epoch": 3}, folder / "wrapped.ckpt")
    save_file(STATE, folder / "a.safetensors")
    for name, index in (("plain", False), ("indexed", True)):
        (folder / name).mkdir()
        names = sorted(STATE)
        files = {"one.safetensors": names[:2], "two.safetensors": names[2:]}
        for file, own in files.items():
            save_file({n: STATE[n] for n in own}, folder / name / file)
        if index:
            where = {n: file for file, own in files.items() for n in own}
            (folder / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
            save_file({"tables.0.weight": TABLE + 1}, folder / name / "other.safetensors")
    return {
        "memory": STATE,
        **{n: folder / n for n in ("a.pt", "wrapped.ckpt", "a.safetensors", "plain", "indexed")},
    }


def test_every_place(tmp_path: Path) -> None:
    for name, where in places(tmp_path).items():
        state = open_state(where)
        assert {n: (t.shape, t.dtype) for n, t in state.items()} == {
            n: (tuple(v.shape), v.dtype) for n, v in STATE.items()
        }, name
        assert all(torch.equal(tensor.read(), STATE[n]) for n, tensor in state.items()), name
        blocks = list(state["top.bias"].blocks(limit=8))
        assert [first for first, _ in blocks] == [0, 2], name
        found = open_weights(where, {**WANTED, "another": (2, 2)})
        assert sorted(found) == sorted(WANTED)
        for n, source in found.items():
            out = torch.full((2, 3), -1.0)
            source.fill(torch.tensor([7, 0]), range(1, 4), out)
            assert torch.equal(out, STATE[n][[7, 0], 1:4].float()), (name, n)
    assert "rows of tables.0.weight in" in str(found["tables.0.weight"])
    assert "['state_dict']" in str(open_weights(tmp_path / "wrapped.ckpt", WANTED)["tables.0.weight"])


def test_a_checkpoint_of_the_last_version() -> None:
    expected = torch.load(OLD / "expected_state.pt")
    tables = {n: tuple(v.shape) for n, v in expected.items() if v.dim() == 2}
    for share in ((0, 1), (1, 2)):
        found = open_weights(OLD / "checkpoint", tables, share)
        for name, source in found.items():
            out = torch.empty(2, tables[name][1])
            source.fill(torch.tensor([tables[name][0] - 1, 0]), range(tables[name][1]), out)
            assert torch.equal(out, expected[name][[-1, 0]]), name
    assert sorted(found) == sorted(tables)
    assert all(torch.equal(t.read(), expected[n]) for n, t in open_state(OLD / "checkpoint").items())


def test_what_does_not_fit(tmp_path: Path) -> None:
    for where in places(tmp_path).values():
        with pytest.raises(CheckpointError, match=r"tables.0.weight has the shape \[40, 6\] there, and \[6, 40\] here"):
            open_weights(where, {"tables.0.weight": (6, 40)})
        with pytest.raises(CheckpointError, match=r"none of the wanted tables table.0.weight. It has tables.0.weight"):
            open_weights(where, {"table.0.weight": (40, 6)})
    with pytest.raises(CheckpointError, match=r"w is torch.int64 there, and a table consists of floating-point"):
        open_weights({"w": torch.zeros(2, 2, dtype=torch.int64)}, {"w": (2, 2)})
    with pytest.raises(CheckpointError, match="w of the given state dict have no values: they are on meta"):
        open_weights({"w": torch.empty(2, 2, device="meta")}, {"w": (2, 2)})


def test_files_that_are_broken(tmp_path: Path) -> None:
    places(tmp_path)
    for name in ("a.pt", "a.safetensors"):
        content = (tmp_path / name).read_bytes()
        for length in (len(content) - 1, 400, 5, 0):
            (tmp_path / name).write_bytes(content[:length])
            with pytest.raises(CheckpointError, match=name):
                open_state(tmp_path / name)
    bad = {
        "json.safetensors": b"\x02\0\0\0\0\0\0\0{]",
        "list.safetensors": b"\x02\0\0\0\0\0\0\0[]",
        "long.safetensors": b"\xff\xff\xff\xff\0\0\0\0{}",
    }
    heads = {
        "type": ("F4", [1], [0, 1]), "size": ("F32", [2], [0, 4]), "before": ("U8", [1], [-1, 0]), "key": ("F32", [1]),
    }  # fmt: skip
    for name, values in heads.items():
        text = json.dumps({"w": dict(zip(("dtype", "shape", "data_offsets"), values, strict=False))}).encode()
        bad[f"{name}.safetensors"] = len(text).to_bytes(8, "little") + text + b"12345678"
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"model": {"w": TABLE}, "epoch": 1}, tmp_path / "other.pt")
    torch.save({"w": TABLE}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"w": Path("x")}, tmp_path / "object.pt")
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    for name in (*bad, "list.pt", "other.pt", "old.pt", "object.pt", "nowhere"):
        with pytest.raises(CheckpointError, match=name):
            open_state(tmp_path / name)
    (tmp_path / "indexed" / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"two.safetensors cannot be read: No such file"):
        open_state(tmp_path / "indexed")
    save_file({"tables.0.weight": TABLE}, tmp_path / "indexed" / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"two.safetensors lacks tables.1.weight, tables.2.weight"):
        open_state(tmp_path / "indexed")
    (tmp_path / "indexed" / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json is no index"):
        open_state(tmp_path / "indexed")
    save_file({"count": torch.tensor(1)}, tmp_path / "plain" / "three.safetensors")
    with pytest.raises(CheckpointError, match=r"count is in .*: it must be in one of them"):
        open_state(tmp_path / "plain")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no checkpoint of save_checkpoint and no .safetensors files"):
        open_state(tmp_path / "empty")


def test_a_file_that_is_cut_off_while_it_is_open(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    source = open_state(tmp_path / "a.safetensors")["tables.0.weight"]
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-600])
    with pytest.raises(CheckpointError, match="was cut off"):
        source.fill(range(40), range(6), torch.empty(40, 6))


def test_checkpoints_that_are_broken(tmp_path: Path) -> None:
    saved = shutil.copytree(OLD / "checkpoint", tmp_path / "saved")
    file = next(path for path in sorted(saved.glob("*/state/*.distcp")) if path.stat().st_size > 100)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file.name} has changed since it was saved"):
        open_state(saved)
    file.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=f"{file.name} has"):
        open_state(saved)
    save_file({"w": TABLE}, saved / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"has checkpoints and x.safetensors; name one checkpoint, or the file"):
        open_state(saved)
