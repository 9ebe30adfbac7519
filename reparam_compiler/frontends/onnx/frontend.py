"""onnx.ModelProto in, onnx.ModelProto out: read by `reader`, written by `writer` with onnx-graphsurgeon."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import torch
from onnx import ModelProto

from reparam_compiler.errors import RewriteError, UnsupportedModelError
from reparam_compiler.frontends.base import Comparison
from reparam_compiler.frontends.onnx import io as onnx_io
from reparam_compiler.frontends.onnx.reader import OnnxReader, Stored, overridable_names
from reparam_compiler.frontends.onnx.tensors import Constant, type_of
from reparam_compiler.frontends.onnx.writer import OnnxWriter, apply
from reparam_compiler.interpreter.difference import EXACT, difference
from reparam_compiler.ir.graph import Graph, NodeId, Param
from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING

BATCH = 2
"""What a symbolic first axis becomes where there are no example inputs."""


class OnnxFrontend:
    """Reads and writes `onnx.ModelProto`."""

    name = "onnx"

    def matches(self, model: object) -> bool:
        """True for a ModelProto."""
        return isinstance(model, ModelProto)

    def read(self, model: ModelProto, example_inputs: Sequence[Any] | None = None) -> "OnnxReading":
        """The graph; shapes are those of the file, and of the example inputs where the file leaves them open.

        Raises UnsupportedModelError for a model that is not a valid graph of tensors.
        """
        given = named_inputs(model, example_inputs) if example_inputs is not None else {}
        reader = OnnxReader(model, {name: array.shape for name, array in given.items()})
        return OnnxReading(model, reader.read(), reader.node_index, reader.stored, reader.sized)


@dataclass(frozen=True, slots=True)
class OnnxReading:
    """A model that has been read.

    node_index: for each id of a graph node that is a node of the model, its index there.
    stored: for each parameter that stands for a value of the model, that value.
    sized: the values of the model that were taken from the sizes of others, and so are constant only as long as those stay.
    """

    model: ModelProto
    graph: Graph
    node_index: Mapping[NodeId, int]
    stored: Mapping[Param, Stored]
    sized: Mapping[str, Constant]

    def write(self, after: Graph, *, inplace: bool = False) -> ModelProto:
        """The model that computes `after`: the original protobufs, and new ones for what changed."""
        edit = OnnxWriter(self.model, self.graph, after, self.node_index, self.stored, self.sized).plan()
        model = self.model if inplace else onnx_io.copy_without(self.model, edit.dropped)
        apply(edit.loaded() if inplace else edit, model)
        return model

    def compare(self, after: Graph, example_inputs: Sequence[Any] | None) -> Comparison | None:
        """Both models in ONNX Runtime, in their own dtypes; on random inputs where none are given and the file has shapes.

        To be asked before a write in place.
        """
        feeds = named_inputs(self.model, example_inputs) if example_inputs is not None else _random(self.model)
        if feeds is None:
            return None
        try:
            expected = run_model(self.model, feeds)
        except RUNTIME_ERRORS as error:
            if example_inputs is None:
                return None
            raise UnsupportedModelError(f"ONNX Runtime does not run the model on the example inputs: {error}") from error
        try:
            found = _run_and_drop([self.write(after)], feeds)
        except RUNTIME_ERRORS as error:
            raise RewriteError(f"ONNX Runtime runs the model, but not what was made of it: {error}") from error
        worst, dtype = EXACT, ""
        for a, b in zip(expected, found, strict=True):
            if isinstance(a, np.ndarray) and a.dtype.kind in "fiub":
                worst = max(worst, difference(torch.from_numpy(a), torch.from_numpy(b)), key=lambda d: d.relative)
                dtype = dtype or str(a.dtype)
        return Comparison(worst, dtype, "ONNX Runtime", "random inputs" if example_inputs is None else "example inputs")


RUNTIME_ERRORS = (
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
    ValueError,
)
"""What ONNX Runtime raises for a model, or inputs, that it does not take."""


def run_model(model: ModelProto, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    """The outputs, with ONNX Runtime's own fusions off: it is the rewrite that is measured."""
    return _run_and_drop([model], feeds)


def _run_and_drop(models: list[ModelProto], feeds: Mapping[str, np.ndarray]) -> list[Any]:
    """The outputs of one model, which is taken out of the list: a large one that nobody else holds makes room for its run."""
    model = models.pop()
    if onnx_io.fits_in_memory(model):
        return _run(model.SerializeToString(), feeds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx_io.save(model, path)
        del model
        return _run(str(path), feeds)


def _run(model: bytes | str, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")  # a second copy of every weight
    return list(onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"]).run(None, dict(feeds)))


def named_inputs(model: ModelProto, example_inputs: Sequence[Any]) -> dict[str, np.ndarray]:
    """The example inputs by name, in the order of the model's inputs: of all, or of those that have no default."""
    overridable = overridable_names(model)
    every = [v.name for v in model.graph.input if v.name in overridable or v.name not in _constants(model)]
    needed = [name for name in every if name not in overridable]
    found = len(example_inputs)
    if found not in (len(every), len(needed)):
        raise UnsupportedModelError(f"the model takes {len(needed)} inputs, {needed}, but {found} example inputs were given")
    return {
        name: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        for name, value in zip(every if found == len(every) else needed, example_inputs, strict=True)
    }


def _constants(model: ModelProto) -> set[str]:
    """The inputs that need no value."""
    return {tensor.name for tensor in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}


def _random(model: ModelProto) -> dict[str, np.ndarray] | None:
    """Random inputs of the shapes in the file, `BATCH` for a symbolic first axis; None where another axis is symbolic."""
    random = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        if value.name in _constants(model):
            continue
        _, known = type_of(value.type)
        if known is None or known.dtype not in DTYPES or known.dtype == "bf16":
            return None
        shape = [BATCH if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(known.shape)]
        sizes = [size for size in shape if isinstance(size, int)]
        if len(sizes) < len(shape):
            return None
        drawn = random.standard_normal(sizes) if known.dtype in FLOATING else random.integers(0, 2, sizes)
        feeds[value.name] = np.asarray(drawn).astype(DTYPES[known.dtype].numpy)
    return feeds
