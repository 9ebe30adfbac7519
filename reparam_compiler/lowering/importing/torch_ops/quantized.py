"""Quantizing and its inverse, as torch's quantizers export them: TVM's ops of those names, which `relax/quantized.py` reads."""

from typing import Any

import numpy as np
from tvm import relax

from reparam_compiler.lowering.importing.torch_ops.table import Call, instead, word

UNKNOWN = "does not know it"
KINDS = ("per_tensor.default", "per_tensor.tensor", "per_channel.default")
BYTES = ("int8", "uint8")


@instead(*(f"quantize_{kind}" for kind in KINDS), tvm=UNKNOWN)
def _quantized(call: Call) -> Any:
    dtype = _checked(call, word(call["dtype"]))
    made = relax.op.quantize(call.tensor("input"), *_parameters(call, dtype), out_dtype=dtype)
    limits = np.iinfo(dtype)
    for op, bound, limit in ((relax.op.maximum, "quant_min", limits.min), (relax.op.minimum, "quant_max", limits.max)):
        if call[bound] != limit:
            made = op(call.emit(made), relax.const(call[bound], dtype))
    return made


@instead(*(f"dequantize_{kind}" for kind in KINDS), tvm=UNKNOWN)
def _dequantized(call: Call) -> Any:
    dtype = _checked(call, call.given_dtype("input"))
    if call.dtype != "float32":
        raise call.refusal(f"bytes dequantized to {call.dtype}", "export the model in float32")
    return relax.op.dequantize(call.tensor("input"), *_parameters(call, dtype))


def _checked(call: Call, dtype: str) -> str:
    if dtype not in BYTES:
        raise call.refusal(f"a tensor quantized to {dtype}", f"expected {' or '.join(BYTES)}: quantize the model to these")
    return dtype


def _parameters(call: Call, dtype: str) -> tuple[Any, Any, int]:
    """Scale, zero point and their axis."""
    one = call["scales"] is None
    scale = call.tensor("scale" if one else "scales", "float32")
    zero = call.tensor("zero_point" if one else "zero_points", dtype) if one or call["zero_points"] is not None else None
    return scale, relax.const(0, dtype) if zero is None else zero, 0 if one else int(call["axis"])
