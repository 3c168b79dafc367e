"""A checkpoint and what changed since give the newer checkpoint byte for byte; anything else is refused."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from dmt_plugin.checkpoint import folder
from dmt_plugin.checkpoint.delta import Delta, write_delta
from dmt_plugin.checkpoint.delta_apply import apply_delta, size_of_delta
from dmt_plugin.checkpoint.folder import COMMON, MANIFEST, RANKS, STATE, Found, entry_of, rank_file
from dmt_plugin.checkpoint.pieces import Piece, vector
from dmt_plugin.checkpoint.writes import write_pieces
from dmt_plugin.core.errors import CheckpointError
from tests.checkpoint.test_folder import manifest

State = dict[str, Tensor]


def first_state() -> State:
    g = torch.Generator().manual_seed(0)
    return {
        "model.items": torch.randn(300, 6, generator=g),
        "table_optimizer.sum.items": torch.rand(300, generator=g),
        "model.users": torch.randn(40, 6, generator=g).bfloat16(),
        "model.top": torch.randn(5, 7, generator=g),
        "model.flag": torch.tensor([True, False]),
        "model.count": torch.tensor(3),
        "optimizer.exp_avg.top": torch.randn(5, 7, generator=g),
    }


def saved(root: Path, tag: str, state: Mapping[str, Tensor], cut: int = 1, columns: int = 0, number: int = 1) -> Found:
    """A checkpoint whose tables lie in ``cut`` ranges of rows, or are divided at a column."""
    temporary = folder.begin(root, tag)
    pieces: list[Piece] = []
    for name, value in state.items():
        if name.startswith("table_optimizer") or name in ("model.items", "model.users"):
            kind = "table" if name.startswith("model.") else "table_optimizer"
            step = -(-len(value) // cut)
            for first in range(0, len(value), step):
                rows = value[first : first + step]
                parts = [(0, rows)] if value.dim() == 1 else [(0, rows[:, :columns]), (columns, rows[:, columns:])]
                for column, part in parts:
                    if part.numel():
                        place = (first,) if value.dim() == 1 else (first, column)
                        pieces.append(Piece(name, kind, tuple(value.shape), place, part))
        else:
            pieces.append(vector(name, name.partition(".")[0].replace("model", "dense"), value))
    write_pieces(pieces, temporary / STATE, None)
    torch.save({"tag": tag}, temporary / COMMON)
    torch.save({"random": tag}, temporary / rank_file(0))
    paths = [temporary / COMMON, *(temporary / STATE).iterdir(), *(temporary / RANKS).iterdir()]
    made = dataclasses.replace(
        manifest(tag, number), tensors={piece.name: piece.entry for piece in pieces},
        files={str(path.relative_to(temporary)): entry_of(path) for path in paths},
    )  # fmt: skip
    return Found(folder.commit(temporary, made), made)


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def later(state: State) -> State:
    """Some steps later: rows changed, one became NaN, a table grew, a layer changed."""
    found = {name: value.clone() for name, value in state.items()}
    found["model.items"][[3, 4, 250]] += 1
    found["model.items"][7, 2] = float("nan")
    found["model.items"][8, 0] = -0.0
    found["table_optimizer.sum.items"][[3, 4]] += 1
    found["model.users"] = torch.cat([found["model.users"], torch.ones(9, 6, dtype=torch.bfloat16)])
    found["model.top"][0, 0] += 1
    found["model.new"] = torch.ones(3)
    del found["optimizer.exp_avg.top"]
    return found


def with_zero(state: State) -> State:
    state["model.items"][8, 0] = 0.0
    return state


@pytest.mark.parametrize("layout", [(1, 0, 1, 0), (2, 0, 3, 0), (1, 4, 2, 2), (3, 0, 1, 4)])
def test_the_newer_checkpoint_comes_back_byte_for_byte(tmp_path: Path, layout: tuple[int, int, int, int]) -> None:
    """Also where tables are divided otherwise by then; in blocks of few rows."""
    state = with_zero(first_state())
    old = saved(tmp_path / "run", "old", state, *layout[:2])
    new = saved(tmp_path / "run", "new", later(state), *layout[2:], number=2)
    seen: list[int] = []
    with mock.patch("dmt_plugin.checkpoint.delta_file.BLOCK_BYTES", 512):
        made = write_delta(old, new, tmp_path / "a.delta", seen.append)
        assert sum(seen) == sum(entry.bytes for entry in new.manifest.tensors.values())
        done: list[int] = []
        place = apply_delta(old, tmp_path / "a.delta", tmp_path / "out", done.append)
    assert sum(done) == size_of_delta(tmp_path / "a.delta")
    assert place == tmp_path / "out" / "new" and files_of(place) == files_of(new.path)
    items, users = made.tables["items"], made.tables["users"]
    assert (items.rows, items.changed, users.rows, users.changed) == (300, 5, 49, 9)
    full = 24 * 5 if layout[3] == 0 else items.bytes - 8  # parts of rows, where they are divided
    assert items.bytes == full + 4 * 2 and (layout[3] == 0 or items.bytes < 24 * 5 + 8) and users.bytes == 9 * 12
    assert (made.changed, made.others) == ({"model.top", "model.new"}, 4)
    assert made.bytes == (tmp_path / "a.delta").stat().st_size
    assert (tmp_path / "out" / "latest").read_text() == "new"


def test_a_chain_and_a_second_folder(tmp_path: Path) -> None:
    """What was made is as good as what was saved: the next delta applies to it, and it is the newest there."""
    states = [first_state()]
    for _ in range(2):
        states.append({name: value.clone() for name, value in states[-1].items()})
        states[-1]["model.items"][len(states)] += 1
    run = [saved(tmp_path / "run", f"step{n}", state, number=n + 1) for n, state in enumerate(states)]
    mirror = tmp_path / "mirror"
    shutil.copytree(run[0].path, mirror / "step0")
    for n in (0, 1):
        write_delta(run[n], run[n + 1], tmp_path / f"{n}.delta")
        here = folder.find_checkpoint(mirror)
        assert here is not None and here.path.name == f"step{n}"
        apply_delta(here, tmp_path / f"{n}.delta", mirror)
    assert files_of(mirror / "step2") == files_of(run[2].path)
    nothing = write_delta(run[1], run[1], tmp_path / "nothing.delta")
    one_row = (tmp_path / "1.delta").stat().st_size - nothing.bytes
    assert not nothing.changed and nothing.tables["items"].bytes == 0 and 24 <= one_row < 100, one_row
    with pytest.raises(CheckpointError, match="step2 is there already"):
        apply_delta(run[1], tmp_path / "1.delta", mirror)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Found, Found, Path, Delta]:
    state = first_state()
    old, new = saved(tmp_path / "run", "old", state, 2), saved(tmp_path / "run", "new", later(state), number=2)
    return old, new, tmp_path / "a.delta", write_delta(old, new, tmp_path / "a.delta")


def test_another_checkpoint_is_refused(made: tuple[Found, Found, Path, Delta], tmp_path: Path) -> None:
    """Also one with the same tensors, and the older one where it was damaged."""
    old, new, path, _ = made
    same = saved(tmp_path / "other", "old", first_state())
    for other in (new, same):
        with pytest.raises(CheckpointError, match=r"was made from the checkpoint 'old' .*another one: the checksum of"):
            apply_delta(other, path, tmp_path / "out")
    file = next((old.path / STATE).glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="has changed since it was saved"):
        apply_delta(old, path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="has changed since it was saved"):
        write_delta(old, new, tmp_path / "b.delta")
    assert not (tmp_path / "b.delta").exists() and not list((tmp_path / "out").iterdir())


def test_a_damaged_delta_is_refused(made: tuple[Found, Found, Path, Delta], tmp_path: Path) -> None:
    """A flipped bit anywhere, a cut anywhere: an error, or the very checkpoint; never anything else."""
    old, new, path, _ = made
    whole, good = path.read_bytes(), files_of(new.path)
    bad, refused = tmp_path / "bad.delta", 0
    draw = random.Random(0)
    for number in range(60):
        content = bytearray(whole)
        if number % 4 == 3:
            content = content[: draw.randrange(len(content))]
        else:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        bad.write_bytes(content)
        out = tmp_path / "out"
        try:
            place = apply_delta(old, bad, out)
        except CheckpointError as error:
            refused += "damaged, or no delta" in str(error) or "of another" in str(error)
            assert not out.exists() or not list(out.iterdir()), (number, list(out.iterdir()))
        else:
            assert {n: c for n, c in files_of(place).items() if n != MANIFEST} == {
                n: c for n, c in good.items() if n != MANIFEST
            }
        shutil.rmtree(out, ignore_errors=True)
    assert refused > 50, refused
    for content in (b"", b"no zip file"):
        bad.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged, or no delta"):
            apply_delta(old, bad, tmp_path / "out")
    with pytest.raises(CheckpointError, match="cannot be read"):
        apply_delta(old, tmp_path / "nothing", tmp_path / "out")


def test_a_delta_that_writes_elsewhere_or_lies_about_sums_is_refused(
    made: tuple[Found, Found, Path, Delta], tmp_path: Path
) -> None:
    old, _, path, _ = made

    def changed(change: str) -> Path:
        bad = tmp_path / "bad.delta"
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(bad, "w") as target:
            for name in source.namelist():
                content = source.read(name)
                if name == "dmt_delta.json":
                    about = json.loads(content)
                    if change != "changed":  # whoever makes a manifest can leave its checksum out
                        del about["manifest"]["checksum"]
                    if change == "outside":
                        about["manifest"]["files"]["../x"] = {"bytes": 0, "crc32": 0}
                    elif change in ("tag", "changed"):
                        about["manifest"]["tag"] = "../x"
                    elif change == "sum":
                        about["manifest"]["files"][COMMON]["crc32"] ^= 1
                    else:
                        about["format"] = 2
                    content = json.dumps(about).encode()
                target.writestr(name, content)
        return bad

    for change, match in (
        ("outside", r"'\.\./x', which is in another folder"),
        ("tag", r"'\.\./x', which is in another folder"),
        ("changed", "has changed since it was written"),
        ("sum", "what it makes of common.pt has another checksum"),
        ("format", "format 2 found, this release reads format 1"),
    ):
        with pytest.raises(CheckpointError, match=match):
            apply_delta(old, changed(change), tmp_path / "out")
    with pytest.raises(CheckpointError, match="is a folder, and a delta is one file"):
        write_delta(old, old, tmp_path)
