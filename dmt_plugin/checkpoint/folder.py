"""Folders of checkpoints: how one comes into being at once, and which one is the newest that is whole.

1. A checkpoint is written into a folder of its own beside its place (:mod:`.unfinished`). Its manifest is the last
   file; every file and the folder are synced to the disk before the folder is renamed to ``<tag>``: that is the moment
   from which it exists.
2. A checkpoint of the same tag moves out of the way first, to ``<tag>.replaced``, and is deleted last. While there is
   no ``<tag>``, ``<tag>.replaced`` is taken for it.
3. ``latest`` is replaced at once, behind the rename. It is for people and other tools: what is loaded without a tag is
   the newest whole checkpoint that was saved with ``save_latest``, so that a run that died between the two goes on
   from its last one.
4. The next save removes what was left over, and lets alone what another run is writing.

Everything here is for one process to do, and needs no torch.
"""

from __future__ import annotations

import logging
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

from dmt_plugin.checkpoint.manifest import FileEntry, Manifest
from dmt_plugin.checkpoint.unfinished import REPLACED, SAVING, is_abandoned, place_of, unfinished_name
from dmt_plugin.core import files
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.core.files import sync_folder, synced

logger = logging.getLogger(__name__)

MANIFEST = "dmt_checkpoint.json"
LATEST = "latest"
#: Says that a folder named ``*.saving`` is one of ours.
MARK = "unfinished_dmt_checkpoint"
#: Folder of the tensors' files inside a checkpoint.
STATE = "state"
#: Folder of what each rank has for itself.
RANKS = "ranks"
#: What all ranks share beside tensors.
COMMON = "common.pt"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Found:
    """A whole checkpoint.

    Attributes:
        path: its folder.
        manifest: what it says of itself.
        ignored: what lies beside it and is not whole, each with the reason.
    """

    path: Path
    manifest: Manifest
    ignored: tuple[str, ...] = ()

    @property
    def state(self) -> Path:
        """Folder of the tensors."""
        return self.path / STATE


def rank_file(rank: int) -> str:
    """Name of the file with a rank's own state."""
    return f"{RANKS}/rank_{rank:05d}.pt"


def find_checkpoint(
    load_dir: str | Path, tag: str | None = None, passed_over: Mapping[str, str] = MappingProxyType({})
) -> Found | None:
    """The checkpoint of a tag, or the newest one.

    Args:
        load_dir: the folder that ``save_checkpoint`` was given; without a tag also that of one checkpoint itself.
        tag: its name.
        passed_over: without a tag, names of checkpoints that are not to be taken, each with the reason.

    Returns:
        None if no tag is given and there is none: nothing at all, saves that did not finish, or only such as were saved
        with ``save_latest=False``.

    Raises:
        CheckpointError: there is none of that tag, or it is not whole; without a tag, there are checkpoints and none
            of them is whole any more: to begin again then would lose a run.
    """
    root = Path(load_dir)
    if tag is None and (root / MANIFEST).is_file():
        return Found(root, read_manifest(root))
    if tag is not None:
        return _of_tag(root, str(tag))
    ignored: list[str] = []
    whole: list[tuple[int, Path, Manifest]] = []
    for path in _folders(root):
        if path.name in passed_over:
            ignored.append(passed_over[path.name])
            continue
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            ignored.append(str(error))
        else:
            whole.append((manifest.sequence, path, manifest))
    if ignored and not whole:
        raise CheckpointError(f"{root} has checkpoints, but none is whole: {'; '.join(ignored)}")
    ignored += [f"{path.name}: its save did not finish" for path in _unfinished(root)]
    candidates = [found for found in whole if found[2].save_latest]
    if not candidates:
        return None
    _, path, manifest = max(candidates, key=lambda found: found[0])
    return Found(path, manifest, tuple(ignored))


