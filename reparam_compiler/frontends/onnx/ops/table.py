"""What ONNX's ops mean in `ir.ops`: the readers and coupling models of all modules, in one place.

A reader gives an op and its operands, where operand k is always the node's own input k, or raises `Unsupported`: then the
node is opaque, and nothing that touches it is rewritten. What an op says in an attribute in one opset and in an input in a
later one (axes, sizes, bounds) must be constant either way.
"""

from reparam_compiler.frontends.onnx.ops import arithmetic, coupling_models, movement, scatter, windows
from reparam_compiler.frontends.onnx.ops.registry import coupling_model, read

__all__ = ["arithmetic", "coupling_model", "coupling_models", "movement", "read", "scatter", "windows"]
