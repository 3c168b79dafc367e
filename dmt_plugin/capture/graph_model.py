"""The module that a capture returns: a ``torch.fx`` graph, called with the same arguments as the user's model.

A :class:`GraphModel` is called as the user's model was. Its state (parameters, buffers,
submodules) *is* the graph module's state, under the user's own names: the module tables
are shared, so ``state_dict()``, ``to()``, ``train()`` and an engine that wraps the model
see one model only.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn

from dmt_plugin.capture.graph_state import keep_unsaved, load_graph_module, save_graph_module
from dmt_plugin.capture.inputs import InputBinder
from dmt_plugin.capture.misfits import said_to_the_user

_SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class GraphModel(nn.Module):
    """Runs an fx graph with the arguments of the user's ``forward``.

    Args:
        graph_module: the graph with its modules and parameters.
        binder: turns a call into the graph's inputs.
    """

    binder: InputBinder

    def __init__(self, graph_module: fx.GraphModule, binder: InputBinder) -> None:
        super().__init__()
        self._adopt(graph_module)
        self._keep(binder=binder)

    def _keep(self, **values: Any) -> None:
        """Attributes of ours, whatever the user's members are called."""
        self.__dict__.update(values)

    def _adopt(self, graph_module: fx.GraphModule) -> None:
        # Not a registered child: the same parameters would appear twice.
        self.__dict__["graph_module"] = graph_module
        for table in _SHARED:
            self.__dict__[table] = graph_module.__dict__[table]
        self.training = graph_module.training

    @property
    def graph(self) -> fx.Graph:
        """The graph that runs."""
        return self.__dict__["graph_module"].graph

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the graph with the user's arguments and returns what the user's model returns."""
        inputs = self.binder.inputs(args, kwargs)
        with said_to_the_user(self.binder, inputs):
            return nn.Module.__call__(self.__dict__["graph_module"], *inputs)  # fx's own call prints generated code

    # A member of the user's model may be called like one of ours ("plan", "lookup"): paths lead to the user's.

    def get_submodule(self, target: str) -> nn.Module:
        """The user's module of that qualified name."""
        head, _, rest = target.partition(".")
        module = self if not target else self._modules.get(head)
        if module is None:
            raise AttributeError(f"{type(self).__name__} has no module {head!r}")
        return module.get_submodule(rest) if rest else module

    def get_parameter(self, target: str) -> nn.Parameter:
        """The user's parameter of that qualified name."""
        path, _, name = target.rpartition(".")
        found = self.get_submodule(path)._parameters.get(name)
        if found is None:
            raise AttributeError(f"{type(self).__name__} has no parameter {target!r}")
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModel:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(self.__dict__)
        original = self.__dict__["graph_module"]
        module = copy.deepcopy(original, memo)
        keep_unsaved(module, original, memo)
        twin._adopt(module)
        for name, value in self.__dict__.items():
            if name not in (*_SHARED, "graph_module"):
                twin.__dict__[name] = copy.deepcopy(value, memo)
        twin.training = self.training
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in _SHARED}
        state["graph_module"] = save_graph_module(state["graph_module"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        training = self.training
        self._adopt(load_graph_module(state["graph_module"]))
        self.training = training
