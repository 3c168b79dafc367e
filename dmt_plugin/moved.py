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

_ROOMS = {
    "": {
        "config": "config_errors=messages config_placement=placement config_towers=towers",
        "core": "byte_sizes=sizes errors findings loading=user_code pairing=versions",
        "model": "dense_compile flat_state placed prefetch=id_prefetch tower_model=logical verify=same_outputs",
        "partitioning": "feature_rows short_training",
        "plan": "plan_tables=tables",
        "report.explain": "explain=explanation",
        "topology": "agreement launchers",
        "verification": "difference=bisect laws",
    },
    "capture": {"capture": "compare=trace_diff surroundings=trace_environment where=source_lines"},
    "comm": {
        "comm": "blocks=micro_blocks hierarchical_sum=sums layout=batch_layout",
        "comm.input_dist": "id_source id_stage ids index_exchange=input_dist",
        "comm.output_dist": "row_exchange=output_dist",
        "comm.wire": "codecs last_words=failure_notes measured point_to_point transport",
    },
    "data": {"data": "calls=batch_call ends=epoch_agreement"},
    "integrations.deepspeed": {
        "integrations.deepspeed": "monitoring=observer shell=tower_shell tables=weight_sync",
        "integrations.deepspeed.arguments": "example_batch guards optimizers parameters",
        "integrations.deepspeed.checkpoint": "checkpointing=load optimizer_state rank_state",
        "integrations.deepspeed.engine": "adagrad checkpointed=engine reduction table_rate told=engine",
    },
    "nn": {
        "nn.lookup": (
            "lookup_backends=backends lookup_border=border lookup_fbgemm=fbgemm lookup_site=site "
            "lookup_torch=plain_torch site_ids"
        ),
    },
    "report": {
        "report.explain": (
            "explain_page=page explain_text=text explain_words=words folding graph_data graph_picture "
            "layered_layout rank_graphs"
        ),
        "report.partition": "partition_page=page partition_picture=picture partition_view=view",
        "report.parts": "figures html style tables text=escape",
        "report.run": "run_page=page run_records=records run_summary=summary run_tables=tables traffic",
    },
}
"""Old package -> new package -> modules, with ``old=new`` where the name of the file changed too."""

MOVED = {
    f"{old_room}.{name.partition('=')[0]}".lstrip("."): f"{room}.{name.rpartition('=')[2]}"
    for old_room, rooms in _ROOMS.items()
    for room, names in rooms.items()
    for name in names.split()
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
