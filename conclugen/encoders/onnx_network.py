"""Convolutional networks on a CPU by ONNX Runtime where it is installed (extra `fast`), which needs about half of the
time that torch's own convolutions do.

A network is written down layer by layer as ONNX (operators of version 17) from torch's layers, with their weights as
they are: no tracing, and no exporter to wait for. Results differ from torch's by rounding.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_OPERATORS, _IR = 17, 8
_INPUT = "x"


def available(device: str | torch.device) -> bool:
    """Whether a network on this device can run so; nothing is imported."""
    installed = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))
    return installed and torch.device(device).type == "cpu"


class Graph:
    """A network of one input as it is written down: each method adds a layer behind the named value, and returns the
    name of its own."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def convolution(self, value: str, layer: nn.Conv2d, same: bool = False) -> str:
        """same: padded as TensorFlow's SAME, in place of the layer's own padding, which must be in numbers."""
        from onnx import numpy_helper

        inputs = [value]
        for part, tensor in (("weight", layer.weight), ("bias", layer.bias)):
            if tensor is not None:
                name = f"{part}{len(self.weights)}"
                self.weights.append(numpy_helper.from_array(tensor.detach().float().cpu().numpy(), name))
                inputs.append(name)
        padding: dict[str, Any] = {"auto_pad": "SAME_UPPER"}
        if not same:
            assert isinstance(layer.padding, tuple)
            padding = {"pads": [*layer.padding, *layer.padding]}
        strides, dilations = list(layer.stride), list(layer.dilation)
        return self._node("Conv", inputs, strides=strides, dilations=dilations, group=layer.groups, **padding)

    def clip(self, value: str, least: float, most: float) -> str:
        import numpy as np
        from onnx import numpy_helper

        names = []
        for number in (least, most):
            names.append(f"number{len(self.weights)}")
            self.weights.append(numpy_helper.from_array(np.array(number, np.float32), names[-1]))
        return self._node("Clip", [value, *names])

    def leaky_relu(self, value: str, slope: float) -> str:
        return self._node("LeakyRelu", [value], alpha=slope)

    def sum(self, one: str, other: str) -> str:
        return self._node("Add", [one, other])

    def mean(self, value: str) -> str:
        """Over height and width, (n, C, H, W) -> (n, C)."""
        return self._node("Flatten", [self._node("GlobalAveragePool", [value])])

    def sequence(self, layers: Sequence[nn.Module], value: str = _INPUT) -> str:
        """Convolutions and leaky ReLUs, one behind the other. TypeError for any other layer."""
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                value = self.convolution(value, layer)
            elif isinstance(layer, nn.LeakyReLU):
                value = self.leaky_relu(value, layer.negative_slope)
            else:
                raise TypeError(f"{type(layer).__name__}: expected a convolution or a leaky ReLU")
        return value

    def _node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name


class OnnxNetwork(nn.Module):
    """What a graph computes: (n, C, H, W) float32 -> its value `result`. As many threads as torch has here."""

    def __init__(self, graph: Graph, result: str, channels: int) -> None:
        super().__init__()
        import onnxruntime
        from onnx import TensorProto, helper

        kind = TensorProto.FLOAT
        inputs = [helper.make_tensor_value_info(_INPUT, kind, [None, channels, None, None])]
        outputs = [helper.make_tensor_value_info(result, kind, None)]
        written = helper.make_graph(graph.nodes, "network", inputs, outputs, graph.weights)
        versions = [helper.make_opsetid("", _OPERATORS)]
        model = helper.make_model(written, opset_imports=versions, ir_version=_IR)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # it would keep what the largest input ever took
        # Threads that wait for the next layer would keep cores busy that decoding and other processes want.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = model.SerializeToString()
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        found = self._session.run(None, {_INPUT: x.detach().contiguous().numpy()})
        return torch.from_numpy(found[0])
