"""ONNX models into Relax.

onnx.ModelProto --what TVM misreads rewritten in a copy (`onnx_ops`)--> ModelProto --from_onnx--> Relax
"""

import sys
from collections.abc import Sequence
from typing import Any

from reparam_compiler.lowering.importing.refusals import importing
from reparam_compiler.lowering.importing.shapes import Imported, Shapes, fixed, missing_shape, shapes_of_examples


def open_batches(model: Any) -> dict[str, tuple[int, ...]]:
    """The inputs of an ONNX model whose first size alone is open, with the shape that a batch of one gives them."""
    onnx = sys.modules.get("onnx")
    if onnx is None or not isinstance(model, onnx.ModelProto):
        return {}
    found = {}
    for value in _onnx_inputs(model):
        first, *others = [_onnx_dim(dim) for dim in value.type.tensor_type.shape.dim] or [0]
        sizes = [size for size in others if isinstance(size, int)]
        if isinstance(first, str) and len(sizes) == len(others):
            found[str(value.name)] = (1, *sizes)
    return found


def from_onnx_model(model: Any, example_inputs: Any, shapes: Shapes) -> Imported:
    """A ModelProto as Relax, its open sizes as `shapes` or the examples have them. Raises as `to_relax`."""
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    from reparam_compiler.lowering.importing.onnx_ops.prepare import prepared

    wanted = _onnx_inputs(model)
    declared = {value.name: [_onnx_dim(dim) for dim in value.type.tensor_type.shape.dim] for value in wanted}
    given = shapes_of_examples(list(declared), example_inputs)
    known = {}
    for name, dims in declared.items():
        sizes = shapes.get(name, _filled(dims, given.get(name)))
        known[name] = [size for size in sizes if isinstance(size, int)]
        if len(known[name]) < len(sizes) or (not sizes and not _has_rank(model, name)):
            raise missing_shape(name, sizes)
    with importing("ONNX"):
        subject = prepared(model, known)
        module = from_onnx(subject.model, dtype_dict=_onnx_dtypes(subject.model.graph.input))
    weights = module["main"].params[len(known) :]
    if weights:
        module = relax.transform.BindParams("main", dict(zip(weights, subject.weights, strict=True)))(module)
    return fixed(module, tuple(known), tuple(value.name for value in model.graph.output), shapes)


def _filled(dims: Sequence[int | str], given: Sequence[int] | None) -> Sequence[int | str]:
    """The declared sizes, the open ones as they are in an example that fits."""
    if given is None or len(given) != len(dims):
        return dims
    return [size if isinstance(dim, str) else dim for dim, size in zip(dims, given, strict=True)]


def _onnx_inputs(model: Any) -> list[Any]:
    """What a run must be given: ONNX may list weights among the inputs too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _onnx_dim(dim: Any) -> int | str:
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or "?"


def _has_rank(model: Any, name: str) -> bool:
    return any(v.name == name and v.type.tensor_type.HasField("shape") for v in model.graph.input)


def _onnx_dtypes(values: Sequence[Any]) -> dict[str, str]:
    import onnx

    return {v.name: str(onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)) for v in values}
