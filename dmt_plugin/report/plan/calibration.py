"""What ``dmt plan --calibrate`` shows: the constants, what the runs do not determine, predicted beside measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dmt_plugin.planner.calibration.constants import constants_of
from dmt_plugin.planner.calibration.fit import Calibration, Observed
from dmt_plugin.planner.cluster.cluster import Cluster
from dmt_plugin.report.parts.tables import Column, Table


def headline(found: Calibration, runs: Sequence[Observed]) -> str:
    """One line."""
    return (
        f"{len(found.fitted)} constant(s) fitted to {len(runs)} run(s); their steps are met within "
        f"{100 * found.scatter:.1f} % (root mean square)"
    )


def constants_table(found: Calibration, before: Cluster) -> Table:
    """Every constant before and after, with its standard error or the reason why it was left."""
    fitted = {one.constant.key: one for one in found.fitted}
    rows = []
    for constant in constants_of(before):
        own = fitted.get(constant.key)
        rows.append(
            {
                "key": constant.key,
                "what": constant.what,
                "before": f"{constant.of(before).value / constant.unit:.4g}",
                "value": "left" if own is None else f"{own.value / constant.unit:.4g}",
                "error": "" if own is None else f"{100 * own.error:.0f} %",
                "why": found.refused.get(constant.key, ""),
            }
        )
    columns = [
        Column("key", "key"), Column("what", "what", text=True), Column("before", "before"),
        Column("value", "fitted"), Column("error", "standard error"), Column("why", "not determined", text=True),
    ]  # fmt: skip
    note = "Errors are how far the scatter of these runs leaves a constant open, not how far the model is off."
    return Table(columns, rows, [note])


def runs_table(found: Calibration, runs: Sequence[Observed]) -> Table:
    """Every run, as measured and as predicted."""
    rows = []
    for run in runs:
        step = found.predicted[run.name]
        rows.append(
            {
                "run": run.name,
                "topology": str(run.topology),
                "ms": 1e3 * run.seconds,
                "spread": f"{1e3 * run.spread[0]:.1f}-{1e3 * run.spread[1]:.1f}",
                "model": 1e3 * step.seconds,
                "error": f"{100 * (step.seconds / run.seconds - 1):+.1f} %",
                "busy": 1e3 * run.busy,
                "busy_model": 1e3 * step.compute,
            }
        )
    columns = [
        Column("run", "run"), Column("topology", "topology"), Column("ms", "step", ".1f", "ms"),
        Column("spread", "quartiles", note="ms"), Column("model", "predicted", ".1f", "ms"), Column("error", "error"),
        Column("busy", "computing", ".1f", "ms, a rank"), Column("busy_model", "predicted", ".1f", "ms"),
    ]  # fmt: skip
    return Table(columns, rows, ["These runs were fitted: how far the model is off on others they do not say."])


def as_data(found: Calibration, runs: Sequence[Observed], output: str) -> dict[str, Any]:
    """The same as data; times in ms."""
    return {
        "output": output,
        "scatter": found.scatter,
        "constants": {
            one.constant.key: {"value": one.value / one.constant.unit, "error": one.error} for one in found.fitted
        },
        "refused": dict(found.refused),
        "runs": [
            {
                "run": run.name,
                "topology": str(run.topology),
                "ms": 1e3 * run.seconds,
                "quartiles_ms": [1e3 * end for end in run.spread],
                "predicted_ms": 1e3 * found.predicted[run.name].seconds,
                "computing_ms": 1e3 * run.busy,
                "predicted_computing_ms": 1e3 * found.predicted[run.name].compute,
            }
            for run in runs
        ],
    }
