"""A written-back model -> a Relax module with fixed shapes, by TVM's own importers.

    nn.Module, fx.GraphModule --torch.export--> ExportedProgram --from_exported_program--> Relax      from_torch
    onnx.ModelProto           ---------------------from_onnx-----------------------------> Relax      from_onnx

What TVM can import can be lowered; what it misreads is said otherwise before it sees it (`torch_ops/`). Parameters become
constants. Neither torch nor onnx is imported unless a model of theirs comes in. Shapes are fixed here, the batch's too
(docs/adr/0009-variants.md).
"""

import sys
from typing import Any

from reparam_compiler.errors import LoweringError, UnsupportedModelError
from reparam_compiler.lowering.importing.from_onnx import from_onnx_model
from reparam_compiler.lowering.importing.from_torch import exported, from_exported
from reparam_compiler.lowering.importing.shapes import Imported, Shapes, checked_shapes, shapes_option


def to_relax(model: Any, example_inputs: Any = None, *, input_shapes: Shapes | None = None) -> Imported:
    """Import `model` with every shape fixed.

    Args:
        model: nn.Module, fx.GraphModule, torch.export.ExportedProgram or onnx.ModelProto.
        example_inputs: a tensor or a tuple of them, for the torch kinds that have no shapes of their own; else their shapes
            are those of inputs with open sizes.
        input_shapes: a shape for each input that has none, or that has symbolic dimensions.

    Raises: LoweringError where a shape is missing, or TVM has no conversion for an op; UnsupportedModelError for
    any other kind of model.
    """
    shapes = checked_shapes(input_shapes)
    torch, onnx = sys.modules.get("torch"), sys.modules.get("onnx")
    if onnx is not None and isinstance(model, onnx.ModelProto):
        imported = from_onnx_model(model, example_inputs, shapes)
    elif torch is not None and isinstance(model, torch.export.ExportedProgram):
        imported = from_exported(model, example_inputs, shapes)
    elif torch is not None and isinstance(model, torch.nn.Module):
        imported = from_exported(exported(model, example_inputs, shapes), example_inputs, shapes)
    else:
        raise UnsupportedModelError(
            f"compile: found a {type(model).__module__}.{type(model).__qualname__}; expected an nn.Module, "
            "an fx.GraphModule, an ExportedProgram or an onnx.ModelProto"
        )
    unknown = sorted(set(shapes) - {spec.name for spec in imported.inputs})
    if unknown:
        raise LoweringError(
            f"{shapes_option()}: {', '.join(unknown)} is no input; the inputs are {', '.join(s.name for s in imported.inputs)}"
        )
    return imported
