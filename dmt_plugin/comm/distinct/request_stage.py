"""One stage of the requests for rows: every member of a group of ranks gets the codes that it is to see to.

Only the asking side knows how many distinct codes it has:

1. header, int64: a fault word and the number of codes of every list: one for each group of tables and micro-block;
2. if any header carries a fault, every member has seen it, and all of them skip the rest;
3. codes of all lists for one member, one list behind the other.

What the header says of sizes holds for the rows that come back, and for their gradients: those have no headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_plugin.comm.input_dist.faults import Fault
from dmt_plugin.comm.wire.transport import Arrived, Group, Pending, Wire

_FAULT_WORDS = len(Fault._fields)


@dataclass(frozen=True)
class Announced:
    """What the headers of a stage said.

    Attributes:
        faults: of each member.
        sent: ``sent[list][member]`` codes that go to a member.
        received: ``received[list][member]`` codes that come from one.
    """

    faults: tuple[Fault, ...]
    sent: tuple[tuple[int, ...], ...]
    received: tuple[tuple[int, ...], ...]


class RequestStage:
    """Codes to each member of a group of ranks, and theirs to this rank. A group of one rank sends nothing.

    Args:
        name: prefix of the exchange names.
        group: ``"lanes"``, ``"peers"``, ``"world"``, ``"machine_lanes"`` or ``"machine_peers"``.
        members: ranks in the group.
    """

    def __init__(self, name: str, group: Group, members: int) -> None:
        self.name = name
        self.group: Group = group
        self.members = members

    def announce(self, wire: Wire, counts: Sequence[Sequence[int]], fault: Fault) -> Announced:
        """Exchange the headers: ``counts[list][member]`` codes are for a member."""
        sent = tuple(map(tuple, counts))
        if self.members == 1:
            return Announced((fault,), sent, sent)
        words = [word for member in range(self.members) for word in (*fault, *(own[member] for own in sent))]
        each = [_FAULT_WORDS + len(sent)] * self.members
        send = torch.tensor(words, dtype=torch.int64).to(wire.device)
        pending = wire.all_to_all(f"{self.name}.header", "forward", self.group, send, each, each, brief=True)
        rows = pending.wait().view(self.members, -1).tolist()
        faults = tuple(Fault(*row[:_FAULT_WORDS]) for row in rows)
        return Announced(faults, sent, tuple(zip(*(row[_FAULT_WORDS:] for row in rows), strict=True)))

    def start(
        self, wire: Wire, codes: Sequence[Tensor], dtypes: Sequence[torch.dtype], announced: Announced
    ) -> Pending:
        """Send the codes of each list, ``(n,)``, member by member, in the widest of these types."""
        wide = torch.int64 if torch.int64 in dtypes else torch.int32
        if len(codes) == 1:
            send = codes[0].to(wide)
        else:
            parts = [own.to(wide).split(n) for own, n in zip(codes, announced.sent, strict=True)]
            send = torch.cat([part for of_member in zip(*parts, strict=True) for part in of_member])
        if self.members == 1:
            return Arrived(send)
        splits = [[sum(own) for own in zip(*n, strict=True)] for n in (announced.sent, announced.received)]
        return wire.all_to_all(f"{self.name}.codes", "forward", self.group, send, *splits)

    def finish(self, pending: Pending, dtypes: Sequence[torch.dtype], announced: Announced) -> list[list[Tensor]]:
        """The codes that came: ``[list][member]``, each list in its type."""
        sizes = [n for of_member in zip(*announced.received, strict=True) for n in of_member]
        parts = pending.wait().split(sizes)
        lists = len(dtypes)
        return [[part.to(dtype) for part in parts[i::lists]] for i, dtype in enumerate(dtypes)]
