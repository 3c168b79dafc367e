"""Disaggregated Multi-Tower for DeepSpeed: a flat recommender in, towers that follow the network out.

Public names are imported on first use, so that the command line starts without torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from dmt_plugin.core.run_files import describe_with
from dmt_plugin.moved import MovedModules

if TYPE_CHECKING:
    from dmt_plugin.api import initialize
    from dmt_plugin.capture.adapters import register_adapter, unregister_adapter, with_forward
    from dmt_plugin.capture.inputs import ExampleBatch
    from dmt_plugin.capture.marks import mark_embeddings
    from dmt_plugin.checkpoint import load_checkpoint, to_flat
    from dmt_plugin.compiler import transform
    from dmt_plugin.config.section import DMTConfig
    from dmt_plugin.core.errors import DMTError
    from dmt_plugin.model.logical import TowerModel
    from dmt_plugin.plan.tower_plan import TowerPlan
    from dmt_plugin.tables.materialize import materialize
    from dmt_plugin.tables.recording import tables_on_meta
    from dmt_plugin.topology.shape import Topology

__version__ = "0.1.0"

if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.append(MovedModules(__name__))

_HOMES = {
    "DMTConfig": "config.section", "DMTError": "core.errors", "ExampleBatch": "capture.inputs",
    "Topology": "topology.shape", "TowerModel": "model.logical", "TowerPlan": "plan.tower_plan",
    "initialize": "api", "load_checkpoint": "checkpoint.single", "mark_embeddings": "capture.marks",
    "register_adapter": "capture.adapters", "to_flat": "checkpoint.logical", "transform": "api",
    "materialize": "tables.materialize", "tables_on_meta": "tables.recording",
    "unregister_adapter": "capture.adapters", "with_forward": "capture.adapters",
}  # fmt: skip

__all__ = [
    "DMTConfig", "DMTError", "ExampleBatch", "Topology", "TowerModel", "TowerPlan", "__version__", "initialize",
    "load_checkpoint", "mark_embeddings", "materialize", "register_adapter", "tables_on_meta", "to_flat", "transform",
    "unregister_adapter", "with_forward",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _write_description(*args: Any) -> None:
    importlib.import_module(f"{__name__}.report.explain.explanation").write_report(*args)


describe_with(_write_description)
