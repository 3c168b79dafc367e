"""The trained model of all ranks as one file, with the user's own names."""

from __future__ import annotations

from pathlib import Path

import torch

from dmt_plugin.checkpoint.folder import whole_file
from dmt_plugin.checkpoint.logical import gather_state
from dmt_plugin.checkpoint.state import frozen_names
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.integrations.deepspeed.checkpoint.save_load import waits
from dmt_plugin.integrations.deepspeed.checkpoint.trained import Trained
from dmt_plugin.topology.agreement import gather, together


def write_model(engine: Trained, save_dir: str, save_filename: str, exclude_frozen: bool) -> None:
    """``DMTEngine.save_16bit_model``: every rank gathers the whole model, rank 0 writes it."""
    if not save_dir:
        raise CheckpointError(f"save_dir must be a non-empty string, got {save_dir!r}")
    placed, groups = engine.dmt.placed, engine.dmt.groups
    with waits(engine, "save_16bit_model"):
        state = gather_state(placed, groups)
        frozen = gather(groups, frozen_names(placed))  # each rank knows of its own towers
        with together(groups, "writing the model"):
            if groups.rank == 0:
                skipped = set().union(*frozen) if exclude_frozen else set()
                with whole_file(Path(save_dir) / save_filename) as stream:
                    torch.save({name: value for name, value in state.items() if name not in skipped}, stream)
