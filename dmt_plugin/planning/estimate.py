"""What a model would gain on a cluster: every way to run it, timed, and the best of them.

1. The model is captured once, and rewritten once for each way: flat, hierarchical (SPTT), with tower modules of several
   compression ratios, each with rows that travel once where it is known how many are distinct.
2. All choices are priced (:mod:`dmt_plugin.planning.candidates`); what does not fit the memory is left out.
3. Choices that leave the model as it is come first, by time. Those with tower modules come after, by compression ratio
   and not by time: a ratio costs quality, and no ratio is better for its time alone.
4. Those that are shown get a range: the time at the corners of what is not known.

It is an estimate: no plan file is made, and nothing is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from dmt_plugin.config.section import DMTConfig
from dmt_plugin.planner.cluster.cluster import Cluster
from dmt_plugin.planner.cluster.rates import World, corners
from dmt_plugin.planning import findings
from dmt_plugin.planning.candidates import Priced, Pricer, choices_of
from dmt_plugin.planning.distinct import SharesOf, Stated
from dmt_plugin.planning.outcome import Estimate
from dmt_plugin.planning.rows import row_of
from dmt_plugin.planning.variants import Rewriter
from dmt_plugin.planning.ways import Ways

RATIOS = (2, 4, 8)
SHOWN_EXACT, SHOWN_CHANGED = 6, 2
"""Rows of the exact group, and of each compression ratio."""


class Planner:
    """Estimates one model on clusters; it is captured once.

    Args:
        model: the user's model; its weights may be on the meta device, and are not read.
        batch: one call of it.
        config: the ``"dmt"`` section that every way begins with.
        ds_config: the DeepSpeed configuration around it.
        shares: how many rows are distinct: counted, by samples per rank and ranks per host, or stated; None: nobody
            knows.
        ratios: compression ratios of tower modules.
        towers: kinds of tower modules, as ``dmt.towers.module`` names them.

    Raises:
        CaptureError: the model cannot be captured.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        config: DMTConfig | None = None,
        ds_config: Mapping[str, Any] | None = None,
        *,
        shares: SharesOf | Stated | None = None,
        ratios: Sequence[int] = RATIOS,
        towers: Sequence[str] = ("dlrm",),
    ) -> None:
        section, self._ds_config = config or DMTConfig(), ds_config or {}
        rewriter = Rewriter(model, batch, section, self._ds_config)
        self._ways = Ways(rewriter, section, shares, ratios, towers)
        self._counted = shares is not None

    def estimate(self, cluster: Cluster, samples: int) -> Estimate:
        """All choices on one cluster.

        Args:
            cluster: machines, accelerators, links.
            samples: per rank.

        Raises:
            TransformError: not even the flat route takes the model.
            ConfigError: the cluster cannot run it.
        """
        pricer = Pricer(cluster, samples, self._ds_config)
        variants, said = self._ways.on(cluster, samples, pricer)
        plain = variants[0]
        choices = [c for v in variants for c in choices_of(v, replicated=v is plain)]
        fit, too_large = pricer.price(choices)
        ordered = sorted(fit, key=_order)
        reference = next((p for p in ordered if p.choice.plain), None)
        shown = _shown(ordered, reference)
        worlds = [World(cluster), *corners(cluster)]

        def seconds(priced: Priced) -> list[float]:
            return [priced.in_world(world, pricer.bf16) for world in worlds]

        base = None if reference is None else seconds(reference)
        rows = {group: [row_of(p, cluster, samples, seconds(p), base) for p in own] for group, own in shown.items()}
        by_choice = {id(p): row for group, own in shown.items() for p, row in zip(own, rows[group], strict=True)}
        exact = rows.get("exact", [])
        flops = plain.flops
        found = Estimate(
            cluster,
            samples,
            (sum(flops.dense) + sum(flops.towers)) / 1e6,
            len(plain.placed.plan.features),
            sum(4 * table.rows * table.dim for table in plain.placed.plan.tables),
            rows,
            None if reference is None else by_choice[id(reference)],
            exact[0] if exact else None,
            len(fit),
            too_large,
            (),
            {own.choice.name: own for own in reversed(ordered)},
        )
        unknown = findings.uncounted(flops.unknown)
        told = findings.of(found, pricer.limit, counted=self._counted)
        return replace(found, findings=(*told, *said, *unknown))


def estimate(
    model: nn.Module,
    batch: Any,
    cluster: Cluster,
    batch_size: int,
    config: DMTConfig | None = None,
    ds_config: Mapping[str, Any] | None = None,
    **options: Any,
) -> Estimate:
    """What ``dmt plan --model`` shows; no process is started, and no weight is read.

    Args:
        model: the user's model; its weights may be on the meta device.
        batch: one call of it.
        cluster: of :func:`dmt_plugin.planner.cluster.files.cluster_of`, or made.
        batch_size: samples per rank.
        config: the ``"dmt"`` section that every way begins with.
        ds_config: the DeepSpeed configuration around it.
        options: see :class:`Planner`.

    Raises:
        CaptureError: the model cannot be captured.
        ConfigError: the flat route does not take it.
    """
    return Planner(model, batch, config, ds_config, **options).estimate(cluster, batch_size)


def _order(priced: Priced) -> tuple[float, ...]:
    """By group, then time; of equal times the one that asks for less."""
    choice = priced.choice
    return choice.variant.way.ratio, priced.step.seconds, choice.stage, choice.blocks


def _shown(ordered: Sequence[Priced], reference: Priced | None) -> dict[str, list[Priced]]:
    """By group the fastest of each name and wire format; always the best of each kind, and the reference."""
    groups: dict[str, dict[tuple[str, str], Priced]] = {}
    for own in ordered:
        groups.setdefault(own.choice.group, {}).setdefault((own.choice.name, own.choice.wire_text), own)
    found = {}
    for group, best in groups.items():
        rows = list(best.values())
        most = SHOWN_EXACT if group == "exact" else SHOWN_CHANGED
        first = {p.choice.kind: p for p in reversed(rows)}
        found[group] = [p for i, p in enumerate(rows) if i < most or p is reference or first[p.choice.kind] is p]
    return found
