"""One rank of one checkout that takes steps when it is asked to; run by that checkout's Python.

Reads lines of JSON from standard input: ``{"steps": N}`` asks for N steps. Answers each with a line of JSON that holds
their seconds. Ends with its input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

SECTIONS: dict[str, dict[str, Any]] = {
    "SPTT": {"module": "none"},
    "CR 4": {"module": "dlrm", "c": 1, "p": 0, "dim": 4},
}
BATCH = 512
TABLES, ROWS, DENSE, WIDTH = 16, 20_000, 8, 16


def engine_of(section: dict[str, Any]) -> tuple[Any, Any]:
    """An engine on two hosts of one rank each, and its batch."""
    import torch

    import dmt_plugin
    from examples.dlrm import DLRM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DLRM({f"t{i}": ROWS for i in range(TABLES)}, DENSE, width=WIDTH)
    rank = int(os.environ["RANK"])
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(0, ROWS, (BATCH, TABLES), generator=generator)
    batch = (torch.randn(BATCH, DENSE, generator=generator), ids)
    config = {
        "train_micro_batch_size_per_gpu": BATCH,
        "optimizer": {"type": "Adagrad", "params": {"lr": 0.01}},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "dmt": {"towers": section, "topology": {"hosts": 2, "ranks_per_host": 1}},
    }
    engine, *_ = dmt_plugin.initialize(
        model=model, model_parameters=model.parameters(), config=config, example_batch=batch
    )
    return engine, batch


def main() -> None:
    """Makes the engine, then answers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", choices=SECTIONS)
    options = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print does not mix with the answers
    engine, batch = engine_of(SECTIONS[options.variant])
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(json.loads(line)["steps"]):
            start = time.perf_counter()
            loss = engine(*batch).square().mean()
            engine.backward(loss)
            engine.step()
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
