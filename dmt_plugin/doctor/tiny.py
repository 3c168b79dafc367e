"""One tiny model, rewritten and trained on the ranks there are, against the same training in one process.

1. Every rank builds the same flat model and the same batches from one seed.
2. ``dmt_plugin.initialize`` rewrites it without tower modules, so that it must compute what the flat model computes,
   and trains a few steps by plain SGD, each rank on its share of the batch.
3. Every rank trains the flat model alone on whole batches, with the same rule. The mean of the ranks' losses has to be
   its loss at every step: a wrong exchange, a lost gradient or a wrong scale shows from the second step on.
4. Then with tower modules: losses have to be finite, and to fall over the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dmt_plugin.core.modes import fixed_random_numbers
from dmt_plugin.doctor.check import Finding
from dmt_plugin.topology.shape import Topology

TABLES, ROWS, WIDTH, DENSE = 8, 50, 8, 4
STEPS, SAMPLES, LR = 4, 16, 0.5
TOLERANCE = 1e-4
"""Largest difference of a loss; fp32, with sums in another order, on any device."""


class Tiny(nn.Module):
    """A flat recommender: tables, a dense layer, and an MLP over all of it."""

    def __init__(self, tables: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(ROWS, WIDTH, mode="sum") for _ in range(tables))
        self.bottom = nn.Linear(DENSE, WIDTH)
        self.over = nn.Sequential(nn.Linear((tables + 1) * WIDTH, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Logits ``(B,)`` of ``(B, DENSE)`` floats and ``(B, tables)`` ids."""
        rows = [table(ids[:, i : i + 1]) for i, table in enumerate(self.tables)]
        return self.over(torch.cat([self.bottom(dense), *rows], dim=1)).squeeze(1)


def tables_for(topology: Topology) -> int:
    """Tables of the model: one for every tower at least, and there is a tower for every host."""
    return max(TABLES, topology.hosts)


def build(tables: int = TABLES) -> Tiny:
    """The model, the same on every rank; the state of torch's random numbers is left as it was."""
    with fixed_random_numbers():
        return Tiny(tables)


def batch(step: int, samples: int, tables: int = TABLES) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of all ranks together: ``(dense, ids, label)``. Every step has the same samples: losses must fall."""
    del step
    random = torch.Generator().manual_seed(1)
    dense = torch.randn(samples, DENSE, generator=random)
    ids = torch.randint(0, ROWS, (samples, tables), generator=random)
    return dense, ids, ((dense.sum(1) + ids[:, 0] / ROWS) > 0.5).float()


def config(towers: dict[str, Any], topology: Topology, timeout_s: float) -> dict[str, Any]:
    """A DeepSpeed configuration with the "dmt" section of one of the two trainings."""
    return {
        "train_micro_batch_size_per_gpu": SAMPLES,
        "gradient_clipping": 0.0,
        "optimizer": {"type": "SGD", "params": {"lr": LR}},
        "zero_optimization": {"stage": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000,
        "dmt": {
            "topology": {"hosts": topology.hosts, "ranks_per_host": topology.ranks_per_host},
            "towers": towers,
            "lookup": {"optimizer": "sgd", "lr": LR},
            "comm": {"timeout_s": timeout_s},
        },
    }


def placed_losses(
    towers: dict[str, Any],
    initialize: Callable[..., Any],
    topology: Topology,
    rank: int,
    timeout_s: float,
    mean: Callable[[float], float],
) -> list[float]:
    """Losses of the rewritten model, each the mean over the ranks.

    Args:
        towers: The "towers" of the section.
        initialize: ``dmt_plugin.initialize``.
        topology: Hosts and lanes.
        rank: This rank.
        timeout_s: Limit of every exchange.
        mean: The mean over the ranks of a number of each.
    """
    tables = tables_for(topology)
    dense, ids, _ = batch(0, SAMPLES, tables)
    model = build(tables)
    engine, *_ = initialize(
        model=model,
        model_parameters=model.parameters(),
        config=config(towers, topology, timeout_s),
        example_batch=(dense, ids),
    )
    losses = []
    own = slice(rank * SAMPLES, (rank + 1) * SAMPLES)
    for step in range(STEPS):
        dense, ids, label = (part[own].to(engine.device) for part in batch(step, SAMPLES * topology.world_size, tables))
        loss = binary_cross_entropy_with_logits(engine(dense, ids), label)
        engine.backward(loss)
        engine.step()
        losses.append(mean(float(loss.detach())))
    engine.destroy()
    return losses


def flat_losses(topology: Topology) -> list[float]:
    """Losses of the flat model in this process alone, on the batches of all ranks."""
    model = build(tables_for(topology))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    losses = []
    for step in range(STEPS):
        dense, ids, label = batch(step, SAMPLES * topology.world_size, tables_for(topology))
        loss = binary_cross_entropy_with_logits(model(dense, ids), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def judged(flat: list[float], preserving: list[float], towers: list[float]) -> Finding:
    """What the three series of losses mean."""
    shown = {name: [round(x, 6) for x in losses] for name, losses in
             (("flat", flat), ("sptt", preserving), ("towers", towers))}  # fmt: skip
    gap = max(abs(a - b) for a, b in zip(flat, preserving, strict=True))
    if not gap <= TOLERANCE:
        return Finding(
            f"losses without tower modules {shown['sptt']}, of one process {shown['flat']}: {gap:.2g} apart",
            "fail",
            f"the same losses, within {TOLERANCE:g}",
            "do not train here; report this page with what runs between the ranks (backend, links, versions)",
            shown,
        )
    if not all(x == x and abs(x) < 1e6 for x in towers) or towers[-1] >= towers[0]:
        return Finding(
            f"losses with tower modules {shown['towers']}",
            "fail",
            "finite losses that fall",
            "do not train here; report this page",
            shown,
        )
    return Finding(
        f"{STEPS} steps; without tower modules the losses of one process, within {gap:.1g}; with tower modules loss "
        f"{towers[0]:.3f} -> {towers[-1]:.3f}",
        data=shown,
    )
