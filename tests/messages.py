"""Wrong models and batches, each with the message that its user gets: ``python -m tests.messages`` writes them anew.

A case says what is done to one model; the message is compared with ``tests/data/messages.txt``. Where it has a hint
that names a step, ``followed`` is the same model after that step was taken to the letter: it must be taken, or refused
with another message that tells the truth.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dmt_plugin import mark_embeddings, transform
from dmt_plugin.core.errors import DMTError, FindingsError

GOLDEN = Path(__file__).parent / "data" / "messages.txt"
SPTT: dict[str, Any] = {"towers": {"module": "none"}}
TOWERS: dict[str, Any] = {"towers": {"module": "dlrm", "c": 1, "p": 0, "dim": 2}}
N = 4

Function = Callable[["Model", list[Tensor], Tensor], Any]


class Head(nn.Module):
    """The part behind the lookups, of which a function is the forward."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, model: Model, vectors: list[Tensor], dense: Tensor) -> Any:
        return self.function(model, vectors, dense)


class Model(nn.Module):
    """Tables, dense features, and a head."""

    def __init__(self, function: Function, features: int = 6, inputs: int = 0, **table: Any) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(9, N, **table) for _ in range(features))
        self.bag = nn.EmbeddingBag(9, N, mode="sum")
        self.calls = torch.zeros(())
        self.top = nn.Linear(inputs or features * N + 3, 1)
        self.head = Head(function)

    def forward(self, dense: Tensor, ids: Tensor) -> Any:
        vectors = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        self.ids = ids
        return self.head(self, vectors, dense)


def call(n: int = 5, features: int = 6, columns: int = 3) -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(n)
    return torch.randn(n, columns, generator=g), torch.randint(0, 9, (n, features), generator=g)


def plain(m: Model, v: list[Tensor], d: Tensor) -> Tensor:
    return m.top(torch.cat([d, *v], 1))


