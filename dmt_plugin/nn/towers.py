"""Tower modules: what a tower makes of its features before they cross hosts.

The contract: input ``(B, F_t, N)``, output ``(B, O_t)``; ``out_features`` is ``O_t``, and
``O_t`` is a whole number of output streams of width ``D``. Two come from the paper's
section 4, under its letters:

* ``dlrm``: ``c`` outputs per feature, ``Linear(N -> c*D)`` shared by the features, beside
  ``p`` outputs of the whole tower, ``Linear(F_t*N -> p*D)``; ``O_t = D * (c*F_t + p)``.
* ``dcn``: one cross layer on the flattened tower, then ``Linear(F_t*N -> F_t*D)``;
  ``O_t = D * F_t``. With a ``rank`` the cross layer's matrix is a product of two of that rank; with ``outputs`` the
  tower as a whole has so many outputs of width ``D``, and ``O_t = D * outputs``.

``preserve`` is for models whose interaction cannot change: ``Linear(F_t*N -> F_t*N)``, so that
``O_t = F_t*N`` and every feature has an output in its place. (In the letters: ``c = 0``,
``p = F_t``, ``D = N``.) It compresses nothing.

``none`` is the pass-through tower. A user's own class is named by import path and built
as ``cls(features=F_t, width=N, dim=D)``.

Initialisation matters, since a tower module sits where the embeddings used to go
straight through: ``orthogonal`` (rows of a random rotation: variance is kept) and
``identity`` (each output starts as an average of neighbouring inputs, the cross layer as
zero) start close to the flat model; ``torch`` is the library's default for ``nn.Linear``.
For ``preserve``, whose outputs stand in for the features one by one, ``orthogonal`` is a
small rotation: orthogonal, and near the identity.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dmt_plugin.core.errors import ConfigError, MemoryNeedError
from dmt_plugin.core.memory import memory_limits, smallest
from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.nn.graph_ops import pick_columns
from dmt_plugin.plan.tower_plan import TowerModuleSpec

Part = Literal["all", "per_feature", "per_tower"]
"""Which outputs of a ``dlrm`` tower are asked for: all, those of each feature, or those of the whole tower."""

_LARGE = 2**28
"""Bytes of a tower module's weights up to which nobody asks whether there is memory for them."""

_ROTATION = 0.1
"""How far, as a part of its length, the start of a preserving tower turns a vector."""


