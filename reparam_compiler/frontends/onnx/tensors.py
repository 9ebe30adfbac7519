"""ONNX tensors as the graph's parameters and types, and back: the one place where a fold is rounded for ONNX.

Weights are read from their protobuf, or from the file beside the model that holds them, only when they are asked for.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, TypeProto, checker, external_data_helper, helper, numpy_helper

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir.graph import Dim, Param, TensorType
from reparam_compiler.vocabulary.dtypes import DTYPES

RUN_CHECKER, REWRITE = "run onnx.checker on the model", "write the model again"
MADE = 2**31
"""Bytes that a model may make of sizes and constants: as many as one protobuf holds."""
FARTHEST = 2**13
"""Positions that a window may reach to be read: a region is tried on maps that are larger than it reaches."""
LARGEST = 2**40
"""Elements of a tensor: more than any machine holds are a lie."""
_WORDS = {row.onnx: word for word, row in DTYPES.items()}
_FIELDS: Mapping[int, str] = {
    TensorProto.FLOAT: "float_data", TensorProto.COMPLEX64: "float_data", TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data", TensorProto.INT64: "int64_data", TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
}  # fmt: skip
"""Where a tensor has its elements one by one; in `int32_data` those of all other dtypes."""
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value of the model that depends on no input: an initializer, a Constant node, or what is computed from those.

    name: of the value that holds it.
    computed: True where nodes compute it, so that no tensor of the model has its elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    computed: bool = False

    def param(self, role: str) -> Param:
        """The constant as an operand."""
        return Param(role, self.dtype, self.shape, self.load, None if self.computed else self.name)

    def transposed(self, role: str) -> Param:
        """The constant, a matrix, as an operand that reads it the other way round."""
        return Param(role, self.dtype, self.shape[::-1], lambda: self.load().T, None if self.computed else self.name)


def dtype_word(element_type: int) -> str:
    """The graph's word for an element type; ONNX's own, in small letters, for one that the graph has no word for.

    Raises UnsupportedModelError for a number that is none.
    """
    if element_type not in TensorProto.DataType.values():
        raise UnsupportedModelError(f"found the element type {element_type}, which ONNX does not have; {RUN_CHECKER}")
    return _WORDS.get(element_type) or str(TensorProto.DataType.Name(element_type)).lower()


def type_of(proto: TypeProto) -> tuple[str | None, TensorType | None]:
    """The dtype of a value, and its type where the rank is known too."""
    if proto.WhichOneof("value") != "tensor_type" or not proto.tensor_type.elem_type:
        return None, None
    tensor = proto.tensor_type
    dtype = dtype_word(tensor.elem_type)
    return dtype, TensorType(dtype, tuple(map(_dim, tensor.shape.dim))) if tensor.HasField("shape") else None


def is_meant_open(dim: Any) -> bool:
    """Whether a size is written as 0 or -1, by which exporters mean that it is open."""
    return bool(dim.HasField("dim_value") and dim.dim_value <= 0)


def _dim(dim: Any) -> Dim:
    if dim.HasField("dim_value") and not is_meant_open(dim):
        return int(dim.dim_value)
    return str(dim.dim_param) or None


def set_type(proto: TypeProto, before: TensorType | None, after: TensorType) -> None:
    """Writes the sizes that changed; every other size keeps its protobuf."""
    tensor = proto.tensor_type
    tensor.elem_type = element_type(after.dtype)
    old = [type(dim).FromString(dim.SerializeToString()) for dim in tensor.shape.dim]
    tensor.ClearField("shape")
    tensor.shape.SetInParent()
    for axis, size in enumerate(after.shape):
        dim = tensor.shape.dim.add()
        if before is not None and len(before.shape) == len(old) == len(after.shape) and before.shape[axis] == size:
            dim.CopyFrom(old[axis])
        elif isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size


def element_type(dtype: str) -> int:
    """The ONNX element type of a graph dtype."""
    if dtype in DTYPES:
        return DTYPES[dtype].onnx
    value: int = TensorProto.DataType.Value(dtype.upper())
    return value


def decimal(value: float) -> float:
    """The shortest decimal that a float32 attribute stands for: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def constant_of(tensor: TensorProto, name: str) -> Constant:
    """A constant that reads a protobuf when it is asked to."""
    return Constant(name, dtype_word(tensor.data_type), tuple(tensor.dims), lambda: load(tensor))


