"""From what a user or a data loader hands over to one call of the model.

A loader's batch often ends with labels, which are no arguments of forward; a forward often has optional arguments,
which are no labels. :func:`example_of` tells them apart by how many there are, and, for batches of a loader, by their
shape.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dmt_plugin.capture.inputs import ExampleBatch
from dmt_plugin.capture.misfits import misfit
from dmt_plugin.core.errors import CaptureError, ConfigError


def example_of(value: Any, module: nn.Module, *, labelled: bool = False) -> ExampleBatch:
    """Takes what a data loader or a user hands over and makes it a call of ``module``.

    A dict whose keys are parameters of ``forward`` becomes keyword arguments; a tuple or
    list gives as many leading items as ``forward`` has positional parameters, optional ones
    included, so that a label behind them is left out; a single tensor or batch object is the
    only argument.

    Args:
        value: the batch.
        module: the user's model.
        labelled: whether it is a loader's batch: then its last item is left out where it would be an optional argument
            and has the shape of labels, one number per sample.

    Raises:
        CaptureError: nothing of it fits.
    """
    if isinstance(value, ExampleBatch):
        return value
    signature = inspect.signature(module.forward)
    parameters = list(signature.parameters.values())
    names = [p.name for p in parameters]
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    if isinstance(value, dict) and not (len(positional) == 1 and names[0] not in value):
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        kept = {k: v for k, v in value.items() if takes_all or k in names}
        missing = [p.name for p in required if p.name not in kept]
        if missing:
            raise misfit(
                f"the batch has the keys {sorted(map(str, value))}, but forward{signature} also needs {missing}",
                "rename the keys or pass example_batch=",
            )
        return ExampleBatch((), kept)
    if isinstance(value, (list, tuple)):
        if len(value) < len(required):
            raise misfit(
                f"the batch has {len(value)} item(s), but forward{signature} needs {len(required)}",
                "pass example_batch= with the arguments of one call",
            )
        taken = len(value) if open_ended else min(len(value), max(len(positional), 1))
        if labelled and len(required) < taken == len(value) and _is_label(value):
            taken -= 1
        return ExampleBatch(tuple(value)[:taken], {})
    return ExampleBatch((value,), {})


def _is_label(items: Sequence[Any]) -> bool:
    """Whether the last item has one number for each sample of the first tensor that has rows."""
    last = items[-1]
    rows = next((t.shape[0] for t in items[:-1] if isinstance(t, Tensor) and t.dim() > 1), None)
    return isinstance(last, Tensor) and rows is not None and tuple(last.shape) in ((rows,), (rows, 1))


def fitting(
    value: Any, model: nn.Module, source: str, what: str = "example batch", *, labelled: bool = False
) -> ExampleBatch:
    """As :func:`example_of`, and says in one sentence where the batch is from and what does not fit.

    Args:
        value: the batch.
        model: the user's model.
        source: where the batch is from, in words.
        what: what it is, in words.
        labelled: see :func:`example_of`.

    Raises:
        ConfigError: naming what was found and the signature it should fit.
    """
    signature = inspect.signature(model.forward)
    try:
        example = example_of(value, model, labelled=labelled)
        signature.bind(*example.args, **example.kwargs)
    except (CaptureError, TypeError) as error:
        why = error.findings[0].reason if isinstance(error, CaptureError) else error
        raise ConfigError(
            f"the {what} from {source} does not fit {type(model).__name__}.forward{signature}: {why}. "
            f"Found {describe(value)}; expected a dict whose keys are parameters of forward, or a tuple or list that "
            "starts with its positional arguments, or its only argument. Wrap anything else in "
            "dmt_plugin.ExampleBatch(args, kwargs) and pass it as example_batch=."
        ) from error
    return example


def describe(value: Any) -> str:
    """A short text about a batch: types, lengths, shapes."""
    if isinstance(value, dict):
        return "a dict with the keys " + ", ".join(f"{k!r} ({describe(v)})" for k, v in list(value.items())[:8])
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}: " + ", ".join(describe(v) for v in value[:8])
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__}{tuple(shape)}" if isinstance(shape, tuple) else type(value).__name__
