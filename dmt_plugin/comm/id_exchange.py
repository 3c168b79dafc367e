"""What exchanges that need ids only have in common: their graph nodes, and running ahead of the batch.

An exchange has a *core* with ``start(ids, wire)``, which leaves its first stage under way, and
``finish(flight, wire)``, which does the rest. Its two ends are nodes of a graph; where ids were distributed before the
graph began, a third node stands in their place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dmt_plugin.comm.input_dist.ids import FeatureIds, IdSlot
from dmt_plugin.comm.wire.transport import Wire


class IdCore(ABC):
    """What the nodes of one exchange share; subclasses have ``start`` and ``finish``.

    Args:
        slots: the id streams that it reads.
    """

    def __init__(self, slots: Sequence[IdSlot]) -> None:
        self.slots = tuple(slots)
        self.wire: Wire | None = None
        self.arrived: Any = None
        self.begun = self.ended = False
        self.under_way: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no wire: process groups cannot be copied.
        return {**self.__dict__, "wire": None, "arrived": None, "under_way": None}

    def begin(self, ids: Sequence[FeatureIds] | None) -> Any:
        """``start`` over its own wire; notes it, for :meth:`IdExchange.start_without_ids`."""
        self.begun = True
        self.under_way = self.start(ids, self.own_wire())
        return self.under_way

    def end(self, flight: Any) -> Any:
        """``finish`` over its own wire; notes it."""
        self.ended, self.under_way = True, None
        return self.finish(flight, self.own_wire())

    @abstractmethod
    def start(self, ids: Sequence[FeatureIds] | None, wire: Wire) -> Any:
        """Check the ids and start the first stage; with ``None`` let the other ranks know that there are none."""

    @abstractmethod
    def finish(self, flight: Any, wire: Wire) -> Any:
        """Finish what ``start`` left under way."""

    def own_wire(self) -> Wire:
        """The wire that it was given.

        Raises:
            RuntimeError: none yet.
        """
        if self.wire is None:
            raise RuntimeError("an exchange of ids has no transport; call bind(transport) first")
        return self.wire


class _Start(nn.Module):
    """Graph node that checks the ids and starts the first stage."""

    def __init__(self, core: IdCore) -> None:
        super().__init__()
        self.core = core

    @torch.no_grad()
    def forward(self, *ids: FeatureIds) -> Any:
        return self.core.begin(ids)


class _Wait(nn.Module):
    """Graph node that finishes the first stage and does the rest."""

    def __init__(self, core: IdCore) -> None:
        super().__init__()
        self.core = core

    @torch.no_grad()
    def forward(self, pending: Any) -> Any:
        return self.core.end(pending)


class _Arrived(nn.Module):
    """Stands where start and wait were, in a graph whose ids were distributed before it began."""

    def __init__(self, core: IdCore) -> None:
        super().__init__()
        self.core = core

    def forward(self) -> Any:
        arrived, self.core.arrived = self.core.arrived, None
        assert arrived is not None, "hand_over comes before each run of the graph"
        return arrived


class IdExchange(nn.Module):
    """Graph nodes ``start(*ids) -> pending`` and ``wait(pending) -> result``, and ``arrived() -> result``.

    Args:
        core: what they do.
    """

    def __init__(self, core: IdCore) -> None:
        super().__init__()
        self._core: Any = core
        self.start = _Start(core)
        self.wait = _Wait(core)
        self.arrived = _Arrived(core)

    @property
    def slots(self) -> tuple[IdSlot, ...]:
        """The id streams that it reads."""
        slots: tuple[IdSlot, ...] = self._core.slots
        return slots

    def bind(self, transport: Wire) -> None:
        """Give the exchange its wire; nothing can be sent before."""
        self._core.wire = transport

    @property
    def bound(self) -> bool:
        """Whether it has a wire."""
        return self._core.wire is not None

    def reset(self) -> None:
        """A run of the graph begins: neither end has run yet."""
        self._core.begun = self._core.ended = False
        self._core.under_way = None

    @torch.no_grad()
    def start_without_ids(self) -> None:
        """In place of the start node, where the call failed on this rank; nothing if that has run."""
        if not self._core.begun:
            self._core.begin(None)

    @torch.no_grad()
    def wait_after_failure(self) -> None:
        """In place of the wait node; nothing if that has run.

        Raises:
            IdRangeError: on every rank, where the batch of any was bad.
        """
        if not self._core.ended:
            self._core.end(self._core.under_way)

    @torch.no_grad()
    def tell(self, wire: Wire) -> None:
        """Start and wait without ids, over a wire that is not the bound one.

        Raises:
            IdRangeError: on every rank.
        """
        self._core.finish(self._core.start(None, wire), wire)

    @torch.no_grad()
    def distribute(self, ids: Sequence[FeatureIds], wire: Wire) -> Any:
        """Start and wait over a wire that is not the bound one, while that may be in use."""
        return self._core.finish(self._core.start(ids, wire), wire)

    def hand_over(self, result: Any) -> None:
        """Give what ``distribute`` gave to the ``arrived`` node of the next run of the graph."""
        self._core.arrived = result

    def forward(self, *ids: FeatureIds) -> Any:
        """Start and wait at once."""
        return self.wait(self.start(*ids))
