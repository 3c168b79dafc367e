"""Compares a model with tower modules to the one that the author's own constructor builds.

1. The constructor is called with as many features as there are streams behind the towers, of their width.
2. It gets the weights of the rewritten model, name by name; every one must be there in the same shape.
3. Its tables hand out the outputs of the tower modules for the same batch, so what is compared is everything behind.
4. The outputs must be equal bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.checks import Differs, build, check_towers, require_equal, run, tower_config, tower_paths
from tests.zoo.spec import Batch, Oracle, Variant

#: (features, width, c, p, D): narrower streams; more streams; F == N; F*N == F'*D, where sizes tell nothing.
SETTINGS = ((6, 8, 1, 0, 4), (6, 8, 1, 1, 8), (8, 8, 1, 0, 4), (8, 8, 0, 2, 16), (8, 8, 2, 0, 8))


def check_oracle(variant: Variant, setting: tuple[int, int, int, int, int]) -> None:
    """Raises ``Differs`` unless the rewritten model is the one that its constructor builds.

    Raises:
        TransformError: the model cannot be rewritten in this setting; then there is nothing to compare.
    """
    features, width, c, p, dim = setting
    assert variant.oracle is not None
    model = check_towers(variant, tower_config(c, p, dim), features=features, width=width).eval()
    groups = tower_paths(model)
    if len(groups) != 1:
        raise Differs(f"{len(groups)} groups of towers, the oracle knows one")
    (paths,) = groups.values()
    outputs: dict[str, Tensor] = {}
    for path in paths:
        model.get_submodule(path).register_forward_hook(_keep(outputs, path))
    flat, batch = build(variant, features=features, width=width)
    found = run(model, batch, 7, 2)
    streams = torch.cat([outputs[path] for path in paths], dim=1).unflatten(1, (-1, dim))
    torch.manual_seed(1)
    own, own_batch = variant.oracle.build(streams.shape[1], dim, features)
    tables = list(variant.oracle.tables(streams.shape[1]))
    _load(own, model, variant.oracle, tables)
    _feed(own, tables, streams)
    _copy_outputs(own, flat, variant.oracle, batch)
    require_equal(run(own.eval(), own_batch, 7, 2), found, "outputs")


def _keep(outputs: dict[str, Tensor], path: str) -> Any:
    def hook(module: nn.Module, args: Any, result: Tensor) -> None:
        outputs[path] = result

    return hook


def _load(own: nn.Module, model: nn.Module, oracle: Oracle, tables: list[str]) -> None:
    state, new = model.state_dict(), {}
    gone = (*tables, *oracle.copied, *oracle.skipped)
    for key, value in own.state_dict().items():
        if key.startswith(gone):
            new[key] = value
        elif key not in state:
            raise Differs(f"the rewritten model has no {key}")
        elif state[key].shape != value.shape:
            raise Differs(f"{key} is {tuple(state[key].shape)}, the constructor makes {tuple(value.shape)}")
        else:
            new[key] = state[key]
    own.load_state_dict(new)


def _feed(own: nn.Module, tables: list[str], streams: Tensor) -> None:
    def given(value: Tensor) -> Any:
        return lambda module, args, result: value.reshape(result.shape)

    for i, table in enumerate(tables):
        value = streams if len(tables) == 1 else streams[:, i]
        own.get_submodule(table).register_forward_hook(given(value))


def _copy_outputs(own: nn.Module, flat: nn.Module, oracle: Oracle, batch: Batch) -> None:
    outputs: dict[str, Tensor] = {}
    handles = [flat.get_submodule(path).register_forward_hook(_keep(outputs, path)) for path in oracle.copied]
    run(flat.eval(), batch, 7, 2)
    for handle in handles:
        handle.remove()
    for path in oracle.copied:
        own.get_submodule(path).register_forward_hook(lambda module, args, result, value=outputs[path]: value)
