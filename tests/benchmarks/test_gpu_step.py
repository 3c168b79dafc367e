"""The benchmark of one device: its parts compute what a rank computes, and every one of them is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_step import HEADER, Clock, device_of, main, measure, table
from benchmarks.gpu_step_parts import Part, SilentWire, Sizes, Step, parts_of
from dmt_plugin.comm.formats import FORMATS
from dmt_plugin.topology.shape import Topology

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
SMALL = Sizes(hosts=2, lanes=2, batch=3, features=7, rows=11, width=8, dim=4)
ARGUMENTS = ["--device=cpu", "--hosts=2", "--batch=4", "--features=6", "--rows=9", "--width=8", "--dim=4"]


def test_features_are_dealt_to_hosts_then_lanes() -> None:
    assert SMALL.by_host == [[2, 2], [2, 1]]
    with pytest.raises(ValueError, match="every one of the 2 x 2 ranks needs at least one"):
        Sizes(hosts=2, lanes=2, features=3)
    with pytest.raises(ValueError, match="at least 1"):
        Sizes(batch=0)


def test_every_exchange_and_codec_of_both_dtypes_is_there() -> None:
    parts = [part for together in parts_of(SMALL, CPU) for part in together]
    named = {(part.name, part.dtype) for part in parts}
    assert len(named) == len(parts)
    for dtype in ("fp32", "bf16"):
        for wire in FORMATS:
            assert {(f"codec {wire}", dtype), (f"lanes, {wire}", dtype), (f"world, flat route, {wire}", dtype)} <= named
            assert {(f"peers, {what}, {wire}", dtype) for what in ("tower outputs", "SPTT")} <= named
        assert {(name, dtype) for name in ("tower dlrm", "tower dcn", "shuffles alone")} <= named


def test_what_the_steps_give() -> None:
    """Shapes as on a rank: 2 x 2, batch 3, features (2, 2) and (2, 1) of width 8, tower outputs of width 4."""
    given: dict[tuple[str, str], list[Any]] = {}
    for part in (part for together in parts_of(SMALL, CPU) for part in together):
        result: Any = None
        steps = []
        for step in part.steps:
            result = step.run(result)
            steps.append(result)
        given[part.name, part.dtype] = steps
        assert all(step.size > 0 for step in part.steps)
    for dtype, found in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for wire in FORMATS:
            for name, blocks, sent in (
                (f"lanes, {wire}", [(6, 16), (6, 16)], (12, 16)),
                (f"peers, tower outputs, {wire}", [(3, 16), (3, 12)], (6, 16)),
                (f"peers, SPTT, {wire}", [(3, 32), (3, 24)], (6, 32)),
                (f"world, flat route, {wire}", [(3, 16), (3, 16), (3, 16), (3, 8)], (12, 16)),
            ):
                out, (gradient,) = given[name, dtype]
                assert [tuple(block.shape) for block in out] == blocks and {b.dtype for b in out} == {found}
                assert tuple(gradient.shape) == sent and gradient.dtype == found
            encoded, decoded = given[f"codec {wire}", dtype]
            assert encoded.dim() == 1 and [tuple(block.shape) for block in decoded] == [(3, 32), (3, 24)]
        for name, width in (("tower dlrm", 16), ("tower dcn", 16), ("shuffles alone", 32)):
            (out,), gradients = given[name, dtype]
            assert tuple(out.shape) == (6, width) and [tuple(g.shape) for g in gradients[:2]] == [(6, 16), (6, 16)]
        streams, _ = given["streams of tower outputs", dtype]
        assert [tuple(s.shape) for s in streams] == [(3, 4)] * 7
        for width in (4, 8):
            (written,), _ = given[f"dot of width {width}, as written", dtype]
            (faster,), _ = given[f"dot of width {width}, faster", dtype]
            assert written.shape == faster.shape == (3, 28)
    assert tuple(given["lookup, torch", "fp32"][0].shape) == (12, 16)


def test_the_wire_answers_at_once_with_what_is_expected() -> None:
    wire = SilentWire(Topology(2, 2), CPU)
    received = wire.all_to_all("x", "forward", "peers", torch.ones(5), [2, 3], [4, 4]).wait()
    assert torch.equal(received, torch.zeros(8))


def test_steps_are_chained_and_timed_in_turn_with_copies() -> None:
    seen: list[str] = []

    def first(name: str, before: None) -> str:
        assert before is None
        return name

    def second(name: str) -> None:
        seen.append(name)

    parts = [
        Part(name, "fp32", (Step("one", partial(first, name), 4_000), Step("two", second, 8_000))) for name in "pq"
    ]
    rows = measure(parts, Clock(CPU), CPU, repeats=4, iterations=2)
    assert seen == ["p", "p", "q", "q"] * (3 + 4)
    assert [(row["part"], row["step"]) for row in rows] == [("p", "one"), ("p", "two"), ("q", "one"), ("q", "two")]
    assert [row["bytes"] for row in rows] == [4_000, 8_000] * 2
    for row in rows:
        assert len(row["ms"]) == len(row["copy_ms"]) == 4
        assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["median_ms"] / 1e6)
        assert row["of_copy"] == pytest.approx(row["gb_per_s"] / row["copy_gb_per_s"])


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "deep" / "found.json"
    main([*ARGUMENTS, "--repeats=2", "--iterations=1", "--only=codec", "--rows-dtype=bf16", f"--output={output}"])
    found = json.loads(output.read_text())
    assert found["setting"]["hosts"] == 2 and found["setting"]["device"].startswith("cpu")
    assert found["setting"]["command"].startswith("python -m benchmarks.gpu_step --device=cpu")
    assert [(row["part"], row["step"]) for row in found["rows"]] == [
        (f"codec {wire}", step) for wire in FORMATS for step in ("encode", "decode")
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["part", "rows", "step"] and len(lines) == 2 + len(found["rows"])
    assert lines[1:] == table(found["rows"]).splitlines() and len(HEADER) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=nothing like it"], "no part has 'nothing like it'"),
        (["--repeats=0"], "--repeats"),
        (["--features=1"], "needs at least one"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main([*ARGUMENTS, *arguments])


def test_the_device() -> None:
    assert device_of("cpu") == CPU
    assert device_of("auto").type == (torch.accelerator.current_accelerator(True) or CPU).type


def test_torch_is_enough(tmp_path: Path) -> None:
    """A machine that is lent for an hour has torch, and nothing else of what this package depends on."""
    others = ["deepspeed", "fbgemm_gpu", "torchrec", "pydantic", "typer", "rich", "numpy", "networkx", "hjson"]
    output = tmp_path / "found.json"
    arguments = [*ARGUMENTS, "--repeats=1", "--iterations=1", f"--output={output}"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({others}, None)); from benchmarks.gpu_step import main; "
        f"main({arguments})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert not found["setting"]["fbgemm"]
    assert {row["part"] for row in found["rows"] if row["part"].startswith("lookup")} == {"lookup, torch"}


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_on_the_accelerator(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    main([*ARGUMENTS[1:], "--repeats=2", f"--output={output}"])
    rows = json.loads(output.read_text())["rows"]
    assert all(row["median_ms"] > 0 for row in rows)