class PassThroughTower(nn.Module):
    """Hands every feature on unchanged: ``(B, F_t, N) -> (B, F_t*N)``.

    Args:
        features: ``F_t``.
        width: ``N``.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.out_features = features * width

    def forward(self, x: Tensor) -> Tensor:
        """Flattens the tower."""
        return x.flatten(1)


class DLRMTower(nn.Module):
    """The DLRM tower module (paper, section 4, listing 1).

    Args:
        features: ``F_t``.
        width: ``N``.
        dim: ``D``.
        c: outputs per feature.
        p: outputs of the whole tower.
        init: ``"orthogonal"``, ``"identity"`` or ``"torch"``.
    """

    def __init__(self, features: int, width: int, dim: int, c: int = 1, p: int = 0, init: str = "orthogonal") -> None:
        super().__init__()
        self.width = width
        self.out_features = dim * (c * features + p)
        self.per_feature = nn.Linear(width, c * dim) if c else None
        self.per_tower = nn.Linear(features * width, p * dim) if p else None
        for layer in (self.per_feature, self.per_tower):
            if layer is not None:
                initialise_linear(layer, init)

    def forward(self, x: Tensor | Sequence[Tensor], places: Sequence[int] = (), part: Part = "all") -> Tensor:
        """``(B, F_t, N) -> (B, D*(c*F_t + p))``, or a part of that: ``(B, D*c*F_t)`` or ``(B, D*p)``.

        Args:
            x: the features; or blocks ``(B, F_i*N)``, which hold them in another order.
            places: with blocks, where each feature is, counted over all blocks.
            part: which outputs, of those that the tower has.
        """
        if not isinstance(x, Tensor):
            return self._of_blocks(x, places, part)
        parts = []
        if self.per_feature is not None and part != "per_tower":
            parts.append(self.per_feature(x).flatten(1))
        if self.per_tower is not None and part != "per_feature":
            parts.append(self.per_tower(x.flatten(1)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _of_blocks(self, blocks: Sequence[Tensor], places: Sequence[int], part: Part) -> Tensor:
        """The same without stacking what comes in: only outputs are moved, which are smaller."""
        counts = [block.shape[1] // self.width for block in blocks]
        parts = []
        if self.per_feature is not None and part != "per_tower":
            out = self.per_feature.out_features
            outputs = [self.per_feature(block.reshape(-1, self.width)) for block in blocks]
            sides = [x.view(len(block), n * out) for x, block, n in zip(outputs, blocks, counts, strict=True)]
            parts.append(pick_columns(sides, places, out))
        if self.per_tower is not None and part != "per_feature":
            feature_at = {place: feature for feature, place in enumerate(places)}
            order = [feature_at[place] for place in range(len(places))]
            weight = self.per_tower.weight.unflatten(1, (len(places), self.width))
            weights = [own.flatten(1) for own in weight[:, order].split(counts, dim=1)]
            total: Tensor = self.per_tower.bias
            for block, own in zip(blocks, weights, strict=True):
                total = total + torch.nn.functional.linear(block, own)
            parts.append(total)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class DCNTower(nn.Module):
    """The DCN tower module (paper, section 4, listing 2): ``project(x * cross(x) + x)`` on the flattened tower.

    Args:
        features: ``F_t``.
        width: ``N``.
        dim: ``D``.
        init: ``"orthogonal"``, ``"identity"`` or ``"torch"``.
        rank: rank of the cross layer, ``cross(reduce(x))`` with ``reduce`` of shape ``(rank, F_t*N)`` and no bias; 0
            for a full matrix.
        outputs: outputs of width ``D`` of the whole tower; 0 for one per feature.
    """

    def __init__(
        self, features: int, width: int, dim: int, init: str = "orthogonal", rank: int = 0, outputs: int = 0
    ) -> None:
        super().__init__()
        flat = features * width
        self.out_features = (outputs or features) * dim
        self.reduce = nn.Linear(flat, rank, bias=False) if rank else None
        self.cross = nn.Linear(rank or flat, flat)
        self.project = nn.Linear(flat, self.out_features)
        if self.reduce is not None:
            initialise_linear(self.reduce, init)
        if init != "torch":
            nn.init.zeros_(self.cross.weight)
            nn.init.zeros_(self.cross.bias)
        initialise_linear(self.project, init)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Modules that an earlier version pickled have no ``reduce``."""
        super().__setstate__(state)
        if "reduce" not in self._modules:
            self.reduce = None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, F_t, N) -> (B, out_features)``."""
        flat = x.flatten(1)
        crossed = self.cross(flat if self.reduce is None else self.reduce(flat))
        return self.project(flat * crossed + flat)


class PreserveTower(nn.Module):
    """Mixes the features of a tower and hands on as many of the same width.

    Args:
        features: ``F_t``.
        width: ``N``.
        init: ``"orthogonal"`` (a small rotation), ``"identity"`` or ``"torch"``.
    """

    def __init__(self, features: int, width: int, init: str = "orthogonal") -> None:
        super().__init__()
        self.out_features = features * width
        self.mix = nn.Linear(self.out_features, self.out_features)
        initialise_linear(self.mix, init)
        if init == "orthogonal":
            with torch.no_grad():
                noise = torch.randn_like(self.mix.weight) * (_ROTATION / math.sqrt(2 * self.out_features))
                self.mix.weight.copy_(torch.linalg.matrix_exp(noise - noise.t()))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, F_t, N) -> (B, F_t*N)``."""
        return self.mix(x.flatten(1))


