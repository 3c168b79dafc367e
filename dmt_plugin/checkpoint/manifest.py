"""What a checkpoint says of itself: plan, topology, steps, tensors and files, as JSON that needs no torch to read.

It is the last file that is written into a checkpoint's folder: a folder without it is no checkpoint. It has the
checksums of all other files, and one of itself: of its entries, however the text lays them out. Manifests of before
have none and are read as they are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.core.json_text import parse
from dmt_plugin.plan.tower_plan import TowerPlan

FORMAT = 2
"""The newest format. A checkpoint that needs nothing new says 1: format 2 has tables that are stored by modulo."""
CHECKSUM = "checksum"
"""Key of the SHA-256 of all other entries."""
COUNTERS = ("global_steps", "global_samples", "skipped_steps")
"""What of a run's counters is kept."""

#: Bytes of an entry, by the name of its type.
WIDTHS = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class StoredByModulo:
    """A table whose rows are stored by the remainder of their number: see :mod:`dmt_plugin.checkpoint.row_order`.

    Attributes:
        first_row: where the table begins in its tensor.
        rows: of the table.
        step: what numbers are divided by.
    """

    first_row: int
    rows: int
    step: int


@dataclass(frozen=True)
class TensorEntry:
    """One logical tensor.

    Attributes:
        kind: ``"table"``, ``"table_optimizer"``, ``"tower"``, ``"dense"``, ``"buffer"`` or ``"optimizer"``.
        shape: shape of the whole tensor, as the model has it.
        dtype: type of its entries in the files, such as ``"float32"``.
        by_modulo: the tables in it whose rows are not stored in the order of their numbers.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    by_modulo: tuple[StoredByModulo, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of all entries."""
        return prod(self.shape) * WIDTHS.get(self.dtype, 0)


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint: its size and the CRC-32 of its content."""

    bytes: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """See the module's docstring.

    Attributes:
        tag: name of the checkpoint.
        sequence: rises by one with every checkpoint of a folder; the newest has the largest.
        save_latest: whether a load without a tag may take it.
        saved_at: when, as ISO 8601 in UTC.
        versions: of this package, torch and DeepSpeed.
        topology: hosts and ranks per host of the run, ``"HxL"``.
        plan: the tower plan, as ``TowerPlan.to_dict`` gives it.
        semantic_preserving: whether the model computes what the flat model computes.
        steps: ``global_steps``, ``global_samples``, ``skipped_steps`` of the run.
        training: what trained it: ZeRO stage, optimizers, scheduler, precision.
        tensors: the logical tensors by name.
        left_out: names of parameters that were left out on request.
        never_run: names in the flat model's state that its forward never reads, so that no rank holds them.
        files: by path inside the folder.
        rank_states: number of ranks that left a state of their own (random numbers, position in the data).
    """

    tag: str
    sequence: int
    save_latest: bool
    saved_at: str
    versions: Mapping[str, str]
    topology: str
    plan: Mapping[str, Any]
    semantic_preserving: bool
    steps: Mapping[str, int]
    training: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    left_out: Sequence[str] = ()
    never_run: Sequence[str] = ()
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    rank_states: int = 0

    @cached_property
    def tower_plan(self) -> TowerPlan:
        """The plan."""
        return TowerPlan.from_dict(self.plan)

    def to_json(self) -> str:
        """The text of the file."""
        data = {"format": 1, **dataclasses.asdict(self)}
        for entry in data["tensors"].values():
            if entry["by_modulo"]:
                data["format"] = FORMAT
            else:
                del entry["by_modulo"]
        return json.dumps({**data, CHECKSUM: _checksum(data)}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Manifest:
        """Reads what :meth:`to_json` gave.

        Args:
            text: content of the file.
            source: name of the file, for messages.

        Raises:
            CheckpointError: it is something else, of another version, or not as it was written.
        """
        try:
            data = parse(text.decode() if isinstance(text, bytes) else text)
        except ValueError as error:  # no UTF-8 is one
            raise CheckpointError(f"{source} is not JSON: {error}") from error
        if not isinstance(data, dict) or data.get("format") not in range(1, FORMAT + 1):
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise CheckpointError(f"{source}: format {found!r} found, this release reads the formats 1 to {FORMAT}")
        said = data.pop(CHECKSUM, None)
        if said is not None and said != _checksum(data):
            raise CheckpointError(f"{source} has changed since it was written: its checksum is another")
        try:
            return cls(
                **{
                    **{key: value for key, value in data.items() if key != "format"},
                    "left_out": tuple(data["left_out"]),
                    "never_run": tuple(data["never_run"]),
                    "tensors": {
                        name: TensorEntry(
                            t["kind"],
                            tuple(t["shape"]),
                            t["dtype"],
                            tuple(StoredByModulo(**own) for own in t.get("by_modulo", ())),
                        )
                        for name, t in data["tensors"].items()
                    },
                    "files": {name: FileEntry(int(f["bytes"]), int(f["crc32"])) for name, f in data["files"].items()},
                }
            )
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{source} is no manifest: {type(error).__name__}: {error}") from error


def _checksum(entries: Mapping[str, Any]) -> str:
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
