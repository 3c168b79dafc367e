"""Finds out which groups of features the model behind the towers cannot take other streams of.

Where groups may go another way, an operation that cannot follow new streams costs only the groups to blame for it:

1. Walk the graph with the new streams of all native groups. Where an operation refuses, the groups whose streams reach
   it are suspects.
2. It is the first of them without whose new streams the operation no longer refuses. If none is that by itself, it is
   all of them, but for those that can stay all the same.
3. Those groups get their old streams back, and the graph is walked again, until nothing refuses or nobody is left to
   blame.

Only the walk is done again, not what made the graph: a model with a group per field would else be compiled once per
field.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx

from dmt_plugin.fxtools.names import SEED
from dmt_plugin.passes.base import Refusal
from dmt_plugin.passes.facts import NativeStreams
from dmt_plugin.passes.resize.sweep import Sweep, UnsupportedAt


class Trials:
    """Walks over one graph, each with the new streams of some groups.

    Args:
        gm: the graph with tower modules.
        native: the streams of its groups in the native form.

    Attributes:
        blocked: groups that keep their old streams, with the reason; filled by :meth:`around_refusals`.
    """

    def __init__(self, gm: fx.GraphModule, native: NativeStreams) -> None:
        self.blocked: dict[str, str] = {}
        self._gm = gm
        self._native = native
        self._values: dict[fx.Node, Any] = {}

    def walk(self, without: Collection[str] = ()) -> tuple[Sweep, Refusal | None]:
        """A walk with the old streams of the groups in ``without``, and what refused."""
        self._native.wire(without)
        sweep = Sweep(self._gm, self._values)
        try:
            sweep.run()
        except UnsupportedAt as error:
            groups = tuple(g for g in _groups_behind(error.node) if g not in without)
            reason = f"the model behind the towers cannot be adapted at this operation: {error.reason}"
            return sweep, Refusal(error.node.name, reason, groups)
        return sweep, None

    def around_refusals(self) -> tuple[Sweep, Refusal | None]:
        """The first walk that nothing refuses, with groups blocked; or a refusal for which nobody is left to blame."""
        sweep, refusal = self.walk()
        while refusal is not None and refusal.groups:
            guilty, sweep, behind = self._guilty(refusal)
            self.blocked |= dict.fromkeys(guilty, refusal.reason)
            refusal = behind
        return sweep, refusal

    def _guilty(self, refusal: Refusal) -> tuple[list[str], Sweep, Refusal | None]:
        """Which groups make an operation refuse, and the walk without them."""

        def without(groups: Collection[str]) -> tuple[bool, Sweep, Refusal | None]:
            sweep, found = self.walk({*self.blocked, *groups})
            return found is None or found.node != refusal.node, sweep, found

        able = list(refusal.groups)
        if len(able) > 1:
            for group in able:
                through, sweep, found = without([group])
                if through:
                    return [group], sweep, found
        through, sweep, found = without(able)
        guilty = able
        for group in reversed(able) if through and len(able) > 2 else ():
            fewer = [g for g in guilty if g != group]
            passes, other, behind = without(fewer)
            if passes:
                guilty, sweep, found = fewer, other, behind
        return guilty, sweep, found


def _groups_behind(node: fx.Node) -> list[str]:
    """Names of the groups whose streams reach a node.

    None may: a layer that it shares with other nodes would change, or something was asked of it from behind. Then those
    that reach the other calls of the layer, else all groups.
    """
    calls = [n for n in node.graph.nodes if n.op == node.op == "call_module" and n.target == node.target]
    seeds = sorted({str(n.meta[SEED][0]) for n in node.graph.nodes if SEED in n.meta})
    return _reaching([node]) or _reaching(calls) or seeds


def _reaching(nodes: list[fx.Node]) -> list[str]:
    pending, seen = list(nodes), set(nodes)
    found: set[str] = set()
    while pending:
        current = pending.pop()
        if SEED in current.meta:
            found.add(str(current.meta[SEED][0]))
        fresh = [n for n in current.all_input_nodes if n not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return sorted(found)
