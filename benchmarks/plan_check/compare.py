"""Predicted beside measured: errors of a calibration on runs that it has not seen, of pairs of settings, and regret."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.plan_check.model import example_of
from benchmarks.plan_check.settings import EXACT, IDS, SETTINGS, VARIANTS, folder_of, link_of, name_of, with_ids
from benchmarks.step.model import FlatModel
from benchmarks.step.setting import Setting
from dmt_plugin.cli.plan_calibrate import observed_runs
from dmt_plugin.planner.calibration.fit import Observed, calibrate, predicted_step
from dmt_plugin.planner.cluster.cluster import Cluster
from dmt_plugin.planning.runs import RunReader

LINK_BOUND, CORE_BOUND = 0.8, 0.5
"""A setting's links are busy for more, or less, of a step than this, in the median of its variants."""


@dataclass(frozen=True)
class Measured:
    """One variant in one setting.

    Attributes:
        setting: with its ids.
        variant: its name.
        run: as the planner reads its records.
        link: part of the step in which the busiest link has to be busy for its bytes.
    """

    setting: Setting
    variant: str
    run: Observed
    link: float


def read_all(root: Path, cluster: Cluster, settings: Iterable[Setting] = SETTINGS) -> list[Measured]:
    """Every run that was recorded.

    Args:
        root: folder of all runs.
        cluster: that they ran on.
        settings: that were measured.
    """
    readers: dict[tuple[str, int, int], RunReader] = {}
    found = []
    for setting, ids in product(settings, IDS):
        own = with_ids(setting, ids)
        key = (ids, own.width, own.top)
        if key not in readers:
            with torch.random.fork_rng():
                readers[key] = RunReader(FlatModel(own), example_of(own))
        folders = [folder_of(root, own, variant) for variant in VARIANTS]
        for variant, run in zip(VARIANTS, observed_runs(readers[key], folders, cluster), strict=True):
            load = run.load
            size = (load.ids + sum(load.rows) + load.sums) * own.lanes
            found.append(Measured(own, variant, run, size / link_of(own) / run.seconds))
    return found


def errors_of(cluster: Cluster, runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """By run what was measured and what a cluster predicts."""
    found = []
    for one in runs:
        step = predicted_step(cluster, one.run)
        low, high = one.run.spread
        found.append(
            {
                "setting": name_of(one.setting), "ids": one.setting.ids, "variant": one.variant,
                "ms": 1e3 * one.run.seconds, "quartiles_ms": [1e3 * low, 1e3 * high],
                "predicted_ms": 1e3 * step.seconds, "error": step.seconds / one.run.seconds - 1,
                "spread": (high - low) / one.run.seconds, "link_busy": one.link,
                "computing_ms": 1e3 * one.run.busy, "predicted_computing_ms": 1e3 * step.compute,
            }
        )  # fmt: skip
    return found


def said_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Errors in short."""
    errors = [abs(row["error"]) for row in rows]
    return {
        "cells": len(errors),
        "mean": statistics.fmean(errors),
        "within_15": sum(error <= 0.15 for error in errors) / len(errors),
        "worst": max(errors),
        "spread": statistics.median(row["spread"] for row in rows),
    }


def pairs_of(cluster: Cluster, runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """The mean error on all other runs, for every pair of a setting bound by links and one bound by cores."""
    busy = {
        name_of(s): statistics.median(one.link for one in runs if name_of(one.setting) == name_of(s)) for s in SETTINGS
    }
    pairs = product((n for n, b in busy.items() if b > LINK_BOUND), (n for n, b in busy.items() if b < CORE_BOUND))
    found = []
    for pair in pairs:
        told = [one for one in runs if name_of(one.setting) in pair and one.setting.ids == IDS[0]]
        fitted = calibrate(cluster, [one.run for one in told], "a pair of settings").cluster
        others = [one for one in runs if one not in told]
        found.append({"pair": list(pair), **said_of(errors_of(fitted, others))})
    return found


def regrets(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By setting what the fastest exact variant by prediction took, over the fastest that was measured."""
    found = []
    for setting, ids in dict.fromkeys((row["setting"], row["ids"]) for row in rows):
        own = [r for r in rows if (r["setting"], r["ids"]) == (setting, ids) and r["variant"] in EXACT]
        chosen, best = min(own, key=lambda r: r["predicted_ms"]), min(own, key=lambda r: r["ms"])
        found.append(
            {
                "setting": setting, "ids": ids, "chosen": chosen["variant"], "best": best["variant"],
                "regret": chosen["ms"] / best["ms"] - 1,
            }
        )  # fmt: skip
    return found
