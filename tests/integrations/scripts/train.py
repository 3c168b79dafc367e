"""A small training script as a DeepSpeed user has it; nothing in it but ``--call`` knows of towers.

``--call accelerate`` is the same training as a user of Accelerate writes it.
"""

from __future__ import annotations

import argparse
import json
import sys

import deepspeed
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

ROWS = (11, 7, 13, 5)


class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.EmbeddingBag(rows, 4, mode="sum") for rows in ROWS])
        self.bottom = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        self.over = nn.Sequential(nn.Linear(4 * (len(ROWS) + 1), 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, dense, ids):
        rows = [table(ids[:, i : i + 1]) for i, table in enumerate(self.tables)]
        return self.over(torch.cat([self.bottom(dense), *rows], dim=1)).squeeze(1)


def by_accelerate(config: str, model: nn.Module, data: Dataset):
    from accelerate import Accelerator, DeepSpeedPlugin
    from accelerate.utils import DummyOptim

    from dmt_plugin.integrations.accelerate import towers

    with towers(example_batch=tuple(x[None] for x in data[0][:2])):
        accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))
        # Without an accelerator Accelerate counts one process, and deals no data out.
        ranks = torch.distributed.get_world_size(), torch.distributed.get_rank()
        loader = DataLoader(data, batch_size=8, sampler=DistributedSampler(data, *ranks))
        engine, *_ = accelerator.prepare(model, DummyOptim(model.parameters()), loader)
    return engine, loader


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int, default=-1)
    parser.add_argument("--call", choices=("dmt", "deepspeed", "accelerate"), default="deepspeed")
    parser.add_argument("--no_build", action="store_true", help="do not let stock DeepSpeed compile for a minute")
    parser = deepspeed.add_config_arguments(parser)
    args = parser.parse_args()
    if args.no_build:
        from dmt_plugin.integrations.deepspeed import private

        with private.without_shm_build():
            deepspeed.init_distributed()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    samples = 160
    dense = torch.randn(samples, 3)
    ids = torch.stack([torch.randint(0, rows, (samples,)) for rows in ROWS], dim=1)
    label = (dense.sum(1) + ids.float().mean(1) > 3).float()
    model = Recommender()
    data = TensorDataset(dense, ids, label)
    if args.call == "accelerate":
        engine, loader = by_accelerate(args.deepspeed_config, model, data)
    else:
        if args.call == "dmt":
            from dmt_plugin.integrations.deepspeed import initialize
        else:
            initialize = deepspeed.initialize
        engine, _, loader, _ = initialize(
            args=args, model=model, model_parameters=model.parameters(), training_data=data
        )
    losses = []
    for x, i, y in loader:
        loss = nn.functional.binary_cross_entropy_with_logits(engine(x, i), y)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    dmt = getattr(engine, "dmt", None)
    result = {
        "engine": type(engine).__name__,
        "topology": str(dmt.topology) if dmt else None,
        "source": dmt.source if dmt else None,
        "argv": sys.argv[1:],
        "losses": losses,
    }
    if torch.distributed.get_rank() == 0:
        sys.stdout.write(f"RESULT {json.dumps(result)}\n")


if __name__ == "__main__":
    main()
