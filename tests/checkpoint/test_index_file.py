"""The index of a checkpoint's tensors is read, never run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dmt_plugin.checkpoint.index_file import read_index
from dmt_plugin.checkpoint.stored import METADATA, Reader, Writer, stored_rows
from dmt_plugin.core.errors import CheckpointError

TENSORS = {
    "a": torch.arange(12.0).view(4, 3), "b": torch.ones(3, dtype=torch.bfloat16),
    "c": torch.arange(2), "d": torch.zeros(2, 2, dtype=torch.float16),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dcp.save(dict(TENSORS), storage_writer=Writer(tmp_path / "tensors"), no_dist=True)
    return tmp_path / "tensors"


def test_what_torch_reads_is_read(folder: Path) -> None:
    stock, own = dcp.FileSystemReader(folder).read_metadata(), Reader(folder).read_metadata()
    assert own.state_dict_metadata == stock.state_dict_metadata and own.storage_data == stock.storage_data
    assert set(stored_rows(folder)) == set(TENSORS)
    loaded = {name: torch.zeros_like(value) for name, value in TENSORS.items()}
    dcp.load(loaded, storage_reader=Reader(folder), no_dist=True)
    assert all(torch.equal(loaded[name], value) for name, value in TENSORS.items())


def test_what_torchs_writer_leaves_is_read(tmp_path: Path) -> None:
    dcp.save({**TENSORS, "step": 3, "more": {"x": 1}}, storage_writer=dcp.FileSystemWriter(tmp_path), no_dist=True)
    assert set(TENSORS) <= set(read_index(tmp_path / METADATA).state_dict_metadata)


class Runs:
    """A pickle that calls a function when it is read."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval, torch.load, getattr, Path.touch], ids=lambda f: f.__name__)
def test_no_function_is_called(folder: Path, tmp_path: Path, function: Any) -> None:
    """Whether it stands for the index, or somewhere in it."""
    mark = tmp_path / "ran"
    arguments = {
        os.mkdir: (str(mark),), eval: (f"__import__('os').mkdir({str(mark)!r})",), torch.load: (str(mark),),
        getattr: (mark, "mkdir"), Path.touch: (mark,),
    }[function]  # fmt: skip
    index = dcp.FileSystemReader(folder).read_metadata()
    index.planner_data = Runs(function, *arguments)
    for content in (Runs(function, *arguments), index):
        (folder / METADATA).write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match="nothing of it was run"):
            stored_rows(folder)
        assert not mark.exists()


def test_no_file_of_another_folder_is_read(folder: Path) -> None:
    index = dcp.FileSystemReader(folder).read_metadata()
    for info in index.storage_data.values():
        info.relative_path = "../elsewhere"
    (folder / METADATA).write_bytes(pickle.dumps(index))
    with pytest.raises(CheckpointError, match="outside its own folder"):
        stored_rows(folder)


@pytest.mark.parametrize("damage", [b"", b"\x80\x04", pickle.dumps(3), b"text"], ids=["empty", "cut", "3", "text"])
def test_damage_is_told(folder: Path, damage: bytes) -> None:
    (folder / METADATA).write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"\.metadata is no index of tensors"):
        stored_rows(folder)
    (folder / METADATA).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        stored_rows(folder)
