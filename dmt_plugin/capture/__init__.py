"""From the user's ``nn.Module`` to a ``torch.fx`` graph with an example value at every node: where a rewrite begins."""

from dmt_plugin.capture.capture import CapturedModel, capture
from dmt_plugin.capture.graph_model import GraphModel
from dmt_plugin.capture.graph_state import copy_graph, graph_module_over
from dmt_plugin.capture.inputs import ExampleBatch, InputBinder

__all__ = ["CapturedModel", "ExampleBatch", "GraphModel", "InputBinder", "capture", "copy_graph", "graph_module_over"]