def load(tensor: TensorProto) -> np.ndarray:
    """The elements of a tensor in its own dtype; bfloat16 as ml_dtypes has it. External data are read, and not kept."""
    return numpy_helper.to_array(inline(tensor))


def inline(tensor: TensorProto) -> TensorProto:
    """The tensor with its elements: itself, or a copy for one that has them in a file."""
    if not external_data_helper.uses_external_data(tensor):
        return tensor
    copied = TensorProto()
    copied.CopyFrom(tensor)
    base = next((entry.value for entry in tensor.external_data if entry.key == "basepath"), "") or str(Path())
    try:
        external_data_helper.load_external_data_for_tensor(copied, base)
    except (OSError, ValueError, checker.ValidationError) as error:
        raise _no_external_data(tensor, error) from error
    check_tensor(copied)
    return copied


def _no_external_data(tensor: TensorProto, error: Exception) -> UnsupportedModelError:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    return UnsupportedModelError(
        f"{tensor.name}: its elements should be in {location!r} beside the model, but cannot be read ({error}); "
        "pass the path of the model, or load it with onnx.load(path), which reads them"
    )


def byte_count(tensor: TensorProto) -> int:
    """How many bytes the elements take."""
    bits = {"int4": 4, "uint4": 4, "float4e2m1": 4, "int2": 2, "uint2": 2}.get(dtype_word(tensor.data_type))
    bits = bits or 8 * int(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)
    count: int = math.prod(tensor.dims)
    return (count * bits + 7) // 8


def check_tensor(tensor: TensorProto) -> None:
    """Raises UnsupportedModelError where a tensor states other elements than it holds; those in a file are not looked at."""
    name = tensor.name or "a tensor"
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        raise UnsupportedModelError(f"{name}: found the dtype {tensor.data_type}, which ONNX does not have; {RUN_CHECKER}")
    if any(not 0 <= size <= LARGEST for size in tensor.dims) or math.prod(tensor.dims) > LARGEST:
        raise UnsupportedModelError(f"{name}: found the shape {list(tensor.dims)}, which no tensor has; write the model again")
    if external_data_helper.uses_external_data(tensor):
        return
    found, expected, unit = _held(tensor)
    if found != expected:
        raise UnsupportedModelError(
            f"{name}: found {found} {unit}; its shape {list(tensor.dims)} of {dtype_word(tensor.data_type)} takes {expected}: "
            "write the model again, it may have been cut off"
        )


def _held(tensor: TensorProto) -> tuple[int, int, str]:
    """What a tensor holds, what its shape takes, and of what that is."""
    count = math.prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        return len(tensor.string_data), count, "strings"
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), byte_count(tensor), "bytes"
    field = _FIELDS.get(tensor.data_type, "int32_data")
    packed = byte_count(tensor) if byte_count(tensor) < count else count  # those of less than a byte share one
    return len(getattr(tensor, field)), 2 * count if tensor.data_type in _COMPLEX else packed, f"elements in {field}"


def called(node: NodeProto) -> str:
    """A node as errors name it."""
    name = node.name or next(filter(None, node.output), "a node")
    return f"{name} ({node.op_type})"


def tensor_from(name: str, param: Param, dtype: str | None = None) -> TensorProto:
    """A new tensor of a parameter's elements, rounded once to `dtype`, or to the parameter's own."""
    array = np.asarray(param.load())
    row = DTYPES.get(dtype or param.dtype)
    wanted = array.dtype if row is None else row.numpy
    return numpy_helper.from_array(np.ascontiguousarray(array.astype(wanted, copy=False)).reshape(array.shape), name)
