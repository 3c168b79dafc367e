"""How much of an AUC difference is the seed: two ways to train the demo's model, in one process, over several seeds.

    python -m examples.seeds --seeds 8
    python -m examples.seeds --seeds 5 --compare meta
    python -m examples.seeds --seeds 5 --compare bf16
    python -m examples.seeds --seeds 5 --compare fp16 --optimizer Adam
    python -m examples.seeds --seeds 5 --compare adam

Trains the model of the demo on its batches, twice for each seed, and prints the difference of the test AUC for each
seed, its mean, and its standard deviation. With `--compare`

1. `towers` (default): the flat model, and the tower modules of `ds_dmt.json`, both by torch's optimizer;
2. `meta`: the flat model, and the same whose tables were built on meta and made by their recorded rules;
3. `bf16`, `fp16`: an engine of `dmt_plugin.initialize` with fp32 tables, and one with 16-bit tables (`lookup.dtype`);
4. `adam`: the flat model under torch's dense Adam, and an engine whose configuration names Adam and has no `lookup`
   section, so that its tables are trained by Adam, row by row.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics.functional.classification import binary_auroc
from tqdm import tqdm

import dmt_plugin
from dmt_plugin.config.section import load_ds_config
from examples import flights
from examples.dlrm import build, example_batch

RANKS = 4
CONFIG = Path(__file__).with_name("ds_dmt.json")


def tensors(part: tuple) -> tuple[Tensor, Tensor, Tensor]:
    """One part of the data set as tensors."""
    dense, sparse, label = (torch.from_numpy(array) for array in part)
    return dense, sparse.long(), label


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Adagrad": {"lr": 0.01, "eps": 1e-8},
    "Adam": {"lr": 0.001, "eps": 1e-8, "weight_decay": 0.0},
}
Part = tuple[Tensor, ...]


def auc(model: nn.Module, train: Part, test: Part, seed: int, config: dict, name: str = "Adagrad") -> float:
    """Trains one epoch as the demo does and returns the test AUC.

    Args:
        model: trained in place, by torch's optimizer.
        train: dense features, ids, labels.
        test: the same.
        seed: of the order of the samples.
        config: a DeepSpeed configuration: batch size, and options of its optimizer.
        name: of that, in `torch.optim`.
    """
    optimizer = getattr(torch.optim, name)(model.parameters(), **config["optimizer"]["params"])

    def step(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return one_epoch(model, step, train, test, seed, config["train_micro_batch_size_per_gpu"] * RANKS)


def engine_auc(train: Part, test: Part, seed: int, batch: int, optimizer: str, lookup: dict[str, Any] | None) -> float:
    """The same with an engine in one process, whose tables are sharded over a single rank.

    Args:
        train: dense features, ids, labels.
        test: the same.
        seed: of weights, and of the order of the samples.
        batch: samples of a step.
        optimizer: one of `OPTIMIZERS`, for the dense part, and so for tables.
        lookup: the `lookup` section; None: there is none.
    """
    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.manual_seed(seed)
    options = OPTIMIZERS[optimizer] | ({"torch_adam": True, "adam_w_mode": False} if optimizer == "Adam" else {})
    config = {
        "train_micro_batch_size_per_gpu": batch,
        "optimizer": {"type": optimizer, "params": options},
        "gradient_clipping": 0.0,
        "steps_per_print": 1 << 30,
        "dmt": {
            "topology": {"hosts": 1, "ranks_per_host": 1},
            "towers": {"module": "none"},
            **({} if lookup is None else {"lookup": lookup}),
        },
    }
    engine, *_ = dmt_plugin.initialize(model=build(), config=config, example_batch=example_batch())

    def step(loss: Tensor) -> None:
        engine.backward(loss)
        engine.step()

    found = one_epoch(engine, step, train, test, seed, batch)
    engine.destroy()
    return found


def one_epoch(
    model: Callable[..., Tensor], step: Callable[[Tensor], None], train: Part, test: Part, seed: int, batch: int
) -> float:
    """Trains one epoch in an order by the seed, and returns the test AUC."""
    dense, sparse, label = train
    for rows in torch.randperm(len(label), generator=torch.Generator().manual_seed(seed)).split(batch):
        step(binary_cross_entropy_with_logits(model(dense[rows], sparse[rows]), label[rows]))
    with torch.no_grad():
        logits = torch.cat([model(d, s) for d, s in zip(test[0].split(8192), test[1].split(8192), strict=True)])
    return float(binary_auroc(logits, test[2].long()))


def pair(compare: str, optimizer: str, train: Part, test: Part, seed: int, config: dict) -> tuple[float, float]:
    """The two AUCs of a seed: what is compared with, and what is compared; see the module's docstring."""
    batch = config["train_micro_batch_size_per_gpu"] * RANKS
    if compare in ("bf16", "fp16"):
        first, other = (
            engine_auc(train, test, seed, batch, optimizer, {"backend": "torch", "dtype": dtype})
            for dtype in ("fp32", compare)
        )
        return first, other
    torch.manual_seed(seed)
    flat = build()
    if compare == "adam":
        options = {"train_micro_batch_size_per_gpu": batch // RANKS, "optimizer": {"params": OPTIMIZERS["Adam"]}}
        return auc(flat, train, test, seed, options, "Adam"), engine_auc(train, test, seed, batch, "Adam", None)
    if compare == "towers":
        model: nn.Module = copy.deepcopy(dmt_plugin.transform(flat, example_batch(), config, "2x2"))
    else:
        torch.manual_seed(seed)
        with dmt_plugin.tables_on_meta():
            model = build()
        dmt_plugin.materialize(model, seed=seed)
    other = auc(model, train, test, seed, config)
    return auc(flat, train, test, seed, config), other


def main() -> None:
    """Prints one line per seed and the summary."""
    parser = argparse.ArgumentParser(description="AUC of one way to train minus AUC of another, over seeds")
    parser.add_argument("--seeds", type=int, default=8)
    ways = ("towers", "meta", "bf16", "fp16", "adam")
    parser.add_argument("--compare", choices=ways, default="towers", help="what is compared; see above")
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="Adagrad", help="with bf16 and fp16")
    parser.add_argument("--data", type=Path, default=Path("build/demo/flights.npz"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.data.parent.mkdir(parents=True, exist_ok=True)
    data = flights.load(args.data)
    train, test = tensors(data.part(flights.TRAIN)), tensors(data.part(flights.TEST))
    config = load_ds_config(CONFIG)
    differences = []
    for seed in tqdm(range(1, args.seeds + 1), unit="seed"):
        first, other = pair(args.compare, args.optimizer, train, test, seed, config)
        differences.append(other - first)
        names = {"bf16": "fp32", "fp16": "fp32", "adam": "dense Adam"}
        what = f"{names.get(args.compare, 'flat')} {first:.4f}, {args.compare} {other:.4f}"
        tqdm.write(f"seed {seed}: {what}, difference {differences[-1]:+.5f}")
    found = torch.tensor(differences, dtype=torch.float64)
    print(f"difference over {args.seeds} seeds: mean {found.mean():+.5f}, standard deviation {found.std():.5f}")


if __name__ == "__main__":
    main()
