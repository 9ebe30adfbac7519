"""The kinds of native models, and what a frontend is: it reads one into a Graph, and writes the difference of two graphs back.

kind_of(model)                             which kind this is, without importing onnx
Frontend.read(model, example_inputs)       Reading: the graph, and what is needed to write
Reading.write(after)                       a new native model; with inplace=True the caller's own

Nothing is run here: `checking/` runs models and compares them.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar

from torch import fx, nn
from torch.export import ExportedProgram

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir.graph import Graph

Model = TypeVar("Model")
ModelOut = TypeVar("ModelOut", covariant=True)


class Unsupported(Exception):
    """A call, or a node, that has no exact form in `ir.ops`: a frontend keeps it as the model has it."""


Kind = Literal["torch.nn", "torch.fx", "torch.export", "onnx"]
"""A plain nn.Module, which must be traced before it is read; an fx.GraphModule; an ExportedProgram; an onnx.ModelProto."""


def kind_of(model: object) -> Kind | None:
    """The kind of a native model; None for what is no model.

    >>> kind_of(nn.ReLU())
    'torch.nn'
    >>> kind_of(fx.symbolic_trace(nn.ReLU()))
    'torch.fx'
    >>> kind_of(nn.ReLU().state_dict()) is None
    True
    """
    if isinstance(model, fx.GraphModule):
        return "torch.fx"
    if isinstance(model, nn.Module):
        return "torch.nn"
    if isinstance(model, ExportedProgram):
        return "torch.export"
    is_onnx = type(model).__module__.partition(".")[0] == "onnx" and type(model).__name__ == "ModelProto"
    return "onnx" if is_onnx else None


def checked_kind(model: object) -> Kind:
    """The kind of a native model; raises UnsupportedModelError for what is no model."""
    kind = kind_of(model)
    if kind is None:
        raise UnsupportedModelError(
            f"found a {type(model).__module__}.{type(model).__qualname__}; expected an fx.GraphModule, an ExportedProgram, "
            "an onnx.ModelProto, the path of an .onnx or .pt2 file, or an nn.Module"
        )
    return kind


class Reading(Protocol[ModelOut]):
    """A model that has been read."""

    @property
    def graph(self) -> Graph:
        """The model as a graph; its `Input` nodes come in the order of the model's inputs."""
        ...

    def write(self, after: Graph, *, inplace: bool = False, exact: bool = False) -> ModelOut:
        """The model that computes `after`, a graph that passes made of `graph`.

        What is not in `diff(graph, after)` is as it was in the caller's model, which is not touched unless `inplace`.
        With `exact` the new weights are not rounded: a torch model is given in float64, to be compared in it. ONNX has no
        such form, as ONNX Runtime has no float64 convs: its weights are rounded all the same.
        """
        ...


class Frontend(Protocol[Model]):
    """A reader and writer of one kind of native model."""

    @property
    def name(self) -> str:
        """The kind, as reports print it."""
        ...

    def read(self, model: Model, example_inputs: Sequence[Any] | None = None) -> Reading[Model]:
        """The model as a graph; raises UnsupportedModelError for one that cannot be read."""
        ...
