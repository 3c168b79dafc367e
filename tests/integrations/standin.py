"""A hand-made placed model with unequal towers, and the same model in one process.

Four features with a table each, rank ``r`` owns table ``r`` (the last ranks own what is left over). Tower of host
``h``: features ``h, h + H, ...``. Hosts hold tower modules of different depth and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmt_plugin.passes.rank_facts import Placement

FEATURES, ROWS, DIM, DENSE = 4, 8, 4, 3
TABLE_LR = 0.2


def features_of(host: int, hosts: int) -> list[int]:
    return list(range(host, FEATURES, hosts))


def owner_of(feature: int, hosts: int, lanes: int) -> tuple[int, int]:
    host = feature % hosts
    return host, (feature // hosts) % lanes


class Whole(nn.Module):
    """All towers and all tables in one process."""

    def __init__(self, hosts: int, equal: bool = False) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.bottom = nn.Sequential(nn.Linear(DENSE, 6), nn.ReLU(), nn.Linear(6, 5))
        widths = [3 if equal else 3 + 2 * host for host in range(hosts)]
        self.towers = nn.ModuleList()
        for host, width in enumerate(widths):
            incoming = DIM * len(features_of(host, hosts))
            deep = not equal and host % 2
            layers = [nn.Linear(incoming, 9), nn.Tanh(), nn.Linear(9, width)] if deep else [nn.Linear(incoming, width)]
            self.towers.append(nn.Sequential(*layers))
        self.over = nn.Linear(5 + sum(widths), 1)
        self.tables = nn.ModuleList([nn.Embedding(ROWS, DIM) for _ in range(FEATURES)])
        self.hosts = hosts
        self.widths = widths

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        outs = []
        for host, tower in enumerate(self.towers):
            rows = [self.tables[f](ids[:, f]) for f in features_of(host, self.hosts)]
            outs.append(tower(torch.cat(rows, 1)))
        return self.over(torch.cat([self.bottom(dense), *outs], 1)).squeeze(1)


@dataclass(frozen=True)
class Site:
    table: str
    rows: int
    dim: int


class StandinLookup(nn.Module):
    """Tables outside of module registration; plain SGD, applied in ``step``."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.sites = [Site(name, ROWS, DIM) for name in weights]
        self.shapes = dict.fromkeys(weights, (ROWS, DIM))
        self.distinct = nn.Identity()
        self.__dict__["weights"] = {k: w.detach().clone().requires_grad_() for k, w in weights.items()}
        self.grad_scale = 1.0
        self.steps = 0
        self.rules: dict[str, Any] = {}

    def table_weight(self, name: str) -> Tensor:
        return self.weights[name].detach()

    def forward(self, name: str, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weights[name])

    holds = False

    def hold_gradients(self, hold: bool, once: bool = True) -> None:
        """Gradients always wait for ``step``."""

    finite = torch.ones((), dtype=torch.bool)

    def watch_gradients(self, watch: bool) -> None:
        """Nothing to delay."""

    def step(self) -> None:
        self.steps += 1
        for weight in self.weights.values():
            if weight.grad is not None:
                weight.data.sub_(TABLE_LR * self.grad_scale * weight.grad)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self.weights.values():
            weight.grad = None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, wire: Any, group: str, send: list[int], recv: list[int]) -> Tensor:
        ctx.wire, ctx.group, ctx.send, ctx.recv, ctx.shape = wire, group, send, recv, x.shape
        flat = x.detach().contiguous().view(-1)
        return wire.all_to_all("standin", "forward", group, flat, send, recv).wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        flat = grad.contiguous().view(-1)
        back = ctx.wire.all_to_all("standin", "backward", ctx.group, flat, ctx.recv, ctx.send).wait()
        return back.view(ctx.shape), None, None, None, None


