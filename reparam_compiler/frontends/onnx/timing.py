"""How long an ONNX model takes in ONNX Runtime."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from onnx import TensorProto

from reparam_compiler.frontends.onnx.tensors import dtype_word
from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING

RUNS = 15
WARM_UP = 3


def milliseconds(path: Path, shapes: Sequence[Sequence[int]]) -> float:
    """The median time of a run on one thread, on random inputs of these shapes, in the order of the model's inputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {value.name: _random(value.type, shape) for value, shape in zip(session.get_inputs(), shapes, strict=True)}
    times = []
    for _ in range(WARM_UP + RUNS):
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[WARM_UP:])


def _random(kind: str, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """An array for ONNX Runtime's `tensor(float)`: random numbers, or zeros of a dtype of whole numbers."""
    element = TensorProto.DataType.Value(kind.removeprefix("tensor(").removesuffix(")").upper())
    dtype = DTYPES[dtype_word(element)]
    values = np.random.default_rng(0).standard_normal(shape) if dtype.word in FLOATING else np.zeros(shape)
    return np.asarray(values).astype(dtype.numpy)
