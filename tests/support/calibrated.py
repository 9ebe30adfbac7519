"""Inputs of a model, arrays for them, and what `batches` makes of calibration data."""

from typing import Any

import numpy as np

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Dim, Node, TensorType
from reparam_compiler.models.calibration import batches

SHAPE = (3, 5, 4)


def an_input(*sizes: Dim, name: str = "x", batch: Dim = "N", dtype: str = "f32") -> Node:
    return Node(name, ops.Input(), (), TensorType(dtype, (batch, *sizes)))


X = [an_input(*SHAPE)]
PAIR = [an_input(3, name="a"), an_input(2, 2, name="b")]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sizes(data: Any, inputs: list[Node] = X, **options: Any) -> list[int]:
    return [len(batch[0]) for batch in batches(data, inputs, **options)]


def joined(data: Any, inputs: list[Node] = X, **options: Any) -> list[np.ndarray]:
    return [np.concatenate(arrays) for arrays in zip(*batches(data, inputs, **options), strict=True)]
