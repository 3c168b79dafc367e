"""An engine's calls for the state of the flat model, of which every rank holds a part: out, in, and by rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor

from dmt_plugin.checkpoint.flat_files import Format
from dmt_plugin.checkpoint.logical import Receivers
from dmt_plugin.integrations.deepspeed.checkpoint.flat_state import gather_flat, load_flat, write_model
from dmt_plugin.integrations.deepspeed.checkpoint.trained import Trained
from dmt_plugin.integrations.deepspeed.engine.state import DMTState
from dmt_plugin.integrations.deepspeed.engine.table_rows import read_rows, write_rows
from dmt_plugin.model.flat_state import LoadedState


class FlatAccess:
    """Calls of :class:`DMTEngine`; all ranks make each of them together, between two steps."""

    dmt: DMTState

    def gather_state(
        self,
        out: str | Path | None = None,
        *,
        format: Format | None = None,
        ranks: Receivers = (0,),
        max_file_bytes: int = 4 << 30,
    ) -> dict[str, Tensor] | Path | None:
        """The trained model's state dict, with the user's names and those of tower modules.

        Parameters have the type they are trained in: bf16 with ``"bf16"``, else fp32. Tables have that in which
        they are kept.

        Args:
            out: Where to write it, block by block, so that no rank needs more memory than for a block: a folder of
                ``.safetensors`` files, a file that ends so, or a file for ``torch.load``. None: into memory.
            format: Of the files: ``"safetensors"`` or ``"torch"``; by default the latter for a name that ends in
                ``.pt``, ``.pth`` or ``.bin``.
            ranks: Those that get the state, ``"all"`` for every rank, each of which needs the memory for it; with
                ``out`` the one that writes.
            max_file_bytes: Bytes of tensors in each file of a folder; a longer tensor has a file of its own.

        Returns:
            Tensors on the CPU by name; None on ranks that are not among ``ranks``. With ``out`` its path.

        Raises:
            CheckpointError: There is no such rank, or it could not be written; says why.
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        return gather_flat(cast(Trained, self), out, format, ranks, max_file_bytes)

    def load_flat_state(self, state: Any) -> LoadedState:
        """Go on from the weights of a flat model: tables, and every layer that kept its meaning.

        Tower modules that the flat model has not got, optimizers, counters and schedulers stay as they are.

        Args:
            state: The path of a checkpoint of ours, of a folder of ``.safetensors`` files, of one of them, or of a file
                of ``torch.save``: the same on all ranks, of which each reads its own part. Or a state dict, of which
                rank 0's is used; the other ranks may pass None.

        Returns:
            What was loaded, what the flat model has no values for, and what had no place.

        Raises:
            CheckpointError: A part that should go on is missing, or has another shape; nothing was loaded then.
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        return load_flat(cast(Trained, self), state)

    def table_rows(self, name: str, ids: Any) -> Tensor:
        """Rows of a table, wherever they are.

        Args:
            name: Of the table (an embedding layer, ``"tables.3"``), or of its parameter in the flat model.
            ids: Numbers of rows, ``(n,)``; each rank gets those that it asks for.

        Returns:
            ``(n, dim)``, fp32 whatever type the table is kept in, on the engine's device.

        Raises:
            DMTError: There is no such table, or ids are no vector of whole numbers.
            IdRangeError: The table has no such row.
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        return read_rows(self.dmt, name, ids)

    def set_table_rows(self, name: str, ids: Any, values: Tensor | None) -> None:
        """Overwrite rows of a table, wherever they are. What its optimizer keeps of them stays.

        Args:
            name: See :meth:`table_rows`.
            ids: Numbers of rows, ``(n,)``, each once; rank 0's are used.
            values: ``(n, dim)``; rank 0's are used, the other ranks may pass None. Where the table has fewer bits, they
                are rounded to nearest.

        Raises:
            DMTError: There is no such table, an id comes twice, or the values have another shape.
            IdRangeError: The table has no such row.
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        write_rows(self.dmt, name, ids, values)

    def save_16bit_model(
        self, save_dir: str, save_filename: str = "pytorch_model.bin", exclude_frozen_parameters: bool = False
    ) -> bool:
        """Write the trained model as one state dict with the user's own names; all ranks call this.

        As with DeepSpeed, parameters have the type they are trained in: bf16 with ``"bf16"``, else fp32. Tables have
        that in which they are kept.
        It goes block by block from the ranks that hold it to rank 0, which writes it.

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
        write_model(cast(Trained, self), save_dir, save_filename, exclude_frozen_parameters)
        return True
