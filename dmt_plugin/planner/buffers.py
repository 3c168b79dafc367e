"""The largest buffers of a step on each rank, and what sizes of a model they and its memory follow from.

A rank looks up rows for ``H*L*B`` samples, gets those of its host's lanes for ``H*B``, and the outputs of all hosts for
``B``; gradients take the way back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dmt_plugin.comm.formats import row_bytes
from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.update_rule import BYTES_OF, WeightType
from dmt_plugin.planner.load import ASSUMED_IDS
from dmt_plugin.topology.shape import Topology

_FP32, _INT64 = 4, 8

_HELD_COPIES = 3
"""Gradients that are held back, joined to one batch, and the rows looked up once more for them."""


@dataclass(frozen=True)
class StepBuffers:
    """The largest buffers of a step, in bytes.

    Attributes:
        ids: ids sent and received, and as the lookup takes them.
        rows_sent: rows looked up, and what the host's towers make of them.
        rows_received: rows of this host's ranks, and the outputs of all hosts.
        gradients: gradients of both; on PyTorch also what an update of the looked-up rows takes.
        wire: rows, or gradients, in the formats in which they travel, where these are others than they are computed in.
        held: gradients that wait for the last of the micro-batches of a step, or for those of another lookup.
    """

    ids: int = 0
    rows_sent: int = 0
    rows_received: int = 0
    gradients: int = 0
    wire: int = 0
    held: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.ids + self.rows_sent + self.rows_received + self.gradients + self.wire + self.held


@dataclass(frozen=True)
class Entries:
    """Numbers in the parameters of a part of the model.

    Attributes:
        held: all of them.
        trained: those that get gradients.
    """

    held: int = 0
    trained: int = 0

    def __add__(self, other: Entries) -> Entries:
        return Entries(self.held + other.held, self.trained + other.trained)


@dataclass(frozen=True)
class ModelSizes:
    """What the need depends on besides plan and configuration.

    Attributes:
        batch: samples per rank.
        slots: id streams that are exchanged sample by sample.
        looked_up: for each rank the entries per sample that it looks up.
        rank_widths: for each rank the entries per sample that it sends into the first exchange of rows.
        host_widths: for each host the entries per sample that it sends to its peers; unused on the flat route.
        towers: for each host the entries of its tower modules.
        dense: entries of all other parameters but tables.
        fbgemm: whether FBGEMM is there to look up rows.
        on_torch: tables that are looked up on PyTorch whatever their rule.
        once: id streams whose rows travel once.
        asked: for each rank the ids per sample that ask for its rows that do.
        read_twice: whether some tables are looked up in both ways, and FBGEMM's gradients wait for both.
    """

    batch: int
    slots: Sequence[IdSlot]
    looked_up: Sequence[int]
    rank_widths: Sequence[int]
    host_widths: Sequence[int]
    towers: Mapping[int, Entries]
    dense: Entries
    fbgemm: bool = True
    on_torch: frozenset[str] = frozenset()
    once: Sequence[IdSlot] = ()
    asked: Sequence[int] = ()
    read_twice: bool = False


class Buffers:
    """The largest buffers of each rank; what many ranks have in common is calculated once."""

    def __init__(
        self,
        topology: Topology,
        config: DMTConfig,
        settings: DeepSpeedSettings,
        sizes: ModelSizes,
        row_type: WeightType,
    ) -> None:
        self.topology, self.config, self.settings, self.sizes = topology, config, settings, sizes
        self.row_type, self.element = row_type, BYTES_OF[row_type]
        self.hierarchical = config.comm.route == "hierarchical"
        slots = [*sizes.slots, *sizes.once]
        self.all_ids = _ids(slots)
        self.word = _FP32 if all(slot.rows <= 2**31 for slot in slots) else _INT64
        of_host: list[list[IdSlot]] = [[] for _ in range(topology.hosts)]
        self.of_rank: list[list[IdSlot]] = [[] for _ in range(topology.world_size)]
        for slot in sizes.slots:
            of_host[slot.host].append(slot)
            for lane in slot.lanes:
                self.of_rank[topology.rank_of(slot.host, lane)].append(slot)
        self.asked = sizes.asked or [0] * topology.world_size
        self.host_ids = [
            _ids(own) + sum(self.asked[rank] for rank in topology.lanes_of(host * topology.ranks_per_host))
            for host, own in enumerate(of_host)
        ]
        self.formats = {group: config.comm.formats_of(group) for group in ("lanes", "peers", "world")}
        self._coded: dict[tuple[str, int, int], int] = {}

    def __call__(self, rank: int, copies: int) -> StepBuffers:
        """Those of a rank.

        Args:
            rank: the rank.
            copies: of looked-up rows that an update on PyTorch makes.
        """
        topology, config, sizes, element = self.topology, self.config, self.sizes, self.element
        hosts, batch, host = topology.hosts, sizes.batch, topology.host_of(rank)
        arriving = topology.world_size * batch
        own = self.of_rank[rank]
        own_ids = _ids(own) + self.asked[rank]
        ids = self.word * (batch * self.all_ids + arriving * own_ids) + _INT64 * arriving * (own_ids + len(own))
        if self.hierarchical and hosts > 1:  # from the peers, and on to the lanes
            ids += 2 * self.word * hosts * batch * self.host_ids[host]
        if config.comm.prefetch and topology.world_size > 1:
            ids *= 2  # those of the next batch come while this one is computed

        looked_up, sent = sizes.looked_up[rank], sizes.rank_widths[rank]
        rows_sent = _FP32 * arriving * looked_up
        rows_sent += element * arriving * sent if self.row_type != "fp32" or sent != looked_up else 0
        if self.hierarchical:
            lanes, across = topology.ranks_per_host, sizes.host_widths[host]
            near = sizes.rank_widths[host * lanes : (host + 1) * lanes]
            rows_sent += element * hosts * batch * across
            rows_received = element * batch * (hosts * sum(near) + sum(sizes.host_widths))
            exchanges = [
                ("lanes", host, near, arriving, sent, hosts * batch),
                ("peers", 0, sizes.host_widths, hosts * batch, across, batch),
            ]
        else:
            rows_received = element * batch * sum(sizes.rank_widths)
            exchanges = [("world", 0, sizes.rank_widths, arriving, sent, batch)]
        wire = max(sum(self._encoded(way, *own) for own in exchanges) for way in (0, 1))

        # On PyTorch the rows' gradients once more, sorted by row, and what an update reads and writes of each.
        gradients = rows_sent + rows_received + copies * _FP32 * arriving * looked_up
        waiting = self.settings.micro_batches if config.lookup.accumulation == "accumulate" else 1
        held = waiting * arriving * (_HELD_COPIES * _FP32 * looked_up + 2 * _INT64 * own_ids)
        if waiting == 1 and not sizes.read_twice:
            held = 0
        return StepBuffers(ids, rows_sent, rows_received, gradients, wire, held)

    def _encoded(
        self, way: int, group: str, whose: int, widths: Sequence[int], rows_out: int, width_out: int, rows_in: int
    ) -> int:
        """Bytes of what is encoded on both ends of an exchange; 0 where rows travel as they are computed.

        Args:
            way: 0 forward, 1 backward.
            group: of the exchange.
            whose: among which ranks: those of the same number receive rows of the same ``widths``.
            widths: of the rows that are received, by source.
            rows_out: rows that are sent.
            width_out: their width.
            rows_in: rows from each source.
        """
        form = self.formats[group][way]
        if form in ("fp32", self.row_type):
            return 0
        key = (group, whose, way)
        if key not in self._coded:
            self._coded[key] = sum(row_bytes(form, width) for width in widths)
        return rows_out * row_bytes(form, width_out) + rows_in * self._coded[key]


def _ids(slots: Sequence[IdSlot]) -> int:
    """Ids per sample, assumed where their number varies, with their lengths or weights."""
    return sum((slot.hotness or ASSUMED_IDS + 1) + (slot.hotness or ASSUMED_IDS) * slot.weighted for slot in slots)
