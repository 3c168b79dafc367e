"""A call of a placed model that fails on one rank before its ids are on their way: the other ranks learn of it.

A call may not fit the model at all, and nodes of the graph that read ids may fail: a matrix of ids without some column,
say. The other ranks are in the exchange of ids by then, and would wait. So

1. the exchanges of ids are gone through as the graph would have, in its order, with a fault in place of ids;
2. every other rank raises ``IdRangeError``, which names this rank; this one goes on with its own error.

What fails behind the ids is not told: the others are in exchanges of rows, whose sizes nobody knows here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import fx

from dmt_plugin.comm.id_exchange import IdExchange
from dmt_plugin.core.errors import DMTError, ExchangeError, IdRangeError
from dmt_plugin.fxtools.names import EXCHANGE_META, carries_ids, is_start, is_wait

logger = logging.getLogger(__name__)

Ends = Sequence[tuple[str, bool]]
"""Ends of exchanges: the name, and whether it is the start."""


def ends_of(graph: fx.Graph) -> Ends:
    """The ends of the exchanges of ids in the order of a graph, up to the first exchange of something else."""
    found = []
    for node in graph.nodes:
        if EXCHANGE_META not in node.meta or not (is_start(node) or is_wait(node)):
            continue
        if not carries_ids(node):
            break
        found.append((str(node.meta[EXCHANGE_META]), is_start(node)))
    return found


@contextmanager
def told_to_others(ends: Ends, exchanges: Mapping[str, IdExchange]) -> Iterator[None]:
    """Around a call of a placed model whose ids are not distributed ahead.

    Args:
        ends: of its exchanges of ids.
        exchanges: by name.
    """
    own = [exchanges[name] for name in dict.fromkeys(name for name, _ in ends)]
    for exchange in own:
        exchange.reset()
    try:
        yield
    except (IdRangeError, ExchangeError):  # the ranks have told each other, or an exchange has failed
        raise
    except Exception:
        if own and all(exchange.bound for exchange in own):
            _tell(ends, exchanges)
        raise


def _tell(ends: Ends, exchanges: Mapping[str, IdExchange]) -> None:
    try:
        for name, begins in ends:
            if begins:
                exchanges[name].start_without_ids()
            else:
                exchanges[name].wait_after_failure()
    except IdRangeError:
        return  # so have the others
    except DMTError as error:
        logger.warning("the other ranks could not be told that the call failed on this one: %s", error)
