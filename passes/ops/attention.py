"""Torch's own layers over sequences: attention, encoder layers, recurrent layers.

1. Attention and encoder layers treat the vectors of a sequence alike, so the sequence may
   become longer or shorter: the axis of the features passes through. So does a batch.
2. Their width is tied to ``embed_dim`` in many places (heads, residuals): it must stay what
   it is. If its entries now mean something else, the whole layer is re-initialized.
3. A mask or a bias that counts the vectors is refused where their number or meaning changed.
4. A recurrent layer reads the features in their order, and a tower's outputs have none.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from dmt_plugin.fxtools.arguments import arguments
from dmt_plugin.passes.ops.axes import Axes, Axis, Unsupported
from dmt_plugin.passes.ops.names import shape_of
from dmt_plugin.passes.ops.registry import layer_by_rules
from dmt_plugin.passes.ops.walk import Walk


def attention(walk: Walk, node: fx.Node) -> tuple[Axes, ...]:
    """``nn.MultiheadAttention``: result ``(L, B, E)`` or ``(B, L, E)``, and weights ``(B, L, S)``, per head or not."""
    module = walk.gm.get_submodule(str(node.target))
    assert isinstance(module, nn.MultiheadAttention)
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
    call = arguments(node, *names)
    query, key, value = (call[name] for name in names[:3])
    rank = len(shape_of(query))
    length, batch = _places(rank, module.batch_first)
    axes = [walk.states[n].axes for n in (query, key, value)]
    _require_width(walk, node, [a.get(rank - 1) for a in axes], module.embed_dim, "embed_dim")
    if any(length in a for a in axes):
        _require_no_masks(call, ("key_padding_mask", "attn_mask"))
        if module.bias_k is not None or module.add_zero_attn:
            raise Unsupported("attends to one more vector than there are features (add_bias_kv or add_zero_attn)")
    keys = _shared(walk, {length: None, batch: None}, [key, value])
    batches = _shared(walk, {batch: None}, [query, key])
    own = {d: axis for d, axis in axes[0].items() if d != rank - 1} | batches
    result = own | ({rank - 1: Axis.of(module.embed_dim, module.embed_dim).anew()} if _anew(walk, node) else {})
    weights = node.meta["val"][1]
    if weights is None or weights.dim() < 2:  # not asked for; torch's fast path gives an empty tensor instead
        return result, {}
    last = weights.dim() - 1
    places = {last - 1: own.get(length), last: keys.get(length), 0: own.get(batch) if batch is not None else None}
    return result, {d: axis for d, axis in places.items() if axis is not None}


def encoder(walk: Walk, node: fx.Node) -> Axes:
    """``nn.TransformerEncoderLayer`` and stacks of it: ``(B, L, E)`` or ``(L, B, E)`` in and out."""
    module = walk.gm.get_submodule(str(node.target))
    layers: list[Any] = list(module.layers) if isinstance(module, nn.TransformerEncoder) else [module]
    if not layers or any(type(each).forward is not nn.TransformerEncoderLayer.forward for each in layers):
        raise Unsupported(f"call_module {node.target} is not known to the shape repair")
    layer = layers[0]
    names = ("src", "mask" if isinstance(module, nn.TransformerEncoder) else "src_mask", "src_key_padding_mask")
    call = arguments(node, *names)
    source = call["src"]
    rank = len(shape_of(source))
    length, _ = _places(rank, layer.self_attn.batch_first)
    axes = walk.states[source].axes
    _require_width(walk, node, [axes.get(rank - 1)], layer.self_attn.embed_dim, "d_model")
    if length in axes:
        _require_no_masks(call, names[1:])
    return axes | ({rank - 1: axes[rank - 1].anew()} if rank - 1 in axes else {})


def recurrent(walk: Walk, node: fx.Node) -> Axes:
    """``nn.RNN``, ``nn.GRU``, ``nn.LSTM``."""
    raise Unsupported(
        "reads the features one after the other, in an order that the outputs of towers do not have; let it read "
        "features that do not go through towers, or set dmt.towers.module to none"
    )


layer_by_rules(nn.RNNBase, forward=recurrent)
layer_by_rules(nn.MultiheadAttention, forward=attention, inherited=True)
layer_by_rules(nn.TransformerEncoderLayer, nn.TransformerEncoder, forward=encoder, inherited=True)


def _places(rank: int, batch_first: bool) -> tuple[int, int | None]:
    """The dimensions of the sequence and of the batch."""
    if rank == 2:
        return 0, None
    return (1, 0) if batch_first else (0, 1)


def _require_width(walk: Walk, node: fx.Node, widths: list[Axis | None], size: int, name: str) -> None:
    """The width must stay; the layer is noted, to be re-initialized if its entries are others."""
    changed = [axis for axis in widths if axis is not None]
    for axis in changed:
        if axis.new != axis.old:
            raise Unsupported(
                f"its {name} is {size}, and all it is made of is tied to that, so streams of width {axis.new} do not "
                f"fit; set dmt.towers.dim to {axis.old}"
            )
    walk.note_input(node, changed[0] if changed else None)


def _anew(walk: Walk, node: fx.Node) -> bool:
    return any(walk.inputs[str(node.target)])


def _require_no_masks(call: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if call.get(name) is not None:
            raise Unsupported(f"its {name} counts features, whose number or meaning changed")


def _shared(walk: Walk, dims: dict[int | None, None], sources: list[fx.Node]) -> Axes:
    """Axes of dimensions that several inputs must have in common; who lacks one is asked for it."""
    found: Axes = {}
    for source in sources:
        for d, axis in walk.states[source].axes.items():
            if d in dims:
                found[d] = found[d].with_layout_of(axis) if d in found else axis
    for source in sources:
        if missing := walk.states[source].lacks(found):
            walk.impose(source, missing)
    return found
