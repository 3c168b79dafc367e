"""The newest checkpoint whose files are as they were saved: one that has changed is passed over, and that is said.

Only where no tag is given: who asks for one checkpoint gets that, or an error.
"""

from __future__ import annotations

import logging
from pathlib import Path

from dmt_plugin.checkpoint.folder import Found, check_content, find_checkpoint
from dmt_plugin.core.errors import CheckpointError

logger = logging.getLogger(__name__)

IGNORED = "ignored, as it is no whole checkpoint: %s"


def find_unchanged(load_dir: str | Path, tag: str | None = None) -> Found | None:
    """As :func:`~.folder.find_checkpoint`, with every file compared with its checksum.

    Raises:
        CheckpointError: as there; the one that was asked for has changed, or all have.
    """
    passed_over: dict[str, str] = {}
    while (found := find_checkpoint(load_dir, tag, passed_over)) is not None:
        try:
            check_content(found, found.manifest.files)
        except CheckpointError as error:
            pass_over(found, load_dir, tag, passed_over, str(error))
            continue
        for reason in found.ignored:
            logger.warning(IGNORED, reason)
        break
    return found


def pass_over(found: Found, load_dir: str | Path, tag: str | None, passed_over: dict[str, str], reason: str) -> None:
    """Adds a checkpoint to those that are not to be taken.

    Args:
        found: the checkpoint.
        load_dir: where it was looked for.
        tag: by which name.
        passed_over: is added to.
        reason: what is wrong with it.

    Raises:
        CheckpointError: it is the one that was asked for, so that no other will do.
    """
    if tag is not None or found.path == Path(load_dir):
        raise CheckpointError(reason)
    passed_over[found.path.name] = reason
