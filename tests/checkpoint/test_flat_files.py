"""A state written to files in blocks is what torch and safetensors read from them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmt_plugin.checkpoint import flat_files
from dmt_plugin.checkpoint.flat_files import flat_writer
from dmt_plugin.checkpoint.unfinished import unfinished_name
from dmt_plugin.checkpoint.weights import open_state
from dmt_plugin.core.errors import CheckpointError

STATE = {
    "tables.0.weight": torch.randn(50, 6),
    "count": torch.tensor(5),
    "none": torch.empty(0, 3),
    "low": torch.randn(33, 3).bfloat16(),
    "flags": torch.tensor([True, False]),
    "high": torch.randn(3, 4, 5, dtype=torch.float64),
    "half": torch.randn(7).half(),
}
ENTRIES = {name: (tuple(value.shape), value.dtype) for name, value in STATE.items()}


def check(found: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(STATE)
    for name, value in STATE.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def write(path: Path, kind: str, backwards: bool = False) -> None:
    with flat_writer(path, kind, ENTRIES, max_file_bytes=900) as writer:
        for name, value in STATE.items():
            flat, cuts = value.reshape(-1), sorted({0, value.numel() // 3, value.numel() // 2})
            blocks = list(zip(cuts, [*cuts[1:], value.numel()], strict=True))
            for first, end in reversed(blocks) if backwards else blocks:
                writer.write(name, first, flat[first:end])


def read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        names = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
        files = {file: load_file(path / file) for file in set(names.values())}
        assert len(files) > 1 and {p.name for p in path.iterdir()} == {*files, "model.safetensors.index.json"}
        return {name: files[file][name] for name, file in names.items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    for arguments in ({}, {"weights_only": True}, {"weights_only": False}):
        check(torch.load(path, **arguments))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    return torch.load(path, mmap=True)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "folder"])
def test_what_was_written_in_any_order_is_read(name: str, tmp_path: Path) -> None:
    path, kind = tmp_path / "new" / name, "torch" if name == "a.pt" else "safetensors"
    for backwards in (False, True):  # the second replaces the first
        write(path, kind, backwards)
        check(read(path))
        check({name: tensor.read() for name, tensor in open_state(path).items()})
        assert [p.name for p in path.parent.iterdir()] == [name]


def test_blocks_longer_than_a_block_and_views(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(flat_files, "BLOCK_BYTES", 40)
    whole, column = torch.randn(9, 14), torch.randn(30)
    entries = {"w": ((9, 14), torch.float32), "l": ((30,), torch.bfloat16)}
    with flat_writer(tmp_path / "a.pt", "torch", entries) as writer:
        writer.write("w", 0, whole.t().contiguous().t())
        writer.write("l", 0, column)
    found = torch.load(tmp_path / "a.pt")
    assert torch.equal(found["w"], whole) and torch.equal(found["l"], column.bfloat16())


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "folder"])
def test_what_is_not_whole_leaves_nothing(name: str, tmp_path: Path) -> None:
    path, kind = tmp_path / name, "torch" if name == "a.pt" else "safetensors"
    write(path, kind)
    for wrong, message in (
        ([("tables.0.weight", 0, 300)], "not every entry was written once of count, none, low"),
        ([(n, 0, v.numel()) for n, v in STATE.items()] + [("low", 3, 5)], "not every entry was written once of low"),
        ([("tables.0.weight", 299, 2)], "entries 299 to 301 of tables.0.weight, which has 300"),
        ([("other", 0, 1)], "other was not announced"),
    ):
        with (
            pytest.raises(CheckpointError, match=message.replace("none, ", "")),
            flat_writer(path, kind, ENTRIES) as writer,
        ):
            for tensor, first, count in wrong:
                dtype = ENTRIES.get(tensor, ((), torch.float32))[1]
                writer.write(tensor, first, torch.zeros(count, dtype=dtype))
        check(read(path))
        assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(KeyError), flat_writer(tmp_path / "other", kind, ENTRIES):
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    dead = unfinished_name("folder").rsplit("-", 1)[0] + "-999999999.saving"
    living = unfinished_name("folder").rsplit("-", 1)[0] + "-1.saving"
    for folder in (dead, living, "folder.replaced"):
        (tmp_path / folder).mkdir()
        save_file({"a": torch.zeros(2)}, tmp_path / folder / "model-00001-of-00001.safetensors")
    (tmp_path / unfinished_name("other").replace("saving", "x")).mkdir()
    foreign = tmp_path / (unfinished_name("folder").rsplit("-", 1)[0] + "-999999998.saving")
    foreign.mkdir()
    (foreign / "mine").touch()
    write(tmp_path / "folder", "safetensors")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"folder", living, foreign.name, unfinished_name("other").replace("saving", "x")}
    check(read(tmp_path / "folder"))


def test_places_that_are_taken(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").touch()
    (tmp_path / "file").touch()
    for path, kind, message in (
        (tmp_path / "full", "safetensors", "is there already and has config.json; name a new folder"),
        (tmp_path / "file", "safetensors", "is there already and is a file"),
        (tmp_path / "full", "torch", "is a folder, and a file is to be written"),
        (tmp_path / "file" / "x", "torch", "cannot be written"),
        (tmp_path / "a", "numpy", "format must be 'safetensors' or 'torch', found 'numpy'"),
    ):
        with pytest.raises(CheckpointError, match=message), flat_writer(path, kind, ENTRIES):
            raise AssertionError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]
