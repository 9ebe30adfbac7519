"""The inputs of a model as a command line states them: shapes by names, in which a letter is a size that stays open."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from reparam_compiler.core.calls import by_position
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.base import kind_of
from reparam_compiler.frontends.torch.hooks import signature_of
from reparam_compiler.frontends.torch.tensors import type_of as type_of_tensor
from reparam_compiler.ir.graph import TensorType
from reparam_compiler.models.shapes import Shape
from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING

BATCH = 2
"""What is taken for an open size that stands first: torch.export fixes a size of one."""
STEP = 32
"""The others are multiples of it, from twice on: most nets halve their pictures five times."""


def named_shapes(model: Any, shapes: Mapping[str, Sequence[int | str]]) -> dict[str, Shape]:
    """Shapes by the names of inputs: one under "" is that of the only input, or the only one that must be given.

    >>> named_shapes(torch.nn.ReLU(), {"": (1, 3)})
    {'input': (1, 3)}

    Raises UnsupportedModelError where there are several, or none.
    """
    if "" not in shapes:
        return {name: tuple(shape) for name, shape in shapes.items()}
    known = declared(model)
    if known is not None:
        names = list(known)
    else:
        taken = [p for p in signature_of(model).parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = [p.name for p in taken if p.default is p.empty and p.kind is not p.KEYWORD_ONLY] or [p.name for p in taken]
    if len(names) != 1:
        wanted = " ".join(f"{name}:[…]" for name in names)
        raise UnsupportedModelError(f"found one shape without a name; the model has {len(names)} inputs: {wanted or 'none'}")
    return {names[0]: tuple(shapes[""])}


def in_order(model: Any, shapes: Mapping[str, Sequence[int | str]]) -> dict[str, Shape]:
    """Shapes by the names of the inputs, in the order in which the model takes them.

    Raises UnsupportedModelError as `named_shapes`, and where a name is no input of the model, or one that it takes by keyword
    only; or an input is left out that must be given, or that stands before another.
    """
    known, shapes = declared(model), named_shapes(model, shapes)
    if known is None:
        parameters: Mapping[str, inspect.Parameter] = signature_of(model).parameters
    else:
        by_keyword = set(model.call_spec.in_spec.child(1).context) if isinstance(model, ExportedProgram) else set()
        kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        # all are called "x" here: ONNX has names that Python would not take
        parameters = {name: inspect.Parameter("x", kinds[name in by_keyword]) for name in known}
    return {name: tuple(shapes[name]) for name in by_position(parameters, list(shapes))}


def taken_for(shapes: Iterable[Shape]) -> dict[str, int]:
    """The numbers that stand for open sizes where the model is run.

    >>> taken_for([("N", 3, "H", "W"), ("N", 10)])
    {'N': 2, 'H': 64, 'W': 96}
    """
    places: dict[str, set[int]] = {}
    for shape in shapes:
        for axis, size in enumerate(shape):
            if isinstance(size, str):
                places.setdefault(size, set()).add(axis)
    others = [name for name, axes in places.items() if axes != {0}]
    return {name: STEP * (others.index(name) + 2) if name in others else BATCH for name in places}


def inputs_of_shapes(model: Any, shapes: Mapping[str, Sequence[int | str]]) -> tuple[Any, ...]:
    """Random inputs (normal, seed 0; 0 or 1 for whole numbers) of these shapes, in the order in which the model takes them.

    Args:
        model: any native model.
        shapes: sizes by the names of the inputs; as for `named_shapes`. For open ones the numbers of `taken_for`.

    Returns:
        Arrays for an `onnx.ModelProto`, tensors for every other; of the dtypes that it states, else float32.

    Raises:
        UnsupportedModelError: as `in_order`.
    """
    known, ordered = declared(model) or {}, in_order(model, shapes)
    numbers = taken_for(ordered.values())
    source = torch.Generator().manual_seed(0)
    tensors = []
    for name, shape in ordered.items():
        row = DTYPES[known.get(name, (None, None))[0] or "f32"]
        size = tuple(numbers[size] if isinstance(size, str) else size for size in shape)
        is_floating = row.word in FLOATING
        drawn = torch.randn(size, generator=source) if is_floating else torch.randint(0, 2, size, generator=source)
        tensors.append(drawn.to(getattr(torch, row.name)))
    return tuple(tensor.numpy() for tensor in tensors) if kind_of(model) == "onnx" else tuple(tensors)


def declared(model: Any) -> dict[str, tuple[str | None, TensorType | None]] | None:
    """The inputs of a model that states them, with the dtypes and types that are known; None for a module."""
    if kind_of(model) == "onnx":
        from reparam_compiler.frontends.onnx.frontend import unset_inputs
        from reparam_compiler.frontends.onnx.tensors import type_of

        return {value.name: type_of(value.type) for value in unset_inputs(model)}
    if isinstance(model, ExportedProgram):
        values = {node.name: type_of_tensor(node.meta.get("val")) for node in model.graph.nodes}
        known = {str(name): values.get(name) for name in model.graph_signature.user_inputs}
        return {name: (None if type is None else type.dtype, type) for name, type in known.items()}
    return None
