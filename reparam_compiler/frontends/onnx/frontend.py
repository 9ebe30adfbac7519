"""onnx.ModelProto in, onnx.ModelProto out: read by `reader`, written by `writer` with onnx-graphsurgeon."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, ValueInfoProto
from torch.utils import _pytree

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx import io as onnx_io
from reparam_compiler.frontends.onnx.call import Call
from reparam_compiler.frontends.onnx.reader import OnnxReader, Stored, overridable_names
from reparam_compiler.frontends.onnx.tensors import Constant
from reparam_compiler.frontends.onnx.writer import OnnxWriter, apply
from reparam_compiler.ir.graph import Graph, NodeId, Param


class OnnxFrontend:
    """Reads and writes `onnx.ModelProto`."""

    name = "onnx"

    def read(self, model: ModelProto, example_inputs: Sequence[Any] | None = None) -> "OnnxReading":
        """The graph; shapes are those of the file, and of the example inputs where the file leaves them open.

        Raises UnsupportedModelError for a model that is not a valid graph of tensors.
        """
        given = named_inputs(model, example_inputs) if example_inputs is not None else {}
        reader = OnnxReader(model, {name: array.shape for name, array in given.items()})
        return OnnxReading(model, reader.read(), reader.node_index, reader.stored, reader.shapes.sized, reader.call_of)


@dataclass(frozen=True, slots=True)
class OnnxReading:
    """A model that has been read.

    node_index: for each id of a graph node that is a node of the model, its index there.
    stored: for each parameter that stands for a value of the model, that value.
    sized: the values of the model that were taken from the sizes of others, and so are constant only as long as those stay.
    call_of: a node of the model as its reader sees it.
    """

    model: ModelProto
    graph: Graph
    node_index: Mapping[NodeId, int]
    stored: Mapping[Param, Stored]
    sized: Mapping[str, Constant]
    call_of: Callable[[NodeProto], Call]

    def write(self, after: Graph, *, inplace: bool = False, exact: bool = False) -> ModelProto:
        """The model that computes `after`: the original protobufs, and new ones for what changed, rounded also if `exact`."""
        edit = OnnxWriter(self.model, self.graph, after, self.node_index, self.stored, self.sized, self.call_of).plan()
        model = self.model if inplace else onnx_io.copy_without(self.model, edit.dropped)
        apply(edit.loaded() if inplace else edit, model)
        return model


def named_inputs(model: ModelProto, example_inputs: Sequence[Any]) -> dict[str, np.ndarray]:
    """The example inputs by name, in the order of the model's inputs: of all, or of those that have no default.

    What stands in lists and mappings counts by itself, and None not at all, as exporters have it.
    """
    overridable = overridable_names(model)
    needed = [value.name for value in unset_inputs(model)]
    every = [value.name for value in model.graph.input if value.name in overridable or value.name in needed]
    given = [value for value in _pytree.tree_leaves(list(example_inputs)) if value is not None]
    found = len(given)
    if found not in (len(every), len(needed)):
        raise UnsupportedModelError(f"the model takes {len(needed)} inputs, {needed}, but {found} example inputs were given")
    return {name: _array(value) for name, value in zip(every if found == len(every) else needed, given, strict=True)}


def _array(value: Any) -> np.ndarray[Any, Any]:
    """An array of a tensor or a number; numpy itself has no bfloat16, whose values float32 has."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    tensor = value.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def unset_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs that a caller must give a value: those that have none in the model."""
    constants = {tensor.name for tensor in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in constants]
