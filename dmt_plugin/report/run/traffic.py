"""Arithmetic on bytes between hosts: sums of what was counted, and the one thing that is modelled.

Counted: every exchange of `dmt_plugin` adds up the bytes it hands to other ranks, by exchange and by phase
(`dmt_plugin.comm.wire.transport.Traffic`). Modelled: the gradient all-reduce of replicated parameters belongs to
DeepSpeed and the collective library, which report no bytes; `ring_all_reduce` says what a ring would send.
"""

from __future__ import annotations

from collections.abc import Mapping

Counts = Mapping[str, Mapping[str, Mapping[str, int]]]  # {exchange: {phase: {"other_hosts": bytes, ...}}}

IDS, EMBEDDINGS, GRADIENTS = "ids", "embeddings", "gradients"


def kind_of(exchange: str, phase: str) -> str:
    """What an exchange carries: `ids`, `embeddings` (forward) or their `gradients` (backward)."""
    if exchange.startswith(("index", "requests")):
        return IDS
    return EMBEDDINGS if phase == "forward" else GRADIENTS


def by_kind(counts: Counts, where: str = "other_hosts") -> dict[str, int]:
    """Bytes by what they carry.

    Args:
        counts: what `Traffic.as_dict` gives, or the sum of it over the ranks.
        where: `"other_hosts"`, or `"same_host"` for what other ranks of the sender's own host received.
    """
    sums = {IDS: 0, EMBEDDINGS: 0, GRADIENTS: 0}
    for exchange, phases in counts.items():
        for phase, counted in phases.items():
            sums[kind_of(exchange, phase)] += counted.get(where, 0)
    return sums


def total(counts: Counts, where: str = "other_hosts") -> int:
    """All bytes of `counts` that went to `where`."""
    return sum(by_kind(counts, where).values())


def ring_all_reduce(elements: int, hosts: int, ranks_per_host: int, element_size: int = 4) -> float:
    """Bytes between hosts, over all ranks together, of one all-reduce in a ring: a model, not a measurement.

    In a ring every rank sends its successor `2 (G - 1) / G` times the buffer (a reduce-scatter and an all-gather).
    With the ranks in host order, one of the `G` links leaves each host, if there is more than one host.

    Args:
        elements: numbers in the buffer.
        hosts: `H`.
        ranks_per_host: `L`; `G = H * L`.
        element_size: bytes of one number.
    """
    world = hosts * ranks_per_host
    if hosts < 2:
        return 0.0
    return hosts * 2 * (world - 1) / world * elements * element_size
