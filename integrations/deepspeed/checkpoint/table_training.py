"""What a checkpoint's manifest says of how tables were trained, and whether a run goes on with that.

| entry of ``training.tables`` | what |
|---|---|
| ``optimizer``, ``lr``, ``eps`` | of the rule that most tables have |
| ``rules`` | the name of the rule by table, where there is another one; else missing |
| ``steps`` | updates so far by table, of rules that count them; else missing |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dmt_plugin.checkpoint.manifest import Manifest
from dmt_plugin.checkpoint.state import MODEL
from dmt_plugin.config.lookup import LookupConfig
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.plan.tower_plan import TowerPlan


def steps_of(lookup: ShardedLookup, plan: TowerPlan) -> dict[str, int]:
    """Updates so far of the tables of which this rank has a shard, where their rule counts them."""
    return {plan.shard(shard).table.name: count for shard, count in lookup.steps.items()}


def entry(lookup: LookupConfig, plan: TowerPlan, steps: Iterable[Mapping[str, int]]) -> dict[str, Any]:
    """``training.tables`` of a manifest.

    Args:
        lookup: the "lookup" section.
        plan: all tables.
        steps: :func:`steps_of` every rank.
    """
    rules = {table.name: lookup.rule_of(table.name, table.parameter, table.dtype) for table in plan.tables}
    frequent = Counter(rules.values()).most_common(1)[0][0]
    said: dict[str, Any] = {"optimizer": frequent.name, "lr": frequent.lr, "eps": frequent.eps}
    others = {table: rule.name for table, rule in rules.items() if rule.name != frequent.name}
    counted = {table: count for of_rank in steps for table, count in of_rank.items()}
    return said | ({"rules": others} if others else {}) | ({"steps": dict(sorted(counted.items()))} if counted else {})


def problems(lookup: LookupConfig, plan: TowerPlan, manifest: Manifest) -> list[str]:
    """Tables that were trained by another rule than they would be now, in one line per pair of rules."""
    saved = manifest.training["tables"]
    found: dict[tuple[str, str], list[str]] = {}
    for table in plan.tables:
        if MODEL + table.parameter not in manifest.tensors:  # it is new
            continue
        before = saved.get("rules", {}).get(table.name, saved["optimizer"])
        now = lookup.rule_of(table.name, table.parameter).name
        if before != now:
            found.setdefault((before, now), []).append(table.name)
    return [_line(before, now, names, saved) for (before, now), names in found.items()]


def restore_steps(lookup: ShardedLookup, plan: TowerPlan, manifest: Manifest) -> None:
    """Goes on counting updates where the checkpoint's run was."""
    steps = manifest.training["tables"].get("steps", {})
    lookup.set_steps({s: steps[name] for s in lookup.tables if (name := plan.shard(s).table.name) in steps})


def _line(before: str, now: str, names: Sequence[str], saved: Mapping[str, Any]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    options = f', "lr": {saved["lr"]:g}, "eps": {saved["eps"]:g}' if before == saved["optimizer"] else ""
    return (
        f"{len(names)} table(s) ({shown}) were trained by {before}, and would be by {now} (to go on, set "
        f'"dmt": {{"lookup": {{"optimizer": "{before}"{options}}}}}; load_optimizer_states=False begins with {now})'
    )
