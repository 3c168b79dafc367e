"""Output distribution: rows (embeddings or tower outputs) travel to the ranks whose samples they belong to.

It is a differentiable all-to-all in a group of ranks: here rows cross from host to host, or from lane to lane. Rows
are sorted by source (see :mod:`dmt_plugin.comm.batch_layout`), so what goes to one member is one contiguous slice of
the input, and what comes from one member is one contiguous slice of the receive buffer:

1. ``start`` reads off the splits from the batch layout, puts the rows into the wire format of the forward
   direction (fp32: the input's own storage), and starts the collective;
2. ``wait`` finishes it and returns one block ``(rows, width)`` per source (fp32: views of the receive buffer), or all
   of them as one block, where every source sends rows of one width;
3. in backward, ``wait`` puts the blocks' gradients into the wire format of the backward direction and starts
   the reversed collective (splits exchanged);
4. in backward, ``start`` finishes it; what is received is the gradient of the input.

The backward is the exact transpose of the moves of the forward: nothing is scaled, and rounding by a wire format
(:mod:`dmt_plugin.comm.wire.codecs`) counts as the identity. Whenever gradients are enabled it runs on every rank of the
group, also on one whose input needs no gradient (a rank that owns no table): its peers wait for it.

Of each source the first columns only may have gradients; those behind them (rows of frozen tables) get zeros, and
nothing is sent for them. All ranks know these numbers of all sources: where they are all zero, there is no backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from dmt_plugin.comm.batch_layout import BatchLayout, RowCounts
from dmt_plugin.comm.formats import Format
from dmt_plugin.comm.wire.codecs import Codec, Shape, codec_of
from dmt_plugin.comm.wire.transport import Group, Pending, Wire, group_ranks


@dataclass
class _Shape:
    """What one exchange carries: ``rows x width`` to and from each member, in group order; of them, with gradients."""

    send_rows: list[int]
    recv_rows: list[int]
    send_width: int
    recv_widths: tuple[int, ...]
    gradients_of_sent: int
    gradients_of_received: tuple[int, ...]
    joined: bool = False

    @property
    def sent(self) -> Shape:
        """What this rank sends to all members together: rows of one width, hence one block."""
        return sum(self.send_rows), self.send_width

    @property
    def received(self) -> list[Shape]:
        return list(zip(self.recv_rows, self.recv_widths, strict=True))

    @property
    def blocks(self) -> list[tuple[int, int, int]]:
        """Rows, columns, and columns with gradients of each block that ``wait`` returns."""
        blocks = list(zip(self.recv_rows, self.recv_widths, self.gradients_of_received, strict=True))
        return [(sum(self.recv_rows), *blocks[0][1:])] if self.joined else blocks

    def send_splits(self, codec: Codec) -> list[int]:
        return [rows * codec.row_elements(self.send_width) for rows in self.send_rows]

    def recv_splits(self, codec: Codec) -> list[int]:
        return [rows * codec.row_elements(width) for rows, width in self.received]

    def back_splits(self, codec: Codec) -> tuple[list[int], list[int]]:
        """Of gradients: what goes back to each source, and what comes back from each member."""
        widths = zip(self.recv_rows, self.gradients_of_received, strict=True)
        size = codec.row_elements(self.gradients_of_sent)
        return [rows * codec.row_elements(width) for rows, width in widths], [rows * size for rows in self.send_rows]


class _Flight:
    """State that the four steps of one exchange share."""

    def __init__(self, core: _Core, shape: _Shape) -> None:
        self.core = core
        self.shape = shape
        self.dtype = torch.float32
        self.forward: Pending | None = None
        self.backward: Pending | None = None

    def start(self, x: Tensor) -> None:
        shape, codec = self.shape, self.core.codecs[0]
        self.dtype = x.dtype
        self.forward = self.core.all_to_all(
            "forward", codec.encode([x]), shape.send_splits(codec), shape.recv_splits(codec)
        )

    def finish(self) -> tuple[Tensor, ...]:
        pending, self.forward = self.forward, None
        if pending is None:
            raise RuntimeError(f"exchange '{self.core.name}': wait was called twice for one start")
        shapes = [(rows, width) for rows, width, _ in self.shape.blocks]
        return self.core.codecs[0].decode(pending.wait(), shapes, self.dtype)

    def start_backward(self, gradients: Sequence[Tensor]) -> None:
        shape, codec = self.shape, self.core.codecs[1]
        if shape.gradients_of_received != shape.recv_widths:
            gradients = [own[:, :width] for own, (_, _, width) in zip(gradients, shape.blocks, strict=True)]
        self.backward = self.core.all_to_all("backward", codec.encode(gradients), *shape.back_splits(codec))

    def finish_backward(self) -> Tensor:
        pending, self.backward = self.backward, None
        assert pending is not None, "the backward of wait runs before that of start"
        rows, width = self.shape.sent
        own = self.shape.gradients_of_sent
        (gradient,) = self.core.codecs[1].decode(pending.wait(), [(rows, own)], self.dtype)
        return gradient if own == width else nn.functional.pad(gradient, (0, width - own))


class _StartRows(Function):
    """Starts the exchange; returns an empty token that ties ``wait`` to it in the autograd graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, flight: _Flight) -> Tensor:
        ctx.flight = flight
        flight.start(x)
        return x.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_token: Tensor) -> tuple[Tensor | None, None, None]:
        gradient = ctx.flight.finish_backward()
        return (gradient if ctx.needs_input_grad[0] else None), None, None


