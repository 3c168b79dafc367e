"""Runs a model in train or eval mode, and with fixed random numbers, and leaves it and torch as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Puts every module of a model into one mode; each goes back to its own mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was in modes:
            module.training = was


@contextmanager
def fixed_random_numbers(seed: int = 0) -> Iterator[None]:
    """Seeds torch on the CPU and on every accelerator; both go on from their own numbers at the end."""
    with torch.random.fork_rng(range(torch.accelerator.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def left_as_it_was(model: nn.Module, training: bool) -> Iterator[None]:
    """Runs in one mode with fixed random numbers; modes, random numbers and the values of buffers are put back."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with in_mode(model, training), fixed_random_numbers():
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


@contextmanager
def undisturbed_random_numbers(seed: int = 0) -> Iterator[None]:
    """As :func:`fixed_random_numbers`, for Python's and numpy's generators as well, from which data may draw."""
    kept = random.getstate()
    numpy = sys.modules.get("numpy")
    of_numpy = None if numpy is None else numpy.random.get_state()
    try:
        with fixed_random_numbers(seed):
            random.seed(seed)
            if numpy is not None:
                numpy.random.seed(seed)
            yield
    finally:
        random.setstate(kept)
        if numpy is not None:
            numpy.random.set_state(of_numpy)
