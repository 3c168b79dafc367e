"""Names of features and groups that the user's markers give to the lookups under them.

A marker (:func:`dmt_plugin.mark_embeddings`) was read as the embedding calls that feed the marked streams. A lookup is
one such call, or one field of a joint table's: it has the name that all marks over it agree on, or none.
"""

from __future__ import annotations

import operator

from torch import fx

from dmt_plugin.nn.graph_ops import field_streams
from dmt_plugin.passes.base import PassContext


def feature_name(ctx: PassContext, lookup: fx.Node) -> str | None:
    """What the user's markers call the feature that ``lookup`` reads.

    Args:
        ctx: after :class:`dmt_plugin.passes.logical.read_marks.ReadMarks`.
        lookup: the node of a lookup: an embedding call, or one field of a joint table's.

    Returns:
        The key, or ``None`` if no marked stream with a key, or more than one key, is computed from the lookup.
    """
    call, field = _call_and_field(lookup)
    found = set()
    for mark in ctx.marks:
        for i, sources in enumerate(mark.sources):
            if mark.joint and mark.keys and field is not None and {(call, None), (call, field)} & sources:
                found.add(mark.keys[field])
            elif not mark.joint and mark.keys and (call, field) in sources:
                found.add(mark.keys[i])
    return found.pop() if len(found) == 1 else None


def group_name(ctx: PassContext, lookup: fx.Node) -> str | None:
    """The name of the marked group that ``lookup`` feeds; ``None`` if it feeds none or several."""
    call, field = _call_and_field(lookup)
    found = {m.name for m in ctx.marks if any({(call, None), (call, field)} & sources for sources in m.sources)}
    return found.pop() if len(found) == 1 else None


def _call_and_field(lookup: fx.Node) -> tuple[fx.Node, int | None]:
    cut = lookup.args[0] if lookup.target is operator.getitem else None
    if isinstance(cut, fx.Node) and cut.target is field_streams:
        call, field = cut.args[0], lookup.args[1]
        assert isinstance(call, fx.Node) and isinstance(field, int)
        return call, field
    return lookup, None
