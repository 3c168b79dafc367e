"""Forms tower groups of features whose towers give the streams back in their old shapes.

Where the model behind a group gets streams of the old shapes, from a decoder or from tower
modules that keep number and width, it does not matter what uses them: pairs listed with
repeats, slices, chunks, the model's results. So the streams that no regular group took are
grouped again:

1. A stream takes part if it is one vector per sample of width above 1, is used, and is
   computed from its own lookups alone (streams of one tower are packed before any of them
   is used).
2. Streams of one width go together, those that the user marked as a group by themselves. A
   group has one stream per feature: where a feature has several (one table per partner field,
   say), the first ones form one group, the second ones the next.
3. A group of fewer than three streams has nothing to compress; its streams move as they are.
"""

from __future__ import annotations

from collections import Counter

from torch import fx

from dmt_plugin.config.section import DMTConfig
from dmt_plugin.passes.analysis.marked_names import group_name
from dmt_plugin.passes.base import PassContext

#: Positions in the list of leading lookups (one per stream), and what keeps them from being a regular group.
Members = tuple[list[int], str]

FEWEST = 3
"""Streams below which there is nothing to compress."""


def fallback_form(config: DMTConfig) -> str:
    """What becomes of groups whose joins cannot take other streams: a form of the plan, or ``""`` for none."""
    if config.towers.module in ("none", "preserve"):
        return config.towers.module.replace("none", "")
    chosen = config.transform.on_unsupported
    return chosen if chosen in ("decoder", "preserve") else ""


def gather(ctx: PassContext, streams: list[fx.Node], irregular: list[Members]) -> tuple[list[Members], list[Members]]:
    """Forms groups of the streams of ``irregular``.

    Args:
        ctx: the context, with lookups.
        streams: the stream of each leading lookup.
        irregular: members of what is not a regular group, with the reason.

    Returns:
        The groups that can keep their shapes, and what is left; both with reasons.
    """
    lookups = ctx.facts.leading()
    alone = computed_alone(ctx)
    buckets: dict[tuple[str, int, int], list[int]] = {}
    met: Counter[str] = Counter()
    for i in sorted(i for members, _ in irregular for i in members):
        value = streams[i].meta["val"]
        width = int(value.shape[-1])
        if width == 1 or not alone[streams[i]] or tuple(value.shape[1:]) not in ((width,), (1, width)):
            continue
        mark = group_name(ctx, lookups[i].node) or ""
        seen = f"{mark} {width} {lookups[i].feature}"
        buckets.setdefault((mark, width, met[seen]), []).append(i)
        met[seen] += 1
    groups = [(members, _reason(members, irregular)) for members in buckets.values() if len(members) >= FEWEST]
    taken = {i for members, _ in groups for i in members}
    left = []
    for members, reason in irregular:
        rest = [i for i in members if i not in taken]
        dependent = [lookups[i].table for i in rest if not alone[streams[i]]]
        if dependent:
            reason = f"the vectors of {dependent[0]} are computed from those of other tables as well"
        if rest:
            left.append((rest, reason))
    return groups, left


def _reason(members: list[int], irregular: list[Members]) -> str:
    behind = [(own, reason) for own, reason in irregular if set(own) & set(members)]
    if len(behind) == 1:
        return behind[0][1]
    return f"its features are used in {len(behind)} different ways, not by joins that hold all of them"


def computed_alone(ctx: PassContext) -> dict[fx.Node, bool]:
    """For each stream whether it is computed from no lookup but its own."""
    bits = {lookup.node: 1 << i for i, lookup in enumerate(ctx.facts.lookups)}
    own: Counter[fx.Node] = Counter()
    for lookup in ctx.facts.lookups:
        own[ctx.facts.stream_of(lookup)] |= bits[lookup.node]
    behind: dict[fx.Node, int] = {}
    for node in ctx.gm.graph.nodes:
        behind[node] = bits.get(node, 0)
        for source in node.all_input_nodes:
            behind[node] |= behind[source]
    return {stream: behind[stream] == own[stream] for stream in own}
