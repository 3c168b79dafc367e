"""The optimizer of dense and tower parameters, by the parameters' logical names, whatever the ZeRO stage.

1. What an optimizer keeps for every entry of a parameter is stored as ``optimizer.<key>.<parameter>``. At ZeRO 1 and 2
   a rank holds ranges of these; any ranges can be read from any others.
2. What it keeps once per parameter (a number of steps) goes by parameter too, beside the tensors.
3. Options of a group, among them the learning rate, are restored to every group that has parameters of it: the number
   of groups depends on the topology, as one host has no group of towers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dmt_plugin.checkpoint.manifest import Manifest
from dmt_plugin.checkpoint.pieces import Piece
from dmt_plugin.checkpoint.state import OPTIMIZER, MasterPart
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.integrations.deepspeed import private

_NOT_OPTIONS = ("params", "name", "moe")


class OptimizerState:
    """View of an engine's optimizer on this rank.

    Args:
        optimizer: the engine's.
        names: logical name of each of the model's parameters by its ``id``.

    Raises:
        CheckpointError: it is of a kind whose state cannot be split by parameter.
    """

    def __init__(self, optimizer: Any, names: Mapping[int, str]) -> None:
        self._optimizer = optimizer
        self._names = names
        try:
            self._base, self._groups = private.optimizer_layout(optimizer)
        except TypeError as error:
            raise CheckpointError(
                f"the state of the optimizer {error} cannot be stored by parameter; use one that DeepSpeed runs "
                "plainly, under ZeRO 1 or 2, or in bf16"
            ) from error

    @property
    def name(self) -> str:
        """Its class, in words."""
        return type(self._base).__name__ if self._base is not None else "none"

    def masters(self) -> dict[int, list[MasterPart]]:
        """Entries that it holds apart from the model's parameters, by ``id`` of these."""
        found: dict[int, list[MasterPart]] = {}
        for group in self._groups:
            for held in group.held:
                for part in held.parts:
                    if held.tensor is not part.parameter:
                        values = held.tensor.detach().view(-1).narrow(0, part.offset, part.size)
                        found.setdefault(id(part.parameter), []).append(MasterPart(part.start, values))
        return found

    def masters_to_write(self) -> dict[int, list[MasterPart]]:
        """Those of higher precision than the parameter, which is only a rounded copy then.

        A parameter of which this rank holds nothing is in it too: others write it.
        """
        found = self.masters()
        parameters = [p for group in self._groups for p in group.parameters]
        return {id(p): found.get(id(p), []) for p in parameters if p.dtype != torch.float32}

    def pieces(self) -> list[Piece]:
        """What this rank writes; shares the optimizer's memory.

        Raises:
            CheckpointError: a state that belongs to no single parameter.
        """
        return [piece for group in self._groups for held in group.held for piece in self._pieces_of(held)]

    def _pieces_of(self, held: private.HeldTensor) -> list[Piece]:
        found: list[Piece] = []
        for key, value in self._state(held.tensor).items():
            if not _per_entry(key, value, held.tensor):
                if isinstance(value, Tensor) and value.numel() > 1:
                    names = [self._name(part) for part in held.parts]
                    raise CheckpointError(
                        f"{self.name} keeps {key!r} of shape {tuple(value.shape)} for the parameters {names}, which "
                        "has neither one number nor one for each entry: such a state cannot be stored"
                    )
                continue
            flat = value.detach().reshape(-1)
            for part in held.parts:
                found.append(self._piece(key, part, flat.narrow(0, part.offset, part.size)))
        return found

    def _piece(self, key: str, part: private.HeldPart, values: Tensor) -> Piece:
        parameter = part.parameter
        name = f"{OPTIMIZER}{key}.{self._name(part)}"
        return Piece(name, "optimizer", (parameter.numel(),), (part.start,), values, tuple(parameter.shape))

    def scalars(self) -> dict[str, dict[str, Any]]:
        """What is kept once per parameter, of those that this rank updates."""
        return {
            self._name(part): {
                key: value.detach().cpu().clone() if isinstance(value, Tensor) else value
                for key, value in self._state(held.tensor).items()
                if not _per_entry(key, value, held.tensor)
            }
            for group in self._groups
            for held in group.held
            for part in held.parts
        }

    def options(self) -> list[dict[str, Any]]:
        """Names of the parameters and options of each group, as this rank knows them."""
        return [
            {
                "names": [self._names[id(p)] for p in group.parameters],
                "options": {k: v for k, v in group.options.items() if k not in _NOT_OPTIONS},
            }
            for group in self._groups
        ]

    def plan_load(
        self, manifest: Manifest, shared: Mapping[str, Any], states: bool = True, fresh: Collection[str] = ()
    ) -> OptimizerLoad:
        """What there is to be read for this rank; changes nothing.

        Args:
            manifest: of the checkpoint.
            shared: what :func:`shared_state` made of all ranks' scalars and options.
            states: whether states are to be read; else only groups are compared, and no memory is taken for states.
            fresh: parameters that keep the state they have.
        """
        return OptimizerLoad(self, manifest, shared, states, fresh)

    def _state(self, tensor: Tensor) -> dict[str, Any]:
        return self._base.state.get(tensor, {})

    def _name(self, part: private.HeldPart) -> str:
        return self._names[id(part.parameter)]


