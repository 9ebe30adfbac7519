"""Why a conv, linear or norm of an ONNX model is not read: its weights are no constants, and what they are instead."""

from collections.abc import Callable, Collection, Mapping

from onnx import NodeProto

from reparam_compiler.advice import option
from reparam_compiler.ir.ops import QUANTIZED, Facts
from reparam_compiler.vocabulary.resolve import onnx_facts

_OVERRIDABLE = "has weights that are listed as graph inputs, a caller may override them"
_WEIGHTS: Mapping[str, range] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), range(1, 3)),
    "MatMul": range(1, 2),
    "BatchNormalization": range(1, 5),
}
_QUANTIZED_LAYERS = frozenset({"QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "QGemm"})


def why_opaque(
    node: NodeProto,
    givers: Mapping[str, NodeProto],
    overridable: Collection[str],
    is_constant: Callable[[str], bool],
) -> str:
    """What stands in the way of reading a layer; empty for any other node, or where its weights are constants.

    givers: the node that gives each value. overridable: the initializers that a caller can override.
    """
    if node.op_type in _QUANTIZED_LAYERS:
        return QUANTIZED
    for name in (node.input[place] for place in _WEIGHTS.get(node.op_type, ()) if place < len(node.input)):
        if not name or is_constant(name):
            continue
        origin = name
        while origin in givers and givers[origin].input:
            if Facts.QUANTIZED in onnx_facts(givers[origin].op_type):
                return QUANTIZED
            origin = givers[origin].input[0]
        if origin in overridable:
            return f"{_OVERRIDABLE}: {option('weights_are_constant', True)} takes them for constants"
        if node.op_type in ("MatMul", "Gemm"):
            continue  # the product of two computed values, as in an attention
        is_input = "that is" if origin == name else "that is computed from"
        return f"has a weight {is_input} an input of the model, {origin}"
    return ""
