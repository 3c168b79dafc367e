"""What is said first of an estimate: never a higher compression for its time alone."""

from __future__ import annotations

from dmt_plugin.planner.cluster.files import cluster_of
from dmt_plugin.planning.findings import verdict
from dmt_plugin.planning.outcome import Estimate
from dmt_plugin.planning.rows import Row


def row(name: str, group: str, ms: float) -> Row:
    return Row(
        name, group, "fp32", 2, 0, ms, (ms, ms), None, None, 1.0, 0.0, {}, 1, 1.0, 1.0, "link to other hosts", 0.9, {}
    )


def said(**ms: float) -> str:
    """Of flat, SPTT and compression ratios, by the time of a step."""
    names = {"flat": ("flat", "exact"), "sptt": ("SPTT", "exact")}
    rows = [row(*names.get(key, (f"DMT CR {key[2:]}", f"CR {key[2:]}")), own) for key, own in ms.items()]
    groups: dict[str, list[Row]] = {}
    for own in rows:
        groups.setdefault(own.group, []).append(own)
    best = min(groups["exact"], key=lambda own: own.ms)
    found = Estimate(cluster_of("h100-dgx:4"), 512, 1.0, 8, 1, groups, rows[0], best, len(rows), (), ())
    return verdict(found)


def test_the_lowest_compression_that_pays_is_named() -> None:
    text = said(flat=10.0, sptt=11.0, cr2=9.9, cr4=8.0, cr8=5.0)
    assert text.startswith("Towers pay only with tower modules (DMT CR 4,") and "CR 8" not in text and "flat" in text
    assert "DMT CR 2," in said(flat=10.0, sptt=11.0, cr2=9.0, cr8=5.0)


def test_what_leaves_the_model_as_it_is_goes_first() -> None:
    assert said(flat=10.0, sptt=9.0, cr2=5.0).startswith("Towers pay here without a change of the model: SPTT")
    assert said(flat=10.0, sptt=11.0, cr2=9.9).startswith("Do not use towers here: the best of them (DMT CR 2)")
