"""How much of the demo's AUC difference is the seed: the flat model and its towers, one process, several seeds.

    python -m examples.seeds --seeds 8
    python -m examples.seeds --seeds 5 --compare meta

Trains the same model, batches and optimizer as the demo, flat and with the tower modules of `ds_dmt.json`, and prints
the difference of the test AUC for each seed, its mean and standard deviation. With `--compare meta`, the flat model
whose tables were built on meta and made by their recorded rules takes the place of the towers.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
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


def auc(model: nn.Module, train: tuple[Tensor, ...], test: tuple[Tensor, ...], seed: int, config: dict) -> float:
    """Trains one epoch as the demo does and returns the test AUC."""
    dense, sparse, label = train
    batch = config["train_micro_batch_size_per_gpu"] * RANKS
    optimizer = torch.optim.Adagrad(model.parameters(), **config["optimizer"]["params"])
    for rows in torch.randperm(len(label), generator=torch.Generator().manual_seed(seed)).split(batch):
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(model(dense[rows], sparse[rows]), label[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        logits = torch.cat([model(d, s) for d, s in zip(test[0].split(8192), test[1].split(8192), strict=True)])
    return float(binary_auroc(logits, test[2].long()))


def main() -> None:
    """Prints one line per seed and the summary."""
    parser = argparse.ArgumentParser(description="AUC of towers minus AUC of the flat model, over seeds")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--compare", choices=("towers", "meta"), default="towers", help="what the flat model meets")
    parser.add_argument("--data", type=Path, default=Path("build/demo/flights.npz"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.data.parent.mkdir(parents=True, exist_ok=True)
    data = flights.load(args.data)
    train, test = tensors(data.part(flights.TRAIN)), tensors(data.part(flights.TEST))
    config = load_ds_config(CONFIG)
    differences = []
    for seed in tqdm(range(1, args.seeds + 1), unit="seed"):
        torch.manual_seed(seed)
        flat = build()
        if args.compare == "towers":
            other: nn.Module = copy.deepcopy(dmt_plugin.transform(flat, example_batch(), config, "2x2"))
        else:
            torch.manual_seed(seed)
            with dmt_plugin.tables_on_meta():
                other = build()
            dmt_plugin.materialize(other, seed=seed)
        other_auc = auc(other, train, test, seed, config)
        flat_auc = auc(flat, train, test, seed, config)
        differences.append(other_auc - flat_auc)
        what = f"flat {flat_auc:.4f}, {args.compare} {other_auc:.4f}"
        tqdm.write(f"seed {seed}: {what}, difference {differences[-1]:+.4f}")
    found = torch.tensor(differences, dtype=torch.float64)
    print(f"difference over {args.seeds} seeds: mean {found.mean():+.4f}, standard deviation {found.std():.4f}")


if __name__ == "__main__":
    main()
