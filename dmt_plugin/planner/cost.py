"""Bytes of every exchange of one training step on one rank, by formula.

The exchanges count what they really send (:class:`dmt_plugin.comm.wire.transport.Traffic`); this
is the other side of that ledger, from shapes alone. A test holds the two together.

With ``B`` samples per rank, ``H`` hosts, ``L`` lanes, ``W_r`` the width that rank ``r`` looks up
and ``O_h`` the width that host ``h`` sends per sample, in rows of the bytes that the wire format
of the exchange and direction takes for that width (fp32: 4 bytes an entry):

* hierarchical: inside the host ``H*B`` rows of ``W`` forward and the transpose backward; to each
  other host ``B`` rows of ``O`` forward and of ``O_h`` backward;
* flat: to each other rank ``B`` rows of ``W`` forward and of ``W_r`` backward;
* backward, of ``W`` and ``O`` only what gradients go back for: not what frozen tables, and towers in which nothing is
  trained, give;
* ids and their headers come on top, on the way out only;
* where a host consists of several machines, what it sends to lanes on its other machines crosses the network, and
  counts with what goes to other hosts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dmt_plugin.comm.formats import Format, row_bytes
from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.comm.input_dist.input_dist import Route
from dmt_plugin.topology.shape import Topology

_HEADER_WORD = 8
_FAULT_WORDS = 4


@dataclass(frozen=True)
class ExchangeCost:
    """One exchange in one direction, on one rank.

    Attributes:
        name: as in the traffic count, e.g. ``"peers"`` or ``"index.peers.ids"``.
        group: ``"peers"``, ``"lanes"`` or ``"world"``; of rows that travel once also ``"machine_peers"`` or
            ``"machine_lanes"``, where a host consists of several machines.
        phase: ``"forward"`` or ``"backward"``.
        shape: what is sent, as text in the letters above, with the wire format where it is not fp32.
        other_hosts: bytes to other hosts, and to other machines of this host.
        same_host: bytes to other ranks of this host that are on this machine.
    """

    name: str
    group: str
    phase: str
    shape: str
    other_hosts: int
    same_host: int


def exchange_costs(
    slots: Sequence[IdSlot],
    rank_widths: Sequence[int],
    host_widths: Sequence[int],
    topology: Topology,
    rank: int,
    batch: int,
    route: Route,
    mean_ids: Mapping[str, float] | None = None,
    formats: Mapping[str, tuple[Format, Format]] | None = None,
    rank_gradients: Sequence[int] | None = None,
    host_gradients: Sequence[int] | None = None,
) -> list[ExchangeCost]:
    """The costs of one step on one rank, all ranks having ``batch`` samples.

    Args:
        slots: id streams of the model.
        rank_widths: for each rank the width of its looked-up rows.
        host_widths: for each host the width it sends to its peers; unused on the flat route.
        topology: hosts and lanes.
        rank: the rank.
        batch: samples per rank.
        route: ``"hierarchical"`` or ``"flat"``.
        mean_ids: ids per sample of the features without a fixed number; 1 where not given.
        formats: for each output distribution (``"lanes"``, ``"peers"``, ``"world"``) its wire formats, forward and
            backward; fp32 where not given.
        rank_gradients: of ``rank_widths`` what gradients go back for; by default all.
        host_gradients: the same of ``host_widths``.
    """
    rank_back = rank_widths if rank_gradients is None else rank_gradients
    host_back = host_widths if host_gradients is None else host_gradients
    wire = 4 if all(slot.rows <= 2**31 for slot in slots) else 8
    means = mean_ids or {}
    machine_of = topology.by_machine.host_of

    def words(chosen: Sequence[IdSlot]) -> float:
        """Id words per sample: ids, and a length for every varying bag."""
        return sum(s.hotness if s.hotness is not None else 1 + means.get(s.name, 1.0) for s in chosen)

    def weights(chosen: Sequence[IdSlot]) -> float:
        return sum((s.hotness if s.hotness is not None else means.get(s.name, 1.0)) for s in chosen if s.weighted)

    def jagged(chosen: Sequence[IdSlot]) -> int:
        return sum(s.hotness is None for s in chosen)

    def index_stage(
        name: str, group: str, to: Mapping[int, Sequence[IdSlot]], rows: int, blocks: int
    ) -> list[ExchangeCost]:
        def cost(part: str, shape: str, size: Mapping[int, float]) -> ExchangeCost:
            away = sum(b for r, b in size.items() if machine_of(r) != machine_of(rank))
            near = sum(b for r, b in size.items() if machine_of(r) == machine_of(rank) and r != rank)
            return ExchangeCost(f"index.{name}.{part}", group, "forward", shape, round(away), round(near))

        header = {r: _HEADER_WORD * (_FAULT_WORDS + blocks + jagged(chosen)) for r, chosen in to.items()}
        total = sum(words(chosen) for chosen in to.values())
        row_text = "B" if blocks == 1 else "H*B"
        found = [
            cost("header", f"{_FAULT_WORDS + blocks} words + 1 per varying bag, to each", header),
            cost(
                "ids",
                f"({row_text}, {total:g}) int{8 * wire}",
                {r: wire * rows * words(chosen) for r, chosen in to.items()},
            ),
        ]
        if any(slot.weighted for slot in slots):
            sizes = {r: 4 * rows * weights(chosen) for r, chosen in to.items()}
            found.append(cost("weights", f"({row_text}, weights) fp32", sizes))
        return found

    def rows_cost(
        name: str, rows_to: Mapping[int, int], sent: int, received: Mapping[int, int], shape: str, back: str
    ) -> list[ExchangeCost]:
        costs = []
        wires = (formats or {}).get(name, ("fp32", "fp32"))
        for phase, text, form in zip(("forward", "backward"), (shape, back), wires, strict=True):
            away = near = 0
            for other, rows in rows_to.items():
                size = rows * row_bytes(form, sent if phase == "forward" else received[other])
                if machine_of(other) != machine_of(rank):
                    away += size
                elif other != rank:
                    near += size
            shown = text if form == "fp32" else f"{text} {form}"
            costs.append(ExchangeCost(name, name, phase, shown, away, near))
        return costs

    host = topology.host_of(rank)
    hosts, lanes = topology.hosts, topology.ranks_per_host
    costs: list[ExchangeCost] = []
    if route == "flat":
        everyone = range(topology.world_size)
        if topology.world_size > 1:
            owned: dict[int, list[IdSlot]] = {r: [] for r in everyone}
            for slot in slots:
                for lane in slot.lanes:
                    owned[topology.rank_of(slot.host, lane)].append(slot)
            costs += index_stage("world", "world", owned, batch, 1)
        width = rank_widths[rank]
        widths = dict(enumerate(rank_back))
        shape = f"(B, {width}) to each of {topology.world_size}"
        back = f"(B, {sum(rank_back)}) over {topology.world_size}"
        return costs + rows_cost("world", dict.fromkeys(everyone, batch), width, widths, shape, back)
    if hosts > 1:
        by_host = {topology.peers_of(rank)[h]: [s for s in slots if s.host == h] for h in range(hosts)}
        costs += index_stage("peers", "peers", by_host, batch, 1)
    if lanes > 1:
        by_lane = {
            topology.rank_of(host, j): [s for s in slots if s.host == host and j in s.lanes] for j in range(lanes)
        }
        costs += index_stage("lanes", "lanes", by_lane, hosts * batch, hosts)
    own = rank_widths[rank]
    lane_widths = {topology.rank_of(host, j): rank_back[topology.rank_of(host, j)] for j in range(lanes)}
    total = sum(lane_widths.values())
    to_lanes = dict.fromkeys(lane_widths, hosts * batch)
    shape, back = f"(H*B, {own}) to each of {lanes} lanes", f"(H*B, {total}) over {lanes} lanes"
    costs += rows_cost("lanes", to_lanes, own, lane_widths, shape, back)
    peer_widths = {topology.peers_of(rank)[h]: host_back[h] for h in range(hosts)}
    to_peers = dict.fromkeys(peer_widths, batch)
    shape = f"(B, {host_widths[host]}) to each of {hosts} hosts"
    back = f"(B, {sum(host_back)}) over {hosts} hosts"
    return costs + rows_cost("peers", to_peers, host_widths[host], peer_widths, shape, back)