class OptimizerLoad:
    """One load, planned: pieces to read, and what is put in place behind that.

    Attributes:
        pieces: to be read into.
        problems: why it cannot be done, if it cannot.
        of_groups: for each group of this engine, the number of the saved group that it continues; None for one that has
            only parameters which were not saved.
        shared_steps: fresh parameters that have, with ZeRO, a number of steps in common with others.
    """

    def __init__(
        self,
        view: OptimizerState,
        manifest: Manifest,
        shared: Mapping[str, Any],
        states: bool,
        fresh: Collection[str] = (),
    ) -> None:
        self._view, self._shared, self._fresh = view, shared, frozenset(fresh)
        self.shared_steps: list[str] = []
        self.pieces: list[Piece] = []
        self.problems: list[str] = []
        self.of_groups: list[int | None] = []
        self._states: list[tuple[private.HeldGroup, Tensor, dict[str, Any]]] = []
        stored = _keys_of(manifest)
        saved = manifest.training["optimizer"]
        if _rule(saved) != _rule(view.name):
            self.problems.append(f"it is of the optimizer {saved}, this engine has {view.name}")
        for group in view._groups:
            every = [view._names[id(p)] for p in group.parameters]
            names = [name for name in every if name not in self._fresh]
            self.of_groups.append(self._group_of(every, new=bool(every) and not names))
            if every and not names:
                continue
            keys = {key for name in names for key in stored.get(name, {})}
            for held in group.held if states else ():
                self._plan(group, held, names, keys, stored)

    def _group_of(self, names: Sequence[str], new: bool) -> int | None:
        saved = self._shared["groups"]
        found = [number for number, group in enumerate(saved) if not set(names).isdisjoint(group["names"])]
        if not found and new:
            return None
        if not found:
            self.problems.append(f"no saved parameter group has any of {names[:4]}")
            return 0
        if any(not _same(saved[number]["options"], saved[found[0]]["options"]) for number in found):
            self.problems.append(
                f"the parameter group of {names[:4]} was {len(found)} groups with other options: "
                f"{[saved[number]['options'] for number in found]}"
            )
        return found[0]

    def _plan(
        self,
        group: private.HeldGroup,
        held: private.HeldTensor,
        names: Sequence[str],
        keys: set[str],
        stored: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Reads ``keys`` for the parts of ``held``; those that other ranks hold are theirs to miss."""
        parts = [part for part in held.parts if self._view._name(part) not in self._fresh]
        one_count = len(group.held) == 1 < len(group.parameters)  # ZeRO: of steps, for all of a group
        if held.parts and not one_count:
            if not parts:
                return
            keys = keys & {key for part in parts for key in stored.get(self._view._name(part), {})}
        view, dtypes = self._view, {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        before = view._state(held.tensor)
        state: dict[str, Any] = {}
        for key in sorted(keys):
            kind = next(stored[name][key] for name in names if key in stored.get(name, {}))
            now = before.get(key)
            if not (isinstance(now, Tensor) and now.shape == held.tensor.shape and now.is_contiguous()):
                dtype = dtypes.get(kind, torch.float32)
                start = group.options.get("initial_accumulator_value", 0.0) if key == "sum" else 0.0
                now = torch.full(held.tensor.shape, start, dtype=dtype, device=held.tensor.device)
            state[key] = now
            flat = now.detach().view(-1)
            self.pieces += [view._piece(key, part, flat.narrow(0, part.offset, part.size)) for part in parts]
        scalars: Mapping[str, Mapping[str, Any]] = self._shared["scalars"]
        own = [view._name(part) for part in parts] or [next((n for n in names if n in scalars), names[0])]
        for name in own:
            if name not in scalars:
                self.problems.append(f"nothing is stored of the optimizer of {name}")
                return
        if any(not _same(scalars[name], scalars[own[0]]) for name in own):
            self.problems.append(
                f"parameters that share a partition of ZeRO were updated different numbers of times: "
                f"{ {name: dict(scalars[name]) for name in own[:4]} }; load at ZeRO stage 0"
            )
        if "step" in scalars[own[0]]:
            self.shared_steps += [name for part in held.parts if (name := view._name(part)) in self._fresh]
        state.update(scalars[own[0]])
        self._states.append((group, held.tensor, state))

    @torch.no_grad()
    def finish(self) -> None:
        """Puts states and options in place, behind the reading."""
        base = self._view._base
        if base is None:
            return
        for group, tensor, state in self._states:
            if state:
                base.state[tensor] = {key: _placed(value, tensor, group.options) for key, value in state.items()}
            else:
                base.state.pop(tensor, None)
        for group, number in zip(self._view._groups, self.of_groups, strict=True):
            if number is None:
                continue
            saved = self._shared["groups"][number]["options"]
            group.options.update({k: v for k, v in saved.items() if k in group.options and k not in _NOT_OPTIONS})
        if all(base.state.get(held.tensor) for group in self._view._groups for held in group.held):
            private.relink_states(self._view._optimizer)


def shared_state(of_ranks: Sequence[tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]]) -> dict[str, Any]:
    """What all ranks keep beside tensors, put together from each rank's scalars and options."""
    scalars: dict[str, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    for own, options in of_ranks:
        for name, values in own.items():
            scalars.setdefault(name, values)
        for number, group in enumerate(options):
            if number == len(groups):
                groups.append({"names": [], "options": group["options"]})
            known = set(groups[number]["names"])
            groups[number]["names"] += [name for name in group["names"] if name not in known]
    return {"scalars": scalars, "groups": groups}


def scheduler_state(state: Any, before: int, of_groups: Sequence[int | None], now: Any = None) -> Any:
    """The state of a learning-rate scheduler for another number of parameter groups.

    Args:
        state: of a run with ``before`` groups.
        before: their number.
        of_groups: for each group now the number of the one it continues; None for one that continues none.
        now: the state of this run's scheduler, for groups that continue none.
    """
    if not isinstance(state, dict) or list(of_groups) == list(range(before)):
        return state
    made, own = dict(state), now if isinstance(now, dict) else {}
    for key, value in state.items():
        if key in _BY_GROUP and isinstance(value, list) and len(value) == before:
            mine = own.get(key)
            kept = mine if isinstance(mine, list) and len(mine) == len(of_groups) else [value[0]] * len(of_groups)
            made[key] = [kept[i] if number is None else value[number] for i, number in enumerate(of_groups)]
        elif key == "_schedulers":  # of SequentialLR and ChainedScheduler
            made[key] = [
                scheduler_state(inner, before, of_groups, mine)
                for inner, mine in zip(value, own.get(key) or [None] * len(value), strict=False)
            ]
    return made


_BY_GROUP = {
    "base_lrs", "_last_lr", "lr_lambdas", "min_lrs", "max_lrs", "delta_lrs", "base_momentums", "max_momentums",
}  # fmt: skip
"""What schedulers of torch and of DeepSpeed keep a number of for each parameter group."""


def _rule(optimizer: str) -> str:
    """Optimizers that keep the same state; that of a fused one is another."""
    return {"LazyAdagrad": "Adagrad", "AdamW": "Adam"}.get(optimizer, optimizer)


def _keys_of(manifest: Manifest) -> dict[str, dict[str, str]]:
    """By parameter and key of its stored state the type of its entries."""
    found: dict[str, dict[str, str]] = {}
    for name, entry in manifest.tensors.items():
        if name.startswith(OPTIMIZER):
            key, _, parameter = name.removeprefix(OPTIMIZER).partition(".")
            found.setdefault(parameter, {})[key] = entry.dtype
    return found


def _per_entry(key: str, value: Any, tensor: Tensor) -> bool:
    """Whether a state has a number for each entry; that of a parameter of one entry is recognised by its name."""
    return isinstance(value, Tensor) and value.shape == tensor.shape and key != "step"


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    def plain(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value.item() if isinstance(value, Tensor) else value for key, value in values.items()}

    return plain(one) == plain(other)


def _placed(value: Any, tensor: Tensor, options: Mapping[str, Any]) -> Any:
    """A scalar where torch has it: beside the parameter for updates that never come back from the device."""
    if not isinstance(value, Tensor) or value.shape == tensor.shape:
        return value
    beside = options.get("capturable") or options.get("fused")
    return value.clone().to(tensor.device if beside else "cpu")
