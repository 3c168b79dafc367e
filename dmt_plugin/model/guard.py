"""Half a model is never given nor taken: what holds once the tables of a flat model are with their owners.

1. :func:`let_go` notes names and shapes of the states of the flat and the tower model, then frees the flat tables.
2. From then on ``state_dict``, ``load_state_dict`` (before anything is copied) and ``forward`` of the user's model, of
   what wraps it and of the parts of it that hold tables raise
   :class:`~dmt_plugin.core.errors.TablesReleasedError`, by hooks; copies and pickles do, by the tables themselves.
3. The placed model raises it for ``state_dict``, ``load_state_dict``, a copy and a pickle; this package reads
   :meth:`~dmt_plugin.model.placed.PlacedModel.own_state`.
4. Where the flat model is copied, for :func:`dmt_plugin.to_flat`, the hooks are lifted, so that the copy has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from dmt_plugin.core.errors import TablesReleasedError
from dmt_plugin.model.placed import PlacedModel
from dmt_plugin.tables.released import is_released, release


class Refusal:
    """A hook that raises; it can be pickled.

    Args:
        what: what is refused.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Raises.

        Raises:
            TablesReleasedError: always.
        """
        raise TablesReleasedError(self.what)


class Guard:
    """The hooks of a user's model whose tables were let go.

    Args:
        model: the flat model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._handles: list[RemovableHandle] = []
        self._install()

    def _install(self) -> None:
        root = type(self.model).__name__
        for path, module in self.model.named_modules():
            if path and not any(is_released(p) for p in module.parameters()):
                continue
            name = f"{root}.{path}" if path else root
            self._handles += [
                module.register_state_dict_pre_hook(Refusal(f"{name}.state_dict()")),
                module.register_load_state_dict_pre_hook(Refusal(f"{name}.load_state_dict()")),
                module.register_forward_pre_hook(Refusal(f"calling {name}")),
            ]

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """No hooks in the block."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        try:
            yield
        finally:
            self._install()


def let_go(placed: PlacedModel, model: nn.Module) -> int:
    """Frees the tables of the flat model, whose owners have them; from now on nothing gives or takes half a model.

    Args:
        placed: this rank's model, made from ``model``.
        model: the user's.

    Returns:
        Bytes that were freed.
    """
    placed.logical.note_states()
    freed = release(model, table_parameters(placed), keep=placed.parameters())
    placed.put_under(Guard(model))
    return freed


def table_parameters(placed: PlacedModel) -> Iterable[str]:
    """Names of the flat model's parameters that hold tables."""
    return list(dict.fromkeys(table.parameter for table in placed.plan.tables))