def what_is_there(load_dir: str | Path) -> str:
    """In words, for messages: the checkpoints of a folder, and what is not whole."""
    root = Path(load_dir)
    if not root.is_dir():
        return f"there is no folder {root}"
    parts = []
    names: list[str] = []
    aside: list[str] = []
    for path in _folders(root):
        try:
            (names if read_manifest(path).save_latest else aside).append(path.name)
        except CheckpointError as error:
            parts.append(f"not whole is {error}")
    if names:
        parts.insert(0, f"there are {', '.join(names)}")
    if aside:
        parts.append(f"{', '.join(aside)} were saved with save_latest=False, so they are loaded by their tag only")
    unfinished = [path.name for path in _unfinished(root)]
    if unfinished:
        parts.append(f"{', '.join(unfinished)} did not finish")
    stock = sorted({path.parent.name for path in root.glob("*/*model_states.pt")})
    if stock:
        parts.append(f"{', '.join(stock)} were saved by an engine of stock DeepSpeed")
    return "; ".join(parts) or "it holds no checkpoint"


def read_manifest(path: Path) -> Manifest:
    """The manifest of a whole checkpoint.

    Raises:
        CheckpointError: it is not whole: no manifest, or files that are missing or of another size.
    """
    file = path / MANIFEST
    try:
        text = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path.name}: no manifest ({error.strerror})") from error
    manifest = Manifest.from_json(text, f"{path.name}/{MANIFEST}")
    for name, entry in manifest.files.items():
        there = path / name
        if not there.is_file():
            raise CheckpointError(f"{path.name}: the file {name} is missing")
        if (size := there.stat().st_size) != entry.bytes:
            raise CheckpointError(f"{path.name}: {name} has {size} bytes instead of {entry.bytes}")
    return manifest


def check_content(found: Found, names: Iterable[str]) -> None:
    """Compares files with the sums that were taken when they were written.

    Raises:
        CheckpointError: a file has changed.
    """
    for name in names:
        if entry_of(found.path / name) != found.manifest.files[name]:
            raise CheckpointError(f"{found.path / name} has changed since it was saved: its CRC-32 is another")


def entry_of(path: Path) -> FileEntry:
    """Size and CRC-32 of a file."""
    total = crc = 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            total, crc = total + len(chunk), zlib.crc32(chunk, crc)
    return FileEntry(total, crc)


def begin(save_dir: str | Path, tag: str) -> Path:
    """Removes left-overs and makes the folder that a checkpoint is written into.

    Raises:
        CheckpointError: the tag is no name of a folder, or something else has it.
    """
    if Path(tag).name != tag or tag in ("", "..", LATEST) or tag.endswith((SAVING, REPLACED)):
        raise CheckpointError(
            f"a tag is the name of one folder that is not {LATEST!r} and does not end in {SAVING!r} or {REPLACED!r}; "
            f"found {tag!r}"
        )
    root = Path(save_dir)
    root.mkdir(parents=True, exist_ok=True)
    clean(root)
    place = root / tag
    if place.exists() and not _is_ours(place):
        raise CheckpointError(f"{place} is there and is no checkpoint of ours; choose another tag, or move it away")
    temporary = root / unfinished_name(tag)
    if temporary.exists() and not is_abandoned(temporary):
        raise CheckpointError(
            f"{temporary} is being written by another engine of this process: wait for its checkpoint "
            "(engine.wait_for_checkpoint()), or choose another tag"
        )
    temporary.mkdir()
    (temporary / MARK).touch()
    for name in (STATE, RANKS):
        (temporary / name).mkdir()
    return temporary


def clean(root: Path) -> None:
    """Removes what saves that did not finish left over, and finishes what can be finished.

    What another run may be writing stays, and so does what its commit moves out of the way.
    """
    busy = set()
    for path in _unfinished(root):
        if is_abandoned(path):
            _remove(path)
        else:
            busy.add(place_of(path).name)
            logger.info("%s may be written by another run: left alone", path)
    for path in root.glob(f"*{REPLACED}"):
        place = place_of(path)
        if place.name in busy or not _is_ours(path):
            continue
        if (path / MANIFEST).is_file() and not place.exists():
            with suppress(FileNotFoundError):
                path.rename(place)
        else:  # its removal was under way
            _remove(path)


