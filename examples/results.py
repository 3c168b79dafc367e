"""From what the four runs wrote to one summary: scores, speed, parameters, bytes that cross hosts.

Bytes of the exchanges are counted where they happen. The gradient all-reduce of replicated parameters happens inside
DeepSpeed and the collective library; its bytes are modelled as a ring (`dmt_plugin.report.run.traffic`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmt_plugin.report.run import traffic

RUNS = ("stock", "flat", "sptt", "dmt")


def read_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The `metrics.json` of every run below `folder`."""
    return {name: json.loads((folder / name / "metrics.json").read_text()) for name in RUNS}


def summarise(runs: Mapping[str, Mapping[str, Any]], hosts: int, ranks_per_host: int) -> dict[str, dict[str, Any]]:
    """The figures of every run.

    Args:
        runs: by name, what the training script wrote.
        hosts: `H`.
        ranks_per_host: `L`.
    """
    return {name: _figures(metrics, hosts, ranks_per_host) for name, metrics in runs.items()}


def _figures(metrics: Mapping[str, Any], hosts: int, ranks_per_host: int) -> dict[str, Any]:
    """The figures of one run; its tables are replicated if it exchanged nothing."""
    samples, steps = metrics["samples"], metrics["steps"]
    replicated, own = metrics["dense"]["replicated"], metrics["dense"]["own_by_rank"]
    towers = sum(own[::ranks_per_host])  # ranks of a host hold the same
    counted = {kind: count / samples for kind, count in traffic.by_kind(metrics["traffic"]).items()}
    sharded = bool(metrics["traffic"])

    def all_reduce(elements: int) -> float:
        return traffic.ring_all_reduce(elements, hosts, ranks_per_host) * steps / samples

    table_gradients = 0.0 if sharded else all_reduce(metrics["table_params"])
    dense_gradients = all_reduce(replicated)
    exchanged = sum(counted.values())
    return {
        "auc": metrics["auc"],
        "logloss": metrics["logloss"],
        "samples_per_s": metrics["samples_per_s"],
        "cross_host_bytes_per_sample": exchanged if sharded else table_gradients + dense_gradients,
        "cross_host_bytes_are": "counted at the exchanges" if sharded else "gradient all-reduce, modelled as a ring",
        "dense_params": replicated + towers,
        "tower_params": towers,
        "table_params": metrics["table_params"],
        "exchange_bytes_per_sample": {**counted, "total": exchanged},
        "same_host_bytes_per_sample": traffic.total(metrics["traffic"], "same_host") / samples,
        "modelled_dense_gradient_bytes_per_sample": dense_gradients,
        "modelled_table_gradient_bytes_per_sample": table_gradients,
        "steps": steps,
        "samples": samples,
    }


def largest_difference(folder: Path, names: tuple[str, ...], reference: str = "stock") -> dict[str, float]:
    """For each run the largest absolute difference of a test logit from the reference's, after the first steps."""
    import torch

    def logits(name: str) -> torch.Tensor:
        return torch.load(folder / name / "logits.pt", weights_only=True)["early"]

    expected = logits(reference)
    return {name: float((logits(name) - expected).abs().max()) for name in names}