class _WaitRows(Function):
    """Finishes the exchange; its backward starts the reversed one."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, flight: _Flight) -> tuple[Tensor, ...]:
        ctx.flight = flight
        blocks = flight.finish()
        widths = [width for _, _, width in flight.shape.blocks]
        ctx.mark_non_differentiable(
            *(block for block, width in zip(blocks, widths, strict=True) if width == 0 and block.shape[1])
        )
        return blocks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Gradients of unused blocks arrive as zeros: autograd materialises them.
        ctx.flight.start_backward(grads)
        return grads[0].new_zeros(0), None


@dataclass
class RowsInFlight:
    """What ``start`` hands to ``wait``."""

    token: Tensor
    flight: _Flight | None


class _Core:
    """What the start and wait nodes of one exchange share."""

    def __init__(
        self,
        name: str,
        group: Group,
        send_width: int,
        recv_widths: Sequence[int],
        formats: tuple[Format, Format],
        gradient_widths: Sequence[int],
        joined: bool,
    ) -> None:
        if group not in get_args(Group):
            raise ValueError(f"exchange '{name}': unknown group {group!r}; expected one of {get_args(Group)}")
        self.name = name
        self.group = group
        self.send_width = send_width
        self.recv_widths = tuple(recv_widths)
        self.gradient_widths = tuple(gradient_widths)
        pairs = list(zip(self.gradient_widths, self.recv_widths, strict=False))
        if len(self.gradient_widths) != len(self.recv_widths) or any(not 0 <= own <= width for own, width in pairs):
            raise ValueError(
                f"exchange '{name}': gradients of {self.gradient_widths} columns do not fit rows of {self.recv_widths}"
            )
        if joined and len(set(pairs)) > 1:
            raise ValueError(f"exchange '{name}': rows of {self.recv_widths} columns cannot be one block")
        self.joined = joined
        self.formats = formats
        self.codecs = (codec_of(formats[0]), codec_of(formats[1]))
        self.wire: Wire | None = None
        self.index = 0

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no wire: process groups cannot be copied.
        return {**self.__dict__, "wire": None}

    def bind(self, wire: Wire) -> None:
        ranks = group_ranks(wire.topology, wire.rank, self.group)
        if len(ranks) != len(self.recv_widths):
            raise ValueError(
                f"exchange '{self.name}': {len(self.recv_widths)} receive widths for a {self.group} group of "
                f"{len(ranks)} ranks"
            )
        self.index = ranks.index(wire.rank)
        if self.recv_widths[self.index] != self.send_width:
            raise ValueError(
                f"exchange '{self.name}': this rank sends rows of width {self.send_width}, but expects width "
                f"{self.recv_widths[self.index]} from itself"
            )
        self.wire = wire

    def all_to_all(self, phase: Any, send: Tensor, send_splits: Sequence[int], recv_splits: Sequence[int]) -> Pending:
        assert self.wire is not None
        return self.wire.all_to_all(self.name, phase, self.group, send, send_splits, recv_splits)

    def shape(self, layout: BatchLayout | RowCounts) -> _Shape:
        members = len(self.recv_widths)
        own = self.gradient_widths[self.index]
        if isinstance(layout, RowCounts):
            sent, received = list(layout.sent), list(layout.received)
            return _Shape(sent, received, self.send_width, self.recv_widths, own, self.gradient_widths, self.joined)
        blocks = layout.blocks
        if self.group == "lanes":
            send = [sum(block) for block in blocks]
            receive = [send[self.index] if self.index < len(send) else 0] * members
        elif self.group == "peers":
            lane = self._lane()
            send = list(blocks[lane]) if lane < len(blocks) else []
            receive = [layout.own] * members
        else:
            send = list(blocks[0]) if len(blocks) == 1 else []
            receive = [layout.own] * members
        if len(send) != members:
            raise ValueError(
                f"exchange '{self.name}': the batch layout has blocks {layout.blocks}, which do not fit a "
                f"{self.group} group of {members} ranks"
            )
        return _Shape(send, receive, self.send_width, self.recv_widths, own, self.gradient_widths, self.joined)

    def start(self, x: Tensor, layout: BatchLayout | RowCounts) -> RowsInFlight:
        if self.wire is None:
            raise RuntimeError(f"exchange '{self.name}' has no transport; call bind(transport) first")
        shape = self.shape(layout)
        if tuple(x.shape) != shape.sent:
            raise ValueError(f"exchange '{self.name}': rows of shape {shape.sent} expected, found {tuple(x.shape)}")
        if len(self.recv_widths) == 1:
            return RowsInFlight(x, None)
        flight = _Flight(self, shape)
        if not any(self.gradient_widths):
            x = x.detach()
        # The anchor makes the graph reach this node when x itself needs no gradient.
        back = torch.is_grad_enabled() and any(self.gradient_widths)
        anchor = torch.empty(0, device=x.device, requires_grad=back)
        return RowsInFlight(_StartRows.apply(x, anchor, flight), flight)

    def finish(self, pending: RowsInFlight) -> tuple[Tensor, ...]:
        if pending.flight is None:
            return (pending.token,)
        return _WaitRows.apply(pending.token, pending.flight)

    def _lane(self) -> int:
        assert self.wire is not None
        return self.wire.topology.lane_of(self.wire.rank)


class _Start(nn.Module):
    """Graph node that starts the exchange."""

    def __init__(self, core: _Core) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: Tensor, layout: BatchLayout | RowCounts) -> RowsInFlight:
        return self.core.start(x, layout)


class _Wait(nn.Module):
    """Graph node that finishes the exchange."""

    def __init__(self, core: _Core) -> None:
        super().__init__()
        self.core = core

    def forward(self, pending: RowsInFlight) -> tuple[Tensor, ...]:
        return self.core.finish(pending)


class OutputDist(nn.Module):
    """Pair of graph nodes ``start(x, layout) -> pending`` and ``wait(pending) -> tuple of blocks``.

    ``start`` takes ``x`` of shape ``(rows, send_width)``; ``wait`` returns one block ``(rows_from_source,
    recv_widths[source])`` per member of the group. Which rows go where follows from the group and the layout:

    - ``"lanes"``: ``layout.rows_of_lane(j)`` rows to lane ``j``; this lane's rows of every lane's tables
      come back;
    - ``"peers"``: of this lane's rows those of host ``h`` go to host ``h``; ``layout.own`` rows come from
      each;
    - ``"world"``: the rows of rank ``r`` go to rank ``r``; ``layout.own`` rows come from each.

    With ``RowCounts`` in place of a layout those numbers of rows go to each member, and come from each. Where what
    comes is ``joined``, the tuple has one block with the rows of all members, in group order.

    Args:
        name: for messages and the traffic count.
        group: ``"lanes"``, ``"peers"`` or ``"world"``; of rows that travel once also ``"machine_lanes"`` or
            ``"machine_peers"``.
        send_width: columns of this rank's rows.
        recv_widths: columns of each source's rows, in group order.
        formats: wire formats of the forward and the backward direction, from :mod:`dmt_plugin.comm.formats`.
        gradient_widths: of each source's columns the first so many have gradients, in group order; default: all.
        joined: whether all that comes is one block; every member then sends rows of one width.
    """

    def __init__(
        self,
        name: str,
        group: Group,
        send_width: int,
        recv_widths: Sequence[int],
        formats: tuple[Format, Format] = ("fp32", "fp32"),
        gradient_widths: Sequence[int] | None = None,
        joined: bool = False,
    ) -> None:
        super().__init__()
        back = recv_widths if gradient_widths is None else gradient_widths
        self._core, self._asked = _Core(name, group, send_width, recv_widths, formats, back, joined), formats
        self.start = _Start(self._core)
        self.wait = _Wait(self._core)

    @property
    def name(self) -> str:
        """Name of the exchange."""
        return self._core.name

    @property
    def group(self) -> Group:
        """Group it runs in."""
        return self._core.group

    @property
    def send_width(self) -> int:
        """Columns of this rank's rows."""
        return self._core.send_width

    @property
    def recv_widths(self) -> tuple[int, ...]:
        """Columns of each source's rows, in group order."""
        return self._core.recv_widths

    @property
    def gradient_widths(self) -> tuple[int, ...]:
        """How many of each source's columns have gradients, in group order; they come first."""
        return self._core.gradient_widths

    @property
    def formats(self) -> tuple[Format, Format]:
        """Wire formats of the forward and the backward direction."""
        return self._core.formats

    def compute_in(self, dtype: torch.dtype) -> None:
        """Say in which dtype rows come: entries of two bytes are not sent in four."""
        short: dict[torch.dtype, Format] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
        forward, backward = (short.get(dtype, name) if name == "fp32" else name for name in self._asked)
        self._core.formats = (forward, backward)
        self._core.codecs = (codec_of(forward), codec_of(backward))

    def bind(self, transport: Wire) -> None:
        """Give the exchange its wire; nothing can be sent before.

        Raises:
            ValueError: the widths do not fit the transport's group.
        """
        self._core.bind(transport)

    def forward(self, x: Tensor, layout: BatchLayout | RowCounts) -> tuple[Tensor, ...]:
        """Start and wait at once."""
        blocks: tuple[Tensor, ...] = self.wait(self.start(x, layout))
        return blocks

    def extra_repr(self) -> str:
        """Name, group, widths and formats."""
        widths = f"send_width={self.send_width}, recv_widths={self.recv_widths}"
        back = f", gradient_widths={self.gradient_widths}" if self.gradient_widths != self.recv_widths else ""
        return f"{self.name!r}, group={self.group!r}, {widths}, formats={self.formats}{back}"
