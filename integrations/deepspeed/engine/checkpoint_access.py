"""An engine's calls for checkpoints: save, in the step or behind it, load, and the states of the user's objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.integrations.deepspeed.checkpoint.load import load
from dmt_plugin.integrations.deepspeed.checkpoint.rank_state import Registered, Stateful
from dmt_plugin.integrations.deepspeed.checkpoint.save import save, wait
from dmt_plugin.integrations.deepspeed.checkpoint.trained import Trained


class CheckpointAccess:
    """Calls of :class:`DMTEngine`; but for ``register_state`` all ranks make them together, between two steps."""

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
        *,
        asynchronous: bool | None = None,
    ) -> bool:
        """Save everything that is needed to go on; all ranks call this, between two steps.

        The checkpoint exists from the moment on in which it is whole: whenever a rank dies, one before can be loaded.
        One that is still being written behind the steps is waited for first.

        Args:
            save_dir: A folder that all hosts share.
            tag: Name of the checkpoint, the same on all ranks; by default ``global_step<n>``. A checkpoint of that name
                is replaced.
            client_state: What the caller wants back from ``load_checkpoint``, of each rank its own.
            save_latest: Whether a load without a tag may take this one.
            exclude_frozen_parameters: Leave out layers that are not trained, which a load leaves as they are; tables
                are never left out.
            asynchronous: Return when what is saved has been copied into host memory; a thread writes and commits it
                behind the steps that follow. By default what ``dmt.checkpoint.asynchronous`` says.

        Returns:
            True.

        Raises:
            CheckpointError: Nothing was committed; says why. Or the one before, written behind the steps, was not
                committed: then this one has not begun.
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        if not save_dir:
            raise ValueError(f"save_dir must be a non-empty string, got {save_dir!r}")
        own = (save_dir, tag, client_state, save_latest, exclude_frozen_parameters, asynchronous)
        save(cast(Trained, self), *own)
        return True

    def wait_for_checkpoint(self) -> str | None:
        """Wait until the checkpoint that is being written behind the steps is committed; all ranks call this.

        Returns:
            Its path; None if none was being written since the last call that waited for one.

        Raises:
            CheckpointError: It is not committed; says why. The checkpoints before are as they were.
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        return wait(cast(Trained, self))

    def load_checkpoint(
        self,
        load_dir: str,
        tag: Any = None,
        load_module_strict: bool = True,
        load_optimizer_states: bool = True,
        load_lr_scheduler_states: bool = True,
        load_module_only: bool = False,
        custom_load_fn: Any = None,
        *,
        changes: Mapping[str, Iterable[str]] | None = None,
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
            changes: What of the model has changed since, the same on all ranks: names of tables, features, parameters
                or modules, or patterns with ``*`` and ``?``, under ``"grow"`` (tables with more rows: those that are
                stored are loaded, with their optimizer state), ``"new"`` (tables and layers that keep what this engine
                started them with) and ``"drop"`` (what only the checkpoint has).

        A checkpoint that is still being written behind the steps is waited for first.

        Returns:
            The checkpoint's path and what ``save_checkpoint`` was given as ``client_state`` by this rank, or by rank 0
            if another number of ranks saved it. Two ``None`` if no tag was asked for and there is no whole checkpoint.

        Raises:
            CheckpointError: It is not whole, or something of the model or optimizer is not in it or has no place for
                it and is not named by ``changes``, or what is named there is not so; names tables, features and
                tensors. Nothing was loaded then.
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        if not load_module_strict or custom_load_fn is not None:
            given = "custom_load_fn" if custom_load_fn is not None else "load_module_strict=False"
            raise CheckpointError(
                f"load_checkpoint({given}) is not supported for a tower-decomposed model: a load restores everything "
                "or nothing. Where the model has changed since, say with changes= what has. To start from parts of a "
                "checkpoint, write it with `dmt checkpoint to-flat` and load what you want into the model before "
                "dmt_plugin.initialize."
            )
        own = cast(Trained, self)
        return load(own, load_dir, tag, load_optimizer_states, load_lr_scheduler_states, load_module_only, changes)
