"""What one rank of ``H x L`` does in a step on its own device, part by part, with nobody to talk to.

1. Sizes follow from the setting as placement has them: features go to hosts in turn, then to lanes; this is rank 0.
2. Exchanges run as in training over a wire that answers at once: what is sent goes nowhere, and what arrives is a
   buffer of the right size. So their time is that of packing, encoding, decoding and cutting.
3. Every part is a chain of steps; each gets what the one before returned, and has the bytes of the rows it handles.
4. Parts that are to be compared with each other come together, to be timed in turn.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.formats import FORMATS, Format
from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.comm.wire.codecs import codec_of
from dmt_plugin.comm.wire.transport import Arrived, Group, Pending, Phase
from dmt_plugin.nn.graph_ops import pack_streams, side_by_side, split_columns, split_streams
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.nn.lookup.site import LookupSite
from dmt_plugin.nn.pair_products import pair_of, pair_products
from dmt_plugin.nn.towers import DCNTower, DLRMTower, compiled
from dmt_plugin.topology.shape import Topology

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Sizes:
    """The job that one rank is a part of.

    Attributes:
        hosts: hosts ``H``.
        lanes: ranks on each ``L``.
        batch: samples per rank ``B``.
        features: features ``F``, each with a table of its own.
        rows: of each table.
        width: of each table ``N``.
        dim: width ``D`` of a tower's outputs, one per feature.
    """

    hosts: int = 4
    lanes: int = 2
    batch: int = 512
    features: int = 26
    rows: int = 10_000
    width: int = 64
    dim: int = 16

    def __post_init__(self) -> None:
        if min(self.hosts, self.lanes, self.batch, self.rows, self.width, self.dim) < 1:
            raise ValueError("hosts, lanes, batch, rows, width and dim must be at least 1")
        if self.features < self.hosts * self.lanes:
            raise ValueError(
                f"features is {self.features}; every one of the {self.hosts} x {self.lanes} ranks needs at least one"
            )

    @property
    def by_host(self) -> list[list[int]]:
        """Features of every lane of every host."""
        return [_dealt(features, self.lanes) for features in _dealt(self.features, self.hosts)]


@dataclass(frozen=True)
class Step:
    """One timed step of a part.

    Attributes:
        name: such as ``"forward"``.
        run: gets the result of the step before (of the first: ``None``).
        size: bytes of the rows that it handles, for comparison with a copy of as many.
    """

    name: str
    run: Callable[[Any], Any]
    size: int


@dataclass(frozen=True)
class Part:
    """Something that a rank does, and the dtype of its rows."""

    name: str
    dtype: str
    steps: tuple[Step, ...]


class SilentWire:
    """A wire on which everything has arrived already.

    Args:
        topology: hosts and lanes; this is rank 0.
        device: where buffers are.
    """

    def __init__(self, topology: Topology, device: torch.device) -> None:
        self.topology = topology
        self.rank = 0
        self.device = device
        self.step = 0
        self._buffers: dict[tuple[int, torch.dtype], Tensor] = {}

    def all_to_all(
        self,
        name: str,
        phase: Phase,
        group: Group,
        send: Tensor,
        send_splits: Sequence[int],
        recv_splits: Sequence[int],
        *,
        brief: bool = False,
    ) -> Pending:
        """What arrives: zeros, of the size that is expected."""
        key = sum(recv_splits), send.dtype
        if key not in self._buffers:
            self._buffers[key] = torch.zeros(key[0], dtype=key[1], device=self.device)
        return Arrived(self._buffers[key])


def parts_of(sizes: Sizes, device: torch.device, compile_towers: bool = False) -> Iterator[list[Part]]:
    """All parts, those together that are to be compared; built when they are reached."""
    for name in DTYPES:
        yield from _exchanges(sizes, device, name)
        yield from _codecs(sizes, device, name)
        yield from _towers(sizes, device, name, compile_towers)
        yield from _dots(sizes, device, name)
    yield from _lookups(sizes, device)


# -- exchanges and codecs ----------------------------------------------------------------------


def _exchanges(sizes: Sizes, device: torch.device, dtype: str) -> Iterator[list[Part]]:
    topology = Topology(sizes.hosts, sizes.lanes)
    wire = SilentWire(topology, device)
    batch, width, by_host = sizes.batch, sizes.width, sizes.by_host
    all_ranks = [lane for host in by_host for lane in host]
    tall = BatchLayout(batch, ((batch,) * sizes.hosts,) * sizes.lanes)
    wide = BatchLayout(batch, ((batch,) * topology.world_size,))
    rows = {"lanes": topology.world_size, "peers": sizes.hosts, "world": topology.world_size}
    cases: list[tuple[str, Group, BatchLayout, int, list[int]]] = [
        ("lanes", "lanes", tall, by_host[0][0] * width, [f * width for f in by_host[0]]),
        ("peers, tower outputs", "peers", tall, sum(by_host[0]) * sizes.dim, [sum(h) * sizes.dim for h in by_host]),
        ("peers, SPTT", "peers", tall, sum(by_host[0]) * width, [sum(h) * width for h in by_host]),
        ("world, flat route", "world", wide, all_ranks[0] * width, [f * width for f in all_ranks]),
    ]
    for title, group, layout, own, widths in cases:
        x = _rows((rows[group] * batch, own), dtype, device)
        together = []
        for wire_format in FORMATS:
            exchange = OutputDist(title, group, own, widths, (wire_format, wire_format))
            exchange.bind(wire)
            together.append(_differentiated(f"{title}, {wire_format}", dtype, _exchanged(exchange, layout), [x]))
        yield together


def _exchanged(exchange: OutputDist, layout: BatchLayout) -> Callable[[Tensor], Any]:
    return lambda x: exchange(x, layout)


def _codecs(sizes: Sizes, device: torch.device, dtype: str) -> Iterator[list[Part]]:
    """The blocks of a peer exchange, one per host."""
    widths = [sum(host) * sizes.width for host in sizes.by_host]
    blocks = [_rows((sizes.batch, width), dtype, device, gradient=False) for width in widths]
    size = sum(_bytes(block) for block in blocks)
    shapes = [(sizes.batch, width) for width in widths]
    yield [Part(f"codec {name}", dtype, _coded(name, blocks, shapes, dtype, size)) for name in FORMATS]


def _coded(
    name: Format, blocks: list[Tensor], shapes: list[tuple[int, int]], dtype: str, size: int
) -> tuple[Step, ...]:
    codec = codec_of(name)
    return (
        Step("encode", lambda _: codec.encode(blocks), size),
        Step("decode", lambda buffer: codec.decode(buffer, shapes, DTYPES[dtype]), size),
    )


# -- towers, interaction, lookups ----------------------------------------------------------------


def _towers(sizes: Sizes, device: torch.device, dtype: str, compile_towers: bool) -> Iterator[list[Part]]:
    """From the blocks of the exchange inside the host to what goes to the peers, and what is made of what arrives."""
    by_lane, width, rows = sizes.by_host[0], sizes.width, sizes.hosts * sizes.batch
    count = sum(by_lane)
    blocks = [_rows((rows, features * width), dtype, device) for features in by_lane]
    columns = [[width] * features for features in by_lane]
    modules: dict[str, nn.Module] = {
        "shuffles alone": nn.Flatten(),
        "tower dlrm": DLRMTower(count, width, sizes.dim),
        "tower dcn": DCNTower(count, width, sizes.dim, "torch"),
    }
    for title, module in modules.items():
        module.to(device, DTYPES[dtype])
        own = list(module.parameters())
        together = [_differentiated(title, dtype, _through(module, columns), blocks, own)]
        if compile_towers and own:
            twin = _through(compiled(module), columns)
            together.append(_differentiated(f"{title}, compiled", dtype, twin, blocks, own))
        yield together
    outputs = [sum(host) * sizes.dim for host in sizes.by_host]
    arrived = [_rows((sizes.batch, output), dtype, device) for output in outputs]
    shapes = tuple(tuple((sizes.dim,) for _ in range(output // sizes.dim)) for output in outputs)

    def streams(*given: Tensor) -> tuple[Tensor, ...]:
        return split_streams(split_columns(given, [[output] for output in outputs]), shapes)

    yield [_differentiated("streams of tower outputs", dtype, streams, arrived)]


def _through(module: nn.Module, columns: list[list[int]]) -> Callable[..., Tensor]:
    return lambda *blocks: side_by_side([module(pack_streams(split_columns(blocks, columns)))])


def _dots(sizes: Sizes, device: torch.device, dtype: str) -> Iterator[list[Part]]:
    """The dot interaction of a DLRM: products of all pairs, as users write it and as ``faster_dot`` makes it."""
    vectors = sizes.features + 1
    first, second = torch.tril_indices(vectors, vectors, -1)
    source = pair_of(first, second, vectors)
    assert source is not None
    first, second, source = first.to(device), second.to(device), source.to(device)

    def written(x: Tensor) -> Tensor:
        return torch.bmm(x, x.transpose(1, 2))[:, first, second]

    def faster(x: Tensor) -> Tensor:
        return pair_products(x, first, second, vectors, source)

    for width in dict.fromkeys((sizes.dim, sizes.width)):
        x = _rows((sizes.batch, vectors, width), dtype, device)
        forms = {"as written": written, "faster": faster}
        yield [_differentiated(f"dot of width {width}, {form}", dtype, forms[form], [x]) for form in forms]


def _lookups(sizes: Sizes, device: torch.device) -> Iterator[list[Part]]:
    """Rank 0's tables, one id per row; the backward step includes the update of the tables."""
    own, rows = sizes.by_host[0][0], sizes.hosts * sizes.lanes * sizes.batch
    sites = [
        LookupSite(f"s{i}", f"t{i}", slot=i, rows=sizes.rows, dim=sizes.width, pooling="sum", weighted=False)
        for i in range(own)
    ]
    ids = tuple(torch.randint(0, sizes.rows, (rows,), device=device) for _ in range(own))
    layout = BatchLayout(sizes.batch, ((sizes.batch,) * sizes.hosts,) * sizes.lanes)
    routed = RoutedIds(ids, (None,) * own, (None,) * own, layout)
    grad = torch.randn(rows, own * sizes.width, device=device)
    together = []
    for backend in ("torch", "fbgemm") if importlib.util.find_spec("fbgemm_gpu") else ("torch",):
        tables = {site.table: torch.randn(sizes.rows, sizes.width) for site in sites}
        lookup = ShardedLookup(sites, tables, backend=backend, optimizer="rowwise_adagrad", device=device)
        together.append(Part(f"lookup, {backend}", "fp32", _looked_up(lookup, routed, grad)))
    yield together


