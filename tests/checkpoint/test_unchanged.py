"""Manifests with a checksum of themselves, and loads that pass over what has changed since it was saved."""

from __future__ import annotations

import json
import logging
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dmt_plugin.checkpoint.folder import COMMON, MANIFEST, find_checkpoint
from dmt_plugin.checkpoint.manifest import CHECKSUM, Manifest
from dmt_plugin.checkpoint.unchanged import find_unchanged
from dmt_plugin.core.errors import CheckpointError
from tests._util.ranks import run_ranks
from tests.checkpoint.test_folder import manifest, save
from tests.test_placed_laws import launcher_env

DATA = Path(__file__).parents[1] / "data" / "version_0_1_0" / "checkpoint"


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    """One bit anywhere: an error, or the same manifest (where it lies between the entries)."""
    place = save(tmp_path, "a", "1")
    text = (place / MANIFEST).read_bytes()
    right = Manifest.from_json(text, "a")
    refused = 0
    for byte in range(len(text)):
        for bit in (0, 3, 6):
            changed = bytearray(text)
            changed[byte] ^= 1 << bit
            try:
                assert Manifest.from_json(bytes(changed), "a") == right
            except CheckpointError:
                refused += 1
    assert refused > 2 * len(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"global_steps": 1', '"global_steps": 3'),
        ('"rank_states": 0', '"rank_states": 1'),
        ('"save_latest": true', '"save_latest": false'),
        ('"tag": "a"', '"tag": "b"'),
    ],
)
def test_an_entry_that_was_changed_is_noticed(tmp_path: Path, old: str, new: str) -> None:
    file = save(tmp_path, "a", "1") / MANIFEST
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(CheckpointError, match=f"a/{MANIFEST} has changed since it was written"):
        find_checkpoint(tmp_path, "a")


def test_manifests_of_before_and_other_layouts_are_read(tmp_path: Path) -> None:
    written = manifest("a", 3)
    data = json.loads(written.to_json())
    assert re.fullmatch("[0-9a-f]{64}", data[CHECKSUM])
    assert Manifest.from_json(json.dumps(dict(sorted(data.items()))), "here") == written
    del data[CHECKSUM]
    assert Manifest.from_json(json.dumps(data), "here") == written
    old = shutil.copytree(DATA, tmp_path / "old")
    found = find_unchanged(old)
    assert found is not None and CHECKSUM not in json.loads((found.path / MANIFEST).read_text())
    with pytest.raises(CheckpointError, match='the key "tag" is given twice'):
        Manifest.from_json(written.to_json().replace('"tag"', '"tag": "b", "tag"', 1), "here")


def test_what_has_changed_is_passed_over_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, tag in enumerate("abcd"):
        save(tmp_path, tag, str(number))
    (tmp_path / "d" / COMMON).write_text("x")
    file = tmp_path / "c" / MANIFEST
    file.write_text(file.read_text().replace('"sequence": 3', '"sequence": 7'))
    with caplog.at_level(logging.WARNING):
        found = find_unchanged(tmp_path)
    assert found is not None and found.path.name == "b"
    for words in ("common.pt has changed since it was saved", "c/dmt_checkpoint.json has changed"):
        assert words in caplog.text
    for asked in ((tmp_path, "d"), (tmp_path / "d", None)):
        with pytest.raises(CheckpointError, match=r"common\.pt has changed since it was saved"):
            find_unchanged(*asked)
    for tag in "ab":
        (tmp_path / tag / COMMON).write_text("x")
    with pytest.raises(CheckpointError, match="has checkpoints, but none is whole"):
        find_unchanged(tmp_path)


def loads(rank: int, world: int, folder: str) -> list[Any]:
    """Two checkpoints; then the newest is damaged, in its manifest and in a file of one rank's share."""
    import torch.distributed as dist

    from tests.integrations.runs import make, train

    engine, batch = make("2x1", "dcn_v2", stage=1)
    for tag in ("one", "two"):
        train(engine, batch, 1)
        engine.save_checkpoint(folder, tag=tag)
    file = max((Path(folder) / "two").rglob("*.distcp"))
    damages = [(Path(folder) / "two" / MANIFEST, b'"global_steps": 2', b'"global_steps": 3'), (file, b"", b"")]
    said: list[Any] = []
    for place, old, new in damages:
        dist.barrier()
        before = place.read_bytes()
        dist.barrier()
        if rank == 0:
            place.write_bytes(before.replace(old, new) if old else before[:-1] + bytes([before[-1] ^ 1]))
        dist.barrier()
        for tag in (None, "two"):
            try:
                path, _ = engine.load_checkpoint(folder, tag=tag)
                said.append((Path(str(path)).name, engine.global_steps))
            except CheckpointError as error:
                said.append(str(error))
            train(engine, batch, 1)
        dist.barrier()
        if rank == 0:
            place.write_bytes(before)
    dist.barrier()
    path, _ = engine.load_checkpoint(folder)
    return [*said, (Path(str(path)).name, engine.global_steps)]


@pytest.mark.processes
@pytest.mark.campaign
def test_ranks_go_on_from_the_newest_that_is_as_it_was_saved(tmp_path: Path) -> None:
    for said in run_ranks(2, loads, str(tmp_path), env=partial(launcher_env, "2x1"), timeout=240):
        assert said[0] == said[2] == ("one", 1) and said[4] == ("two", 2)
        assert "dmt_checkpoint.json has changed since it was written" in said[1]
        assert "has changed since it was saved" in said[3]


def test_one_process_passes_over_too(tmp_path: Path) -> None:
    from dmt_plugin.checkpoint.single import read_state

    whole = shutil.copytree(DATA, tmp_path / "whole")
    found = find_checkpoint(whole)
    assert found is not None
    newer = shutil.copytree(found.path, whole / "newer")
    data = json.loads((newer / MANIFEST).read_text())
    data |= {"tag": "newer", "sequence": data["sequence"] + 1}
    (newer / MANIFEST).write_text(json.dumps(data))
    assert find_checkpoint(whole).path == newer  # type: ignore[union-attr]
    file = max(newer.rglob("*.distcp"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    state = read_state(whole)
    assert all(torch.equal(value, state[name]) for name, value in read_state(found.path).items())
    with pytest.raises(CheckpointError, match="has changed since it was saved"):
        read_state(whole, "newer")
