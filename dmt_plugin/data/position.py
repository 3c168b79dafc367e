"""Where an epoch is: how many batches were handed out, and what a resumed one needs to go on with the same batches.

1. An epoch begins with the random state that the loader's sampler may draw from: torch's own and, where the loader has
   one, its generator's. Both are part of the position. Between two epochs there is only the generator's: torch's
   belongs to the training.
2. To resume, the loader is started from that random state, as many batches are read and dropped as were handed out, and
   torch's random state is put back: the training has restored its own by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dmt_plugin.core.errors import DataError

_KEYS = {"epoch", "batches", "length", "random", "loader_random"}


class Position:
    """Of one loader.

    Attributes:
        epoch: number of the epoch that goes on, or begins next.
        batches: batches of it that were handed out.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.batches = 0
        self._begun = False
        self._resumed = False
        self._random: Tensor | None = None
        self._loader_random: Tensor | None = None

    def begin(self, loader: Any) -> Iterator[Any]:
        """A loader's iterator, where the epoch goes on.

        Raises:
            DataError: the loader ends before that.
        """
        generator = getattr(loader, "generator", None)
        if not self._resumed:
            self.epoch += self._begun  # an epoch that was broken off is over
            self.batches = 0
            self._begun = True
            self._random = torch.get_rng_state()
            self._loader_random = None if generator is None else generator.get_state()
            return iter(loader)
        self._begun, self._resumed = True, False
        now = torch.get_rng_state()
        if self._random is None:
            self._random = now  # saved between two epochs
        torch.set_rng_state(self._random)
        if generator is not None:
            generator.set_state(self._loader_random)
        try:
            source = iter(loader)
            for read in range(self.batches):
                self._skip(source, read)
        finally:
            if self.batches:
                torch.set_rng_state(now)
        return source

    def _skip(self, source: Iterator[Any], read: int) -> None:
        try:
            next(source)
        except StopIteration:
            raise DataError(
                f"the epoch is to go on behind {self.batches} batches, but the loader ended after {read}: it is not "
                "the one the position was saved with. Use the same data, batch size and number of ranks."
            ) from None

    def end(self) -> None:
        """The epoch is over."""
        self.epoch, self.batches, self._begun = self.epoch + 1, 0, False
        self._random = self._loader_random = None

    def state_dict(self, loader: Any, length: int | None) -> dict[str, Any]:
        """What :meth:`load_state_dict` takes.

        Args:
            loader: the loader.
            length: batches that it has, where it says so.
        """
        generator = getattr(loader, "generator", None)
        if generator is not None and not self._begun and not self._resumed:
            self._loader_random = generator.get_state()
        return {
            "epoch": self.epoch,
            "batches": self.batches,
            "length": length,
            "random": self._random,
            "loader_random": self._loader_random,
        }

    def load_state_dict(self, state: dict[str, Any], loader: Any, length: int | None) -> None:
        """Go on from a saved position when the next epoch begins.

        Args:
            state: of :meth:`state_dict`.
            loader: the loader.
            length: batches that it has, where it says so.

        Raises:
            DataError: it is no position, or one in another loader.
        """
        if set(state) != _KEYS:
            raise DataError(f"a loader's position has the keys {sorted(_KEYS)}; found {sorted(map(str, state))}")
        if (state["loader_random"] is None) != (getattr(loader, "generator", None) is None):
            one, other = ("a", "no") if state["loader_random"] is not None else ("no", "a")
            raise DataError(
                f"the position is of a loader with {one} generator of its own, this loader has {other} generator: its "
                "order would be another one. Build the loader as it was."
            )
        if state["batches"] and None not in (length, state["length"]) and length != state["length"]:
            raise DataError(
                f"the position is behind {state['batches']} of {state['length']} batches, but this loader has "
                f"{length}. Use the same data, batch size and number of ranks, or begin a new epoch."
            )
        self.epoch, self.batches = int(state["epoch"]), int(state["batches"])
        self._random, self._loader_random = state["random"], state["loader_random"]
        self._begun, self._resumed = False, True
