"""Autograd of output distribution in the simulation."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.formats import FORMATS, row_bytes
from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.comm.wire.codecs import codec_of
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWorld

PAIR = Topology(2, 1)
LAYOUT = (BatchLayout(2, ((2, 1),)), BatchLayout(1, ((2, 1),)))


def pair(wire: Any, widths: tuple[int, int] = (3, 2)) -> tuple[OutputDist, BatchLayout]:
    exchange = OutputDist("rows", "peers", widths[wire.rank], widths)
    exchange.bind(wire)
    return exchange, LAYOUT[wire.rank]


def test_blocks_and_transpose() -> None:
    def program(wire: Any) -> Any:
        exchange, layout = pair(wire)
        x = torch.arange(9.0 if wire.rank == 0 else 6.0).view(3, -1) + 100 * wire.rank
        x.requires_grad_()
        blocks = exchange(x, layout)
        grads = [torch.full_like(block, 10.0 * wire.rank + source) for source, block in enumerate(blocks)]
        torch.autograd.backward(blocks, grads)
        return [block.tolist() for block in blocks], x.grad

    (first, grad0), (second, grad1) = SimulatedWorld(PAIR).run(program)
    assert first == [[[0, 1, 2], [3, 4, 5]], [[100, 101], [102, 103]]]
    assert second == [[[6, 7, 8]], [[104, 105]]]
    # Row r of source s was used by rank u with gradient 10 u + s.
    assert grad0.tolist() == [[0] * 3, [0] * 3, [10] * 3]
    assert grad1.tolist() == [[1] * 2, [1] * 2, [11] * 2]


FORMAT_PAIRS = list(itertools.product(FORMATS, repeat=2))


@pytest.mark.parametrize("formats", FORMAT_PAIRS, ids="-".join)
def test_wire_formats_change_rows_and_nothing_else(formats: tuple[Any, Any]) -> None:
    """What arrives is what fp32 brings, after a trip through the codec; the same for gradients, each with its own."""

    def through(name: str, block: torch.Tensor) -> torch.Tensor:
        codec = codec_of(name)
        return codec.decode(codec.encode([block]), [(block.shape[0], block.shape[1])], block.dtype)[0]

    def program(wire: Any) -> bool:
        generator = torch.Generator().manual_seed(wire.rank)
        widths, layout = (70, 3), LAYOUT[wire.rank]
        x = torch.randn(3, widths[wire.rank], generator=generator)
        coded = x.clone().requires_grad_()
        expected_x = through(formats[0], x).requires_grad_()
        exchanges = [OutputDist("rows", "peers", widths[wire.rank], widths, f) for f in (("fp32", "fp32"), formats)]
        for exchange in exchanges:
            exchange.bind(wire)
        grads = [torch.randn(layout.own, width, generator=generator) for width in widths]
        expected = exchanges[0](expected_x, layout)
        torch.autograd.backward(expected, [through(formats[1], grad) for grad in grads])
        found = exchanges[1](coded, layout)
        torch.autograd.backward(found, grads)
        assert expected_x.grad is not None and coded.grad is not None
        same = [torch.equal(a, b) for a, b in zip(expected, found, strict=True)]
        return all(same) and torch.equal(expected_x.grad, coded.grad)

    assert SimulatedWorld(PAIR).run(program) == [True, True]


@pytest.mark.parametrize("formats", [("fp32", "fp32"), ("fp16", "bf16"), ("int8", "int8")], ids="-".join)
@pytest.mark.parametrize("back", [(2, 1), (0, 2), (3, 0), (0, 0)], ids=str)
def test_only_the_first_columns_have_gradients(back: tuple[int, int], formats: tuple[Any, Any]) -> None:
    """Those behind them get zeros, and take no bytes; where nobody has any, nothing is sent back."""

    def program(wire: Any) -> tuple[bool, bool]:
        generator = torch.Generator().manual_seed(wire.rank)
        widths, layout = (3, 2), LAYOUT[wire.rank]
        grads = [torch.randint(-127, 128, (layout.own, w), generator=generator).float() for w in widths]
        x = torch.randint(-127, 128, (3, widths[wire.rank]), generator=generator).float()
        ones, twos = x.clone().requires_grad_(), x.clone().requires_grad_()
        whole = OutputDist("whole", "peers", widths[wire.rank], widths)
        part = OutputDist("part", "peers", widths[wire.rank], widths, formats, back)
        whole.bind(wire)
        part.bind(wire)
        torch.autograd.backward(whole(ones, layout), grads)
        blocks = part(twos, layout)
        differentiable = [(block, grad) for block, grad in zip(blocks, grads, strict=True) if block.requires_grad]
        assert len(differentiable) == sum(width > 0 for width in back)
        before = wire.collectives
        if differentiable:
            torch.autograd.backward(*zip(*differentiable, strict=True))
        assert wire.collectives - before == int(any(back))
        expected = ones.grad.clone()
        expected[:, back[wire.rank] :] = 0
        found = twos.grad if any(back) else torch.zeros_like(twos)
        close = torch.allclose(found, expected, rtol=1e-2, atol=1.0)
        exact = torch.equal(found[:, back[wire.rank] :], expected[:, back[wire.rank] :])
        sent = wire.traffic.as_dict().get("part", {}).get("backward", {"other_hosts": 0})["other_hosts"]
        same = exact and (torch.equal(found, expected) if formats[1] == "fp32" else close)
        return same, sent == layout.own * row_bytes(formats[1], back[1 - wire.rank])

    assert SimulatedWorld(PAIR).run(program) == [(True, True)] * 2


def test_gradients_must_fit_the_rows() -> None:
    for back in ((3,), (4, 1), (-1, 1)):
        with pytest.raises(ValueError, match="exchange 'rows': gradients of"):
            OutputDist("rows", "peers", 3, (3, 2), gradient_widths=back)


def test_received_blocks_share_one_buffer() -> None:
    def program(wire: Any) -> bool:
        exchange, layout = pair(wire)
        with torch.no_grad():
            blocks = exchange(torch.ones(3, exchange.send_width), layout)
        return len({block.untyped_storage().data_ptr() for block in blocks}) == 1

    assert SimulatedWorld(PAIR).run(program) == [True, True]


@pytest.mark.parametrize("used", ["all", "first", "last"])
@pytest.mark.parametrize("needy", [(True, True), (True, False), (False, False)])
def test_every_rank_joins_the_backward(used: str, needy: tuple[bool, bool]) -> None:
    """Also a rank whose input needs no gradient, and one that drops a block."""

    def program(wire: Any) -> Any:
        exchange, layout = pair(wire)
        x = torch.ones(3, exchange.send_width, requires_grad=needy[wire.rank])
        blocks = exchange(x, layout)
        chosen = {"all": blocks, "first": blocks[:1], "last": blocks[1:]}[used]
        sum(block.sum() for block in chosen).backward()
        return wire.collectives, x.grad is not None

    results = SimulatedWorld(PAIR, timeout_s=10).run(program)
    assert results == [(2, needy[0]), (2, needy[1])]


def test_no_grad_and_eval_have_no_backward() -> None:
    def program(wire: Any) -> Any:
        exchange, layout = pair(wire)
        x = torch.ones(3, exchange.send_width, requires_grad=True)
        with torch.no_grad():
            blocks = exchange(x, layout)
        with torch.inference_mode():
            inferred = exchange(torch.ones(3, exchange.send_width), layout)
        return wire.collectives, any(b.requires_grad for b in (*blocks, *inferred))

    assert SimulatedWorld(PAIR).run(program) == [(2, False)] * 2


def test_two_exchanges_in_flight() -> None:
    """Starts before waits, as the scheduling pass arranges them; backward in the mirrored order."""

    def program(wire: Any) -> Any:
        exchange, layout = pair(wire)
        other = OutputDist("other", "peers", exchange.send_width, exchange.recv_widths)
        other.bind(wire)
        x = torch.ones(3, exchange.send_width, requires_grad=True)
        y = torch.ones(3, exchange.send_width, requires_grad=True)
        first, second = exchange.start(x, layout), other.start(y * 2, layout)
        left, right = exchange.wait(first), other.wait(second)
        (torch.cat(left, 1).sum() + 3 * torch.cat(right, 1).sum()).backward()
        return x.grad.unique().tolist(), y.grad.unique().tolist()  # type: ignore[union-attr]

    assert SimulatedWorld(PAIR, timeout_s=10).run(program) == [([1.0], [6.0])] * 2


def test_gradient_is_the_transpose_numerically() -> None:
    """``<y, exchange(x)>`` summed over ranks equals ``<exchange^T(y), x>``: any scale would show."""

    def program(wire: Any) -> Any:
        exchange, layout = pair(wire)
        generator = torch.Generator().manual_seed(wire.rank)
        x = torch.randn(3, exchange.send_width, generator=generator, dtype=torch.float64).requires_grad_()
        out = torch.cat(exchange(x, layout), 1)
        y = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        (out * y).sum().backward()
        assert x.grad is not None
        return (out * y).sum().item(), (x * x.grad).sum().item()

    results = SimulatedWorld(PAIR).run(program)
    assert sum(r[0] for r in results) == pytest.approx(sum(r[1] for r in results), rel=1e-12)


def test_zero_widths_and_zero_rows() -> None:
    def program(wire: Any) -> Any:
        exchange = OutputDist("rows", "peers", (0, 2)[wire.rank], (0, 2))
        exchange.bind(wire)
        x = torch.ones(3, exchange.send_width, requires_grad=True)
        torch.cat(exchange(x, LAYOUT[wire.rank]), 1).sum().backward()
        empty = exchange(torch.ones(0, exchange.send_width), BatchLayout(0, ((0, 0),)))
        return [tuple(b.shape) for b in empty], tuple(x.grad.shape)  # type: ignore[union-attr]

    assert SimulatedWorld(PAIR).run(program) == [([(0, 0), (0, 2)], (3, 0)), ([(0, 0), (0, 2)], (3, 2))]


def test_group_of_one_is_the_identity() -> None:
    def program(wire: Any) -> Any:
        exchange = OutputDist("rows", "lanes", 2, (2,))
        exchange.bind(wire)
        x = torch.ones(3, 2, requires_grad=True)
        (block,) = exchange(x, LAYOUT[wire.rank])
        return block is x, wire.collectives

    assert SimulatedWorld(PAIR).run(program) == [(True, 0)] * 2


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="unknown group 'peer'"):
        OutputDist("rows", "peer", 1, (1,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown wire format 'fp8'"):
        OutputDist("rows", "peers", 1, (1,), ("fp8", "fp32"))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="'rows' has no transport"):
        OutputDist("rows", "peers", 1, (1, 1)).start(torch.ones(1, 1), LAYOUT[0])

    def program(wire: Any) -> None:
        with pytest.raises(ValueError, match="3 receive widths for a peers group of 2"):
            OutputDist("rows", "peers", 1, (1, 1, 1)).bind(wire)
        with pytest.raises(ValueError, match="sends rows of width 7"):
            OutputDist("rows", "peers", 7, (1, 1)).bind(wire)
        exchange, layout = pair(wire)
        with pytest.raises(ValueError, match="rows of shape"):
            exchange.start(torch.ones(2, exchange.send_width), layout)
        with pytest.raises(ValueError, match="do not fit"):
            exchange.start(torch.ones(2, exchange.send_width), BatchLayout(1, ((1, 1, 1),)))
        assert copy.deepcopy(exchange).start.core.wire is None

    SimulatedWorld(PAIR).run(program)
