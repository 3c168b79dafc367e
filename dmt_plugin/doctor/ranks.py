"""The checks that several ranks make together, in one process per rank.

1. ``connect``: DeepSpeed's own way of connecting the ranks, with a time limit.
2. ``same versions``, ``topology``, ``links``, ``training``, each only if all before it went well on every rank.
3. At the end of each check the ranks tell each other how it went, so that all of them go on, or none. A rank that is
   stuck says nothing; the others then run into the limit of their own wait, which ends every wait of theirs too.

What comes out is the same on every rank that is not stuck: each check, folded over the ranks.

The engine, and DeepSpeed with it, is imported inside the checks that need it: where it cannot be imported, that is what
a check found, and not the end of the program.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from dmt_plugin.doctor import everyone, links, tiny
from dmt_plugin.doctor.check import Check, Finding, merged, ranks_in_words, run_limited, skipped
from dmt_plugin.topology.agreement import all_values
from dmt_plugin.topology.discovery import discover_topology
from dmt_plugin.topology.groups import RankGroups, create_groups
from dmt_plugin.topology.shape import ResolvedTopology, Topology

TOGETHER = ("same versions", "topology", "links", "training")


@dataclass
class Ranks:
    """What the checks of one rank hand on to each other.

    Attributes:
        rank: This rank.
        world_size: Ranks there are.
        limit_s: Time limit of a check, and of every wait in it.
        hosts: Hosts to play on one machine; None: what the launcher says.
    """

    rank: int
    world_size: int
    limit_s: float
    hosts: int | None = None
    resolved: ResolvedTopology | None = None
    groups: RankGroups | None = None

    def run(self, own: Sequence[Check], versions: Any) -> list[Check]:
        """All checks; ``own`` are those that this process has made by itself, and are folded over the ranks too.

        Args:
            own: Checks of this process, the same ones in the same order on every rank.
            versions: What has to be the same on every rank.
        """
        connected = run_limited(
            "connect",
            self.connect,
            self.limit_s,
            "see that every rank was started, and that MASTER_ADDR:MASTER_PORT can be reached from every host",
        )
        if connected.status == "fail":
            return [*own, connected, *(skipped(name, "connect") for name in TOGETHER)]
        steps: dict[str, Callable[[], Finding]] = {
            "same versions": lambda: self.same(versions),
            "topology": self.topology,
            "links": self.links,
            "training": self.training,
        }
        folded = [self._folded(check) for check in (*own, connected)]
        failed = next((check.name for check in folded if check.status == "fail"), None)
        for name, step in steps.items():
            if failed is not None:
                folded.append(skipped(name, failed))
                continue
            folded.append(self._folded(run_limited(name, step, self.limit_s)))
            if folded[-1].status == "fail":
                failed = name
        return folded

    def _folded(self, mine: Check) -> Check:
        """The check of every rank as one; itself limited, as the other ranks may be stuck."""
        if mine.stuck:
            return mine
        told: list[Check] = []

        def tell() -> Finding:
            told.append(merged(self.gather(mine)))
            return Finding("")

        telling = run_limited(mine.name, tell, self.limit_s)
        if told:
            return told[0]
        if mine.status == "fail":
            return mine
        finding = Finding(
            f"rank {self.rank} is done with it, but another rank does not answer",
            "fail",
            "every rank",
            "look at what the other ranks say",
        )
        return Check(mine.name, finding, mine.seconds + telling.seconds, telling.stuck)

    def connect(self) -> Finding:
        """All ranks meet."""
        from deepspeed.accelerator import get_accelerator
        from deepspeed.constants import TORCH_DISTRIBUTED_DEFAULT_PORT

        from dmt_plugin.integrations.deepspeed.connect import connect, select_device

        connect(TORCH_DISTRIBUTED_DEFAULT_PORT, None, self.limit_s)
        select_device(None)
        rank, world_size = dist.get_rank(), dist.get_world_size()
        if (rank, world_size) != (self.rank, self.world_size):
            return Finding(
                f"rank {rank} of {world_size}", "fail", f"rank {self.rank} of {self.world_size}, as the launcher says"
            )
        dist.barrier()
        get_accelerator().synchronize()
        return Finding(f"{world_size} ranks with {dist.get_backend()}")

    def same(self, versions: Any) -> Finding:
        """Every rank runs the same versions."""
        by_rank = self.gather(versions)
        others = [rank for rank, one in enumerate(by_rank) if one != by_rank[0]]
        if not others:
            return Finding(f"the same on all {len(by_rank)} ranks")
        unlike = by_rank[others[0]]
        apart = [f"{k} {unlike.get(k)} (rank 0: {v})" for k, v in by_rank[0].items() if unlike.get(k) != v]
        return Finding(
            f"{ranks_in_words(others)}: {', '.join(apart)}",
            "fail",
            "the same versions on every rank",
            "install the same environment on every host",
        )

    def topology(self) -> Finding:
        """Hosts and lanes, their source, and the machines behind them."""
        self.resolved = discover_topology(hosts="auto" if self.hosts is None else self.hosts)
        found = self.resolved.topology
        self.groups = create_groups(found, timeout_s=self.limit_s)
        names = self.gather(socket.gethostname())
        machines = [sorted({names[r] for r in found.lanes_of(found.rank_of(h, 0))}) for h in range(found.hosts)]
        words = f"{found} (hosts x ranks per host), by {self.resolved.source}; {_machines(machines)}"
        data = {"hosts": found.hosts, "ranks_per_host": found.ranks_per_host, "machines": machines}
        torn = [str(host) for host, of in enumerate(machines) if len(of) > 1]
        if torn:
            return Finding(
                words,
                "warn",
                f"one machine for each host; host {', '.join(torn)} has several",
                "set dmt.topology.hosts to the number of machines, or mend the hostfile",
                data,
            )
        if found.hosts == 1:
            return Finding(words + "; one host: nothing to keep inside it", data=data)
        return Finding(words, data=data)

    def links(self) -> Finding:
        """Latency and bandwidth inside hosts and between them, and of all ranks at once."""
        from deepspeed.accelerator import get_accelerator

        assert self.groups is not None
        synchronize = get_accelerator().synchronize
        kinds = {}
        for where, name in (("inside hosts", "lanes"), ("between hosts", "peers")):
            kinds[where] = links.summed_up(self.gather(links.measure(self.groups, name, synchronize)))
        of_all = self.gather(everyone.measure_everyone(self.groups, synchronize))
        return links.judged(kinds, everyone.everyone_of(of_all, self.groups.topology))

    def training(self) -> Finding:
        """A tiny model, rewritten and trained, beside one process."""
        from dmt_plugin.integrations.deepspeed.initialize import initialize

        assert self.groups is not None and self.resolved is not None
        shape: Topology = self.resolved.topology

        def mean(value: float) -> float:
            return sum(self.gather(value)) / self.world_size

        run = (initialize, shape, self.rank, self.limit_s, mean)
        preserving = tiny.placed_losses({"module": "none"}, *run)
        with_towers = tiny.placed_losses({"module": "dlrm", "dim": 4}, *run)
        return tiny.judged(tiny.flat_losses(shape), preserving, with_towers)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        return all_values(value)


def _machines(machines: list[list[str]]) -> str:
    shown = [f"host {host}: {', '.join(names)}" for host, names in enumerate(machines[:8])]
    return "; ".join(shown) + ("; ..." if len(machines) > 8 else "")
