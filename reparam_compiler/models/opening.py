"""Which kind of model this is, and what reads it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.base import Frontend
from reparam_compiler.frontends.torch.export import ExportFrontend
from reparam_compiler.frontends.torch.fx import FxFrontend


def frontend_for(model: object) -> Frontend[Any]:
    """The frontend that reads a model; raises UnsupportedModelError where there is none."""
    frontends: list[Frontend[Any]] = [FxFrontend(), ExportFrontend()]
    if type(model).__module__.partition(".")[0] == "onnx":
        from reparam_compiler.frontends.onnx.frontend import OnnxFrontend

        frontends.append(OnnxFrontend())
    for frontend in frontends:
        if frontend.matches(model):
            return frontend
    raise UnsupportedModelError(
        f"found a {type(model).__module__}.{type(model).__qualname__}; expected an fx.GraphModule, an ExportedProgram, "
        "an onnx.ModelProto, the path of an .onnx file, or an nn.Module. For a .pt2 file call torch.export.load first"
    )


def given_inputs(example_inputs: Any) -> Sequence[Any] | None:
    """Example inputs as a tuple: a tensor alone is one input."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if example_inputs is None or isinstance(example_inputs, tuple | list):
        return example_inputs
    raise UnsupportedModelError(
        f"example_inputs is a {type(example_inputs).__name__}; expected a tuple of what forward() takes, in its order"
    )


def opened(model: Any) -> Any:
    """The ModelProto of an .onnx file; everything else as it is."""
    if not isinstance(model, str | os.PathLike):
        return model
    if Path(model).suffix != ".onnx":
        raise UnsupportedModelError(f"found the path {os.fspath(model)}; expected one that ends in .onnx, or a model object")
    from reparam_compiler.frontends.onnx.io import load

    return load(model)
