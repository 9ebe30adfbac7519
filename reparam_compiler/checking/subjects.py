"""The most exact way to run a model that `equivalent` compares.

    torch     a deep copy in float64, else (a model that converts to another dtype on its way) in its own dtype
    ONNX      the graph of `ir/`, evaluated in float64, where every node can be and ONNX Runtime agrees; else ONNX Runtime

ONNX Runtime is asked because the reader is ours: what it misread would be misread before and after a rewrite alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from reparam_compiler.checking.rounding import largest_difference
from reparam_compiler.checking.runners import GraphRunner, OnnxRunner, Outputs, Runner, TorchRunner
from reparam_compiler.checking.tolerances import agreement
from reparam_compiler.errors import ReparamError, UnsupportedModelError, first_line
from reparam_compiler.ir.graph import Graph

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that runs on its example inputs, and what it gives for them."""

    runner: Runner
    examples: Outputs


def subject(model: Any, example_inputs: Sequence[Any]) -> Subject:
    """A native model, ready to be compared; raises UnsupportedModelError for one that does not run on the example inputs."""
    return (_of_torch if isinstance(model, nn.Module | ExportedProgram) else _of_onnx)(model, example_inputs)


def _of_torch(model: nn.Module | ExportedProgram, inputs: Sequence[Any]) -> Subject:
    if isinstance(model, nn.Module):
        _check_mode(model)
    try:
        exact = TorchRunner(model, exact=True)
        return Subject(exact, exact.run(inputs))
    except UnsupportedModelError:
        own = TorchRunner(model)
        return Subject(own, own.run(inputs))


def _of_onnx(model: "ModelProto", inputs: Sequence[Any]) -> Subject:
    native = OnnxRunner(model)
    graph = GraphRunner(
        _Graphs(model).read, native.stored, native.output_names, "ModelProto", "the graph of the ONNX model, float64"
    )
    try:
        exact = graph.run(inputs)
    except ReparamError as error:
        native.runtime += f" (not in float64: {first_line(error)})"
        return Subject(native, native.run(inputs))
    try:
        own = native.run(inputs)
    except UnsupportedModelError:  # a dtype that its kernels do not take, say: there is nothing to check against
        return Subject(graph, exact)
    apart = largest_difference(exact, own).relative
    if apart <= agreement(native.stored):
        return Subject(graph, exact)
    native.runtime += f" (the graph as read gives something else, by {apart:.1e})"
    return Subject(native, own)


class _Graphs:
    """The graphs of a model, each read once: constants that are made of sizes hold for the sizes that it was read with."""

    def __init__(self, model: "ModelProto") -> None:
        self._model = model
        self._graphs: dict[tuple[tuple[int, ...], ...], Graph] = {}

    def read(self, args: Sequence[Any]) -> tuple[Graph, Mapping[str, Tensor]]:
        """The graph for inputs of these shapes, and the inputs by name."""
        from reparam_compiler.frontends.onnx.frontend import OnnxFrontend, named_inputs

        feeds = {name: torch.from_numpy(np.array(array)) for name, array in named_inputs(self._model, args).items()}
        shapes = tuple(tuple(feed.shape) for feed in feeds.values())
        if shapes not in self._graphs:
            self._check_sizes(feeds)
            self._graphs[shapes] = OnnxFrontend().read(self._model, [*feeds.values()]).graph
        return self._graphs[shapes], feeds

    def _check_sizes(self, feeds: Mapping[str, Tensor]) -> None:
        """The graph would run on sizes that the file excludes, and constants made of sizes would be wrong there."""
        from reparam_compiler.frontends.onnx.tensors import type_of

        declared = {value.name: type_of(value.type)[1] for value in self._model.graph.input}
        for name, feed in feeds.items():
            stated = declared[name]
            if stated is None:
                continue
            fixed = [size for size in zip(stated.shape, feed.shape, strict=False) if isinstance(size[0], int)]
            if len(stated.shape) != feed.ndim or any(size != given for size, given in fixed):
                raise UnsupportedModelError(f"the ONNX model fixes {name} to {list(stated.shape)}; found {list(feed.shape)}")


def _check_mode(model: nn.Module) -> None:
    """Raises where a module would behave as in training. (A traced module's own flag says nothing: it runs what was traced.)"""
    for name, module in model.named_modules():
        if module.training and isinstance(module, _NormBase | _DropoutNd):
            raise UnsupportedModelError(
                f"{name or 'the model'} ({type(module).__name__}): training=True; expected a model in evaluation mode: "
                "call model.eval() before equivalent()"
            )
    if model.training and not isinstance(model, fx.GraphModule):
        raise UnsupportedModelError(
            f"{type(model).__name__}: training=True; expected a model in evaluation mode: call model.eval() before equivalent()"
        )
