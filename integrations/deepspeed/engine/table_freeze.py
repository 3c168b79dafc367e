"""Tables that are frozen, and trained again, while a run goes on.

1. ``engine.freeze_tables`` finds the tables of names and patterns, makes sure that all ranks mean the same, and tells
   their owners: from the next step on these tables get no update at all, neither gradient nor momentum nor decay. What
   their rule keeps for them waits, so that they can go on. Their gradients still travel; only a table that is frozen
   before ``initialize`` saves that too.
2. Which tables are frozen like this is in checkpoints. A load freezes them again; what is frozen already stays so.
3. ``requires_grad`` that the script changes in mid-run reaches neither tables nor the sums over ranks, which were laid
   out for what was trained at ``initialize``. It is an error at the next step. (The flat model's own tables refuse the
   change at once, see :mod:`dmt_plugin.tables.released`.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from dmt_plugin.checkpoint.names import logical_name
from dmt_plugin.config.lookup import matches, no_such_table
from dmt_plugin.core.errors import ConfigError, DMTError
from dmt_plugin.integrations.deepspeed.engine.state import DMTState
from dmt_plugin.topology.agreement import gather, together


class TableFreeze:
    """A call of :class:`DMTEngine`; all ranks make it together, between two steps."""

    dmt: DMTState

    def freeze_tables(self, names: str | Iterable[str], frozen: bool = True) -> list[str]:
        """Stop updating tables from the next step on, or go on with it.

        Args:
            names: Of tables, or of the parameters that hold them, or patterns of names (``*``, ``?``, ``[...]``).
            frozen: False: they are trained again, by what was kept for them.

        Returns:
            The tables that are frozen now, by name, without those that were frozen before ``initialize``.

        Raises:
            ConfigError: There is no such table, ranks ask for others, or a table that was frozen before ``initialize``
                is to be trained.
            DMTError: It was called within a step: gradients of micro-batches were collected.
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        dmt = self.dmt
        with together(dmt.groups, "freeze_tables"):
            if dmt.lookup.holds:
                raise DMTError(
                    "freeze_tables was called within a step, for which gradients of tables were collected; call it "
                    "behind an engine.step() that ended a step"
                )
            chosen = _chosen(dmt, [names] if isinstance(names, str) else list(names), frozen)
        _same(gather(dmt.groups, (chosen, bool(frozen)), "freeze_tables"))
        dmt.freeze(dmt.frozen | set(chosen) if frozen else dmt.frozen - set(chosen))
        return sorted(dmt.frozen)


def _chosen(dmt: DMTState, names: Sequence[str], frozen: bool) -> list[str]:
    tables = dmt.plan.tables
    for name in names:
        if not any(matches(name, table.name, table.parameter) for table in tables):
            raise ConfigError(f"freeze_tables({name!r}): {no_such_table(name, [table.name for table in tables])}")
    found = [t for t in tables if any(matches(name, t.name, t.parameter) for name in names)]
    never = [table.name for table in found if table.frozen]
    if never and not frozen:
        raise ConfigError(
            f"freeze_tables({list(names)}, frozen=False): {', '.join(never[:8])} had requires_grad = False before "
            "initialize, so that nothing is kept for an optimizer and no gradients are sent for it. Leave it True "
            "there, and freeze such tables with engine.freeze_tables"
        )
    return sorted(table.name for table in found if not table.frozen)


def _same(of_ranks: Sequence[tuple[list[str], bool]]) -> None:
    for rank, own in enumerate(of_ranks):
        if own != of_ranks[0]:
            raise ConfigError(
                f"freeze_tables must be called alike on all ranks: rank 0 asks for {of_ranks[0][0]}, frozen = "
                f"{of_ranks[0][1]}, and rank {rank} for {own[0]}, frozen = {own[1]}; nothing was changed"
            )


class GradientFlags:
    """Notes which parameters of a rank's model are trained, to find what the script changes of it.

    Args:
        model: the rank's model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._noted = [(name, parameter, parameter.requires_grad) for name, parameter in model.named_parameters()]

    def check(self) -> None:
        """Raises:
        ConfigError: ``requires_grad`` of a parameter has changed.
        """
        for name, parameter, trained in self._noted:
            if parameter.requires_grad != trained:
                raise ConfigError(
                    f"requires_grad of {logical_name(name)} was {trained} at initialize and is {not trained} now: "
                    "optimizer states and sums over ranks were laid out for what was trained then, and would go on. "
                    "Set it before dmt_plugin.initialize, or the learning rate of a parameter group to 0; to freeze "
                    "tables in mid-run call engine.freeze_tables(names)"
                )