def _looked_up(lookup: ShardedLookup, routed: RoutedIds, grad: Tensor) -> tuple[Step, ...]:
    def backward(pooled: Tensor) -> None:
        pooled.backward(grad)
        lookup.step()
        lookup.zero_grad()

    return Step("forward", lambda _: lookup(routed), _bytes(grad)), Step("backward", backward, _bytes(grad))


# -- helpers -------------------------------------------------------------------------------------


def _differentiated(
    name: str, dtype: str, function: Callable[..., Any], inputs: list[Tensor], parameters: Sequence[Tensor] = ()
) -> Part:
    """Forward of ``function`` and backward to ``inputs`` and ``parameters``, from gradients made beforehand."""
    given = _outputs(function(*inputs))
    gradients = [torch.randn_like(out) for out in given]
    wanted = [*inputs, *parameters]

    def forward(_: None) -> tuple[Tensor, ...]:
        return _outputs(function(*inputs))

    def backward(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, wanted, gradients)

    sent, received = sum(map(_bytes, inputs)), sum(map(_bytes, gradients))
    return Part(name, dtype, (Step("forward", forward, sent), Step("backward", backward, max(sent, received))))


def _outputs(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _rows(shape: tuple[int, ...], dtype: str, device: torch.device, gradient: bool = True) -> Tensor:
    return torch.randn(shape, device=device).to(DTYPES[dtype]).requires_grad_(gradient)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _dealt(features: int, count: int) -> list[int]:
    return [features // count + (i < features % count) for i in range(count)]
