"""An ONNX model for inputs of given shapes alone: what it computes from sizes becomes tensors.

A compiler that fixes every shape need not know how a model asks for one (Shape, Gather, Concat, Range …), nor how it counts
(NonZero of a tensor of ones, as older exporters write a range).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from onnx import ModelProto

from reparam_compiler.core.kernel import Ints
from reparam_compiler.frontends.onnx.bound import at_sizes
from reparam_compiler.frontends.onnx.frontend import unset_inputs
from reparam_compiler.frontends.onnx.io import copy_without
from reparam_compiler.frontends.onnx.reader import overridable_names
from reparam_compiler.frontends.onnx.tensors import tensor_from, type_of
from reparam_compiler.frontends.onnx.writer import readers_of
from reparam_compiler.vocabulary.dtypes import FLOATING

Shapes = Mapping[str, Ints]


def shapes_for(model: ModelProto, example_inputs: Sequence[Any] | None, given: Mapping[str, Sequence[int]]) -> Shapes | None:
    """The shapes of a model's inputs: as given by name, as the example inputs have them, or as the file states them.

    None where one of them leaves a size open or has another one than the file: whoever needs it has words for that.
    """
    needed = unset_inputs(model)
    examples = example_inputs if example_inputs is not None and len(example_inputs) == len(needed) else [None] * len(needed)
    shapes: dict[str, Ints] = {}
    for value, example in zip(needed, examples, strict=True):
        known = type_of(value.type)[1]
        own = None if known is None else known.shape
        shape = tuple(given.get(value.name, getattr(example, "shape", own or ())))
        sizes = tuple(int(size) for size in shape if not isinstance(size, str | None))
        if (
            own is None
            or len(sizes) != len(own)
            or any(n != size for n, size in zip(own, sizes, strict=True) if isinstance(n, int))
        ):
            return None
        shapes[value.name] = sizes
    return shapes


def with_fixed_sizes(model: ModelProto, shapes: Shapes) -> ModelProto:
    """A copy for inputs of these shapes; the model itself where it computes neither from sizes nor indices from constants."""
    known = at_sizes(model, shapes)
    whole = {name: found for name, found in known.constants.items() if found.computed and found.dtype not in FLOATING}
    constants = known.sized | whole
    sized = constants.keys() - {value.name for value in model.graph.output}
    gone = [index for index, node in enumerate(model.graph.node) if node.output and sized.issuperset(filter(None, node.output))]
    if not gone or overridable_names(model):
        return model
    fixed = copy_without(model, ())
    for index in reversed(gone):
        del fixed.graph.node[index]
    del fixed.graph.value_info[:]
    for name in sorted(readers_of(fixed.graph).intersection(sized)):
        fixed.graph.initializer.append(tensor_from(name, constants[name].param("const")))
    for value in fixed.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    return fixed
