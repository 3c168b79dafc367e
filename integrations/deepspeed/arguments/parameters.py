"""Translates the ``model_parameters`` of ``initialize`` from the user's flat model to the placed model.

Users pass parameters, or groups of parameters with options, of the model they know. After the rewrite its tables are
gone (the lookup trains them), layers may have been resized, and there are tower modules. So:

1. remember the flat model's names before anything is rewritten (:class:`FlatParameters`);
2. a parameter that is still in the placed model stays in its group; one whose name is still there but whose object is
   another (a resized layer, a copy) is replaced by that; one that is gone (a table) is dropped; one that never was
   in the model is the user's own business and stays;
3. parameters that are new and belong to no tower go to the first group that still has parameters;
4. tower parameters get a group of their own with the options of that same group, marked for DeepSpeed as experts;
   they are never split by size, so that every rank has the same number of groups;
5. what the user left out of ``model_parameters`` stays out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.topology.agreement import speaks

logger = logging.getLogger(__name__)


@dataclass
class FlatParameters:
    """The user's parameters and what they asked to optimize, taken before the rewrite.

    Attributes:
        names: Name in the flat model by the parameter's ``id``.
        groups: Groups of ``model_parameters`` (one without options for a plain list), ``None`` where none were given.
        plain: Whether ``model_parameters`` was a plain list.
        keep: Holds the flat parameters, so that the ids stay theirs.
    """

    names: dict[int, str]
    groups: list[dict[str, Any]] | None
    plain: bool
    keep: list[nn.Parameter] = field(default_factory=list, repr=False)


def read_parameters(model: nn.Module, model_parameters: Any) -> FlatParameters:
    """Takes note of the flat model's parameters; reads ``model_parameters``, also if it is a generator, once.

    Raises:
        ConfigError: If ``model_parameters`` holds something else than parameters or groups of them.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    flat = FlatParameters({id(p): name for name, p in reversed(named)}, None, True, [p for _, p in named])
    if model_parameters is None:
        return flat
    items = [model_parameters] if isinstance(model_parameters, dict) else list(model_parameters)
    if all(isinstance(item, dict) for item in items) and items:
        flat.plain = False
        flat.groups = [{**item, "params": _as_list(item.get("params", ()))} for item in items]
    else:
        flat.groups = [{"params": items}]
    for group in flat.groups:
        for item in group["params"]:
            if not isinstance(item, torch.Tensor):
                raise ConfigError(
                    "model_parameters must be parameters, or dicts with a list of parameters under 'params', but there "
                    f"is a {type(item).__name__} in it. Pass model.parameters() or a list of param-group dicts."
                )
        if group.get("moe"):
            raise ConfigError(
                "model_parameters has a group marked 'moe': True; towers use DeepSpeed's expert groups themselves, so "
                'that a model with experts of its own cannot be trained together with "dmt" in this version.'
            )
    return flat


def _as_list(params: Any) -> list[Any]:
    return [params] if isinstance(params, torch.Tensor) else list(params)


def remap_parameters(
    flat: FlatParameters,
    placed: Iterable[tuple[str, nn.Parameter]],
    towers: Sequence[nn.Parameter],
    moe_group: str | None,
) -> list[Any] | None:
    """What to hand to DeepSpeed as ``model_parameters``.

    Args:
        flat: What :func:`read_parameters` noted.
        placed: Names and parameters of the placed model, before towers were wrapped.
        towers: Parameters of this host's tower modules.
        moe_group: DeepSpeed's name for the group of towers ("ep_size_2"), ``None`` if there are no towers.

    Returns:
        ``None`` (all parameters of the model), a list of parameters, or a list of groups.
    """
    tower_ids = {id(p) for p in towers}
    dense = {name: p for name, p in placed if id(p) not in tower_ids}
    if flat.groups is None:
        if moe_group is None:
            return None
        unique = list({id(p): p for p in dense.values()}.values())
        return [{"params": unique, "name": "dense"}, _tower_group({}, towers, moe_group)]

    groups, dropped = _survivors(flat, dense, tower_ids)
    target = next((group for group in groups if group["params"]), groups[0])
    listed = {id(p) for group in groups for p in group["params"]}
    flat_names = set(flat.names.values())
    new = [p for name, p in dense.items() if name not in flat_names and id(p) not in flat.names and id(p) not in listed]
    target["params"] += list({id(p): p for p in new}.values())
    if dropped and speaks():
        logger.info("model_parameters: %d parameter(s) are tables now; dmt.lookup.optimizer trains those", dropped)
    if moe_group is None:
        return groups[0]["params"] if flat.plain else groups
    for index, group in enumerate(groups):
        group.setdefault("name", f"dense{index}" if len(groups) > 1 else "dense")
    return [*groups, _tower_group(target, towers, moe_group)]


def positions_of(parameters: Sequence[Any] | None) -> dict[int, int]:
    """By number of a group its number in DeepSpeed's optimizer, which has no groups without parameters.

    Args:
        parameters: what :func:`remap_parameters` gave.
    """
    if parameters is None or not all(isinstance(group, dict) for group in parameters):
        return {0: 0}
    left = [number for number, group in enumerate(parameters) if group["params"]]
    return {number: position for position, number in enumerate(left)}


def _survivors(
    flat: FlatParameters, dense: dict[str, nn.Parameter], tower_ids: set[int]
) -> tuple[list[dict[str, Any]], int]:
    """The user's groups with what is left of them, and the number of parameters that are gone."""
    dense_ids = {id(p) for p in dense.values()}
    seen: set[int] = set()
    groups: list[dict[str, Any]] = []
    dropped = 0
    for group in flat.groups or []:
        kept: list[Any] = []
        for parameter in group["params"]:
            now: Any = parameter
            if id(parameter) in flat.names and id(parameter) not in dense_ids:
                now = dense.get(flat.names[id(parameter)])
            if now is None:
                dropped += 1
            elif id(now) not in seen and id(now) not in tower_ids:
                seen.add(id(now))
                kept.append(now)
        groups.append({**group, "params": kept})
    return groups, dropped


def _tower_group(options: dict[str, Any], towers: Sequence[nn.Parameter], name: str) -> dict[str, Any]:
    return {**options, "params": list(towers), "name": name, "moe": True}
