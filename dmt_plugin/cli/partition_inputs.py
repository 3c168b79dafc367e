"""What ``dmt partition`` reads: the model, a checkpoint, batches of data, a loss.

The data factory is called again for every pass over the data, so a generator serves as well as a loader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmt_plugin.cli.load import find_config
from dmt_plugin.config.section import DMTConfig, load_ds_config, read_dmt_config
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.user_code import call_factory, load_factory, load_module
from dmt_plugin.partitioning.short_training import Loss, loss_named


def read_config(config: str | None, model: str | None) -> tuple[DMTConfig, dict[str, Any]]:
    """The ``"dmt"`` section of a configuration file, and all of the file; or the defaults.

    Raises:
        ConfigError: there is no such file or section.
    """
    if config is None:
        return DMTConfig(), {}
    path = find_config(config, load_module(model, "--model")) if model else Path(config)
    whole = load_ds_config(path)
    found = read_dmt_config(whole, str(path))
    if found is None:
        raise ConfigError(f'{path} has no "dmt" section, or "enabled" is false.')
    return found, whole


def load_model(spec: str, checkpoint: Path | None, seed: int) -> nn.Module:
    """Builds the model, and loads a state dict into it.

    Args:
        spec: factory of the model, or of ``(model, batch)``.
        checkpoint: file of a state dict, as ``torch.save(model.state_dict(), file)`` writes it.
        seed: torch's seed, so that a fresh model is the same each time.

    Raises:
        ConfigError: no module, no such file, or a state that does not fit the model.
    """
    torch.manual_seed(seed)
    built = call_factory(load_factory(spec, "--model"), spec, "--model")
    if isinstance(built, tuple) and len(built) == 2:
        built = built[0]
    if not isinstance(built, nn.Module):
        raise ConfigError(f"--model {spec}: found a {type(built).__name__}; expected a torch.nn.Module.")
    if checkpoint is None:
        return built
    state = read_state(checkpoint)
    try:
        built.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(f"--checkpoint {checkpoint} does not fit --model {spec}: {error}") from error
    return built


def read_state(checkpoint: Path) -> dict[str, Tensor]:
    """A state dict, as ``torch.save(model.state_dict(), file)`` writes it.

    Raises:
        ConfigError: no such file, or no state dict.
    """
    if not checkpoint.is_file():
        raise ConfigError(f"--checkpoint {checkpoint}: no such file.")
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # of as many kinds as there are files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"--checkpoint {checkpoint} cannot be read ({type(error).__name__}: {reason}); expected a state dict, as "
            "torch.save(model.state_dict(), file) writes it."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ConfigError(
            f"--checkpoint {checkpoint}: expected a state dict, names with tensors. Write one with "
            "torch.save(model.state_dict(), file)."
        )
    return state


def batches_of(spec: str) -> Callable[[], Iterable[Any]]:
    """A function that starts a new pass over the data.

    Raises:
        ConfigError: what the factory returns is not an iterable of batches.
    """
    factory = load_factory(spec, "--data")

    def start() -> Iterable[Any]:
        found = call_factory(factory, spec, "--data")
        single = isinstance(found, (tuple, list)) and len(found) > 0 and isinstance(found[0], Tensor)
        if isinstance(found, (Tensor, dict, str)) or single or not isinstance(found, Iterable):
            raise ConfigError(
                f"--data {spec} returned a {type(found).__name__}; expected an iterable of batches, such as a loader, "
                "a generator or a list. For a single batch return [batch]."
            )
        return found

    return start


def loss_of(spec: str | None, needed_for: str) -> Loss:
    """The loss that ``--loss`` names.

    Raises:
        ConfigError: none was given, or there is no such loss.
    """
    if spec is None:
        raise ConfigError(
            f"{needed_for} trains, which needs --loss: logits or probabilities (binary cross-entropy with the last "
            "item of the batch), output (the model returns its loss), or package.module:function."
        )
    return load_factory(spec, "--loss") if ":" in spec else loss_named(spec)
