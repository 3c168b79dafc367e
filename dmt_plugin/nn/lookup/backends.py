"""FBGEMM or PyTorch: which backend looks up which table of a rank.

Each backend gives the columns of its own sites; :func:`column_runs` says how they are put in the order of all sites.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor

from dmt_plugin.core.update_rule import Rule
from dmt_plugin.nn.lookup.fbgemm import FbgemmTables, refusals
from dmt_plugin.nn.lookup.fbgemm_rules import why_not
from dmt_plugin.nn.lookup.plain_torch import TorchTables
from dmt_plugin.nn.lookup.rounding import Place
from dmt_plugin.nn.lookup.site import Fill, LookupSite, Pools, Tables

logger = logging.getLogger(__name__)

_NOT_INSTALLED = "fbgemm is not installed (extras: dmt-plugin[cpu] or [cuda])"


def check_location(location: str, device: torch.device, backends: Sequence[Tables]) -> None:
    """Tables are where they were asked to be, or it is an error."""
    if device.type == "cpu":
        if location.startswith("managed"):
            raise ValueError(
                f"dmt.lookup.location {location!r} is memory that an accelerator shares with the host, but these "
                'lookups run on the CPU, whose tables are in host memory anyway; use "auto" or "host"'
            )
        return
    on_torch = [table for tables in backends if isinstance(tables, TorchTables) for table in tables.tables]
    if on_torch and location in ("host", "managed", "managed_caching"):
        raise ValueError(
            f"dmt.lookup.location {location!r} is served by FBGEMM only, and {len(on_torch)} table(s) such as "
            f"'{on_torch[0]}' are looked up on PyTorch, in the memory of {device.type}; use \"auto\", or have FBGEMM "
            "serve them (dmt.lookup.backend)"
        )


def make_backends(
    sites: Sequence[LookupSite],
    weights: Mapping[str, Tensor | Fill],
    backend: str,
    rules: Mapping[str, Rule],
    location: str,
    device: torch.device,
    places: Mapping[str, Place] | None = None,
    seed: int = 0,
) -> list[Tables]:
    """One per group of tables that are served alike: FBGEMM's by pooling and rule, and PyTorch's.

    Args:
        sites: the lookups of this rank; may be empty.
        weights: ``(rows, dim)`` starting values by table, or what writes them.
        backend: ``"auto"``, ``"fbgemm"`` or ``"torch"``.
        rules: how each table is updated.
        location: memory that FBGEMM holds them in, one of ``dmt_plugin.nn.lookup.sharded.LOCATIONS``.
        device: of the computation.
        places: where in a parameter the rows and columns of a table are; by default, it is the parameter.
        seed: of stochastic rounding on PyTorch.

    Raises:
        ValueError: FBGEMM was asked for and cannot serve a table exactly.
        PairingError: it is installed, but cannot be loaded.
    """
    refused = on_torch(sites, backend, rules, device)
    alike: dict[tuple[str, Rule], list[LookupSite]] = {}
    for site in sites:
        if site.table not in refused:
            alike.setdefault((site.mode, rules[site.table]), []).append(site)
    backends: list[Tables] = [FbgemmTables(of, weights, rule, device, location) for (_, rule), of in alike.items()]
    rest = [site for site in sites if site.table in refused]
    if rest:
        backends.append(TorchTables(rest, weights, rules, device, places, seed, refused))
    return backends


def on_torch(
    sites: Sequence[LookupSite], backend: str, rules: Mapping[str, Rule], device: torch.device
) -> dict[str, str]:
    """The tables that PyTorch looks up, each with the reason: empty where it was asked for. FBGEMM has the others.

    Args:
        sites: lookups in the tables.
        backend: ``"auto"``, ``"fbgemm"`` or ``"torch"``.
        rules: how each table is updated.
        device: of the computation.

    Raises:
        ValueError: FBGEMM was asked for and cannot serve a table exactly.
        PairingError: it is installed, but cannot be loaded.
    """
    if backend == "torch":
        return {site.table: "" for site in sites}
    if backend == "auto" and find_spec("fbgemm_gpu") is None:
        refused = dict.fromkeys((site.table for site in sites), _NOT_INSTALLED)
    else:
        refused = refusals(sites, rules)
        wanted = {rules[s.table] for s in sites if s.table not in refused}
        tried = {rule: why_not(replace(rule, frozen=False), device) for rule in wanted}
        refused |= {site.table: why for site in sites if (why := tried.get(rules[site.table], ""))}
    if refused and backend == "fbgemm":
        table, reason = next(iter(refused.items()))
        raise ValueError(
            f"dmt.lookup.backend 'fbgemm' cannot serve table '{table}' exactly: {reason}; "
            "use 'auto', which looks it up on PyTorch"
        )
    if refused:
        why = "; ".join(f"'{table}': {reason}" for table, reason in refused.items())
        logger.info("tables looked up on PyTorch instead of FBGEMM: %s", why)
    return refused


def column_runs(sites: Sequence[LookupSite], backends: Sequence[Pools]) -> list[tuple[int, int, int]] | None:
    """Slices ``(backend, start, end)`` of the outputs that give the sites' order; None if it is there already."""
    place: dict[str, tuple[int, int]] = {}
    for b, tables in enumerate(backends):
        for site, start in zip(tables.sites, tables.columns, strict=True):
            place[site.name] = (b, start)
    runs: list[tuple[int, int, int]] = []
    for site in sites:
        b, start = place[site.name]
        if runs and runs[-1][0] == b and runs[-1][2] == start:
            runs[-1] = (b, runs[-1][1], start + site.dim)
        else:
            runs.append((b, start, start + site.dim))
    whole = len(backends) == 1 and len(runs) == 1 and runs[0][1] == 0
    padless = whole and all(site.dim % 4 == 0 or isinstance(backends[0], TorchTables) for site in sites)
    return None if padless else runs