class Standin(nn.Module):
    """One rank's part of :class:`Whole`; the number of features is a multiple of the number of ranks."""

    def __init__(self, whole: Whole, topology: Any, rank: int) -> None:
        super().__init__()
        self.topology, self.rank, self.plan = topology, rank, None
        self.host = topology.host_of(rank)
        self.bottom, self.over = whole.bottom, whole.over
        self.local = nn.ModuleDict({"tower": whole.towers[self.host]})
        self.tower_paths = ("local.tower",) if topology.hosts > 1 else ()
        self.widths = whole.widths
        place = (self.host, topology.lane_of(rank))
        own = [f for f in range(FEATURES) if owner_of(f, topology.hosts, topology.ranks_per_host) == place]
        self.own = own
        self.lookup = StandinLookup({f"tables.{f}": whole.tables[f].weight for f in own})
        self.exchanges: list[nn.Module] = []
        self.placement = Placement()
        self.wire: Any = None

    prefetcher = None

    def prefetch_over(self, wire: Any) -> Any:
        """Its ids need no exchange."""
        return SimpleNamespace(close=lambda: None)

    def bind(self, wire: Any) -> None:
        self.wire = wire

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        topology, batch = self.topology, len(dense)
        hosts, lanes = topology.hosts, topology.ranks_per_host
        everyone = [torch.empty_like(ids) for _ in range(topology.world_size)]
        dist.all_gather(everyone, ids)
        order = [topology.rank_of(host, lane) for lane in range(lanes) for host in range(hosts)]
        all_ids = torch.cat([everyone[r] for r in order])
        rows = torch.cat([self.lookup(f"tables.{f}", all_ids[:, f]) for f in self.own], 1)
        width, block = rows.shape[1], hosts * batch
        got = _AllToAll.apply(rows, self.wire, "lanes", [block * width] * lanes, [block * width] * lanes)
        # (lane, sample, own features of the lane) -> (sample, features of the tower in order)
        got = got.view(lanes, block, len(self.own), DIM).permute(1, 2, 0, 3).reshape(block, -1)
        out = self.local["tower"](got)
        send = [batch * out.shape[1]] * hosts
        received = _AllToAll.apply(out, self.wire, "peers", send, [batch * w for w in self.widths])
        parts = received.split([batch * w for w in self.widths])
        outs = [part.view(batch, w) for part, w in zip(parts, self.widths, strict=True)]
        return self.over(torch.cat([self.bottom(dense), *outs], 1)).squeeze(1)


def batches(steps: int, world_size: int, batch: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Global batches; rank ``r`` takes the ``r``-th of ``world_size`` equal parts."""
    generator = torch.Generator().manual_seed(3)
    size = world_size * batch
    return [
        (
            torch.randn(size, DENSE, generator=generator),
            torch.randint(0, ROWS, (size, FEATURES), generator=generator),
            torch.randn(size, generator=generator) * 3,
        )
        for _ in range(steps)
    ]


def loss_of(out: Tensor, label: Tensor) -> Tensor:
    return nn.functional.mse_loss(out, label)


def train_whole(
    hosts: int, data: list[tuple[Tensor, Tensor, Tensor]], gas: int, clip: float, make_optimizer: Any, equal: bool
) -> tuple[dict[str, Tensor], list[float]]:
    """The reference: parameters after training and the gradient norm of each step, tables not clipped."""
    model = Whole(hosts, equal)
    tables = list(model.tables.parameters())
    table_ids = {id(p) for p in tables}
    dense = [p for p in model.parameters() if id(p) not in table_ids]
    optimizer = make_optimizer(dense)
    norms = []
    for start in range(0, len(data), gas):
        for x, ids, label in data[start : start + gas]:
            (loss_of(model(x, ids), label) / gas).backward()
        norms.append(float(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in dense]))))
        if clip:
            for p in dense:
                p.grad *= min(1.0, clip / (norms[-1] + 1e-6))
        optimizer.step()
        with torch.no_grad():
            for p in tables:
                p -= TABLE_LR * p.grad
        model.zero_grad()
    return {k: v.detach().clone() for k, v in model.state_dict().items()}, norms


def scramble(module: nn.Module, seed: int) -> None:
    """Another random state, which a broadcast has to repair."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=generator))
