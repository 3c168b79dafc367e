"""The example batch: where it comes from, how it maps to forward's arguments, what is said when it does not."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from dmt_plugin.capture.inputs import ExampleBatch
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.integrations.deepspeed.arguments.example_batch import SAMPLES, find_example, map_batch

DENSE, IDS, LABEL = torch.rand(5, 3), torch.zeros(5, 2, dtype=torch.long), torch.ones(5)


class Two(nn.Module):
    def forward(self, dense, ids):
        return dense, ids


class Optional(nn.Module):
    def forward(self, dense, ids, weights=None):
        return dense, ids, weights


class One(nn.Module):
    def forward(self, batch):
        return batch


WEIGHTS = torch.rand(9)


def args_of(value, model, source="here"):
    example = map_batch(value, model, source)
    return example.args, example.kwargs


def test_dicts_become_keywords():
    args, kwargs = args_of({"ids": IDS, "dense": DENSE, "label": LABEL}, Two())
    assert args == ()
    assert kwargs["dense"] is DENSE
    assert kwargs["ids"] is IDS
    assert "label" not in kwargs


@pytest.mark.parametrize("model", [Two(), Optional()])
@pytest.mark.parametrize("kind", [list, tuple])
def test_trailing_labels_are_left_out(model, kind, caplog):
    with caplog.at_level(logging.INFO):
        args, kwargs = args_of(kind((DENSE, IDS, LABEL)), model, "training_data")
    assert kwargs == {}
    assert args[0] is DENSE
    assert args[1] is IDS
    assert len(args) == 2
    assert "first 2 of its 3 items" in caplog.text


@pytest.mark.parametrize("batch", [(DENSE, IDS, WEIGHTS), (DENSE, IDS, [WEIGHTS] * 2), (DENSE, IDS, WEIGHTS, LABEL)])
@pytest.mark.parametrize("source", ["example_batch=", "training_data"])
def test_an_optional_argument_is_no_label(batch, source):
    args, kwargs = args_of(batch, Optional(), source)
    assert kwargs == {} and len(args) == 3
    assert args[2] is batch[2]


def test_what_a_call_is_given_is_given():
    assert args_of((DENSE, IDS, LABEL), Optional())[0] == (DENSE, IDS, LABEL)


def test_one_argument():
    assert args_of(DENSE, One()) == ((DENSE,), {})
    assert args_of({"a": DENSE}, One())[0][0] == {"a": DENSE}
    inner = (DENSE, IDS)
    assert args_of((inner, LABEL), One())[0] == (inner,)


def test_a_ready_call_is_taken_as_it_is():
    example = ExampleBatch((DENSE,), {"ids": IDS})
    assert map_batch(example, Two(), "here") is example


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"dense": DENSE, "wrong": IDS}, "'wrong' (Tensor(5, 2))"),
        ((DENSE,), "a tuple of 1: Tensor(5, 3)"),
        (DENSE, "Tensor(5, 3)"),
        (ExampleBatch((DENSE, IDS, LABEL), {}), "ExampleBatch"),
    ],
)
def test_what_does_not_fit_is_described(value, found):
    with pytest.raises(ConfigError) as caught:
        map_batch(value, Two(), "training_data")
    message = str(caught.value)
    assert "training_data" in message
    assert "Two.forward(dense, ids)" in message
    assert f"Found {found}" in message or f"Found a dict with the keys 'dense' (Tensor(5, 3)), {found}" in message


def test_no_source_names_the_three():
    with pytest.raises(ConfigError, match=r"(?s)example_batch=.*training_data=.*\"transform\": \{\"example_batch\""):
        find_example(Two())


def test_training_data_is_collated():
    data = TensorDataset(torch.rand(20, 3), torch.zeros(20, 2, dtype=torch.long), torch.ones(20))
    example = find_example(Two(), training_data=data)
    assert [tuple(a.shape) for a in example.args] == [(SAMPLES, 3), (SAMPLES, 2)]
    few = find_example(Two(), training_data=TensorDataset(DENSE[:2], IDS[:2]))
    assert few.args[0].shape == (2, 3)
    doubled = find_example(
        One(), training_data=data, collate_fn=lambda samples: torch.stack([s[0] * 2 for s in samples])
    )
    assert doubled.args[0].shape == (SAMPLES, 3)


def test_iterable_training_data():
    class Stream(IterableDataset):
        def __iter__(self):
            while True:
                yield torch.rand(3), torch.zeros(2, dtype=torch.long), 1.0

    assert find_example(Two(), training_data=Stream()).args[1].shape == (SAMPLES, 2)


def test_training_data_that_does_not_serve():
    with pytest.raises(ConfigError, match="training_data is empty"):
        find_example(One(), training_data=TensorDataset(DENSE[:0]))
    ragged = [torch.rand(2), torch.rand(3)]
    with pytest.raises(ConfigError, match="default_collate"):
        find_example(One(), training_data=ragged)


def test_the_argument_goes_before_the_configuration_and_that_before_the_data(tmp_path):
    file = tmp_path / "batches.py"
    file.write_text("import torch\ndef make():\n    return torch.zeros(2, 9)\n")
    data = TensorDataset(DENSE)
    factory = f"{file}:make"
    assert find_example(One(), example_batch=DENSE, factory=factory, training_data=data).args[0] is DENSE
    assert find_example(One(), factory=factory, training_data=data).args[0].shape == (2, 9)
    assert find_example(One(), example_batch=lambda: IDS).args[0] is IDS


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("missing.py:make", "no such file"),
        ("no_such_package_of_anyone:make", "cannot be loaded"),
        ("math:no_such", "no function 'no_such'"),
        ("nothing", "expected package.module:function"),
    ],
)
def test_factories_that_cannot_be_used(spec, said):
    with pytest.raises(ConfigError, match=said):
        find_example(One(), factory=spec)


def test_a_factory_that_fails():
    def broken():
        raise KeyError("gone")

    with pytest.raises(ConfigError, match=r"KeyError: 'gone'.*without arguments"):
        find_example(One(), example_batch=broken)
