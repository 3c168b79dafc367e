"""Where tables are, in words."""

from __future__ import annotations

from dmt_plugin.plan.tower_plan import TowerPlan


def place_of(plan: TowerPlan, table: str) -> str:
    """Host and lanes of a table, such as ``"host 1, lane 0"`` or ``"rows modulo 4 on 4 ranks"``.

    Args:
        plan: where tables are.
        table: its name.
    """
    shards, kind = plan.shards_of(table), plan.kind_of(table)
    hosts = sorted({shard.host for shard in shards})
    lanes = ", ".join(str(shard.lane) for shard in shards)
    modulo = f"rows modulo {shards[0].step}" if shards[0].step > 1 else kind
    if len(hosts) > 1:
        return f"{modulo} on {len(shards)} ranks of hosts {', '.join(map(str, hosts))}"
    where = f"host {hosts[0]}, lane {lanes}"
    return where if kind == "table_wise" else f"{where}, {modulo}"


def lanes_in_tower(plan: TowerPlan, table: str) -> str:
    """The same beside the host of the table's tower: its lane, or ``rows 0+1``, ``columns 0+1`` for shards there."""
    shards, kind = plan.shards_of(table), plan.kind_of(table)
    lanes = "+".join(str(shard.lane) for shard in shards)
    if any(shard.host != plan.host_of_table(table) for shard in shards):
        return place_of(plan, table)
    if kind == "table_wise":
        return lanes
    modulo = f" modulo {shards[0].step}" if shards[0].step > 1 else ""
    return f"{kind.removesuffix('_wise')}s{modulo} {lanes}"
