"""A loader whose next batch is announced to the engine, so that its ids travel while this batch is computed.

1. One batch is read ahead. Before a batch is handed out, the one behind it is announced (``engine.prefetch``): its ids
   are distributed during the step of the first.
2. The engine knows an announced batch by its tensors. What goes into the model must therefore be the tensors of the
   batch that was handed out: whatever else is to be done to a batch, such as moving it to the device, belongs in
   ``prepare``.
3. All ranks take the same number of steps (:mod:`dmt_plugin.data.epoch_agreement`). An error of the loader is raised
   where its batch is asked for, behind the step of the batch before it.
4. The position counts the batches that were handed out, not the one that was only looked at
   (:mod:`dmt_plugin.data.position`).

With an engine of stock DeepSpeed (no ``"dmt"`` section, or ``"enabled": false``) batches pass through one by one,
prepared and counted; with one rank there is nobody to send ids to, and it is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, get_args

from dmt_plugin.core.errors import DataError, DMTError
from dmt_plugin.data.batch_call import call_of
from dmt_plugin.data.epoch_agreement import Ahead, Ends, Uneven, length_of
from dmt_plugin.data.position import Position


def prefetched(
    loader: Iterable[Any],
    engine: Any,
    inputs: Callable[[Any], Any] | None = None,
    *,
    prepare: Callable[[Any], Any] | None = None,
    uneven: Uneven = "error",
) -> PrefetchedLoader:
    """Wrap the training loader so that the ids of the next batch travel early.

    Args:
        loader: a ``DataLoader``, the loader that ``engine.deepspeed_io`` or ``initialize`` returns, or any iterable
            that can be iterated once per epoch.
        engine: of ``dmt_plugin.initialize``.
        inputs: which part of a batch the model is called with: a tuple is its positional arguments, a dict its keyword
            arguments, anything else its only argument. By default the batch itself, taken apart in the same way.
        prepare: what is done to a batch when it is read, before it is announced and handed out.
        uneven: where ranks have different numbers of batches: ``"error"`` on all ranks, or ``"stop"`` all when the
            first runs out.

    Returns:
        An iterable of the loader's batches, for one epoch after the other. Every rank begins its epochs together.

    Raises:
        DataError: ``uneven`` is neither.
    """
    if uneven not in get_args(Uneven):
        raise DataError(f'uneven is "error" or "stop"; found {uneven!r}')
    return PrefetchedLoader(loader, engine, inputs, prepare, uneven)


class PrefetchedLoader:
    """What :func:`prefetched` returns.

    Attributes:
        loader: the loader inside.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        engine: Any,
        inputs: Callable[[Any], Any] | None,
        prepare: Callable[[Any], Any] | None,
        uneven: Uneven,
    ) -> None:
        self.loader = loader
        self._engine, self._inputs, self._prepare, self._uneven = engine, inputs, prepare, uneven
        # Not getattr: an engine of stock DeepSpeed looks in the user's model for what it has not got itself.
        self._dmt = vars(engine).get("dmt") if hasattr(type(engine), "prefetch") else None
        self._position = Position()
        self._limit: int | None = None
        self._walk: object = None

    def __len__(self) -> int:
        """Batches of an epoch: the loader's own number; the smallest of all ranks once an epoch has shown it.

        Raises:
            TypeError: the loader does not say.
        """
        return self._limit if self._limit is not None else len(self.loader)  # type: ignore[arg-type]

    @property
    def epoch(self) -> int:
        """Number of the epoch that goes on, or begins next; for a sampler's ``set_epoch``."""
        return self._position.epoch

    def __iter__(self) -> Iterator[Any]:
        """An epoch, or the rest of the one that is resumed. It begins with its first batch; one before it is over.

        Raises:
            DataError: the ranks do not fit together, or the loader does not fit the position.
            ExchangeError: a rank is gone, or the time is up.
        """
        source = self._position.begin(self.loader)
        walk = self._walk = object()
        if self._dmt is None or self._dmt.topology.world_size == 1:
            yield from self._one_by_one(source, walk)
            return
        ends = Ends(self._dmt, length_of(self.loader), self._position.batches, self._uneven)
        self._limit = ends.limit
        yield from self._one_ahead(source, ends, walk)

    def state_dict(self) -> dict[str, Any]:
        """The position: epoch, batches handed out, and the random state that the epoch began with."""
        return self._position.state_dict(self.loader, length_of(self.loader))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next epoch is the rest of the one that was under way when ``state`` was saved.

        The batches before are read again and dropped. They are the same if the loader is: a sampler's ``set_epoch`` is
        to be called with :attr:`epoch` as before; samplers that draw from torch's generators are seen to here.

        Raises:
            DataError: it is no position, or one in another loader.
        """
        self._position.load_state_dict(state, self.loader, length_of(self.loader))
        self._walk = None

    def _one_by_one(self, source: Iterator[Any], walk: object) -> Iterator[Any]:
        while (found := self._look(source, walk)).there:
            yield self._hand_out(found)
        self._finish(found)

    def _one_ahead(self, source: Iterator[Any], ends: Ends, walk: object) -> Iterator[Any]:
        ahead = ends.agree(self._look(source, walk), self._position.batches)
        while ahead.there:
            now, ahead = ahead, ends.agree(self._look(source, walk), self._position.batches + 1)
            if ahead.there:
                self._announce(ahead.batch)
            yield self._hand_out(now)
        self._check(walk)
        self._finish(ahead)

    def _look(self, source: Iterator[Any], walk: object) -> Ahead:
        self._check(walk)
        try:
            batch = next(source)
        except StopIteration:
            return Ahead(over=True)
        except Exception as error:  # raised when this batch's turn has come
            return Ahead(error=error)
        try:
            return Ahead(batch if self._prepare is None else self._prepare(batch))
        except Exception as error:
            return Ahead(error=error)

    def _announce(self, batch: Any) -> None:
        assert self._dmt is not None
        placed = self._dmt.placed
        if placed.prefetcher is not None:
            args, kwargs = call_of(batch, placed.binder, self._inputs)
            self._engine.prefetch(*args, **kwargs)

    def _hand_out(self, found: Ahead) -> Any:
        self._position.batches += 1
        return found.batch

    def _finish(self, found: Ahead) -> None:
        self._walk = None
        if found.error is not None:
            if self._dmt is not None and not isinstance(found.error, DMTError):  # ours are raised on all ranks
                transport = self._dmt.transport
                transport.failure_notes.failed(transport.step, found.error)
            raise found.error
        self._position.end()

    def _check(self, walk: object) -> None:
        if walk is not self._walk:
            raise DataError(
                "this iterator is over: another epoch was begun, or a position was loaded. One epoch goes on at a "
                "time; wrap the loader twice to have two."
            )
