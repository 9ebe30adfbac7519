"""How long ONNX models take in ONNX Runtime, each by itself or several by turns."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from onnx import TensorProto

from reparam_compiler.frontends.onnx.tensors import dtype_word
from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING

RUNS = 15
WARM_UP = 3
ROUNDS = 40
"""Of models that run by turns."""
TOGETHER = 8
"""Models that are open at once, beside the first of all: each holds its weights."""
Run = Callable[[], object]


def milliseconds(path: Path, shapes: Sequence[Sequence[int]]) -> float:
    """The median time of a run on one thread, on random inputs of these shapes, in the order of the model's inputs."""
    run = _run_of(path, shapes)
    return 1e3 * statistics.median([_seconds(run) for _ in range(WARM_UP + RUNS)][WARM_UP:])


def least_milliseconds(paths: Sequence[Path], shapes: Sequence[Sequence[int]]) -> list[float]:
    """The least time of a run of each model, all of which take these shapes.

    `TOGETHER` of them run by turns, and the first of all with each such group, so that what slows the machine for a while slows
    all that are compared.
    """
    least = [math.inf] * len(paths)
    for start in range(1, max(2, len(paths)), TOGETHER):
        places = [0, *range(start, min(start + TOGETHER, len(paths)))]
        for place, seconds in zip(places, _by_turns([paths[place] for place in places], shapes), strict=True):
            least[place] = min(least[place], 1e3 * seconds)
    return least


def _by_turns(paths: Sequence[Path], shapes: Sequence[Sequence[int]]) -> list[float]:
    """The least seconds of a run of each; all are open meanwhile."""
    runs = [_run_of(path, shapes) for path in paths]
    rounds = [[_seconds(run) for run in runs] for _ in range(WARM_UP + ROUNDS)]
    return [min(times) for times in zip(*rounds[WARM_UP:], strict=True)]


def _run_of(path: Path, shapes: Sequence[Sequence[int]]) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {value.name: _random(value.type, shape) for value, shape in zip(session.get_inputs(), shapes, strict=True)}
    return lambda: session.run(None, feeds)


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _random(kind: str, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """An array for ONNX Runtime's `tensor(float)`: random numbers, or zeros of a dtype of whole numbers."""
    element = TensorProto.DataType.Value(kind.removeprefix("tensor(").removesuffix(")").upper())
    dtype = DTYPES[dtype_word(element)]
    values = np.random.default_rng(0).standard_normal(shape) if dtype.word in FLOATING else np.zeros(shape)
    return np.asarray(values).astype(dtype.numpy)
