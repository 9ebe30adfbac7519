"""Example inputs from calibration data, for a model that was given without any and whose sizes are not known."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from reparam_compiler.advice import for_inputs_of_several
from reparam_compiler.checking.runners import TorchRunner
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.torch.hooks import signature_of
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node
from reparam_compiler.models.calibration import Calibration, Floats, batches
from reparam_compiler.models.fitting import Array
from reparam_compiler.models.opening import Source


def bound(source: Source, data: Calibration, *, mean: Floats | None = None, std: Floats | None = None) -> Source:
    """The source with the first sample of calibration data as its example inputs; itself where it has some or needs none.

    Args:
        source: what is to be pruned.
        data, mean, std: as for `batches`; the data must be one that can be gone over again.

    Raises:
        UnsupportedModelError: the data does not fit the inputs, or the module does not run on them.
    """
    nodes = _arguments(source.model) if source.kind == "torch.nn" else _inputs(source)
    if source.inputs is not None or not nodes or all(_is_known(node) for node in nodes):
        return source
    first = next(iter(batches(data, nodes, mean=mean, std=std, names=_names(source))))
    lengths = {len(array) if array.ndim else 0 for array in first}
    sample = [array[:1] for array in first] if len(lengths) == 1 and lengths != {0} else first
    found = replace(source, inputs=tuple(sample if source.kind == "onnx" else _tensors(sample, source.model)))
    if source.kind == "torch.nn":
        _check_runs(found, [node.id for node in nodes])
    return found


def _check_runs(source: Source, names: Sequence[str]) -> None:
    """Raises UnsupportedModelError, with where its inputs are from, for a module that cannot be read with them nor run on them.

    names: of its arguments.
    """
    try:
        _ = source.reading
    except UnsupportedModelError as failed:
        try:
            TorchRunner(source.model, copy="weights shared").run(source.inputs or ())
        except UnsupportedModelError as error:
            raise UnsupportedModelError(
                f"{error}; these are the first sample of the calibration data, of which an array is taken for each argument "
                f"({', '.join(names)}); {for_inputs_of_several()}"
            ) from failed
        raise


def _arguments(model: nn.Module) -> list[Node]:
    """What forward() must be given, as inputs of which nothing is known; none where that is not known (a traced one)."""
    given = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        arguments = signature_of(model).parameters.values()
    except ValueError:
        return []
    return [Node(a.name, ops.Input(), ()) for a in arguments if a.kind in given and a.default is a.empty]


def _inputs(source: Source) -> list[Node]:
    return [node for node in source.graph if isinstance(node.op, ops.Input)]


def _names(source: Source) -> dict[str, str]:
    return {} if source.kind == "torch.nn" else source.input_names


def _is_known(node: Node) -> bool:
    """Whether every size but the batch's is a number."""
    return node.type is not None and all(isinstance(size, int) for size in node.type.shape[1:])


def _tensors(arrays: Sequence[Array], model: Any) -> list[torch.Tensor]:
    """Arrays as tensors; floating ones of the dtype and on the device of the model's first floating parameter."""
    held = (*model.parameters(), *model.buffers()) if isinstance(model, nn.Module) else ()
    like = next((tensor for tensor in held if tensor.is_floating_point()), torch.empty(0))
    tensors = [torch.from_numpy(array.copy()) for array in arrays]
    return [t.to(like) if t.is_floating_point() else t.to(like.device) for t in tensors]
