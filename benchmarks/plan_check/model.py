"""The model of the settings that the cluster is calibrated on, as ``dmt plan --model`` asks for it."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.plan_check.settings import CALIBRATED, SETTINGS, name_of, with_ids
from benchmarks.step.model import FlatModel, make_batch
from benchmarks.step.setting import Setting


def build() -> nn.Module:
    """The model."""
    return FlatModel(calibrated_setting())


def example_batch() -> tuple[Tensor, Tensor]:
    """One call of it."""
    return example_of(calibrated_setting())


def calibrated_setting() -> Setting:
    """The first of the settings."""
    return with_ids(next(setting for setting in SETTINGS if name_of(setting) == CALIBRATED[0]), "kaggle")


def example_of(setting: Setting) -> tuple[Tensor, Tensor]:
    """A few samples of a setting."""
    batch = make_batch(setting, 0, 0)
    return batch.dense[:8], batch.ids[:8]
