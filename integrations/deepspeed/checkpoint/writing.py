"""From what the ranks have prepared to a checkpoint that is committed: in ``save_checkpoint``, or behind the steps.

1. Every rank writes its blocks and its own state, synced to the disk, and takes the checksums.
2. Rank 0 learns what all have written, adds what all share and the manifest, and commits.
3. All ranks learn how it went.

Nothing of the engine is used any more: everything that is to be written is at hand.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmt_plugin.checkpoint import folder
from dmt_plugin.checkpoint.folder import COMMON, STATE, entry_of, rank_file
from dmt_plugin.checkpoint.manifest import FileEntry, Manifest
from dmt_plugin.checkpoint.writes import Snapshot, Writes
from dmt_plugin.integrations.deepspeed.checkpoint import rank_state
from dmt_plugin.topology.agreement import Meet, together
from dmt_plugin.topology.groups import RankGroups


@dataclass
class Prepared:
    """A checkpoint that is to be written, as one rank has it.

    Attributes:
        temporary: the folder that it is written into.
        writes: the blocks of this rank.
        own: what this rank has for itself.
        common: what all share beside tensors; on rank 0.
        manifest: all that it will say but files, moment and number.
    """

    temporary: Path
    writes: Writes
    own: Any
    common: Any
    manifest: Manifest

    @property
    def name(self) -> str:
        """Its tag."""
        return self.manifest.tag

    def take(self, snapshot: Snapshot) -> None:
        """From now on copies are written; the run may go on."""
        self.writes.take(snapshot)
        self.own, self.common = rank_state.Packed(self.own), rank_state.Packed(self.common)


def write(prepared: Prepared, groups: RankGroups, meet: Meet, each: Callable[[], object] = lambda: None) -> Path:
    """Writes and commits; all ranks call this.

    Args:
        prepared: what this rank has.
        groups: this rank's.
        meet: where the ranks let each other know how it goes.
        each: called whenever something has been done, so that a long wait can be told from one without end.

    Returns:
        The checkpoint's folder.

    Raises:
        Exception: this rank failed; nothing was committed.
        DMTError: another rank did, or a rank is gone.
    """
    temporary, name = prepared.temporary, prepared.name
    with together(groups, f"writing the checkpoint {name}", meet):
        results = prepared.writes.write(each)
        own = temporary / rank_file(groups.rank)
        rank_state.write(own, prepared.own)
        entries: dict[str, FileEntry] = {}
        for path in (own, *sorted((temporary / STATE).glob(f"__{groups.rank}_*"))):
            each()
            entries[str(path.relative_to(temporary))] = entry_of(path)
    of_ranks = meet((results, entries), f"writing the checkpoint {name}")
    each()
    with together(groups, f"committing the checkpoint {name}", meet):
        if groups.rank == 0:
            prepared.writes.finish([found for found, _ in of_ranks])
            _commit(prepared, {path: entry for _, found in of_ranks for path, entry in found.items()})
    return folder.place_of(temporary)


def _commit(prepared: Prepared, files: dict[str, FileEntry]) -> None:
    temporary = prepared.temporary
    rank_state.write(temporary / COMMON, prepared.common)
    for path in (temporary / COMMON, *(temporary / STATE).glob(".*")):
        files[str(path.relative_to(temporary))] = entry_of(path)
    manifest = dataclasses.replace(
        prepared.manifest,
        sequence=folder.next_sequence(temporary.parent),
        saved_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        files=dict(sorted(files.items())),
    )
    folder.commit(temporary, manifest)
