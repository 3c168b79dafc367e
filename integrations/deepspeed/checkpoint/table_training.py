"""What a checkpoint's manifest says of how tables were trained, and whether a run goes on with that.

| entry of ``training.tables`` | what |
|---|---|
| ``optimizer``, ``lr``, ``eps`` | of the rule that most tables have |
| ``rules`` | the name of the rule by table, where there is another one, or ``frozen``; else missing |
| ``frozen`` | tables that ``engine.freeze_tables`` has frozen, of which there is a state; else missing |
| ``steps`` | updates so far by table, of rules that count them; else missing |
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dmt_plugin.checkpoint.manifest import Manifest
from dmt_plugin.checkpoint.state import MODEL
from dmt_plugin.config.lookup import LookupConfig
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.integrations.deepspeed.engine.state import DMTState
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.plan.tower_plan import TableSpec, TowerPlan

logger = logging.getLogger(__name__)


def steps_of(lookup: ShardedLookup, plan: TowerPlan) -> dict[str, int]:
    """Updates so far of the tables of which this rank has a shard, where their rule counts them."""
    return {plan.shard(shard).table.name: count for shard, count in lookup.steps.items()}


def entry(
    lookup: LookupConfig, plan: TowerPlan, steps: Iterable[Mapping[str, int]], frozen: Iterable[str] = ()
) -> dict[str, Any]:
    """``training.tables`` of a manifest.

    Args:
        lookup: the "lookup" section.
        plan: all tables.
        steps: :func:`steps_of` every rank.
        frozen: tables that are frozen for the time being.
    """
    rules = {table.name: _rule(lookup, table) for table in plan.tables}
    trained = [rule for rule in rules.values() if not rule.frozen] or list(rules.values())
    frequent = Counter(trained).most_common(1)[0][0]
    said: dict[str, Any] = {"optimizer": frequent.said, "lr": frequent.lr, "eps": frequent.eps}
    others = {table: rule.said for table, rule in rules.items() if rule.said != frequent.said}
    said |= {"frozen": sorted(frozen)} if frozen else {}
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
        now = _rule(lookup, table).said
        if before != now:
            found.setdefault((before, now), []).append(table.name)
    return [_line(before, now, names, saved) for (before, now), names in found.items()]


def restore_frozen(dmt: DMTState, manifest: Manifest, where: str) -> None:
    """Freezes what ``engine.freeze_tables`` had frozen in the checkpoint's run; what is frozen here stays so."""
    here = {table.name for table in dmt.plan.tables}
    found = here.intersection(manifest.training["tables"].get("frozen", ()))
    dmt.freeze(dmt.frozen | found)
    if found and dmt.groups.rank == 0:
        logger.info("%s: tables that are frozen as they were in its run: %s", where, ", ".join(sorted(found)))


def restore_steps(lookup: ShardedLookup, plan: TowerPlan, manifest: Manifest) -> None:
    """Goes on counting updates where the checkpoint's run was."""
    steps = manifest.training["tables"].get("steps", {})
    lookup.set_steps({s: steps[name] for s in lookup.tables if (name := plan.shard(s).table.name) in steps})


def _rule(lookup: LookupConfig, table: TableSpec) -> Rule:
    return lookup.rule_of(table.name, table.parameter, table.dtype, table.frozen)


def _line(before: str, now: str, names: Sequence[str], saved: Mapping[str, Any]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    if now == "frozen":
        return (
            f"{len(names)} table(s) ({shown}) were trained by {before}, and are frozen now: what {before} keeps of "
            "them would be lost (to keep it, leave requires_grad as it was, load, and call "
            f"engine.freeze_tables({list(names[:3])}); load_optimizer_states=False begins without any state)"
        )
    if before == "frozen":
        return (
            f"{len(names)} table(s) ({shown}) were frozen, and would be trained by {now}, which has no state of them "
            "(requires_grad_(False) goes on as before; load_optimizer_states=False begins without any state)"
        )
    options = f', "lr": {saved["lr"]:g}, "eps": {saved["eps"]:g}' if before == saved["optimizer"] else ""
    return (
        f"{len(names)} table(s) ({shown}) were trained by {before}, and would be by {now} (to go on, set "
        f'"dmt": {{"lookup": {{"optimizer": "{before}"{options}}}}}; load_optimizer_states=False begins with {now})'
    )
