"""One small net in every kind of model, and writers of those kinds that write something wrong."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reparam_compiler.frontends.torch.export import ExportReading
from reparam_compiler.frontends.torch.fx import FxReading
from reparam_compiler.frontends.torch.placing.reading import ModuleReading

X = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
DATA = torch.randn(16, 3, 9, 7, generator=torch.Generator().manual_seed(1)).numpy()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 1)).eval()


def exported(model: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        return torch.export.export(model, (X,))


def as_onnx(model: nn.Module) -> Any:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import helper, numpy_helper

    state = {name.replace(".", "_"): tensor.numpy() for name, tensor in model.state_dict().items() if tensor.ndim}
    nodes = [
        helper.make_node("Conv", ["x", "0_weight", "0_bias"], ["c"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c", "1_weight", "1_bias", "1_running_mean", "1_running_var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "3_weight", "3_bias"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(*value) for value in (("x", 1, (2, 3, 9, 7)), ("y", 1, (2, 8, 9, 7)))]
    tensors = [numpy_helper.from_array(array, name) for name, array in state.items()]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    return proto


KINDS: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda model: model,
    "graph module": torch.fx.symbolic_trace,
    "program": exported,
    "onnx": as_onnx,
}


def reading_of(kind: str) -> type:
    if kind == "onnx":
        from reparam_compiler.frontends.onnx.frontend import OnnxReading

        return OnnxReading
    return {"module": ModuleReading, "graph module": FxReading, "program": ExportReading}[kind]


def off_by_a_tenth(
    kind: str, monkeypatch: pytest.MonkeyPatch, where: Callable[[dict[str, Any]], bool] = lambda named: True
) -> None:
    """What is written has a tenth more in every bias that the graph has, in those calls of `write` whose keywords say so."""
    reading = reading_of(kind)
    write = reading.write

    def wrong(self: Any, after: Any, **named: Any) -> Any:
        if not where(named):
            return write(self, after, **named)
        changes = {}
        for node in after:
            for place, param in enumerate(node.inputs):
                if getattr(param, "role", "") == "bias":
                    moved = replace(param, load=lambda param=param: np.asarray(param.load()) + np.float32(0.1))
                    changes[node.id] = replace(node, inputs=(*node.inputs[:place], moved, *node.inputs[place + 1 :]))
        return write(self, after.rewrite(changes), **named)

    monkeypatch.setattr(reading, "write", wrong)


def state_of(model: Any) -> bytes | dict[str, Tensor]:
    if hasattr(model, "SerializeToString"):
        return bytes(model.SerializeToString(deterministic=True))
    tensors = model.state_dict() if isinstance(model, nn.Module) else model.state_dict
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(a: Any, b: Any) -> bool:
    return a == b if isinstance(a, bytes) else a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
