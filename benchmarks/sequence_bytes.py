"""Bytes between hosts of sequences of 50 ids: each distinct row once per host, and a row for every id.

    python -m benchmarks.sequence_bytes

1. Users' histories of 50 items and an item in question, which attends to them (torchrec's ``EmbeddingCollection``,
   whose rows travel by id), and two features of the user; trained by ``dmt_plugin.initialize`` on 2 hosts x 2 ranks,
   as four processes of this machine.
2. Ids of three fields of the step benchmark (:mod:`benchmarks.step.ids`): two distributed as real ones, one uniform;
   the table has 50,000 rows at most. Two steps of other ids each; what is counted is what the exchanges were handed.
3. Beside the counts: what they should be. A distinct row of a host, or an id, costs its number once and its row twice,
   forward and as a gradient, where its table is another host's; headers come on top.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softmax
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
)

from benchmarks.step.ids import draw, rows_of

HOSTS, LANES, LENGTH, WIDTH, STEPS = 2, 2, 50, 64, 2
PROFILE = {"age": 7, "job": 21}
FIELDS = {
    "as field 3 of Criteo Kaggle (Zipf 1.0)": ("kaggle", 2),
    "as field 10 of Criteo Kaggle (Zipf 1.08)": ("kaggle", 9),
    "uniform": ("uniform", 0),
}
ROWS = 50_000
"""Of the table with uniform ids; the others have at most as many."""


class History(nn.Module):
    """An item attends to the items seen before.

    Args:
        items: rows of the table of items.
    """

    def __init__(self, items: int) -> None:
        super().__init__()
        self.rows = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name="item_table", embedding_dim=WIDTH, num_embeddings=items, feature_names=["seen", "item"]
                )
            ]
        )
        self.profile = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(name=f"{key}s", embedding_dim=WIDTH, num_embeddings=rows, feature_names=[key])
                for key, rows in PROFILE.items()
            ]
        )
        self.top = nn.Sequential(nn.Linear((2 + len(PROFILE)) * WIDTH, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Logits ``(B,)``."""
        rows = self.rows(features)
        item = rows["item"].values()
        seen = rows["seen"].to_padded_dense(LENGTH)
        weights = softmax(seen @ item.unsqueeze(2) / WIDTH**0.5, 1)
        return self.top(torch.cat([self.profile(features).values(), item, (weights * seen).sum(1)], 1)).squeeze(1)


def batch(field: tuple[str, int], samples: int, seed: int) -> KeyedJaggedTensor:
    """What one rank is handed in a step."""
    g = torch.Generator().manual_seed(seed)
    kind, number = field
    ids = draw(kind, number + 1, ROWS, (samples, LENGTH + 1), g).view(samples, -1, LENGTH + 1)[:, number]
    profile = [torch.randint(rows, (samples,), generator=g) for rows in PROFILE.values()]
    one = torch.ones(samples, dtype=torch.long)
    return KeyedJaggedTensor(
        [*PROFILE, "seen", "item"],
        torch.cat([*profile, ids[:, :LENGTH].reshape(-1), ids[:, LENGTH]]),
        lengths=torch.cat([*[one] * len(PROFILE), one * LENGTH, one]),
    )


@dataclass(frozen=True)
class Counted:
    """Of one step, over all hosts.

    Attributes:
        ids: of the table of items, looked up on hosts that do not have it.
        distinct: how many rows these are, each host's counted once.
        sent: bytes for the table of items that crossed hosts.
        reckoned: bytes that should have.
    """

    ids: int
    distinct: int
    sent: int
    reckoned: int


def off(counted: Counted) -> float:
    """How far the bytes are from what they should be, as a share."""
    return counted.sent / counted.reckoned - 1


def measure(rank: int, field: tuple[str, int], samples: int, dedup: str, folder: str) -> None:
    """Trains on this rank; rank 0 leaves what was counted in a file."""
    import dmt_plugin

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(HOSTS * LANES), LOCAL_RANK=str(rank % LANES), LOCAL_SIZE=str(LANES),
        CROSS_RANK=str(rank // LANES), CROSS_SIZE=str(HOSTS), DS_ACCELERATOR="cpu",
    )  # fmt: skip
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=HOSTS * LANES)
    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": samples,
        "optimizer": {"type": "SGD", "params": {"lr": 0.01}},
        "steps_per_print": 10**9,
        "dmt": {
            "topology": {"hosts": HOSTS, "ranks_per_host": LANES},
            "towers": {"module": "none"},
            "comm": {"dedup": "off", "dedup_features": {"*seen": dedup, "*item": dedup}, "peer_dtype": "fp32"},
        },
    }
    engine, *_ = dmt_plugin.initialize(
        model=History(rows_of(*field, ROWS)), config=config, example_batch=(batch(field, 8, 0),)
    )
    engine.dmt.traffic.reset()
    batches = [batch(field, samples, 1 + step * HOSTS * LANES + rank) for step in range(STEPS)]
    for features in batches:
        loss = binary_cross_entropy_with_logits(engine(features), torch.ones(samples))
        engine.backward(loss)
        engine.step()
    owner = engine.dmt.plan.host_of_table("rows.embeddings.item_table")
    totals = engine.dmt.traffic.totals
    sent = totals("requests").other_hosts + totals("rows").other_hosts
    mine = [torch.cat([features["seen"].values(), features["item"].values()]) for features in batches]
    everyone: list[Any] = [None] * (HOSTS * LANES)
    dist.all_gather_object(everyone, (sent, mine))
    if rank == 0:
        ids = distinct = 0
        for host in (h for h in range(HOSTS) if h != owner):
            for step in range(STEPS):
                looked_up = torch.cat([ids_of[step] for _, ids_of in everyone[host * LANES : (host + 1) * LANES]])
                ids, distinct = ids + len(looked_up), distinct + len(looked_up.unique())
        rows = ids if dedup == "off" else distinct
        counted = [ids, distinct, sum(sent for sent, _ in everyone), rows * (4 + 2 * 4 * WIDTH)]
        Path(folder, "counted").write_text(" ".join(str(n // STEPS) for n in counted))
    dist.barrier()
    engine.destroy()
    dist.destroy_process_group()


def count(field: tuple[str, int], samples: int, dedup: str) -> Counted:
    """Runs one of the settings.

    Args:
        field: kind of ids, and number of the field.
        samples: per rank and step.
        dedup: ``dmt.comm.dedup``, ``"on"`` or ``"off"``.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, args=(field, samples, dedup, folder), nprocs=HOSTS * LANES)  # type: ignore[no-untyped-call]
        return Counted(*map(int, Path(folder, "counted").read_text().split()))


def main() -> int:
    """Prints a row for each kind of ids."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512, help="per rank and step (512)")
    options = parser.parse_args()
    sys.stdout.write(
        "| ids | of the other host's table | distinct | MB, every id | MB, distinct once | fewer | off the formula |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    )
    for name, field in FIELDS.items():
        every, once = (count(field, options.samples, dedup) for dedup in ("off", "on"))
        sys.stdout.write(
            f"| {name} | {every.ids:,} | {once.distinct:,} | {every.sent / 1e6:.2f} | {once.sent / 1e6:.2f} | "
            f"{every.sent / once.sent:.1f}x | {off(every):+.2%}, {off(once):+.2%} |\n"
        )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
