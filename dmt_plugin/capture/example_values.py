"""Example values: shapes without data that stand for tensors while a model is traced.

1. All traces of a model share one fake mode, and one stand-in for each tensor that a layer holds.
2. Weights without data are often beside others that have some: all are followed as if they were where the batch is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.fx.node import map_aggregate


class ExampleValues:
    """Makes example values for the traces of one model.

    Args:
        inputs: one value per graph input; their device is that of weights without data.

    Attributes:
        mode: operations on example values run under it.
    """

    def __init__(self, inputs: Sequence[Any]) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._device = next((t.device for t in inputs if isinstance(t, Tensor) and not t.is_meta), torch.device("cpu"))
        self._of_state: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, value: Any) -> Any:
        """``value`` with an example value in place of each tensor in it."""
        made = map_aggregate(value, lambda item: self._of_tensor(item) if isinstance(item, Tensor) else item)
        # The results of ``max(dim=1)`` and the like have names, which plain tuples lack.
        named = isinstance(value, tuple) and type(value).__module__ == "torch.return_types"
        return type(value)(made) if named else made

    def of_state(self, module: nn.Module) -> dict[str, Tensor]:
        """Example values of a layer's parameters and buffers by name; of one tensor always the same."""
        found: dict[str, Tensor] = {}
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if id(tensor) not in self._of_state:
                self._of_state[id(tensor)] = (tensor, self._of_tensor(tensor))
            found[name] = self._of_state[id(tensor)][1]
        return found

    def _of_tensor(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, FakeTensor):
            with unset_fake_temporarily():  # an operation of the mode would make it fake, and then fake once more
                tensor = tensor.detach()
            tensor = self.mode.from_tensor(tensor)
        if tensor.device.type != "meta":
            return tensor
        with self.mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self._device)
