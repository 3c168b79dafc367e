"""The example of sequences: its data are what it says, and its model is taken as it is and learns."""

from __future__ import annotations

import copy

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from dmt_plugin import transform
from examples import din


def test_histories_have_any_length() -> None:
    features, label = din.Films().batch(200, 1)
    lengths = features["seen"].lengths()
    assert (int(lengths.min()), int(lengths.max()) > din.LENGTH) == (0, True) and label.shape == (200,)
    assert all(torch.equal(features[key].lengths(), torch.ones(200, dtype=torch.long)) for key in ("film", "genre"))
    again, _ = din.Films().batch(200, 1)
    assert torch.equal(again.values(), features.values())


def test_it_is_taken_and_learns() -> None:
    torch.manual_seed(0)
    flat = din.build()
    towers = transform(copy.deepcopy(flat), din.example_batch(), {"dmt": {"towers": {"module": "none"}}}, "2x1")
    films = din.Films()
    features, _ = films.batch(32, 9)
    assert torch.equal(towers(features), flat(features))
    optimizer = torch.optim.Adam(towers.parameters(), lr=0.02)
    losses = []
    for step in range(80):
        features, label = films.batch(128, step)
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(towers(features), label)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < 0.9 * losses[0]
