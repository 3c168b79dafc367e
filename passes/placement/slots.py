"""Lists the id inputs that are exchanged (slots), and the lookups that one rank computes with them.

Every distinct index input of the model is one slot. A feature has several where its tables are
read by different functions of its raw input (quotient and remainder).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dmt_plugin.comm.input_dist import ids as id_readers
from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.nn.graph_ops import graph_function
from dmt_plugin.nn.lookup.site import LookupSite
from dmt_plugin.passes.facts import Ids, Lookup
from dmt_plugin.passes.placement.table_shards import SentShard
from dmt_plugin.plan.tower_plan import TowerPlan


def _reader(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a node of a graph. A pickled graph finds it by its name in this module: that one is wrapped."""
    wrapped = graph_function(function)
    wrapped.__module__ = __name__
    return wrapped


ids_by_themselves = _reader(id_readers.ids_by_themselves)
ids_from_embedding = _reader(id_readers.ids_from_embedding)
ids_from_column = _reader(id_readers.ids_from_column)
ids_from_bag_2d = _reader(id_readers.ids_from_bag_2d)
ids_from_bag_offsets = _reader(id_readers.ids_from_bag_offsets)

READERS = {
    f.__name__: f
    for f in (ids_by_themselves, ids_from_embedding, ids_from_column, ids_from_bag_2d, ids_from_bag_offsets)
}
"""The functions that a graph calls to read the ids of a slot."""


def slots_of(lookups: Sequence[Lookup], plan: TowerPlan) -> dict[str, tuple[IdSlot, Ids]]:
    """The slots by the key of their ids, in the order of the plan's features, and how each is read."""
    position = {feature.name: i for i, feature in enumerate(plan.features)}
    by_key: dict[str, list[Lookup]] = {}
    for lookup in sorted(lookups, key=lambda x: position[x.feature]):
        by_key.setdefault(lookup.key, []).append(lookup)
    used: Counter[str] = Counter()
    slots: dict[str, tuple[IdSlot, Ids]] = {}
    for key, own in by_key.items():
        first = own[0]
        used[first.feature] += 1
        count = used[first.feature]
        slot = IdSlot(
            name=first.feature if count == 1 else f"{first.feature}/{count}",
            rows=min(x.rows for x in own),
            hotness=first.hotness,
            weighted=first.weighted,
            host=plan.host_of_table(first.table),
            lanes=tuple(sorted({lane for x in own for lane in plan.lanes_of(x.table)})),
            by_id=first.by_id,
        )
        slots[key] = (slot, first.ids)
    return slots


def sites_of(shards: Sequence[SentShard], slot_by_key: Mapping[str, int]) -> tuple[LookupSite, ...]:
    """What a rank looks up in its shards of tables: a sequence is one site per position."""
    sites: list[LookupSite] = []
    for sent in shards:
        x, shard = sent.value.lookup, sent.shard
        site = LookupSite(
            x.node.name, shard.name, slot_by_key[x.key], shard.rows, shard.columns, x.pooling, x.weighted,
            first_row=shard.first_row if shard.kind == "row_wise" else None, step=shard.step,
        )  # fmt: skip
        if x.pooling != "none":
            sites.append(site)
            continue
        sites.extend(
            replace(site, name=f"{site.name}[{j}]", pooling="sum", weighted=False, position=j, padding=x.padding)
            for j in range(x.hotness or 0)
        )
    return tuple(sites)
