"""The engine's calls around checkpoints, with DeepSpeed's signatures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from deepspeed.runtime.engine import DeepSpeedEngine

from dmt_plugin.checkpoint.folder import whole_file
from dmt_plugin.checkpoint.logical import gather_state
from dmt_plugin.checkpoint.state import frozen_names
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.integrations.deepspeed.checkpoint import save_load as checkpointing
from dmt_plugin.integrations.deepspeed.checkpoint.rank_state import Registered, Stateful
from dmt_plugin.topology.agreement import gather, together

if TYPE_CHECKING:
    from dmt_plugin.integrations.deepspeed.engine.engine import DMTState


class CheckpointedEngine(DeepSpeedEngine):
    """A DeepSpeed engine whose checkpoints hold the logical model: tables, towers, dense part and all optimizer state.

    Attributes:
        dmt: the plugin's part.
        checkpointed: the user's objects whose state belongs to a checkpoint.
    """

    dmt: DMTState
    checkpointed: Registered

    def register_state(self, name: str, thing: Stateful) -> None:
        """Make the state of an object, such as a ``prefetched`` loader, part of checkpoints.

        Every rank's object is saved and, in a run of as many ranks, given back its own state: by ``load_checkpoint``,
        or here if that was called before.

        Args:
            name: its name in checkpoints.
            thing: anything with ``state_dict`` and ``load_state_dict``.

        Raises:
            ValueError: the name is taken, or the object has no such calls.
        """
        self.checkpointed.add(name, thing)

    def save_checkpoint(
        self,
        save_dir: str,
        tag: Any = None,
        client_state: Any = None,
        save_latest: bool = True,
        exclude_frozen_parameters: bool = False,
    ) -> bool:
        """Save everything that is needed to go on; all ranks call this, between two steps.

        The checkpoint exists from the moment on in which it is whole: whenever a rank dies, one before can be loaded.

        Args:
            save_dir: A folder that all hosts share.
            tag: Name of the checkpoint, the same on all ranks; by default ``global_step<n>``. A checkpoint of that name
                is replaced.
            client_state: What the caller wants back from ``load_checkpoint``, of each rank its own.
            save_latest: Whether a load without a tag may take this one.
            exclude_frozen_parameters: Leave out parameters that are not trained; a load leaves them as they are.

        Returns:
            True.

        Raises:
            CheckpointError: Nothing was committed; says why.
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        if not save_dir:
            raise ValueError(f"save_dir must be a non-empty string, got {save_dir!r}")
        checkpointing.save(self, save_dir, tag, client_state, save_latest, exclude_frozen_parameters)
        return True

    def load_checkpoint(
        self,
        load_dir: str,
        tag: Any = None,
        load_module_strict: bool = True,
        load_optimizer_states: bool = True,
        load_lr_scheduler_states: bool = True,
        load_module_only: bool = False,
        custom_load_fn: Any = None,
    ) -> tuple[str | None, dict[str, Any] | None]:
        """Go on from a checkpoint, whatever topology and ZeRO stage it was saved with; all ranks call this.

        Args:
            load_dir: The folder that ``save_checkpoint`` was given.
            tag: Name of the checkpoint; by default the newest whole one.
            load_module_strict: Must be true.
            load_optimizer_states: False: optimizers, also that of the tables, stay as they are: new in a new engine.
            load_lr_scheduler_states: False: the learning-rate scheduler stays as it is.
            load_module_only: Only tables, parameters and buffers; counters, optimizers and schedulers stay as they are.
            custom_load_fn: Not supported.

        Returns:
            The checkpoint's path and what ``save_checkpoint`` was given as ``client_state`` by this rank, or by rank 0
            if another number of ranks saved it. Two ``None`` if no tag was asked for and there is no whole checkpoint.

        Raises:
            CheckpointError: It is not whole, or something of the model or optimizer is not in it or has no place for
                it; names the tensors. Nothing was loaded then.
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        if not load_module_strict or custom_load_fn is not None:
            given = "custom_load_fn" if custom_load_fn is not None else "load_module_strict=False"
            raise CheckpointError(
                f"load_checkpoint({given}) is not supported for a tower-decomposed model: a load restores everything "
                "or nothing. To start from parts of a checkpoint, write it with `dmt checkpoint to-flat` and load what "
                "you want into the model before dmt_plugin.initialize."
            )
        return checkpointing.load(
            self, load_dir, tag, load_optimizer_states, load_lr_scheduler_states, load_module_only
        )

    def save_16bit_model(
        self, save_dir: str, save_filename: str = "pytorch_model.bin", exclude_frozen_parameters: bool = False
    ) -> bool:
        """Write the trained model as one state dict with the user's own names; all ranks call this.

        As with DeepSpeed, parameters have the type they are trained in: bf16 with ``"bf16"``, else fp32; tables fp32.
        Every rank gathers the whole model in its memory on the way; where that is too much, save a checkpoint and use
        ``dmt checkpoint to-flat``.

        Args:
            save_dir: A folder, made if it is not there.
            save_filename: Name of the file.
            exclude_frozen_parameters: Leave out parameters that are not trained.

        Returns:
            True.

        Raises:
            CheckpointError: It could not be written; says why.
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        if not save_dir:
            raise CheckpointError(f"save_dir must be a non-empty string, got {save_dir!r}")
        groups = self.dmt.groups
        with checkpointing.waits(self, "save_16bit_model"):
            state = gather_state(self.dmt.placed, groups)
            frozen = gather(groups, frozen_names(self.dmt.placed))  # each rank knows of its own towers
            with together(groups, "writing the model"):
                if groups.rank == 0:
                    skipped = set().union(*frozen) if exclude_frozen_parameters else set()
                    kept = {name: value for name, value in state.items() if name not in skipped}
                    _write(kept, save_dir, save_filename)
        return True


def _write(state: dict[str, torch.Tensor], save_dir: str, name: str) -> None:
    """A file that is there as a whole or not at all."""
    folder = Path(save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / name) as stream:
        torch.save(state, stream)
