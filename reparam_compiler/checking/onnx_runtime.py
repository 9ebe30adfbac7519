"""ONNX Runtime, as the checks use it. Importing this module needs it: who can do without catches the ImportError."""

import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from onnx import ModelProto

from reparam_compiler.core.drawn import is_drawn
from reparam_compiler.errors import first_line
from reparam_compiler.frontends.onnx import io as onnx_io
from reparam_compiler.frontends.onnx.frontend import unset_inputs
from reparam_compiler.frontends.onnx.tensors import type_of
from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING

BATCH = 2
"""What a symbolic first axis becomes where there are no example inputs."""
RUNTIME_ERRORS = (
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
    ValueError,
    TimeoutError,
)
"""What ONNX Runtime raises for a model, or inputs, that it does not take; and `run_model` for a run without an end."""
LONGEST = 300.0
"""Seconds that a run may take: a file can ask for loops without end."""
_PREPACKED = 2**26
"""Bytes of a model whose weights may be packed, which copies them; loading without it takes the square of the nodes."""


def run_model(model: ModelProto | Path, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    """The outputs of a model, or of the model in a file, for inputs by name; one of `RUNTIME_ERRORS` where it does not run."""
    asked = onnxruntime.RunOptions()
    with tempfile.TemporaryDirectory() as folder:
        session = _session(model, Path(folder))
        timer = threading.Timer(LONGEST, setattr, (asked, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            return list(session.run(None, dict(feeds), asked))
        except RUNTIME_ERRORS as error:
            if asked.terminate:
                raise TimeoutError(f"it was still running after {LONGEST:g} s") from error
            raise
        finally:
            timer.cancel()


def refusal_of(model: ModelProto | Path) -> str | None:
    """What ONNX Runtime says when it loads a model as callers do, with its optimizations; None where it takes it.

    Those infer shapes anew, and refuse some models that it runs without. One in a file is too large to be optimized for this.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            _session(model, Path(folder), optimized=isinstance(model, ModelProto))
        except RUNTIME_ERRORS as error:
            return first_line(error)
    return None


def _session(model: ModelProto | Path, folder: Path, *, optimized: bool = False) -> Any:
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    if isinstance(model, ModelProto) and not onnx_io.fits_in_memory(model):
        onnx_io.save(model, folder / "model.onnx")
        model = folder / "model.onnx"
    stored = str(model) if isinstance(model, Path) else model.SerializeToString()
    if isinstance(stored, str) or len(stored) > _PREPACKED:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(stored, options, ["CPUExecutionProvider"])


def random_inputs(model: ModelProto) -> list[np.ndarray] | None:
    """Random inputs of the shapes in the file, `BATCH` for a symbolic first axis; None for another one, or a great size."""
    random = np.random.default_rng(0)
    arrays = []
    for value in unset_inputs(model):
        _, declared = type_of(value.type)
        if declared is None or declared.dtype not in DTYPES or declared.dtype == "bf16":
            return None
        shape = [BATCH if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(declared.shape)]
        sizes = [size for size in shape if isinstance(size, int)]
        if len(sizes) < len(shape) or not is_drawn(sizes):
            return None
        drawn = random.standard_normal(sizes) if declared.dtype in FLOATING else random.integers(0, 2, sizes)
        arrays.append(np.asarray(drawn).astype(DTYPES[declared.dtype].numpy))
    return arrays
