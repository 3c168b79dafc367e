"""Modules under the names that they had before, for pickles and scripts of earlier versions.

An import of an old name gives a module that reads its attributes from the new place, with a ``DeprecationWarning``
that names it. A class that has another name now is found under its old one too.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MOVED = {
    "agreement": "topology.agreement",
    "byte_sizes": "core.sizes",
    "capture.compare": "capture.trace_diff",
    "capture.surroundings": "capture.trace_environment",
    "capture.where": "capture.source_lines",
    "comm.blocks": "comm.micro_blocks",
    "comm.codecs": "comm.wire.codecs",
    "comm.hierarchical_sum": "comm.sums",
    "comm.id_source": "comm.input_dist.id_source",
    "comm.id_stage": "comm.input_dist.id_stage",
    "comm.ids": "comm.input_dist.ids",
    "comm.index_exchange": "comm.input_dist.input_dist",
    "comm.last_words": "comm.wire.failure_notes",
    "comm.layout": "comm.batch_layout",
    "comm.measured": "comm.wire.measured",
    "comm.point_to_point": "comm.wire.point_to_point",
    "comm.row_exchange": "comm.output_dist.output_dist",
    "comm.transport": "comm.wire.transport",
    "config_errors": "config.messages",
    "config_placement": "config.placement",
    "config_towers": "config.towers",
    "data.calls": "data.batch_call",
    "data.ends": "data.epoch_agreement",
    "dense_compile": "model.dense_compile",
    "difference": "verification.bisect",
    "errors": "core.errors",
    "explain": "report.explain.explanation",
    "feature_rows": "partitioning.feature_rows",
    "findings": "core.findings",
    "flat_state": "model.flat_state",
    "integrations.deepspeed.adagrad": "integrations.deepspeed.engine.adagrad",
    "integrations.deepspeed.checkpointed": "integrations.deepspeed.engine.engine",
    "integrations.deepspeed.checkpointing": "integrations.deepspeed.checkpoint.save_load",
    "integrations.deepspeed.example_batch": "integrations.deepspeed.arguments.example_batch",
    "integrations.deepspeed.guards": "integrations.deepspeed.arguments.guards",
    "integrations.deepspeed.monitoring": "integrations.deepspeed.observer",
    "integrations.deepspeed.optimizer_state": "integrations.deepspeed.checkpoint.optimizer_state",
    "integrations.deepspeed.optimizers": "integrations.deepspeed.arguments.optimizers",
    "integrations.deepspeed.parameters": "integrations.deepspeed.arguments.parameters",
    "integrations.deepspeed.rank_state": "integrations.deepspeed.checkpoint.rank_state",
    "integrations.deepspeed.reduction": "integrations.deepspeed.engine.reduction",
    "integrations.deepspeed.shell": "integrations.deepspeed.tower_shell",
    "integrations.deepspeed.table_rate": "integrations.deepspeed.engine.table_rate",
    "integrations.deepspeed.tables": "integrations.deepspeed.weight_sync",
    "integrations.deepspeed.told": "integrations.deepspeed.engine.engine",
    "launchers": "topology.launchers",
    "laws": "verification.laws",
    "loading": "core.user_code",
    "nn.lookup_backends": "nn.lookup.backends",
    "nn.lookup_border": "nn.lookup.border",
    "nn.lookup_fbgemm": "nn.lookup.fbgemm",
    "nn.lookup_site": "nn.lookup.site",
    "nn.lookup_torch": "nn.lookup.plain_torch",
    "nn.site_ids": "nn.lookup.site_ids",
    "pairing": "core.versions",
    "placed": "model.placed",
    "plan_tables": "plan.tables",
    "prefetch": "model.id_prefetch",
    "report.explain_page": "report.explain.page",
    "report.explain_text": "report.explain.text",
    "report.explain_words": "report.explain.words",
    "report.figures": "report.parts.figures",
    "report.folding": "report.explain.folding",
    "report.graph_data": "report.explain.graph_data",
    "report.graph_picture": "report.explain.graph_picture",
    "report.html": "report.parts.html",
    "report.layered_layout": "report.explain.layered_layout",
    "report.partition_page": "report.partition.page",
    "report.partition_picture": "report.partition.picture",
    "report.partition_view": "report.partition.view",
    "report.rank_graphs": "report.explain.rank_graphs",
    "report.run_page": "report.run.page",
    "report.run_records": "report.run.records",
    "report.run_summary": "report.run.summary",
    "report.run_tables": "report.run.tables",
    "report.style": "report.parts.style",
    "report.tables": "report.parts.tables",
    "report.text": "report.parts.escape",
    "report.traffic": "report.run.traffic",
    "short_training": "partitioning.short_training",
    "tower_model": "model.logical",
    "verify": "model.same_outputs",
}
"""Old module -> the one that has its names, both inside the package."""

RENAMED: dict[str, str] = {
    "CheckpointedEngine": "DMTEngine",
    "IndexExchange": "InputDist",
    "LastWords": "FailureNotes",
    "RowExchange": "OutputDist",
    "TablePart": "TableShard",
    "ToldEngine": "DMTEngine",
}
"""Old name -> new name of what is pickled, or named in documentation."""


class _Moved(ModuleType):
    """Stands for a module that moved."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        new = importlib.import_module(str(self.__dict__["_dmt_moved_to"]))
        return getattr(new, name if hasattr(new, name) else RENAMED.get(name, name))


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the old names of :data:`MOVED`; Python asks it when nothing else has found a module."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for an old name, ``None`` for any other."""
        inside = fullname.removeprefix(f"{self.package}.")
        known = fullname != inside and inside in MOVED
        return importlib.machinery.ModuleSpec(fullname, self) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """A module that reads its attributes from the new place."""
        new = f"{self.package}.{MOVED[spec.name.removeprefix(f'{self.package}.')]}"
        warnings.warn(f"{spec.name} is {new} now; the old name will go", DeprecationWarning, stacklevel=2)
        module = _Moved(spec.name)
        module.__dict__["_dmt_moved_to"] = new
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: names are read when they are asked for."""
