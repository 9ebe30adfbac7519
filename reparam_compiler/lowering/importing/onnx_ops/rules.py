"""All rules: importing the families fills the table."""

from reparam_compiler.lowering.importing.onnx_ops import (
    elementwise,
    functions,
    indexing,
    layers,
    norms,
    quantized,
    recurrent,
    resizing,
    sampling,
    signals,
)
from reparam_compiler.lowering.importing.onnx_ops.table import ROWS

FAMILIES = (elementwise, functions, indexing, layers, norms, quantized, recurrent, resizing, sampling, signals)
RULES = {op: row.rule for op, row in ROWS.items()}
