"""The user's nn.Module -> an fx graph with values: the front-end of every rewrite."""

from dmt_plugin.capture.capture import CapturedModel, capture
from dmt_plugin.capture.graph_model import GraphModel
from dmt_plugin.capture.graph_state import graph_module_over
from dmt_plugin.capture.inputs import ExampleBatch, InputBinder

__all__ = ["CapturedModel", "ExampleBatch", "GraphModel", "InputBinder", "capture", "graph_module_over"]
