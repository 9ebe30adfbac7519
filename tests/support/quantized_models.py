"""Models of ONNX that are quantized, node by node, and what they give by ONNX's own definition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

OPSET = 21


@dataclass(slots=True)
class Quantized:
    """A model under construction, of the input `x` and as many outputs as are asked for.

    shape: of `x`, float32.
    """

    shape: tuple[int, ...]
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    source: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def constant(self, value: Any, dtype: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def add(self, op: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, domain=domain, **attrs))
        return name

    def bytes_of(self, x: str, scale: float, zero: int, dtype: Any) -> str:
        """Quantized."""
        return self.add("QuantizeLinear", x, self.constant(scale, np.float32), self.constant(zero, dtype))

    def again(self, x: str, scale: float, zero: int, dtype: Any) -> str:
        """Quantized and dequantized."""
        point = self.constant(scale, np.float32), self.constant(zero, dtype)
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, *point), *point)

    def weights(self, *sizes: int, dtype: Any = np.int8, scale: Any = 0.01, zero: Any = 0, axis: int = 0) -> str:
        """Dequantized random bytes."""
        limits = np.iinfo(dtype)
        stored = self.constant(self.source.integers(limits.min, limits.max + 1, sizes), dtype)
        scales = self.constant(scale, np.float32)
        return self.add("DequantizeLinear", stored, scales, self.constant(zero, dtype), axis=axis)

    def output(self, name: str) -> str:
        self.outputs.append(name)
        return name

    def model(self) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_empty_tensor_value_info(name) for name in self.outputs],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def by_definition(model: ModelProto, feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
    """The outputs, from ONNX's reference, which dequantizes, computes in float32 and quantizes."""
    found: Sequence[np.ndarray] = ReferenceEvaluator(model).run(None, dict(feeds))
    return found
