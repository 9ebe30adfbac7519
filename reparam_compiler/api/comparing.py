"""`equivalent`: two models are opened and compared."""

from collections.abc import Sequence
from typing import Any

from reparam_compiler.api.modes import outside_modes
from reparam_compiler.checking.equivalent import Equivalence, compare_models
from reparam_compiler.models.opening import open


def equivalent(a: Any, b: Any, example_inputs: Sequence[Any], *, tolerance: float | None = None) -> Equivalence:
    """Whether two models compute the same but for rounding; neither is changed.

    Args:
        a: an `nn.Module` in evaluation mode, an `fx.GraphModule`, an `ExportedProgram`, an `onnx.ModelProto`, or the path of an
            .onnx or .pt2 file. The differences are relative to what it gives.
        b: another of any of those kinds. Outputs are paired by their keys where these are the same, else in order.
        example_inputs: what both are called with, in a tuple: tensors or arrays; one alone is one input. Random
            inputs are drawn like them.
        tolerance: the largest relative difference that counts as equal. None is what rounding explains: 1e-6 for float32
            weights (1e-9 float64, 1e-3 float16, 8e-3 bfloat16) or, where these models amplify it to more, 8 times the measured
            response to moving every weight by its rounding, up to 1e-3 (1e-6, 5e-2, 0.2).

    Returns:
        An `Equivalence`, which is true where they are equal. Another number or shape of outputs is not equal, and no error.

    Raises:
        UnsupportedModelError: one of them is of no known kind, in training mode, or does not run on the example inputs.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
    >>> bool(equivalent(net, torch.export.export(net, (torch.zeros(1, 3, 8, 8),)), (torch.zeros(1, 3, 8, 8),)))
    True
    """
    with outside_modes():
        one, other = open(a, example_inputs), open(b)
        return compare_models(one.model, other.model, one.inputs or (), tolerance=tolerance)
