"""Gives a model on the meta device its values in one process: the same tables that ranks would make."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dmt_plugin.core.errors import TableInitError
from dmt_plugin.tables.layer_rules import meta_sources
from dmt_plugin.tables.recording import LAYERS
from dmt_plugin.tables.sources import TableInit


def materialize(
    model: nn.Module, *, seed: int = 0, table_init: TableInit | None = None, strict: bool = False
) -> nn.Module:
    """Give every table on meta its rows, bit for bit those that ``dmt_plugin.initialize`` makes on any ranks.

    Args:
        model: built inside :func:`dmt_plugin.tables_on_meta`, or whole on meta; it is changed: parameters on meta are
            replaced by new ones. Weights of embedding layers, torchrec's too, are its tables.
        seed: of the rows; ``dmt.lookup.seed``.
        table_init: a function ``(name, first_row, shape, generator)`` that makes rows.
        strict: a table without a recorded rule is an error.

    Returns:
        The model.

    Raises:
        TableInitError: a table has no rule, or a buffer on meta has no data.
    """
    check_buffers(model)
    tables = [name for name, weight in model.named_parameters() if weight.is_meta and _is_table(model, name)]
    sources, _ = meta_sources(model, tables, seed=seed, table_init=table_init, strict=strict)
    values = {}
    for name in tables:
        old = model.get_parameter(name)
        rows, dim = old.shape
        new = nn.Parameter(torch.empty(rows, dim, dtype=old.dtype), requires_grad=old.requires_grad)
        with torch.no_grad():
            sources[name].fill(range(rows), range(dim), new)
        values[id(old)] = new
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None and id(weight) in values:
                module.register_parameter(name, values[id(weight)])
    dense_from_meta(model, seed)
    return model


def check_buffers(model: nn.Module) -> None:
    """Refuse buffers without data.

    Raises:
        TableInitError: naming all of them.
    """
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if empty:
        shown = ", ".join(empty[:8]) + (f" and {len(empty) - 8} more" if len(empty) > 8 else "")
        raise TableInitError(
            f"{len(empty)} buffer(s) are on the meta device, and nothing says what they hold: {shown}. Build the model "
            "inside dmt_plugin.tables_on_meta(), which leaves buffers as they are, or put their data there before"
        )


def dense_from_meta(model: nn.Module, seed: int) -> None:
    """Give what is on meta and no table new values, by ``reset_parameters()`` of each layer.

    Args:
        model: it is changed.
        seed: of the random numbers, which the process keeps as they are.

    Raises:
        TableInitError: a layer has no such method.
    """
    resets: list[tuple[nn.Module, Callable[[], None]]] = []
    for path, module in model.named_modules():
        own = [n for n, p in module.named_parameters(path, recurse=False) if p.is_meta and not _is_table(model, n)]
        if not own:
            continue
        reset = getattr(module, "reset_parameters", None)
        if not callable(reset):
            raise TableInitError(
                f"{', '.join(own)}: on the meta device, and {type(module).__name__} has no reset_parameters() that "
                "would initialise them. Build the model inside dmt_plugin.tables_on_meta(), which leaves dense layers "
                "as they are"
            )
        resets.append((module, reset))
    if not resets:
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module, reset in resets:
            for name, weight in list(module._parameters.items()):
                if weight is not None and weight.is_meta:
                    empty = torch.empty_like(weight, device="cpu")
                    module.register_parameter(name, nn.Parameter(empty, requires_grad=weight.requires_grad))
            reset()


def _is_table(model: nn.Module, name: str) -> bool:
    """Whether a parameter on meta belongs to an embedding layer."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), LAYERS)
