"""Groups features as a given plan does, where they would be joined in other groups today.

Which features meet is found on the graph, and the compiler has learned to see more: a join of joins is one join now,
what is cut out of a join is joins of its own. A plan that was made before groups the features of such a model in
another way, and so do the towers that were trained with it. They are still to be had, as long as every group of the
plan

1. is in the native form, and all of its features are in one regular group: some of what is joined together is joined
   together too, in the same order;
2. or gives the model streams of the old shapes, or only moves: then it does not matter what uses them.

A stream is known by its feature and its width. Where that leaves a choice, or a feature of the model over, nothing is
regrouped; :mod:`dmt_plugin.passes.logical.make_tower_plan` then says how plan and model differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import fx

from dmt_plugin.passes.base import PassContext
from dmt_plugin.passes.facts import Lookup
from dmt_plugin.passes.logical.gather_streams import computed_alone
from dmt_plugin.plan.tower_plan import GroupSpec

#: Positions in the list of leading lookups, the form of a tower group (empty for one that only moves), and the reason
#: why it is not a regular one.
Found = tuple[list[int], str, str]

_AS_PLANNED = "the plan says so"


def as_planned(ctx: PassContext, streams: Sequence[fx.Node], found: list[Found]) -> list[Found]:
    """The groups of the plan that was given, if there is one, and it has others than were ``found``.

    Args:
        ctx: the context, with lookups.
        streams: the stream of each leading lookup.
        found: what the graph says.

    Returns:
        ``found`` itself where the plan has these groups, or cannot have its own.
    """
    if ctx.given is None or not ctx.given.is_plan:
        return found
    lookups, groups = ctx.facts.leading(), ctx.given.plan.groups
    here = Counter(frozenset(lookups[i].feature for i in members) for members, _, _ in found)
    if here == Counter(frozenset(group.features) for group in groups):
        return found
    members = _members(groups, lookups, streams, found)
    if members is None:
        return found
    alone = computed_alone(ctx)
    regrouped: list[Found] = []
    for group, own in zip(groups, members, strict=True):
        if group.kind == "transport":
            regrouped.append((sorted(own), "", "the plan moves it as it is"))
        elif group.form == "native":
            regular = next(part for part, form, _ in found if form == "native" and own <= set(part))
            regrouped.append(([i for i in regular if i in own], "native", ""))
        elif all(alone[streams[i]] and _is_vector(streams[i], group.width) for i in own):
            regrouped.append((sorted(own), group.form, _AS_PLANNED))
        else:
            return found
    return regrouped


def _members(
    groups: Sequence[GroupSpec], lookups: Sequence[Lookup], streams: Sequence[fx.Node], found: Sequence[Found]
) -> list[set[int]] | None:
    """The lookups of each group; ``None`` if they are not all there, or not certain, or some are of no group."""
    free = {i for part, _, _ in found for i in part}
    regular = [set(part) for part, form, _ in found if form == "native"]
    members: dict[int, set[int]] = {}
    for number in sorted(range(len(groups)), key=lambda number: _latitude(groups[number])):
        group = groups[number]
        among = regular if _latitude(group) == 0 else [set(free)]
        choices = [own for part in among if (own := _those_of(group, part & free, lookups, streams))]
        if len(choices) != 1:
            return None
        members[number] = choices[0]
        free -= choices[0]
    return None if free else [members[number] for number in range(len(groups))]


def _latitude(group: GroupSpec) -> int:
    """How many lookups may be those of a group; the group with the fewest chooses first."""
    if group.kind == "tower":
        return 0 if group.form == "native" else 1
    return 2 if group.width else 3


def _those_of(
    group: GroupSpec, part: set[int], lookups: Sequence[Lookup], streams: Sequence[fx.Node]
) -> set[int] | None:
    """The one choice of ``part`` with the features and the width of a group; ``None`` if there is none, or several."""

    def fits(i: int) -> bool:
        if group.kind == "transport":
            return group.width in (0, lookups[i].dim)
        return int(streams[i].meta["val"].shape[-1]) == group.width

    own = {i for i in part if lookups[i].feature in group.features and fits(i)}
    return own if Counter(lookups[i].feature for i in own) == Counter(group.features) else None


def _is_vector(stream: fx.Node, width: int) -> bool:
    return tuple(stream.meta["val"].shape[1:]) in ((width,), (1, width))
