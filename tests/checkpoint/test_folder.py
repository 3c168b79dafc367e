"""A checkpoint is there as a whole or not at all, wherever the process that writes it dies."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dmt_plugin.checkpoint import folder
from dmt_plugin.checkpoint.folder import COMMON, MANIFEST, check_content, entry_of, find_checkpoint, shared_of
from dmt_plugin.checkpoint.manifest import FileEntry, Manifest, TensorEntry
from dmt_plugin.checkpoint.unfinished import over, under_way
from dmt_plugin.core.errors import CheckpointError


def manifest(tag: str, sequence: int, save_latest: bool = True, **files: FileEntry) -> Manifest:
    return Manifest(
        tag=tag, sequence=sequence, save_latest=save_latest, saved_at="", versions={}, topology="1x1", plan={},
        semantic_preserving=True, steps={"global_steps": sequence}, training={},
        tensors={"model.a": TensorEntry("dense", (2, 3), "float32")}, files=files,
    )  # fmt: skip


def save(root: Path, tag: str, content: str, save_latest: bool = True) -> Path:
    """All that one process does for a checkpoint."""
    temporary = folder.begin(root, tag)
    with folder.synced(temporary / COMMON) as stream:
        stream.write(content.encode())
    files = {COMMON: entry_of(temporary / COMMON)}
    return folder.commit(temporary, manifest(tag, folder.next_sequence(root), save_latest, **files))


def content_of(root: Path, tag: str | None = None) -> str:
    found = find_checkpoint(root, tag)
    assert found is not None
    check_content(found, found.manifest.files)
    return (found.path / COMMON).read_text()


class Dies(BaseException):
    """The process is gone."""


def killed_at(monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """The ``when``-th call that changes a folder, or syncs to the disk, does not happen, nor does any behind it."""
    count = itertools.count()

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(count) >= when:
                raise Dies
            return function(*args, **kwargs)

        return call

    for name in ("rename", "replace", "mkdir", "touch", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    for name in ("fsync", "unlink", "rmdir"):  # the last two are what rmtree calls
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


@pytest.mark.parametrize("tag", ["second", "first"])
def test_killed_at_any_call_the_newest_whole_one_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str
) -> None:
    """The save of another tag, and one that replaces the checkpoint before it."""
    seen = set()
    for when in range(100):
        root = tmp_path / str(when)
        save(root, "first", "old")
        with monkeypatch.context() as patch:
            killed_at(patch, when)
            try:
                save(root, tag, "new")
                died = False
            except Dies:
                died = True
        found = content_of(root)
        seen.add(found)
        assert found in (("old", "new") if died else ("new",))
        if tag == "first":
            assert content_of(root, "first") == found
        save(root, "third", "newest")  # what was left over is no hindrance, and goes
        assert content_of(root) == "newest"
        assert sorted(p.name for p in root.iterdir()) == sorted(
            {"first", "third", "latest", *(["second"] if (root / "second").exists() else [])}
        )
        if not died:
            break
    else:
        raise AssertionError("a save makes fewer calls than that")
    assert seen == {"old", "new"} and when > 10


def test_names_are_on_the_disk_before_a_save_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each rename its folder is synced: else a power cut may take a checkpoint that was told of."""
    events: list[tuple[str, Path]] = []
    rename, replace, fsync = Path.rename, Path.replace, os.fsync

    def renamed(how: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def call(self: Path, target: Path) -> Path:
            events.append(("renamed", Path(target).parent))
            return how(self, target)

        return call

    def synced(handle: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        events.append(("folder" if place.is_dir() else "file", place if place.is_dir() else place.parent))
        fsync(handle)

    monkeypatch.setattr(Path, "rename", renamed(rename))
    monkeypatch.setattr(Path, "replace", renamed(replace))
    monkeypatch.setattr(os, "fsync", synced)
    root = tmp_path.resolve()
    for content in ("old", "new"):  # the second takes the place of the first
        events.clear()
        save(root, "first", content)
        at = [i for i, event in enumerate(events) if event == ("renamed", root)]
        assert len(at) == (2 if content == "old" else 3)
        for i, after in zip(at[-2:], [at[-1], len(events)], strict=True):
            assert ("folder", root) in events[i:after]


def test_a_removal_that_died_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for when in range(50):
        root = tmp_path / str(when)
        save(root, "kept", "kept")
        unfinished = folder.begin(root, "broken")
        (unfinished / "state" / "__0_0.distcp").write_text("half")
        with monkeypatch.context() as patch:
            killed_at(patch, when)
            try:
                folder.clean(root)
                died = False
            except Dies:
                died = True
        found = find_checkpoint(root)
        assert found is not None and found.path.name == "kept"
        assert bool(found.ignored) == unfinished.exists()
        save(root, "broken", "whole")
        if not died:
            break
    assert when > 3


def test_incomplete_ones_are_passed_over_and_said(tmp_path: Path) -> None:
    save(tmp_path, "one", "1")
    save(tmp_path, "two", "2")
    save(tmp_path, "three", "3")
    (tmp_path / "three" / COMMON).write_text("33")
    (tmp_path / "two" / COMMON).unlink()
    four = folder.begin(tmp_path, "four")
    found = find_checkpoint(tmp_path)
    assert found is not None and found.path.name == "one"
    said = "\n".join(found.ignored)
    assert "three: common.pt has 2 bytes instead of 1" in said
    assert "two: the file common.pt is missing" in said
    assert f"{four.name}: its save did not finish" in said and folder.place_of(four) == tmp_path / "four"
    with pytest.raises(CheckpointError, match=r"two is not whole: two: the file common\.pt is missing"):
        find_checkpoint(tmp_path, "two")


def test_a_damaged_manifest_is_no_hindrance(tmp_path: Path) -> None:
    save(tmp_path, "a", "1")
    save(tmp_path, "b", "2")
    damaged = bytearray((tmp_path / "b" / MANIFEST).read_bytes())
    damaged[len(damaged) // 2] |= 0x80  # no UTF-8 any more
    (tmp_path / "b" / MANIFEST).write_bytes(damaged)
    found = find_checkpoint(tmp_path)
    assert found is not None and found.path.name == "a" and "b/dmt_checkpoint.json is not JSON" in found.ignored[0]
    save(tmp_path, "c", "3")
    assert content_of(tmp_path) == "3"


def test_checkpoints_of_which_none_is_whole_are_no_fresh_start(tmp_path: Path) -> None:
    save(tmp_path, "a", "1")
    (tmp_path / "a" / COMMON).write_text("")
    with pytest.raises(CheckpointError, match=r"none is whole: a: common\.pt has 0 bytes instead of 1"):
        find_checkpoint(tmp_path)
    assert "not whole is a: common.pt has 0 bytes" in folder.what_is_there(tmp_path)


def test_only_folders_that_say_so_are_removed(tmp_path: Path) -> None:
    (tmp_path / "my.saving" / "state").mkdir(parents=True)
    (tmp_path / "died.saving").mkdir()
    save(tmp_path, "a", "1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "latest", "my.saving"]


@pytest.fixture
def _another_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """A context in which this process saves as another one does, which runs as long as the test."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:

        @contextmanager
        def as_the_other() -> Iterator[None]:
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: process.pid)
                yield

        yield as_the_other
        process.kill()


@pytest.mark.parametrize("tag", ["mine", "theirs"])
def test_what_another_run_is_saving_is_left_alone(tmp_path: Path, _another_run: Any, tag: str) -> None:
    """Two runs save into one folder, under different tags or the same one."""
    with _another_run():
        temporary = folder.begin(tmp_path, "theirs")
        (temporary / COMMON).write_bytes(b"their values")
    save(tmp_path, tag, "my values")
    with _another_run():
        files = {COMMON: entry_of(temporary / COMMON)}
        folder.commit(temporary, manifest("theirs", folder.next_sequence(tmp_path), **files))
    assert content_of(tmp_path, "theirs") == "their values"
    assert content_of(tmp_path, tag) == ("their values" if tag == "theirs" else "my values")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({tag, "theirs", "latest"})


def test_what_another_run_moves_out_of_the_way_is_left_alone(tmp_path: Path, _another_run: Any) -> None:
    """Between its two renames, when its checkpoint before is at no place of its own."""
    with _another_run():
        save(tmp_path, "theirs", "before")
        temporary = folder.begin(tmp_path, "theirs")
        (temporary / COMMON).write_bytes(b"their values")
        moved = tmp_path / "theirs.replaced"
        (tmp_path / "theirs").rename(moved)
    save(tmp_path, "mine", "my values")
    assert moved.is_dir() and temporary.is_dir() and not (tmp_path / "theirs").exists()
    assert content_of(tmp_path, "theirs") == "before"


def test_left_overs_go_when_their_process_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: process.pid)
        folder.begin(tmp_path, "died")
        patch.setattr("socket.gethostname", lambda: "another-machine")
        elsewhere = folder.begin(tmp_path, "elsewhere")
    (tmp_path / "old.saving").mkdir()
    (tmp_path / "old.saving" / folder.MARK).touch()
    save(tmp_path, "a", "1")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a", "latest", elsewhere.name])


def test_two_runs_may_remove_the_same_left_overs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "old.saving"
    for name in ("state", "ranks"):
        (old / name).mkdir(parents=True)
    (old / folder.MARK).touch()
    stock = shutil.rmtree

    def after_the_other(path: Path) -> None:
        stock(old)
        stock(path)

    monkeypatch.setattr(shutil, "rmtree", after_the_other)
    save(tmp_path, "a", "1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "latest"]


def test_a_save_is_one_though_what_follows_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latest").mkdir()  # so that no file can take its place
    save(tmp_path, "a", "1")
    assert content_of(tmp_path) == "1"


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    place = tmp_path / "new" / "file"
    with folder.whole_file(place) as stream:
        stream.write(b"old")
    with pytest.raises(KeyError), folder.whole_file(place) as stream:
        stream.write(b"half")
        raise KeyError
    assert place.read_bytes() == b"old" and len(list(place.parent.iterdir())) == 1
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"), folder.whole_file(tmp_path / "taken" / "x"):
        pass


def test_which_one_is_the_newest(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) is None and find_checkpoint(tmp_path / "nowhere") is None
    save(tmp_path, "a", "1")
    save(tmp_path, "b", "2")
    save(tmp_path, "aside", "3", save_latest=False)
    assert "aside were saved with save_latest=False" in folder.what_is_there(tmp_path)
    assert content_of(tmp_path) == "2" and (tmp_path / "latest").read_text() == "b"
    save(tmp_path, "a", "4")
    assert content_of(tmp_path) == "4" and (tmp_path / "latest").read_text() == "a"
    assert content_of(tmp_path, "aside") == "3"
    assert content_of(tmp_path / "b") == "2", "the folder of one checkpoint"
    (tmp_path / "latest").unlink()
    assert content_of(tmp_path) == "4", "the file is for people"


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    place = save(tmp_path, "a", "right")
    found = find_checkpoint(tmp_path)
    assert found is not None
    (place / COMMON).write_text("wrong")
    with pytest.raises(CheckpointError, match=r"common\.pt has changed since it was saved"):
        check_content(found, found.manifest.files)


@pytest.mark.parametrize("tag", ["", "a/b", "..", "latest", "x.saving", "x.replaced"])
def test_tags_that_are_no_names(tmp_path: Path, tag: str) -> None:
    with pytest.raises(CheckpointError, match="a tag is the name of one folder"):
        folder.begin(tmp_path, tag)


def test_what_a_thread_of_this_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    """Until it is over: then the next save removes it."""
    temporary = folder.begin(tmp_path, "behind")
    under_way(temporary)
    save(tmp_path, "a", "1")
    assert temporary.is_dir() and content_of(tmp_path) == "1"
    with pytest.raises(CheckpointError, match=r"behind\..*is being written by another engine of this process"):
        folder.begin(tmp_path, "behind")
    over(temporary)
    save(tmp_path, "b", "2")
    assert not temporary.exists()


def test_what_belongs_to_others_is_left_alone(tmp_path: Path) -> None:
    stock = tmp_path / "global_step5"
    stock.mkdir()
    (stock / "mp_rank_00_model_states.pt").touch()
    own = tmp_path / "mine.saving"
    own.mkdir()
    (own / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="is there and is no checkpoint of ours"):
        folder.begin(tmp_path, "global_step5")
    save(tmp_path, "a", "1")
    assert (own / "notes.txt").exists() and (stock / "mp_rank_00_model_states.pt").exists()
    with pytest.raises(CheckpointError, match="there are a; global_step5 were saved by an engine of stock DeepSpeed"):
        find_checkpoint(tmp_path, "b")


def test_ranks_check_all_files_between_them() -> None:
    files = {f"file{i}": FileEntry(size, 0) for i, size in enumerate([5, 100, 30, 30, 40, 1, 0])}
    shares = [shared_of(rank, 3, files) for rank in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(files)
    assert max(sum(files[name].bytes for name in share) for share in shares) == 100


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = manifest("a", 3, common=FileEntry(5, 6))
    assert Manifest.from_json(written.to_json(), "here") == written
    assert written.tensors["model.a"].bytes == 24
    for text, message in (
        ("{", "here is not JSON"),
        ("[]", "format 'list' found"),
        (json.dumps({"format": 99}), "format 99 found"),
        (json.dumps({"format": 1, "tag": "a"}), "here is no manifest"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Manifest.from_json(text, "here")


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    place = save(tmp_path, "a", "1")
    (place / MANIFEST).unlink()
    assert find_checkpoint(tmp_path) is None
