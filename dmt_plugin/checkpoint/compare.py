"""Does a checkpoint fit what is to be filled from it? Asked before the first tensor is changed.

1. Everything that is to be filled must be stored, with the same shape and a type of the same sort, and whole.
2. Everything that is stored must have a place.
3. With tower modules, towers must consist of the same features in the same order: names and shapes would not show it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from dmt_plugin.checkpoint.manifest import Manifest, TensorEntry
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.plan.tower_plan import TowerPlan

_SHOWN = 8


def check_tensors(
    wanted: Mapping[str, TensorEntry],
    manifest: Manifest,
    volumes: Mapping[str, int],
    ignored: Iterable[str],
    where: str,
    others: Sequence[str] = (),
) -> None:
    """Points 1 and 2.

    Args:
        wanted: what all ranks together are to fill, by name.
        manifest: of the checkpoint.
        volumes: stored entries of each tensor, by name.
        ignored: beginnings of names that need no place this time.
        where: the checkpoint, for the message.
        others: what else was found to be wrong.

    Raises:
        CheckpointError: naming the tensors.
    """
    ignored = tuple(ignored)
    stored = {name: entry for name, entry in manifest.tensors.items() if not name.startswith(ignored)}
    missing = sorted(set(wanted) - set(stored))
    unknown = sorted(set(stored) - set(wanted))
    other = [
        f"{name} {list(stored[name].shape)} {stored[name].dtype} instead of {list(entry.shape)} {entry.dtype}"
        for name, entry in sorted(wanted.items())
        if name in stored and not fits(stored[name], entry)
    ]
    partial = sorted(name for name, entry in stored.items() if volumes.get(name, 0) != prod(entry.shape))
    problems = [
        text
        for text, found in (
            (f"it lacks {shown(missing)}", missing),
            (f"it has {shown(unknown)}, for which there is no place here", unknown),
            (f"of another shape or type: {shown(other)}", other),
            (f"not all entries are stored of {shown(partial)}", partial),
        )
        if found
    ]
    problems += list(dict.fromkeys(others))[:_SHOWN]
    if problems:
        raise CheckpointError(
            f"{where} does not fit this model and optimizer, and nothing was loaded: {'; '.join(problems)}. Build the "
            "engine with the model and configuration of the run that saved it (`dmt checkpoint inspect` shows them), "
            "or load less: load_module_only=True, or load_optimizer_states=False."
        )


def check_towers(plan: TowerPlan, manifest: Manifest, where: str) -> None:
    """Point 3.

    Args:
        plan: of the model that is to be filled.
        manifest: of the checkpoint.
        where: the checkpoint, for the message.

    Raises:
        CheckpointError: saying how they differ.
    """
    saved = manifest.tower_plan
    if plan.model and saved.model and plan.model != saved.model:
        raise CheckpointError(
            f"{where} is of another model (other features or tables): it was saved of the model {saved.model}, this is "
            f"{plan.model}. Nothing was loaded."
        )
    if manifest.semantic_preserving:
        return  # towers only say where tables are
    mine, theirs = _meaning(plan), _meaning(saved)
    differing = [key for key in mine if mine[key] != theirs[key]]
    if differing:
        found = "; ".join(f"{key} {theirs[key]} instead of {mine[key]}" for key in differing)
        raise CheckpointError(
            f"the towers of {where} are not those of this model, and nothing was loaded: {found}. To go on with the "
            'saved ones, name the checkpoint before the engine is built: "dmt": {"partition": {"strategy": "file", '
            f'"file": "{Path(where)}"}}}}.'
        )


def _meaning(plan: TowerPlan) -> dict[str, Any]:
    """What of a plan decides what is computed."""
    data = plan.to_dict()
    return {
        # In order: a tower module has weights for the first feature, the second, and so on.
        "towers": [list(names) for names in data["towers"]],
        "groups": [
            (g["name"], g["kind"], list(g["features"]), g["form"], g["dim"], *g.get("parameters", ()))
            for g in data["groups"]
        ],
        "module": {key: data["module"][key] for key in ("kind", "c", "p", "dim")},
        "overrides": {
            tower: {key: spec[key] for key in ("kind", "c", "p", "dim")} for tower, spec in data["overrides"].items()
        },
    }


def fits(stored: TensorEntry, wanted: TensorEntry) -> bool:
    """Numbers of another precision are converted; whole numbers are not made of others."""
    if tuple(stored.shape) != tuple(wanted.shape):
        return False
    return stored.dtype == wanted.dtype or ("float" in stored.dtype and "float" in wanted.dtype)


def retyped(stored: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """What becomes of floating-point numbers that are stored in another type than they are kept in, for people.

    Args:
        stored: types by name, such as ``"float32"``.
        here: those that they are read into.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name, dtype in sorted(here.items()):
        if name in stored and stored[name] != dtype:
            found.setdefault((stored[name], dtype), []).append(name)
    return [
        f"{len(names)} tensor(s) ({shown(names)}) are stored as {old} and kept as {new} here: "
        f"{'the same numbers' if _wider(old, new) else 'they are rounded to nearest'}"
        for (old, new), names in found.items()
    ]


def _wider(old: str, new: str) -> bool:
    """Whether a type has all numbers of another one."""
    return (old in ("bfloat16", "float16") and new in ("float32", "float64")) or (old, new) == ("float32", "float64")


def shown(names: Sequence[str]) -> str:
    """Names for a message, the first few of many."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
