"""One-op ONNX models for `op_coverage.py`: old and new opsets of each op, and attributes that are seldom written.

Left out are inputs that bring down TVM or ONNX Runtime, and what ONNX Runtime and onnx.reference both have no kernel for.
"""

from benchmarks import op_coverage_onnx_arithmetic, op_coverage_onnx_layers, op_coverage_onnx_movement
from benchmarks.op_models import OneOp

LISTS = (op_coverage_onnx_arithmetic.cases, op_coverage_onnx_layers.cases, op_coverage_onnx_movement.cases)


def models() -> list[OneOp]:
    """All of them, in the order of their families."""
    return [model for cases in LISTS for model in cases()]