def initialise_linear(layer: nn.Linear, init: str) -> None:
    """Initialises one linear layer of a tower module; see the module's docstring.

    Raises:
        ConfigError: unknown name.
    """
    if init == "torch":
        return
    out_features, in_features = layer.weight.shape
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        if init == "orthogonal":
            nn.init.orthogonal_(layer.weight)
        elif init == "identity":
            layer.weight.zero_()
            for row in range(out_features):
                start = row * in_features // out_features
                stop = max(start + 1, (row + 1) * in_features // out_features)
                layer.weight[row, start:stop] = 1.0 / math.sqrt(stop - start)
        else:
            raise ConfigError(
                f'dmt.towers.init is {init!r}; expected "orthogonal", "identity" or "torch" (the default of nn.Linear).'
            )


def compiled(module: nn.Module) -> nn.Module:
    """A twin of a tower module whose calls are compiled, for batches of any size.

    Args:
        module: a tower module; it keeps running eagerly.

    Returns:
        Another object over the same parameters, buffers and submodules, whose state has the same names. Copies of it
        run eagerly, as with every module that was compiled in place.
    """
    twin = copy.copy(module)
    # Each with a cache of its own: towers share the code of their class, and all together would soon reach the number
    # of variants after which torch gives up compiling.
    twin.compile(dynamic=True, isolate_recompiles=True)
    return twin


def automatic_dim(kind: str, c: int, width: int) -> int:
    """The width ``D`` that ``dim: "auto"`` means: the paper's first setting for each module.

    ``dlrm`` with outputs per feature halves the width (CR 2 at ``c = 1, p = 0``); ``dcn`` and a
    tower of whole-tower outputs keep it.
    """
    return max(1, width // 2) if kind == "dlrm" and c else width


def build_tower_module(spec: TowerModuleSpec, features: int, width: int, tower: int) -> nn.Module:
    """Builds the module of one tower; the same on every rank, whatever the state of its random numbers.

    Args:
        spec: kind, letters, initialisation, seed.
        features: ``F_t``.
        width: ``N``.
        tower: number of the tower, part of the seed.

    Raises:
        ConfigError: a user's class that cannot be imported or breaks the contract; a width that
            the module cannot have.
        MemoryNeedError: its weights alone need more memory than there is.
    """
    _check_size(spec, features, width, tower)
    with torch.random.fork_rng(devices=[]):
        seed = (spec.seed * 100_003 + tower) % 2**63
        torch.default_generator.manual_seed(seed)  # and not those of the accelerators
        if spec.kind == "none":
            return PassThroughTower(features, width)
        if spec.kind == "dlrm":
            return DLRMTower(features, width, spec.dim, spec.c, spec.p, spec.init)
        if spec.kind == "dcn":
            return DCNTower(features, width, spec.dim, spec.init, spec.rank, spec.outputs)
        if spec.kind == "preserve":
            if spec.dim != width:
                raise ConfigError(
                    f'the tower module "preserve" keeps the width of its features, {width}, but the streams of tower '
                    f"{tower} are to have the width {spec.dim}. Set dmt.towers.dim to {width}, or choose another "
                    "module for this tower."
                )
            return PreserveTower(features, width, spec.init)
        return _user_tower(spec, features, width)


def weight_entries(spec: TowerModuleSpec, features: int, width: int) -> int:
    """Entries of a tower module's weight matrices; 0 for a user's own.

    Args:
        spec: kind and letters.
        features: ``F_t``.
        width: ``N``.
    """
    flat = features * width
    if spec.kind == "dlrm":
        return (width * spec.c + flat * spec.p) * spec.dim
    if spec.kind == "dcn":
        return (2 * flat * spec.rank or flat * flat) + flat * (spec.outputs or features) * spec.dim
    return flat * flat if spec.kind == "preserve" else 0


def _check_size(spec: TowerModuleSpec, features: int, width: int, tower: int) -> None:
    size = weight_entries(spec, features, width) * torch.get_default_dtype().itemsize
    limit = smallest(memory_limits()) if size > _LARGE else None
    if limit is not None and size > limit.available:
        raise MemoryNeedError(
            f"the tower module of tower {tower} ({features} features of width {width}, {spec.to_dict()}) has "
            f"{say_bytes(size)} of weights, and {limit.source} has {say_bytes(limit.available)} left. Lower c, p, dim, "
            "rank or outputs in dmt.towers."
        )


def _user_tower(spec: TowerModuleSpec, features: int, width: int) -> nn.Module:
    path, _, name = spec.kind.replace(":", ".").rpartition(".")
    try:
        cls = getattr(importlib.import_module(path), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f'dmt.towers.module is {spec.kind!r}; expected "none", "dlrm", "dcn", "preserve" or the import path of a '
            f"class (package.module:Class). Importing it failed: {type(error).__name__}: {error}"
        ) from error
    contract = (
        f"{spec.kind} breaks the contract of a tower module: built as cls(features={features}, width={width}, "
        f"dim={spec.dim}), for an input (B, {features}, {width}) it must return (B, out_features), a whole number of "
        "streams of width dim"
    )
    try:
        module = cls(features=features, width=width, dim=spec.dim)
        with torch.no_grad():  # on a copy: a forward may count batches
            result = copy.deepcopy(module)(torch.zeros(3, features, width))
        found, out = tuple(result.shape), module.out_features
    except Exception as error:
        raise ConfigError(f"{contract}. {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module) or not isinstance(out, int) or found != (3, out) or not out or out % spec.dim:
        raise ConfigError(f"{contract}; out_features is {out!r} and an input of 3 samples gave the shape {found}.")
    return module


def keep_type(module: nn.Module, outside: torch.dtype) -> None:
    """From now on a module takes rows of another floating type than its parameters', and answers them in ``outside``.

    Args:
        module: a tower module or decoder; its rows may come in several blocks.
        outside: type of the answer to rows of another type; to those of its own it answers as ever.
    """
    module.__dict__["_outside"] = outside
    module.register_forward_pre_hook(_to_own_type)
    module.register_forward_hook(_to_outside)


def _to_own_type(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    rows = inputs[0]
    first = rows if isinstance(rows, Tensor) else rows[0]
    own = next((p.dtype for p in module.parameters()), first.dtype)
    module.__dict__["_converts"] = own != first.dtype
    return (rows.to(own) if isinstance(rows, Tensor) else tuple(x.to(own) for x in rows), *inputs[1:])


def _to_outside(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.to(module.__dict__["_outside"]) if module.__dict__["_converts"] else output
