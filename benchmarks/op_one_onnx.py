"""How a one-op ONNX model of `op_coverage_onnx.py` is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from benchmarks.op_models import OneOp

MICROSOFT = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Constant:
    """An input that the model holds."""

    value: np.ndarray


Input = np.ndarray | Constant | None
"""What a model is given, what it holds, or an input that is left out."""


def held(*values: float, dtype: Any = np.int64) -> Constant:
    """A constant of one axis."""
    return Constant(np.asarray(values, dtype))


def scalar(value: float, dtype: Any = np.float32) -> Constant:
    return Constant(np.asarray(value, dtype))


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def between(low: float, high: float, *shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """Uniform numbers; whole ones where the dtype is of whole numbers, `high` left out."""
    random = np.random.default_rng([seed, *shape])
    if np.issubdtype(dtype, np.integer):
        return random.integers(int(low), int(high), shape, dtype)
    return random.uniform(low, high, shape).astype(dtype)


def choices(*shape: int, seed: int = 0) -> np.ndarray:
    """Booleans."""
    return np.random.default_rng([seed, *shape]).integers(0, 2, shape).astype(bool)


def weights(*shape: int, dtype: Any = np.float32, seed: int = 1) -> Constant:
    return Constant(normal(*shape, dtype=dtype, seed=seed))


def one(
    op: str, *inputs: Input, opset: int = 18, outputs: int | Sequence[int] = 1, note: str = "", domain: str = "", **attrs: Any
) -> OneOp:
    """A model of one op.

    outputs: how many it has, or the positions of those that it has. note: what tells it from others of the op and the opset.
    """
    given = {f"x{index}": value for index, value in enumerate(inputs) if isinstance(value, np.ndarray)}
    constants = [
        numpy_helper.from_array(value.value, f"x{index}") for index, value in enumerate(inputs) if isinstance(value, Constant)
    ]
    positions = list(range(outputs)) if isinstance(outputs, int) else list(outputs)
    made = [f"y{index}" if index in positions else "" for index in range(max(positions) + 1)]
    names = ["" if value is None else f"x{index}" for index, value in enumerate(inputs)]
    node = helper.make_node(op, names, made, f"the_{op}", domain=domain, **attrs)
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in given.items()],
        [helper.make_empty_tensor_value_info(name) for name in made if name],
        constants,
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    label = f"{domain}::{op}" if domain else f"{op}-{opset}"
    return OneOp(f"{label} {note}".strip(), lambda: (typed(model), tuple(given.values())))


def typed(model: ModelProto) -> ModelProto:
    """With the types of its outputs, which ONNX Runtime wants; those that cannot be inferred it finds itself."""
    try:
        return onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError:
        return model
