"""Which ids travel, and what is looked up with them: id streams of a model, lookups of a rank.

Every distinct index input of the model is one slot. A feature has several where its tables are
read by different functions of its raw input (quotient and remainder).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from dmt_plugin.comm import ids as id_readers
from dmt_plugin.comm.ids import IdSlot
from dmt_plugin.nn.graph_ops import graph_function
from dmt_plugin.nn.lookup import LookupSite
from dmt_plugin.passes.base import Ids, Lookup
from dmt_plugin.plan import TowerPlan

#: The functions that a graph calls to read the ids of a slot.
READERS = {
    name: graph_function(getattr(id_readers, name))
    for name in ("ids_from_embedding", "ids_from_column", "ids_from_bag_2d", "ids_from_bag_offsets")
}


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
        owners = [plan.owner_of(x.table) for x in own]
        slot = IdSlot(
            name=first.feature if count == 1 else f"{first.feature}/{count}",
            rows=min(x.rows for x in own),
            hotness=first.hotness,
            weighted=first.weighted,
            host=owners[0][0],
            lanes=tuple(sorted({lane for _, lane in owners})),
        )
        slots[key] = (slot, first.ids)
    return slots


def sites_of(lookups: Sequence[Lookup], slot_by_key: Mapping[str, int]) -> tuple[LookupSite, ...]:
    """What the owner of some tables looks up: a sequence is one site per position."""
    sites: list[LookupSite] = []
    for x in lookups:
        name, slot = x.node.name, slot_by_key[x.key]
        if x.pooling != "none":
            sites.append(LookupSite(name, x.table, slot, x.rows, x.dim, x.pooling, x.weighted))
            continue
        sites.extend(
            LookupSite(f"{name}[{j}]", x.table, slot, x.rows, x.dim, "sum", False, position=j, padding=x.padding)
            for j in range(x.hotness or 0)
        )
    return tuple(sites)
