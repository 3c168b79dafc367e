"""What is measured: nine settings of the step benchmark's curve, with two kinds of ids, six variants in each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cluster.shape import parse_rate
from benchmarks.step.curve import CURVE
from benchmarks.step.setting import Setting

IDS = ("kaggle", "uniform")

EXACT = ("flat", "sptt", "sptt_dedup")
"""Variants that leave the model as it is."""

VARIANTS = (*EXACT, "dmt_cr4", "dmt_cr4_dedup", "dmt_cr8")

SETTINGS = tuple(setting for family in CURVE.values() for setting in family)

CALIBRATED = ("2x2_100mbit_w64_m128", "4x2_1gbit_w64_m128")
"""Names of the two settings that the cluster is calibrated on, with ids as Kaggle's."""


def name_of(setting: Setting) -> str:
    """Short name of a setting, without its ids."""
    return f"{setting.hosts}x{setting.lanes}_{setting.rate}_w{setting.width}_m{setting.top}"


def folder_of(root: Path, setting: Setting, variant: str) -> Path:
    """Where the records of a run are."""
    return root / f"{name_of(setting)}_{setting.ids}" / variant


def with_ids(setting: Setting, ids: str) -> Setting:
    """A setting with ids of one kind."""
    return dataclasses.replace(setting, ids=ids)


def section_of(setting: Setting, variant: str, folder: Path) -> dict[str, Any]:
    """The ``"dmt"`` section of a variant, as a user who wants records writes it."""
    kind, _, rest = variant.partition("_")
    ratio = int(rest[2]) if kind == "dmt" else 0
    towers: Mapping[str, Any] = {"module": "none"}
    if ratio:
        towers = {"module": "dlrm", "c": 1, "p": 0, "dim": setting.width // ratio}
    comm: dict[str, Any] = {"dedup": "on" if variant.endswith("dedup") else "off", "link": link_of(setting)}
    if kind == "flat":
        comm["route"] = "flat"
    return {"towers": dict(towers), "comm": comm, "report": {"dir": str(folder), "every": 1}}


def link_of(setting: Setting) -> float:
    """Bytes/s of a host's link."""
    return parse_rate(setting.rate) / 8
