"""The registry of operations: one entry per operation or group of them, and the functions that make an entry.

An entry has names of functions and methods, or types of layers, and a description
(:class:`dmt_plugin.passes.ops.dims.Dims`) from which three answers follow: what becomes of changed dimensions, which
inputs decide a size, and whether samples stay apart. An answer is given apart only where an operation needs it. What
an entry neither describes nor answers is refused, as is an operation without an entry.

:func:`op` and :func:`layer` decorate a description; :func:`op_by_rules` and :func:`layer_by_rules` enter what has none,
with its answers. Each family of operations has a file in this package, which makes its entries when it is imported:

=================  ==================================================================================================
``pointwise``      arithmetic, activations, conversions, softmax, masks and weights
``products``       ``matmul``, ``einsum``, ``linear`` and layers that multiply
``reductions``     sums, means, norms over dimensions
``norms``          normalisation layers and functions, ``prelu``
``attention``      attention, encoder and recurrent layers
``joins``          ``cat``, ``stack``
``splits``         ``split``, ``chunk``, ``max`` with a dimension: several results
``views``          ``view``, ``reshape``, ``flatten``
``transposes``     ``transpose``, ``permute``
``indexing``       ``getitem``, ``select``, ``narrow``, ``index_select``, ``flip``
``repeats``        ``expand``, ``repeat``; tensors filled with one value or at random
``triangles``      ``triu_indices``, ``tril_indices``
``shapes``         numbers read from shapes
=================  ==================================================================================================

:mod:`dmt_plugin.passes.ops.queries` imports them all, and is what other packages ask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import fx, nn

from dmt_plugin.passes.ops.axes import Axes
from dmt_plugin.passes.ops.dims import Asked, Dims
from dmt_plugin.passes.ops.walk import Rule, Walk

Trait = Literal["scales", "keeps_ids", "reads_first", "reads_no_values", "multiplies", "gives_sizes"]
"""What else is known of an operation:

* ``scales``: a number among its arguments multiplies, divides or is a power;
* ``keeps_ids``: of ids it makes other ids of the same raw input;
* ``reads_first``: of inputs behind the first it reads only shape, type or device;
* ``reads_no_values``: the values of its inputs do not matter;
* ``multiplies``: it is a sum of products of its two factors, and nothing else;
* ``gives_sizes``: its result may be no tensor, and the entry knows of that.
"""

Description = Callable[[fx.Node], Dims | None]
LayerDescription = Callable[[fx.Node, Any], Dims | None]
Producers = Callable[[Walk, fx.Node, Axes], Asked]
Check = Callable[[fx.Node, int], bool]
LayerCheck = Callable[[Any, int], bool]
Described = TypeVar("Described", bound=Callable[..., Any])


@dataclass(frozen=True)
class Op:
    """What is known of one operation.

    Attributes:
        dims: the call in letters; ``None`` where letters do not describe it.
        forward: what becomes of changed dimensions, where that does not follow from ``dims``.
        several: the same, where the operation gives several tensors, or is given what gives several.
        producers: which inputs decide a size, where that does not follow from ``dims``.
        per_sample: ``(node, batch size)`` to whether samples stay apart, where that does not follow from ``dims``.
        traits: see :data:`Trait`.
    """

    dims: Description | None = None
    forward: Rule | None = None
    several: Rule | None = None
    producers: Producers | None = None
    per_sample: Check | None = None
    traits: frozenset[Trait] = frozenset()


@dataclass(frozen=True)
class Layer:
    """What is known of the layers of one kind.

    Attributes:
        kinds: types of layers.
        dims: a call in letters, given the layer.
        forward: as in :class:`Op`.
        producers: as in :class:`Op`.
        per_sample: ``(layer, rank of its input)`` to whether samples stay apart, where that does not follow.
        inherited: whether a layer of a derived class is one of these if, and only if, it has the very ``forward``.
    """

    kinds: tuple[type[nn.Module], ...]
    dims: LayerDescription | None = None
    forward: Rule | None = None
    producers: Producers | None = None
    per_sample: LayerCheck | None = None
    inherited: bool = False

    def covers(self, module: nn.Module) -> bool:
        """Whether a layer is one of these."""
        if self.inherited:
            return any(isinstance(module, k) and type(module).forward is k.forward for k in self.kinds)
        return isinstance(module, self.kinds)

    def computes(self, module: nn.Module) -> bool:
        """Whether a layer surely computes what these do."""
        return type(module) in self.kinds or (self.inherited and self.covers(module))


OPS: dict[str, Op] = {}
"""By plain name (:func:`dmt_plugin.passes.ops.names.name_of`)."""
LAYERS: list[Layer] = []


def op(*names: str, traits: tuple[Trait, ...] = (), **answers: Any) -> Callable[[Described], Described]:
    """Enters operations; decorates their description ``node -> Dims``.

    Args:
        names: plain names.
        traits: see :data:`Trait`.
        answers: what does not follow from the description; attributes of :class:`Op`.
    """

    def enter(dims: Described) -> Described:
        op_by_rules(*names, traits=traits, dims=dims, **answers)
        return dims

    return enter


def op_by_rules(*names: str, traits: tuple[Trait, ...] = (), **answers: Any) -> None:
    """Enters operations that letters do not describe, with the answers that are known."""
    for name in names:
        assert name not in OPS, f"the operation {name} is entered twice"
        OPS[name] = Op(traits=frozenset(traits), **answers)


def layer(*kinds: type[nn.Module], **answers: Any) -> Callable[[Described], Described]:
    """Enters layers; decorates their description ``(node, layer) -> Dims``."""

    def enter(dims: Described) -> Described:
        layer_by_rules(*kinds, dims=dims, **answers)
        return dims

    return enter


def layer_by_rules(*kinds: type[nn.Module], **answers: Any) -> None:
    """Enters layers that letters do not describe, with the answers that are known."""
    assert not any(kind in entry.kinds for entry in LAYERS for kind in kinds)
    LAYERS.append(Layer(kinds, **answers))


def layer_entry(module: nn.Module) -> Layer | None:
    """The entry of a layer."""
    return next((entry for entry in LAYERS if entry.covers(module)), None)


def never(node: Any, size: int) -> bool:
    """The answer of an operation that does not keep samples apart, or is not known to."""
    return False
