"""The questions that passes ask the registry about the operation or layer of a graph node.

1. :func:`rule_of`: what the operation does to changed dimensions.
2. :func:`producers`: which inputs decide the sizes of its result; :func:`own_dims`: which of them it decides itself.
3. :func:`samples_stay_apart`: whether each sample's part of the result depends on that sample's inputs only.
4. :func:`has_trait`: the rest.

Each answer follows from the operation's description unless its entry gives it apart
(:mod:`dmt_plugin.passes.ops.registry`). An operation without an entry is refused, never guessed.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from dmt_plugin.passes.ops import (  # noqa: F401 (each enters its operations when it is imported)
    attention,
    indexing,
    joins,
    norms,
    pointwise,
    products,
    reductions,
    repeats,
    shapes,
    splits,
    transposes,
    triangles,
    views,
)
from dmt_plugin.passes.ops.axes import Axes, Unsupported
from dmt_plugin.passes.ops.dims import Asked, Dims, asked_of, follow, is_tensor, keeps_samples_apart
from dmt_plugin.passes.ops.names import name_of, shape_of, tensor_inputs
from dmt_plugin.passes.ops.registry import OPS, Layer, Op, Trait, layer_entry
from dmt_plugin.passes.ops.shapes import evaluated_again, free_of_batch
from dmt_plugin.passes.ops.splits import in_pieces
from dmt_plugin.passes.ops.walk import Rule, Walk


def entry_of(gm: fx.GraphModule, node: fx.Node) -> Op | Layer | None:
    """The entry of the operation or layer that a node calls."""
    if node.op == "call_module":
        return layer_entry(gm.get_submodule(str(node.target)))
    return OPS.get(name_of(node))


def has_trait(node: fx.Node, trait: Trait) -> bool:
    """Whether the function or method that a node calls has a trait."""
    entry = OPS.get(name_of(node))
    return entry is not None and trait in entry.traits


def dims_of(gm: fx.GraphModule, node: fx.Node) -> Dims | None:
    """A call in letters; ``None`` if it is not described.

    Raises:
        Unsupported: its arguments do not say it with certainty.
    """
    entry = entry_of(gm, node)
    if entry is None or entry.dims is None:
        return None
    return entry.dims(node, gm.get_submodule(str(node.target))) if isinstance(entry, Layer) else entry.dims(node)


def rule_of(walk: Walk, node: fx.Node) -> Rule | None:
    """What the operation does to changed dimensions, or ``None`` if that is not known."""
    entry = entry_of(walk.gm, node)
    if isinstance(entry, Op) or entry is None:
        if node.op != "call_module" and in_pieces(node):
            return entry.several if entry is not None else None
        if not isinstance(node.meta.get("val"), Tensor) and not (entry and "gives_sizes" in entry.traits):
            return evaluated_again if node.op != "call_module" and not tensor_inputs(node) else None
    if entry is None:
        return None
    return entry.forward or (_follow if entry.dims is not None else None)


def _follow(walk: Walk, node: fx.Node) -> Axes:
    dims = dims_of(walk.gm, node)
    assert dims is not None
    return follow(walk, node, dims)


def producers(walk: Walk, node: fx.Node, wanted: Axes) -> Asked:
    """Which inputs decide the sizes of a node, and what each must give for the node to give ``wanted``.

    Raises:
        Unsupported: the operation's arguments do not say it, or a view does not cut the dimension at its vectors.
    """
    entry = entry_of(walk.gm, node)
    if entry is not None and entry.producers is not None:
        return entry.producers(walk, node, wanted)
    dims = dims_of(walk.gm, node)
    return [] if dims is None else asked_of(dims, wanted)


def own_dims(gm: fx.GraphModule, node: fx.Node) -> list[int]:
    """Dimensions of a node's result whose size its operation decides, and may decide otherwise."""
    entry = entry_of(gm, node)
    if entry is None or entry.dims is None:
        return []
    try:
        dims = dims_of(gm, node)
    except Unsupported:
        return []
    return [] if dims is None else [d for d, token in enumerate(dims.result) if token in dims.own]


def why_fixed(gm: fx.GraphModule, node: fx.Node, wanted: int) -> str:
    """Why what produces a node cannot be given a wanted size in one of its dimensions."""
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or name_of(node) in ("embedding", "embedding_bag"):
        width = shape_of(node)[-1]
        way_out = f"; set dmt.towers.dim to {width}" if wanted != width else ""
        return f"it is a lookup that does not go through these towers, whose table keeps its width{way_out}"
    if name_of(node) in joins.JOINS:
        return "which of the parts joined there should change is not known"
    return "nothing that produces it can be resized"


def samples_stay_apart(gm: fx.GraphModule, node: fx.Node, batch: int) -> bool:
    """Whether each sample's part of the result depends on that sample's part of the inputs only.

    Asked of a call whose result and tensors, but for parameters and buffers, have the batch in front.

    Args:
        gm: holds the layers.
        node: the call.
        batch: batch size of the example values.
    """
    entry = entry_of(gm, node)
    if isinstance(entry, Layer):
        module = gm.get_submodule(str(node.target))
        if not entry.computes(module):
            return False
        if entry.per_sample is not None:
            return entry.per_sample(module, len(shape_of(node.all_input_nodes[0])))
    elif entry is not None and entry.per_sample is not None:
        return entry.per_sample(node, batch)
    if entry is None or not all(is_tensor(n) or free_of_batch(n) for n in node.all_input_nodes):
        return False
    try:
        dims = dims_of(gm, node)
    except Unsupported:
        return False
    return dims is not None and keeps_samples_apart(node, dims)
