"""From a batch of the user's loader to a call of the model.

1. A function of the user says it: a tuple is the positional arguments, a dict the keyword arguments, anything else the
   only argument.
2. Without one, the batch itself has to be what the model is called with: its items the positional arguments, its keys
   the keyword arguments, or all of it the only argument. The first of these that fits the captured call is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dmt_plugin.capture.inputs import InputBinder
from dmt_plugin.core.errors import CaptureError, DataError

Call = tuple[tuple[Any, ...], dict[str, Any]]


def call_of(batch: Any, binder: InputBinder, inputs: Callable[[Any], Any] | None) -> Call:
    """The arguments that the model is called with for a batch.

    Args:
        batch: what the training loop gets.
        binder: knows how the model was called when it was captured.
        inputs: the user's function from a batch to arguments, or None.

    Returns:
        Positional and keyword arguments.

    Raises:
        DataError: they do not fit the model.
    """
    said = batch if inputs is None else inputs(batch)
    if isinstance(said, dict):
        ways: list[Call] = [((), said)]
    elif isinstance(said, tuple) or (inputs is None and isinstance(said, list)):
        ways = [(tuple(said), {})]
    else:
        ways = [((said,), {})]
    if inputs is None and isinstance(said, (dict, tuple, list)):
        ways.append(((said,), {}))
    refused: CaptureError | None = None
    for args, kwargs in ways:
        try:
            binder.inputs(args, kwargs)
        except CaptureError as error:
            refused = refused or error
        else:
            return args, kwargs
    what = "the batch" if inputs is None else "what inputs=... makes of the batch"
    raise DataError(
        f"{what} is {_shape(said)}, which is not how the model is called, forward{binder.signature}. Say with inputs= "
        "which part of a batch goes into the model, such as prefetched(loader, engine, inputs=lambda batch: batch[:2])."
    ) from refused


def _shape(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, dict):
        return f"a {kind} with the keys {sorted(map(str, value))}"
    if isinstance(value, (tuple, list)):
        return f"a {kind} of {len(value)} ({', '.join(type(item).__name__ for item in value)})"
    return f"a {kind}"