class OfBatch(nn.Module):
    """One argument, a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Model(plain)

    def forward(self, batch: dict[str, Any]) -> Any:
        dense = batch["dense"]
        return self.inner(torch.from_numpy(dense) if isinstance(dense, np.ndarray) else dense, batch["ids"])


class OfObject(OfBatch):
    def forward(self, batch: Any) -> Any:
        return self.inner(batch.dense, batch.ids)


class Numpy(OfBatch):
    def forward(self, batch: Any) -> Any:
        return self.inner(torch.from_numpy(batch["dense"]), batch["ids"])


class OfList(OfBatch):
    def forward(self, dense: Tensor, ids: list[Tensor], mask: Tensor | None = None) -> Any:  # type: ignore[override]
        out = self.inner(dense, torch.stack(ids, 1))
        return out if mask is None else out * mask


class Plain:
    def __init__(self, dense: Tensor, ids: Tensor) -> None:
        self.dense, self.ids = dense, ids


def branch(m: Model, v: list[Tensor], d: Tensor) -> Tensor:
    out = plain(m, v, d)
    if out.mean() > 0:
        return out * 2
    return out


def made(m: Model, v: list[Tensor], d: Tensor) -> Tensor:
    return nn.Linear(3, 1)(d) + plain(m, v, d)


def written(m: Model, v: list[Tensor], d: Tensor) -> Tensor:
    m.tables[2].weight.data.mul_(0.5)
    return plain(m, v, d)


def tied(m: Model, v: list[Tensor], d: Tensor) -> Tensor:
    return plain(m, v, d) + v[0] @ m.tables[1].weight.t()


def marked_twice(m: Model, v: list[Tensor], d: Tensor) -> Tensor:
    mark_embeddings("user", v[:3], ["a", "b", "c"])
    mark_embeddings("item", v[2:], ["d", "e", "f", "g"])
    return plain(m, v, d)


def pooled(leaves: bool) -> tuple[nn.Module, tuple[Any, ...]]:
    from tests.zoo.torchrec_pooled import collection, jagged

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.collection = collection(range(4), 8)
            self.top = nn.Linear(32, 1)

        def forward(self, features: Any) -> Any:
            pooled = self.collection(features)
            out = self.top(pooled.values())
            return (out, pooled) if leaves else (out, pooled.to_dict())

    return Pooled(), (jagged(5, range(4), 0),)


def managed() -> nn.Module:
    from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
    from torchrec.modules.mc_modules import (
        DistanceLFU_EvictionPolicy,
        ManagedCollisionCollection,
        MCHManagedCollisionModule,
    )

    from tests.zoo.torchrec_pooled import collection

    device = torch.device("cpu")
    bags = collection(range(2), 8, device=device)
    each = {
        config.name: MCHManagedCollisionModule(
            zch_size=config.num_embeddings, device=device, eviction_interval=2, input_hash_size=99,
            eviction_policy=DistanceLFU_EvictionPolicy(),
        )
        for config in bags.embedding_bag_configs()
    }  # fmt: skip

    class Managed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            own = ManagedCollisionCollection(each, bags.embedding_bag_configs())
            self.bags = ManagedCollisionEmbeddingBagCollection(bags, own)
            self.top = nn.Linear(16, 1)

        def forward(self, features: Any) -> Any:
            return self.top(self.bags(features)[0].values())

    return Managed()


def with_padding_row() -> Model:
    model = Model(plain, padding_idx=0)
    nn.init.ones_(model.tables[1].weight)
    return model


def zeroed(model: Model) -> Model:
    with torch.no_grad():
        model.tables[1].weight[0] = 0
    return model


def hooked() -> Model:
    model = Model(plain)
    model.register_forward_hook(lambda *args: None)
    return model


def named_code() -> Model:
    model = Model(plain)
    model.code = nn.Linear(1, 1)
    return model


@dataclass(frozen=True)
class Case:
    """One wrong model or batch.

    Attributes:
        build: makes the model.
        example: the example batch.
        dmt: the ``"dmt"`` section.
        topology: hosts x ranks.
        later: the arguments of a call after the transformation, where that is what is wrong.
        keywords: those by name.
        followed: the model, and optionally the example and the section, after the hint was followed.
    """

    build: Callable[[], nn.Module]
    example: Any = field(default_factory=call)
    dmt: dict[str, Any] = field(default_factory=lambda: SPTT)
    topology: str = "2x1"
    later: tuple[Any, ...] | None = None
    keywords: dict[str, Any] = field(default_factory=dict)
    followed: Case | None = None


def of(function: Function, **options: Any) -> Callable[[], nn.Module]:
    return lambda: Model(function, **options)


def summed(m: Model, v: list[Tensor], d: Tensor) -> Tensor:
    return sum(v[1:], v[0]).sum(1)


def counted(m: Model, v: list[Tensor], d: Tensor) -> Tensor:
    return m.top(torch.cat([d, torch.stack(v, 1).cumsum(1).flatten(1)], 1))


def repeated(m: Model, v: list[Tensor], d: Tensor) -> Tensor:
    return m.top(torch.cat([d, *v, v[0]], 1))


def in_one_bag(m: Model, v: list[Tensor], d: Tensor) -> Tensor:
    return plain(m, v, d) + m.bag(m.ids.reshape(1, -1)).sum()


def bag_per_sample(m: Model, v: list[Tensor], d: Tensor) -> Tensor:
    return plain(m, v, d) + m.bag(m.ids).sum(1, keepdim=True)


def to_the_longest(m: Model, v: list[Tensor], d: Tensor) -> Tensor:
    return plain(m, v, d) + nn.functional.pad(v[0], (0, int(m.ids.max()))).sum(1, keepdim=True)


def to_a_constant(m: Model, v: list[Tensor], d: Tensor) -> Tensor:
    return plain(m, v, d) + nn.functional.pad(v[0], (0, 50)).sum(1, keepdim=True)


def decoder(dmt: dict[str, Any], way: str = "decoder") -> dict[str, Any]:
    return {**dmt, "transform": {"on_unsupported": way}}


DICT = {"dense": call()[0], "ids": call()[1]}
LIST = (call()[0], list(call()[1].t()))
CASES: dict[str, Case] = {
    "a branch on data": Case(of(branch), followed=Case(of(lambda m, v, d: plain(m, v, d) * 2))),
    "a number from data": Case(
        of(lambda m, v, d: plain(m, v, d) * d.max().item()), followed=Case(of(lambda m, v, d: plain(m, v, d) * d.max()))
    ),
    "a size from data": Case(
        of(lambda m, v, d: plain(m, v, d)[d[:, 0] > 0].sum()),
        followed=Case(of(lambda m, v, d: (plain(m, v, d) * (d[:, :1] > 0)).sum())),
    ),
    "a loop over the batch": Case(
        of(lambda m, v, d: sum(row.sum() for row in plain(m, v, d))),
        followed=Case(of(lambda m, v, d: plain(m, v, d).sum())),
    ),
    "a table that is written into": Case(of(written), followed=Case(of(plain))),
    "a layer made in forward": Case(of(made)),
    "a compiled model": Case(lambda: torch.compile(Model(plain)), followed=Case(of(plain))),
    "another path in train mode": Case(
        of(lambda m, v, d: plain(m, v, d) * (2 if m.training else 1)),
        followed=Case(of(lambda m, v, d: nn.functional.dropout(plain(m, v, d), 0.1, m.training))),
    ),
    "an array in the batch": Case(
        Numpy, ({"dense": DICT["dense"].numpy(), "ids": DICT["ids"]},), followed=Case(OfBatch, (DICT,))
    ),
    "a batch of a class of its own": Case(OfObject, (Plain(*call()),), followed=Case(OfBatch, (DICT,))),
    "a hook on the model": Case(hooked, followed=Case(of(plain))),
    "a layer called code": Case(named_code, followed=Case(of(plain))),
    "managed collision": Case(managed, lambda: pooled(True)[1]),
    "no table": Case(lambda: nn.Sequential(nn.Linear(3, 1)), (call()[0],)),
    "max_norm": Case(of(plain, max_norm=1.0), followed=Case(of(plain))),
    "scale_grad_by_freq": Case(of(plain, scale_grad_by_freq=True), followed=Case(of(plain, scale_grad_by_freq=False))),
    "a table that is also a layer": Case(
        of(tied), followed=Case(of(lambda m, v, d: plain(m, v, d) + (v[0] * m.tables[1](m.ids[:, 1])).sum(1)))
    ),
    "all samples in one bag": Case(of(in_one_bag), followed=Case(of(bag_per_sample))),
    "a size that is the largest of a batch": Case(of(to_the_longest), followed=Case(of(to_a_constant))),
    "a padding row that is not zero": Case(with_padding_row, followed=Case(lambda: zeroed(with_padding_row()))),
    "a keyed tensor that leaves the model": Case(
        lambda: pooled(True)[0], lambda: pooled(True)[1],
        followed=Case(lambda: pooled(False)[0], lambda: pooled(False)[1]),
    ),
    "a stream with two marks": Case(of(marked_twice)),
    "one lookup": Case(
        of(plain, features=1), call(features=1), TOWERS, followed=Case(of(plain, features=1), call(features=1))
    ),
    "a join that has a vector twice": Case(
        of(repeated, inputs=31), dmt=TOWERS, followed=Case(of(repeated, inputs=31), dmt=decoder(TOWERS))
    ),
    "vectors that are added up": Case(of(summed), dmt=TOWERS, followed=Case(of(summed), dmt=decoder(TOWERS))),
    "an operation that is not known": Case(of(counted), dmt=TOWERS, followed=Case(of(counted), dmt=decoder(TOWERS))),
    "more towers than features": Case(
        of(plain, features=3), call(features=3), {"towers": {**TOWERS["towers"], "count": 4}},
        followed=Case(of(plain, features=3), call(features=3), {"towers": {**TOWERS["towers"], "count": 3}}, "3x1"),
    ),
    "a tower without a feature of a group": Case(
        of(lambda m, v, d: m.top(torch.cat([d, *v[:3]], 1)) * m.head.other(torch.cat(v[3:], 1)), inputs=15),
        dmt={**TOWERS, "partition": {"strategy": "contiguous"}},
    ),
    "a batch with too few items": Case(of(plain), (call()[0],)),
    "a batch with other names": Case(of(plain), {"numbers": call()[0], "ids": call()[1]}),
    "a batch with other columns": Case(of(plain), call(columns=4)),
    "a call with other columns": Case(of(plain), later=call(columns=4)),
    "a call with arguments swapped": Case(of(plain), later=call()[::-1]),
    "a call without an argument": Case(of(plain), later=call()[:1]),
    "a call with one argument more": Case(of(plain), later=(*call(), 1)),
    "a call with a name of its own": Case(of(plain), later=call(), keywords={"mask": None}),
    "a call without a key": Case(OfBatch, (DICT,), later=({"dense": DICT["dense"]},)),
    "a call with a shorter list": Case(OfList, LIST, later=(LIST[0], LIST[1][:5])),
    "a call without what was there": Case(OfList, (*LIST, torch.ones(5, 1)), later=LIST),
    "a call with what was not there": Case(OfList, LIST, later=(*LIST, torch.ones(5, 1))),
}  # fmt: skip


def outcome(case: Case) -> str:
    """What is said; empty if the model is taken.

    Raises:
        Exception: anything that is no error of this package.
    """
    torch.manual_seed(0)
    model = case.build()
    if isinstance(model, Model):
        model.head.other = nn.Linear(12, 1)
    example = case.example() if callable(case.example) else case.example
    try:
        towers = transform(model, example, {"dmt": case.dmt}, case.topology)
        if case.later is not None:
            towers(*case.later, **case.keywords)
    except FindingsError as error:
        errors = [str(f) for f in error.findings if f.severity == "error"]
        return readable("\n".join([str(error).split("\n", 1)[0], *errors]))
    except DMTError as error:
        return readable(f"{type(error).__name__}: {error}")
    return ""


def readable(text: str) -> str:
    """A message without what differs from machine to machine, and from version to version of torch."""
    text = re.sub(r'[^\s"(]*/(\w+\.py):\d+', r"\1", text)
    return re.sub(r"0x[0-9a-f]+", "0x...", text.replace("__main__.", "tests.messages."))


def golden() -> str:
    """All messages, one paragraph each."""
    return "\n\n".join(f"## {name}\n{outcome(case)}" for name, case in CASES.items()) + "\n"


if __name__ == "__main__":
    GOLDEN.write_text(golden())
