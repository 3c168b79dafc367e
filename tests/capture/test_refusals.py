"""What a graph cannot hold is refused, with the line or the operation and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dmt_plugin.capture import ExampleBatch, capture
from dmt_plugin.capture.batch_sizes import batch_size_of, with_batch_size
from dmt_plugin.capture.example_call import example_of
from dmt_plugin.core.errors import CaptureError
from tests.capture import models as m
from tests.capture.test_capture import captured, nested, rows


def refusal(model: nn.Module, *args: Any) -> str:
    with pytest.raises(CaptureError) as caught:
        capture(model, ExampleBatch(args))
    return str(caught.value)


@pytest.mark.parametrize("kind", [m.BranchesOnData, m.ReadsItem])
def test_control_flow_on_data_names_the_users_line(kind: type[nn.Module]) -> None:
    text = refusal(kind(), rows(5))
    assert "models.py" in text and "in forward" in text
    assert ("if x.sum() > 0: # the line" in text) or ("x.max().item()" in text)


@pytest.mark.parametrize("kind", [m.LoopsOverBatch, m.BakesBatch, m.BakesBatchInConstant])
def test_a_baked_batch_size_is_found(kind: type[nn.Module]) -> None:
    text = refusal(kind(), rows(5))
    assert "batch" in text and "7" in text and "11" in text


@pytest.mark.parametrize("batch", [7, 11])
def test_a_baked_batch_size_is_found_at_the_trace_sizes_too(batch: int) -> None:
    assert "batch 7" in refusal(m.BakesBatch(), rows(batch))


def test_a_branch_on_training_is_found_when_only_the_wiring_differs() -> None:
    text = refusal(m.BranchesOnTraining(), rows(5))
    assert "relu" in text and "in eval mode" in text and "in train mode" in text


def test_parameters_made_in_forward() -> None:
    assert "Linear with parameters is created inside forward" in refusal(m.MakesParameters(), rows(5))


@pytest.mark.parametrize(
    ("kind", "names"),
    [(m.InPlaceThroughView, "mul_"), (m.ChangesItsInput, "clamp_"), (m.CountsCalls, "calls")],
)
def test_changes_in_place_that_a_graph_would_lose(kind: type[nn.Module], names: str) -> None:
    text = refusal(kind(), rows(5))
    assert names in text and "in place" in text and "returns a new tensor" in text


def test_item_assignment_names_the_line() -> None:
    assert "out[:, 0][:] = x[:, 0]" in refusal(m.AssignsItems(), rows(5))


def test_compiled_and_scripted_models() -> None:
    model = nn.Linear(3, 2)
    assert "_orig_mod" in refusal(torch.compile(model), rows(5))
    assert "scripted" in refusal(torch.jit.trace(model, rows(5)), rows(5))


def test_an_example_without_tensors() -> None:
    class Nothing(nn.Module):
        def forward(self, n: int) -> int:
            return n

    assert "holds no tensor" in refusal(Nothing(), 3)


def test_the_model_survives_a_refusal() -> None:
    model = m.StoresAttribute()
    with pytest.raises(CaptureError):
        captured(model, rows(5, 4))
    assert model.seen is None and "other" not in model.__dict__
    assert model(rows(2)).shape == (2, 2)


# -- calls ---------------------------------------------------------------------------------


def test_dict_entries_may_come_in_another_order() -> None:
    columns, named, pair = nested(4)
    model = m.PythonOverInputs()
    graph = captured(model, *nested(5))
    turned = {"inner": dict(reversed(named["inner"].items()))}
    assert torch.equal(graph(columns, turned, pair)["total"], model(columns, named, pair)["total"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c, d, p: (c[:1], d, p), "columns was a list of 2 when the model was captured and is a list of 1 now"),
        (lambda c, d, p: (c, {"inner": {"a": d["inner"]["a"]}}, p), "named['inner'] has no 'b', which the model reads"),
        (lambda c, d, p: (c, {"inner": d["inner"]["a"]}, p), "named['inner'] was a dict when the model was captured"),
        (lambda c, d, p: (c, d, p[0]), "pair was a tuple of 2 when the model was captured and is a Tensor"),
        (lambda c, d, p: (c, d, [[p[0]], p[1]]), "pair[0] was a tensor or batch object"),
    ],
)
def test_another_structure_is_refused(change: Any, says: str) -> None:
    graph = captured(m.PythonOverInputs(), *nested(5))
    with pytest.raises(CaptureError) as caught:
        graph(*change(*nested(4)))
    assert f"the input {says}" in str(caught.value)


def test_missing_and_unknown_arguments() -> None:
    graph = captured(m.Options(), rows(5))
    with pytest.raises(CaptureError, match="does not fit the model"):
        graph()
    with pytest.raises(CaptureError, match="colour"):
        graph(rows(4), colour=1)


@pytest.mark.parametrize("value", [3, 2.0, True, None, torch.tensor([2, 2]), torch.tensor(2)])
def test_another_constant_is_refused(value: Any) -> None:
    graph = captured(m.Options(), rows(5), 2)
    assert torch.equal(graph(rows(4)), rows(4) * 2)
    with pytest.raises(CaptureError, match="was the constant 2 when the model was captured"):
        graph(rows(4), value)


def test_a_tensor_that_is_missing_now_is_refused() -> None:
    graph = captured(m.Options(), rows(5), 2, rows(5))
    with pytest.raises(CaptureError, match="the input mask was a tensor"):
        graph(rows(4), 2, None)


def test_every_kind_of_argument() -> None:
    model = m.Options()
    graph = captured(model, rows(5), 3, rows(5), rows(5), rows(5), sign=-1.0)
    found = graph(rows(4), 3, rows(4), rows(4), rows(4), sign=-1.0)
    assert torch.equal(found, model(rows(4), 3, rows(4), rows(4), rows(4), sign=-1.0))


# -- example batches ------------------------------------------------------------------------


def test_example_of_what_loaders_give() -> None:
    model = m.Options()
    x = rows(3)
    assert example_of(x, model) == ExampleBatch((x,), {})
    assert example_of({"x": x, "label": 1}, model).kwargs.keys() == {"x"}
    assert len(example_of((x, x), nn.Linear(3, 2)).args) == 1
    with pytest.raises(CaptureError, match=r"also needs \['x'\]"):
        example_of({"label": x, "scale": 2}, model)
    with pytest.raises(CaptureError, match="0 item"):
        example_of((), nn.Linear(3, 2))


def test_the_batch_size_is_read_off_the_floats() -> None:
    assert batch_size_of([torch.zeros(4, 3), torch.zeros(9, dtype=torch.long), torch.zeros(9, dtype=torch.long)]) == 4
    assert batch_size_of([3, None]) is None
    dense, offsets, matrix, other = with_batch_size(
        [torch.ones(4, 2), torch.zeros(5, dtype=torch.long), torch.zeros(6, 4, dtype=torch.long), torch.zeros(3)], 4, 7
    )
    assert [tuple(t.shape) for t in (dense, offsets, matrix, other)] == [(7, 2), (8,), (6, 7), (3,)]


class ByName(nn.Module):
    """Tables by the names of a file's header."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.EmbeddingBag(9, 4, mode="sum") for name in names})
        self.top = nn.Linear(4 * len(names), 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.top(torch.cat([table(ids[:, i : i + 1]) for i, table in enumerate(self.tables.values())], 1))


@pytest.mark.parametrize("kind", [nn.ModuleDict, nn.ParameterDict])
@pytest.mark.parametrize("name", ['size 12"', "back\\slash", "two\nlines", "a\0b"])
def test_names_that_would_be_code(kind: type, name: str) -> None:
    model = ByName(["size"])
    model.more = kind({name: nn.Linear(1, 1) if kind is nn.ModuleDict else nn.Parameter(torch.zeros(1))})
    text = refusal(model, torch.zeros(5, 1, dtype=torch.long))
    assert "DMT118" in text and repr(name) in text and "rename" in text


def test_no_name_is_run(tmp_path: Path) -> None:
    """The text of a name becomes no code, whatever it says; other unusual names are names."""
    flag = tmp_path / "ran"
    code = f'a" if open("{flag}", "w") else "a'.replace(".", "_")
    ids = torch.zeros(5, 2, dtype=torch.long)
    assert "DMT118" in refusal(ByName(["a", code]), ids)
    assert not flag.exists() and not list(tmp_path.iterdir())
    names = ["it's {a} %s $b #c", "größe; import os"]
    found = captured(ByName(names), ids)
    assert found(ids).shape == (5, 1)
