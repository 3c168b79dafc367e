"""The step benchmark: what it compares, what it computes, and one small measurement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.step.measure import Found
from benchmarks.step.setting import WIRE_SHARE, Setting
from benchmarks.step.summary import differing, rows_of, table
from benchmarks.step.variants import BASE, QUICK, VARIANTS

ROOT = Path(__file__).parents[2]
NAMES = (BASE, "flat_fp32", "sptt_fp32")


def found(seconds: list[float], lane: int, losses: tuple[float, ...] = (0.7, 0.6, 0.5)) -> Found:
    return Found(
        losses=list(losses),
        changes={lane: (2.0, 0.5)},
        seconds=seconds,
        cpu_seconds=[0.05] * len(seconds),
        link_bytes=[1e6, 3e6, 2e6],
        formula_bytes=500_000,
    )


def ranks() -> list[dict[str, Found]]:
    """2 x 2: the base takes 1 s, the flat route 0.5 s, SPTT 0.25 s on its slowest rank, which differs."""
    result = []
    for rank in range(4):
        late = [0.25 if rank == repeat else 0.1 for repeat in range(3)]
        times = {BASE: [1.0, 1.0, 2.0], "flat_fp32": [0.5, 0.5, 1.0], "sptt_fp32": late}
        result.append({name: found(times[name], rank) for name in NAMES})
    return result


def test_rows() -> None:
    setting = Setting(repeats=3)
    rows = rows_of(setting, ranks())
    assert rows["flat_fp32"]["ratios"] == [2.0, 2.0, 2.0] and rows["flat_fp32"]["median_ms"] == 500
    sptt = rows["sptt_fp32"]
    assert sptt["step_ms"] == [250, 250, 250] and sptt["ratio"] == 4.0
    assert sptt["samples_per_s"] == 512 * 4 / 0.25
    assert sptt["nic_bytes_per_host"] == 2_000_000
    assert sptt["nic_limit_ms"] == pytest.approx(1e3 * 8 * 2e6 / (WIRE_SHARE * 1e8))
    assert sptt["exchange_bytes_per_host_by_formula"] == 1_000_000
    assert sptt["cpu_ms"] == pytest.approx(200)
    assert rows[BASE]["ratio"] == 1.0
    assert [line.split()[0] for line in table(rows).splitlines()] == ["variant", *NAMES]
    json.dumps(rows)


def test_without_the_base_there_is_no_ratio() -> None:
    rows = rows_of(Setting(repeats=3), [{"sptt_fp32": rank["sptt_fp32"]} for rank in ranks()])
    assert rows["sptt_fp32"]["ratio"] is None and "-" in table(rows)


def test_variants_that_train_otherwise_are_refused() -> None:
    assert differing(ranks()) == []
    other = ranks()
    other[2]["sptt_fp32"] = found([1.0] * 3, 2, losses=(0.7, 0.6, 0.50001))
    (text,) = differing(other)
    assert "sptt_fp32: losses of rank 2 differ from those of flat_fp32 by 2.00e-05" in text
    other = ranks()
    other[1]["sptt_fp32"].changes[1] = (2.0, 0.51)
    (text,) = differing(other)
    assert "sptt_fp32: table 1 changed by (2.0, 0.51)" in text
    other = ranks()
    del other[3]["sptt_fp32"].changes[3]
    assert "table 3 changed by None" in differing(other)[0]
    other = ranks()
    for rank in other:  # nothing trained at all is no agreement
        for own in rank.values():
            own.changes = dict.fromkeys(own.changes, (0.0, 0.0))
    assert len(differing(other)) == 2
    other = ranks()
    other[0]["flat_fp32"].losses[1] = float("nan")
    assert any("are not numbers" in line for line in differing(other))


def test_every_variant_has_a_partner_that_exists() -> None:
    assert set(QUICK) <= set(VARIANTS)
    assert all(entry.equals is None or entry.equals in VARIANTS for entry in VARIANTS.values())
    assert VARIANTS["sptt_fp32"].equals == "flat_fp32" and VARIANTS[BASE].equals == "flat_fp32"


@pytest.mark.processes
def test_small_measurement(_able: None, tmp_path: Path) -> None:
    pytest.importorskip("torchrec", reason="the baseline needs torchrec")
    output = tmp_path / "summary.json"
    command = [sys.executable, "-m", "benchmarks.step", "--batch", "32", "--rate", "200mbit", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(output.read_text())
    assert summary["setting"]["batch"] == 32
    rows = summary["rows"]
    assert set(rows) == set(QUICK)
    for name, row in rows.items():
        formula = row["exchange_bytes_per_host_by_formula"]
        # On top of the exchanges: headers of packets, the dense all-reduce, and a barrier.
        assert name == BASE or formula < row["nic_bytes_per_host"] < 1.05 * formula + 800_000
        assert len(row["step_ms"]) == 1 and row["median_ms"] > 0
    assert rows["sptt_fp32"]["first_losses"] == pytest.approx(rows[BASE]["first_losses"], rel=1e-5)
    wrong = subprocess.run([*command, "--variants", "fast"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and "unknown variants" in wrong.stderr
