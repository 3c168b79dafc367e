"""Checks that a rewritten graph gives the outputs of the model it came from, bit for bit, on the example batch.

Where a pass gave a tensor another layout in memory (a join in place of a piece cut out of one), a matrix product behind
it may take another kernel: there outputs may differ by rounding, and by no more.

Tables on the meta device have no values: those of their rows that the batch looks up are made for the check, by the
tables' rules (:mod:`dmt_plugin.tables.on_demand`). What else has no values cannot be checked, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from dmt_plugin.capture import ExampleBatch
from dmt_plugin.config.lookup import LookupConfig
from dmt_plugin.core.equality import differences, same, say_differences
from dmt_plugin.core.errors import TableInitError, TransformError
from dmt_plugin.core.findings import Finding
from dmt_plugin.core.modes import in_mode
from dmt_plugin.core.user_code import line_of, load_factory
from dmt_plugin.tables.layer_rules import meta_sources
from dmt_plugin.tables.on_demand import RowsNotMadeError, RowsOnDemand


def can_run(model: nn.Module) -> bool:
    """False for models some of whose weights or buffers hold no data."""
    return not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def rows_on_demand(model: nn.Module, example: ExampleBatch, config: LookupConfig) -> RowsOnDemand:
    """Rows for those tables of a model that are on the meta device; no rows where none is.

    Args:
        model: the user's model.
        example: the batch that will be looked up.
        config: by which rules rows are made.

    Raises:
        RowsNotMadeError: the model cannot compute, whatever rows are made.
    """
    tables, dense = _on_meta(model)
    if dense:
        more = f" and {len(dense) - 3} more" if len(dense) > 3 else ""
        raise RowsNotMadeError(
            f"no values for {', '.join(dense[:3])}{more}, on the meta device and no tables. Build the model inside "
            "dmt_plugin.tables_on_meta(), which leaves dense layers and buffers real"
        )
    if tables:
        values = [t for t in [*model.parameters(), *model.buffers()] if not t.is_meta]
        values += [t for t in pytree.tree_leaves((example.args, example.kwargs)) if isinstance(t, Tensor)]
        elsewhere = next((t.device for t in values if t.device.type != "cpu"), None)
        if elsewhere is not None:
            raise RowsNotMadeError(f"rows of tables are made on the CPU, and model or batch are on {elsewhere}")
    own = None if config.table_init in ("layer", "strict") else load_factory(config.table_init, "dmt.lookup.table_init")
    seed = 0 if config.seed == "auto" else config.seed
    try:
        sources, _ = meta_sources(model, tables, seed=seed, table_init=own)
    except TableInitError as error:
        raise RowsNotMadeError(str(error)) from error
    return RowsOnDemand(tables, sources)


ANOTHER_BATCH = "Give a batch that the model can be called with"


def why_not_taken(model: nn.Module, example: ExampleBatch, config: LookupConfig) -> str | None:
    """Why the model itself cannot be called with the example batch; ``None`` if it can, or nothing can be computed.

    Args:
        model: the user's model.
        example: the batch.
        config: by which rules rows of tables on the meta device are made.
    """
    try:
        with rows_on_demand(model, example, config).held_by(model):
            _run(model, example)
    except RowsNotMadeError:
        return None  # weights without values: what can be done with shapes is done
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}{line_of(error)}"
        return f"the model does not take the example batch: {type(model).__name__} raised {said}"
    return None


def _on_meta(model: nn.Module) -> tuple[dict[str, nn.Parameter], list[str]]:
    """What has no values: parameters that may be tables, by name; and names of what cannot be one."""
    tables: dict[str, nn.Parameter] = {}
    dense: list[str] = []
    known: set[int] = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        state = [*module._parameters.items(), *module._buffers.items()]
        own = {
            prefix + name: value
            for name, value in state
            if value is not None and value.is_meta and id(value) not in known
        }
        known.update(map(id, own.values()))
        if all(isinstance(value, nn.Parameter) and value.dim() == 2 for value in own.values()):
            tables |= own
        else:
            dense += own  # the matrix of a layer with a bias is no table
    return tables, dense


class OutputsCheck:
    """Compares what is made of a model with the model, on the example batch, for as long as there are values.

    Args:
        model: the user's model.
        example: the batch.
        config: by which rules rows of tables on the meta device are made.

    Attributes:
        why_not: why something was not compared, or ``""``.
    """

    def __init__(self, model: nn.Module, example: ExampleBatch, config: LookupConfig) -> None:
        self._model, self._example = model, example
        self._rows: RowsOnDemand | None = None
        self.why_not = ""
        with self._unless_without_values():
            self._rows = rows_on_demand(model, example, config)

    def run(self, rewritten: nn.Module, stage: str, *, exact: bool = True) -> None:
        """See :func:`check_same_outputs`."""
        if self._rows is not None and not self.why_not:
            with self._unless_without_values(), self._rows.held_by(self._model, rewritten):
                check_same_outputs(self._model, rewritten, self._example, stage, exact=exact)

    @property
    def findings(self) -> list[Finding]:
        """What there is to say."""
        if not self.why_not:
            return []
        what = f"the rewritten model was not compared with yours on the example batch: {self.why_not}"
        hint = "check a copy of the model with smaller tables that has all its values (dmt verify)"
        return [Finding("DMT404", "info", "", what, hint)]

    @contextmanager
    def _unless_without_values(self) -> Iterator[None]:
        try:
            yield
        except RowsNotMadeError as error:
            self.why_not = str(error)


ROUNDING = 1e-5
"""How far an output may be away where matrix products may take other kernels, beside the largest output."""


def check_same_outputs(
    flat: nn.Module, rewritten: nn.Module, example: ExampleBatch, stage: str, *, exact: bool = True
) -> None:
    """Runs both models on the example batch in eval mode; outputs must be equal bit for bit.

    Args:
        flat: the user's model.
        rewritten: the model that must compute the same.
        example: the batch.
        stage: what was done to the model, for the message.
        exact: whether bit for bit; else up to :data:`ROUNDING`.

    Raises:
        TransformError: outputs differ (finding DMT402).
    """
    expected, found = _run(flat, example), _run(rewritten, example)
    allowed = 0.0 if exact else ROUNDING * _largest(expected)
    changed = [d for d in differences(expected, found) if d.largest is None or d.largest > allowed]
    if not changed:
        return
    what = f"{stage} changed the outputs on the example batch ({say_differences(changed)})"
    if same(expected, _run(flat, example)):
        hint = 'this is a defect of the compiler; please report it, and set "enabled": false to train the flat model'
    else:
        what += ", and the model itself gives other outputs each time it is called with that batch in eval mode"
        hint = (
            "make it give the same: draw no random numbers in eval mode, and hand in with the batch what changes from "
            "call to call (a step, a temperature); a graph keeps the value of one call"
        )
    raise TransformError([Finding("DMT402", "error", "", what, hint)])


def _largest(outputs: Any) -> float:
    """The largest number among outputs, at least 1."""
    tensors = [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.numel() and not t.is_complex()]
    return max([1.0, *(float(t.to_dense().double().nan_to_num(0.0, 0.0, 0.0).abs().max()) for t in tensors)])


def _run(model: nn.Module, example: ExampleBatch) -> Any:
    with in_mode(model, training=False), torch.no_grad():
        return model(*example.args, **example.kwargs)
