"""All rules, by domain and op; importing the families fills the table."""

from reparam_compiler.lowering.importing.onnx_ops import (
    attention,
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

FAMILIES = (
    attention,
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
RULES = {op: row.rule for op, row in ROWS.items()}


def page() -> str:
    """The table as a page of markdown: by family, what TVM does with each op, and what stands instead."""
    lines = ["# ONNX ops that are rewritten before TVM sees them", "", PREAMBLE]
    for family in FAMILIES:
        lines += ["", f"## {_first_line(family.__doc__)}", "", "| op | TVM 0.27 | instead |", "|---|---|---|"]
        own = ((op, row) for op, row in sorted(ROWS.items()) if row.rule.__module__ == family.__name__)
        lines += [f"| {'::'.join(filter(None, op))} | {row.tvm} | {_first_line(row.rule.__doc__)} |" for op, row in own]
    return "\n".join(lines) + "\n"


PREAMBLE = """\
Written by `lowering/importing/onnx_ops/rules.py`; `UPDATE_GOLDENS=1 pytest tests/lowering/importing` writes it anew. Forms that
an op had before opset 21 are brought to that one first (`opsets.py`). What is not listed is TVM's to read; what TVM has no
converter for is refused by the name of its node."""


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]
