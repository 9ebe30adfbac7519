"""Small ONNX models and how to run them."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir.graph import Graph
from tests.support import quick_exports
from tests.support.small_models import Together

FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}  # ONNX Runtime's float32 against float64
Shape = Sequence[int | str | None]
quick_exports.install()


def model_of(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    dtype: int = TensorProto.FLOAT,
) -> ModelProto:
    """A model; the types of its outputs are inferred."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    if all(not node.domain for node in nodes):
        for value, inferred in zip(model.graph.output, onnx.shape_inference.infer_shapes(model).graph.output, strict=True):
            value.CopyFrom(inferred)
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param.startswith("unk__"):
                    dim.ClearField("dim_param")
    return model


def session(model: ModelProto | Path) -> onnxruntime.InferenceSession:
    """A model or a file in ONNX Runtime, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = model if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])


def run(model: ModelProto | Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs, from ONNX Runtime."""
    return list(session(model).run(None, dict(feeds)))


def run_on(model: ModelProto | Path, *inputs: np.ndarray | torch.Tensor) -> list[np.ndarray]:
    """The outputs, from ONNX Runtime; the inputs in the model's order."""
    loaded = session(model)
    names = [source.name for source in loaded.get_inputs()]
    return list(loaded.run(None, {name: np.asarray(x) for name, x in zip(names, inputs, strict=True)}))


@cache
def runs_opset(opset: int) -> bool:
    """True where ONNX Runtime takes models of this opset at all."""
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], {"x": (1,)}, ["y"], opset=opset)
    try:
        run(model, {"x": normal(1)})
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
        return False
    return True


def evaluated(graph: Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs, from the interpreter in float64."""
    values = evaluate(graph, {name: torch.from_numpy(array) for name, array in feeds.items()})
    return [values[name].numpy() for name in graph.outputs]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exported(module: torch.nn.Module, x: torch.Tensor, folder: Path, *, dynamo: bool, dynamic: bool) -> ModelProto:
    """The module through one of torch's two exporters."""
    path = folder / "model.onnx"
    with _quiet():
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
            torch.onnx.export(module, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
        else:
            axes = {"x": {0: "batch"}} if dynamic else None
            torch.onnx.export(module, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return onnx.load(path)


def exported_together(
    modules: Mapping[str, tuple[torch.nn.Module, torch.Tensor]], *, dynamic: bool = False
) -> dict[str, ModelProto]:
    """Each module through the dynamo exporter: all in one call, which takes half the time, and cut apart again.

    Where they are `dynamic` each has a batch of its own.
    """
    parts, inputs = [module for module, _ in modules.values()], tuple(x for _, x in modules.values())
    shapes = (tuple({0: torch.export.Dim(f"batch{index}")} for index in range(len(parts))),) if dynamic else None
    with _quiet():
        program = torch.onnx.export(Together(parts).eval(), inputs, dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    whole = onnx.shape_inference.infer_shapes(program.model_proto)
    cut = onnx.utils.Extractor(whole)
    ends = zip(modules, whole.graph.input, whole.graph.output, strict=True)
    return {name: cut.extract_model([source.name], [output.name]) for name, source, output in ends}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exports without the warnings of exporters about themselves."""
    with warnings.catch_warnings():
        # the legacy exporter announces its end, and both call deprecated parts of torch themselves
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def convs_and_pool() -> ModelProto:
    """Two convs and a pooling, which a fresh process opens in less time than torch takes to export."""
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    return model_of(nodes, {"x": (1, 3, 8, 7)}, ["y"], {"v": normal(8, 3, 3, 3), "w": normal(12, 8, 3, 3)})
