"""The comparison of wire formats rounds what ranks round, and says what its runs say."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from benchmarks import wire_quality
from dmt_plugin.config.section import load_ds_config
from dmt_plugin.topology.shape import Topology
from examples import seeds
from examples.dlrm import DENSE_FEATURES, TABLE_SIZES, build, example_batch
from tests._util.simulated import SimulatedWorld
from tests.passes.world import differences, run_placed, settings, towered

RANKS = 4


def batch(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    ids = [torch.randint(rows, (16,), generator=generator) for rows in TABLE_SIZES.values()]
    return torch.randn(16, DENSE_FEATURES, generator=generator), torch.stack(ids, dim=1)


def compared(sent: str, rounded: str) -> list[str]:
    """What differs between four ranks that exchange rows as ``sent`` and one process that rounds as ``rounded``."""
    forward, backward = wire_quality.formats_of(sent)
    comm = {"peer_dtype": forward, "peer_grad_dtype": backward}
    config = settings(towers=load_ds_config(seeds.CONFIG)["dmt"]["towers"], comm=comm)
    torch.manual_seed(0)
    logical = towered(build(), example_batch(), wire_quality.TOPOLOGY, config)
    batches = [batch(rank) for rank in range(RANKS)]
    placed = run_placed(logical, config, SimulatedWorld(Topology(2, 2)), batches)
    one = copy.deepcopy(logical)
    wire_quality.round_towers(one, wire_quality.formats_of(rounded), RANKS)
    return differences(one, placed, batches)


@pytest.mark.parametrize("name", [*wire_quality.CHOSEN, "fp16/fp16"])
def test_one_process_computes_what_ranks_compute(name: str) -> None:
    assert compared(name, name) == []


@pytest.mark.parametrize(("sent", "rounded"), [("int8", "fp32"), ("int8", "int8/bf16"), ("bf16", "fp16/bf16")])
def test_another_format_would_be_seen(sent: str, rounded: str) -> None:
    assert compared(sent, rounded)


def test_gradients_are_rounded_at_the_size_they_have_on_a_rank() -> None:
    """The mean over all samples divides by the ranks once more than the mean over a rank's own."""
    model = towered(build(), example_batch(), wire_quality.TOPOLOGY, settings(towers={"module": "dlrm", "dim": 8}))
    wire_quality.round_towers(model, ("fp32", "fp16"), RANKS)
    tower = model.get_submodule("dmt_towers.group0.tower0")
    rows = torch.randn(2, 11, 16)
    (gradient,) = torch.autograd.grad(tower(rows).sum() * 1e-8, tower.per_feature.bias)
    step = 2.0**-24  # fp16 has multiples of it, near zero
    assert torch.allclose(gradient, torch.full((8,), 2 * 11 * round(4e-8 / step) * step / 4))


def test_towers_that_share_a_host_are_refused() -> None:
    towers = {"module": "dlrm", "dim": 8, "count": 4}
    model = towered(build(), example_batch(), wire_quality.TOPOLOGY, settings(towers=towers))
    with pytest.raises(ValueError, match="one tower on each host"):
        wire_quality.round_towers(model, ("int8", "int8"), RANKS)


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ValueError, match="'int4' in 'fp16/int4'; expected one of fp32"):
        wire_quality.formats_of("fp16/int4")


def test_summary_pairs_runs_of_one_seed() -> None:
    aucs = {("fp32", 1): 0.70, ("fp32", 2): 0.72, ("int8", 1): 0.69, ("int8", 2): 0.70}
    runs = [{"format": name, "seed": seed, "auc": auc} for (name, seed), auc in aucs.items()]
    found = wire_quality.summarise(runs)
    assert found["fp32"]["to_fp32"]["mean"] == 0.0
    assert found["int8"]["gradients"] == "int8"
    assert found["int8"]["auc"] == pytest.approx(0.695)
    assert found["int8"]["to_fp32"]["each"] == pytest.approx([-0.01, -0.02])


def test_a_small_run_from_data_to_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, sparse = example_batch(1200)
    part = (dense.numpy(), sparse.int().numpy(), (dense[:, 0] > 0).float().numpy())
    data = type("Data", (), {"part": staticmethod(lambda which: part)})
    monkeypatch.setattr(wire_quality.flights, "load", lambda path: data)
    out = tmp_path / "out" / "wire.json"
    options = ["--seeds", "2", "--formats", "int8/bf16", "--data", str(tmp_path / "x.npz"), "--out", str(out)]
    assert wire_quality.main(options) == 0
    written = json.loads(out.read_text())
    assert list(written["formats"]) == ["fp32", "int8/bf16"] and len(written["runs"]) == 4
    assert any(written["formats"]["int8/bf16"]["to_fp32"]["each"])
    assert "int8" in capsys.readouterr().out