def _remove(path: Path) -> None:
    """Removes a folder of ours; what shows that it is ours goes last, so that the next save can go on with it."""
    with suppress(FileNotFoundError):  # another run removes it as well
        for child in path.iterdir():
            if child.is_dir():
                shutil.rmtree(child)
            elif child.name not in (MARK, MANIFEST):
                child.unlink()
        for name in (MANIFEST, MARK):
            (path / name).unlink(missing_ok=True)
        path.rmdir()


def next_sequence(root: Path) -> int:
    """Number of the next checkpoint."""
    numbers = [0]
    for path in _folders(root):
        try:
            numbers.append(Manifest.from_json((path / MANIFEST).read_bytes(), path.name).sequence)
        except (OSError, CheckpointError):
            continue
    return max(numbers) + 1


def commit(temporary: Path, manifest: Manifest) -> Path:
    """Makes a written folder the checkpoint of its tag.

    Args:
        temporary: of :func:`begin`, with all files but the manifest, which were synced as they were written.
        manifest: what it says.

    Returns:
        The checkpoint's folder.
    """
    root = temporary.parent
    place = place_of(temporary)
    with synced(temporary / MANIFEST) as stream:
        stream.write(manifest.to_json().encode())
    (temporary / MARK).unlink()
    for folder in (*(p for p in temporary.iterdir() if p.is_dir()), temporary):
        sync_folder(folder)
    replaced = root / f"{place.name}{REPLACED}"
    if place.exists():
        if replaced.exists():  # of another run's save
            _remove(replaced)
        place.rename(replaced)
    temporary.rename(place)
    try:
        sync_folder(root)
        if manifest.save_latest:
            draft = root / f"{LATEST}{SAVING}"
            with synced(draft) as stream:
                stream.write(manifest.tag.encode())
            draft.replace(root / LATEST)
            sync_folder(root)
        if replaced.exists():
            _remove(replaced)
    except OSError as error:  # it is there all the same
        logger.warning("%s is saved, but what follows a save failed: %s", place, error)
    return place


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """:func:`dmt_plugin.core.files.whole_file`, for people who wait for it.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        with files.whole_file(path) as stream:
            yield stream
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error


def _of_tag(root: Path, tag: str) -> Found:
    for path in (root / tag, root / f"{tag}{REPLACED}"):
        if (path / MANIFEST).is_file():
            try:
                return Found(path, read_manifest(path))
            except CheckpointError as error:
                raise CheckpointError(f"the checkpoint {path} is not whole: {error}") from error
    raise CheckpointError(f"{root} has no checkpoint {tag!r}: {what_is_there(root)}")


def _folders(root: Path) -> list[Path]:
    """Folders of checkpoints: those with a manifest, one for each tag."""
    if not root.is_dir():
        return []
    found = [path for path in sorted(root.iterdir()) if not path.name.endswith(SAVING) and (path / MANIFEST).is_file()]
    names = {path.name for path in found}
    return [path for path in found if not path.name.endswith(REPLACED) or place_of(path).name not in names]


def _unfinished(root: Path) -> list[Path]:
    """Folders that a save made and did not finish. A whole one that only lacked its rename is one of them."""
    if not root.is_dir():
        return []
    return [path for path in sorted(root.glob(f"*{SAVING}")) if _is_ours(path)]


def _is_ours(path: Path) -> bool:
    """Whether a folder is a checkpoint, written or removed in part: it says so, and holds nothing else."""
    try:
        names = {p.name for p in path.iterdir()}
    except (FileNotFoundError, NotADirectoryError):  # gone meanwhile, or a file
        return False
    # An empty one: a save that died between making it and its mark, or a removal that died before its end.
    return names <= {MARK, MANIFEST, STATE, RANKS, COMMON} and (not names or bool(names & {MARK, MANIFEST}))


def shared_of(rank: int, ranks: int, files: Mapping[str, FileEntry]) -> list[str]:
    """The files that one of several ranks is to check, so that together they check all, about as many bytes each."""
    loads = [0] * ranks
    mine: list[str] = []
    for name, entry in sorted(files.items(), key=lambda item: (-item[1].bytes, item[0])):
        target = loads.index(min(loads))
        loads[target] += entry.bytes
        if target == rank:
            mine.append(name)
    return mine
