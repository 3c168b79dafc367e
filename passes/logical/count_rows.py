"""Finds out how many of the rows that a batch looks up are distinct, before anything is placed.

The first of these that knows it says it:

1. the plan, or the partition, that was given; a checkpoint's plan is taken as it is, with counts or without, so that a
   run that goes on places as the one before;
2. the file of ``dmt.comm.dedup_shares``;
3. the caller, by counts on which all ranks have agreed, or by data: they are counted here.

Nothing is counted, read or kept where no row could travel once. Tables that rows by id are read from are left out:
there is nothing to decide for them.
"""

from __future__ import annotations

from dmt_plugin.core.errors import ConfigError, PlanError
from dmt_plugin.partitioner.files import GivenPartition
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.placement.read_ids import count_shares
from dmt_plugin.plan.file import read_json
from dmt_plugin.plan.row_shares import RowShares


class CountRows(GraphPass):
    """See the module's docstring."""

    name = "count_rows"
    contract = Contract(provides=frozenset({"row_shares"}), requires=frozenset({"lookups", "groups"}))

    def run(self, ctx: PassContext) -> PassResult:
        """Fills ``ctx.row_shares``."""
        ctx.row_shares = self._found(ctx)
        if ctx.row_shares is None:
            return self.result(0)
        return self.result(len(ctx.row_shares.tables), note=f"{ctx.row_shares.steps} step(s)")

    def _found(self, ctx: PassContext) -> RowShares | None:
        if not ctx.config.comm.may_travel_once(ctx.topology.by_machine.hosts, ctx.topology.world_size):
            return None
        shares, certain = known_shares(ctx.config.comm.dedup_shares, ctx.given)
        if shares is None and not certain:
            shares = ctx.row_shares
            if shares is None and ctx.data is not None:
                lanes = ctx.topology.by_machine.ranks_per_host
                shares = count_shares(ctx.gm, ctx.captured.binder, ctx.facts.by_sample, ctx.data, lanes)
        if shares is not None:
            _check(shares, {lookup.table for lookup in ctx.facts.lookups} - ctx.facts.tables_by_id)
        return shares


def known_shares(file: str | None, given: GivenPartition | None) -> tuple[RowShares | None, bool]:
    """What a plan or a file says; and whether no more may be known than that.

    Args:
        file: ``dmt.comm.dedup_shares``.
        given: the plan or partition that was given.

    Raises:
        PlanError, ConfigError: they do not hold what they should.
    """
    if given is not None and given.data.get("row_shares") is not None:
        return RowShares.from_dict(given.data["row_shares"]), True
    if given is not None and given.resumed:
        return None, True
    return (None, False) if file is None else (_of_file(file), True)


def _of_file(file: str) -> RowShares:
    """The counts in a file of their own, or in a plan or partition."""
    try:
        data = read_json(file, "the key", "counts of distinct rows, or a plan or partition with such")
        return RowShares.from_dict(data.get("row_shares") or data)
    except PlanError as error:
        raise ConfigError(
            f'dmt.comm.dedup_shares: {error} "dmt explain --data ... --save-shares FILE" writes such a file.'
        ) from error


def _check(shares: RowShares, tables: set[str]) -> None:
    """Refuses counts of another model."""
    if missing := sorted(tables - {own.table for own in shares.tables}):
        raise ConfigError(
            f"the distinct rows from {shares.source} are not those of this model: they have no counts for the table(s) "
            f"{missing}, only for {sorted(own.table for own in shares.tables)}. Count again for this model "
            "(dmt explain --data), or remove dmt.comm.dedup_shares, or row_shares of the plan in dmt.partition.file."
        )
