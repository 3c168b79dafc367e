"""Short trainings in one process: to warm a model up before its embeddings are looked at, and to compare partitions.

One optimizer (Adagrad, which takes dense and sparse gradients alike), no schedule, the batches as they come: what
compares two models this way is fair to both, and nothing here is meant to train a model to its end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from dmt_plugin.capture.batch_sizes import batch_size_of
from dmt_plugin.capture.example_call import example_of
from dmt_plugin.core.errors import ConfigError, PlanError
from dmt_plugin.core.modes import in_mode

Loss = Callable[[Any, Any], Tensor]
"""Loss of a model's output on a batch, as the data loader gave it: a scalar."""


def loss_named(name: str) -> Loss:
    """A loss by name: what the output is decides which serves, and nothing but the user can say.

    * ``"logits"``, ``"probabilities"``: binary cross-entropy with the last item of the batch;
    * ``"output"``: the model gives the loss itself, alone or first in a tuple.

    Raises:
        ConfigError: another name.
    """
    found: dict[str, Loss] = {"logits": _logits, "probabilities": _probabilities, "output": _own}
    if name not in found:
        raise ConfigError(f"unknown loss {name!r}; expected one of {list(found)}, or package.module:function.")
    return found[name]


def _target(output: Tensor, batch: Any) -> Tensor:
    label = batch[-1] if isinstance(batch, (list, tuple)) and len(batch) > 1 else None
    if not isinstance(label, Tensor) or not isinstance(output, Tensor) or label.numel() != output.numel():
        found = type(batch).__name__ if label is None else f"last item {tuple(getattr(label, 'shape', ()))}"
        raise ConfigError(
            f"this loss compares the model's output {tuple(getattr(output, 'shape', ()))} with the label, the last "
            f"item of the batch; found {found}. Let the data give (inputs..., label), or name a loss of your own: "
            "package.module:function, called with the output and the batch."
        )
    return label.reshape(output.shape).to(output.dtype)


def _logits(output: Any, batch: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, _target(output, batch))


def _probabilities(output: Any, batch: Any) -> Tensor:
    return F.binary_cross_entropy(output, _target(output, batch))


def _own(output: Any, batch: Any) -> Tensor:
    del batch
    first = output[0] if isinstance(output, (list, tuple)) else output
    if not isinstance(first, Tensor) or first.numel() != 1:
        raise ConfigError(
            'the loss "output" needs a model that returns its loss, alone or first in a tuple; found '
            f"{type(first).__name__} {tuple(getattr(first, 'shape', ()))}. Name another loss."
        )
    return first.reshape(())


def warm_up(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    steps: int,
    *,
    called_like: nn.Module | None = None,
    learning_rate: float = 0.02,
    progress: bool = False,
) -> list[float]:
    """Trains a model in place with Adagrad, which takes dense and sparse gradients alike.

    All of it trains meanwhile; every module goes back to its own mode, after an error too.

    Args:
        model: the model, flat or with towers.
        batches: what the data loader gives; fewer than ``steps`` are gone through again.
        loss: see :data:`Loss`.
        steps: number of updates.
        called_like: the model whose ``forward`` says what of a batch is an argument; by default ``model``. A tower
            model takes whatever comes, so it needs the flat one here.
        learning_rate: of Adagrad.
        progress: show a progress bar.

    Returns:
        The loss of every step.

    Raises:
        PlanError: no batches, or the loss is no longer finite.
    """
    optimizer = torch.optim.Adagrad([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    losses: list[float] = []
    steady = tqdm(itertools.islice(_again(batches), steps), "warm-up", steps, unit="step", disable=not progress)
    with in_mode(model, training=True):
        for batch in steady:
            call = example_of(batch, called_like or model, labelled=True)
            value = loss(model(*call.args, **call.kwargs), batch)
            if not torch.isfinite(value):
                raise PlanError(
                    f"the loss is {value.item()} after {len(losses)} steps of warm-up. Lower the learning rate "
                    f"({learning_rate})."
                )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
    if len(losses) < steps:
        raise PlanError("the data gave no batch, so there is nothing to train on.")
    return losses


def _again(batches: Iterable[Any]) -> Iterator[Any]:
    kept: list[Any] = []
    for batch in batches:
        kept.append(batch)
        yield batch
    yield from itertools.cycle(kept)


def mean_loss(model: nn.Module, batches: Iterable[Any], loss: Loss, *, called_like: nn.Module | None = None) -> float:
    """Mean loss over batches in eval mode, each weighted by its samples; see :func:`warm_up` for the arguments."""
    total, count = 0.0, 0
    with in_mode(model, training=False), torch.no_grad():
        for batch in batches:
            call = example_of(batch, called_like or model, labelled=True)
            size = batch_size_of([*call.args, *call.kwargs.values()]) or 1
            total += float(loss(model(*call.args, **call.kwargs), batch)) * size
            count += size
    if not count:
        raise PlanError("no held-out batch, so there is nothing to decide by.")
    return total / count
