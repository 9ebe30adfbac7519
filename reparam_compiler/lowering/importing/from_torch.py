"""Torch's models into Relax, by way of torch.export.

nn.Module, fx.GraphModule --torch.export--> ExportedProgram --torch_ops.program--> core aten --from_exported_program--> Relax
"""

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

from reparam_compiler.advice import in_words_of
from reparam_compiler.core.calls import by_position
from reparam_compiler.errors import LoweringError, UnsupportedModelError, class_and_line
from reparam_compiler.lowering.importing.dtypes import own_dtypes
from reparam_compiler.lowering.importing.refusals import importing
from reparam_compiler.lowering.importing.shapes import (
    Imported,
    Shapes,
    fixed,
    misfit,
    missing_shape,
    shapes_of_examples,
    shapes_option,
)


def zeros_of(model: Any, shapes: Shapes) -> tuple[Any, ...]:
    """What a module's forward is called with, in its order: zeros of these shapes, by the names of its parameters.

    Raises: LoweringError where these are not the names of a call by position (`core/calls.py`): TVM takes no None.
    """
    import torch

    try:
        names = by_position(inspect.signature(model.forward).parameters, list(shapes))
    except UnsupportedModelError as refusal:
        raise LoweringError(f"{shapes_option()}: {refusal}") from None
    return tuple(torch.zeros(tuple(shapes[name])) for name in names)


def exported(model: Any, example_inputs: Any, shapes: Shapes) -> Any:
    """A module as torch.export gives it, for these inputs or zeros of these shapes. Raises: LoweringError where it does not."""
    import torch

    named = ((name or "the model", child) for name, child in model.named_modules() if type(child) is not torch.nn.Module)
    if training := next((name for name, child in named if child.training), None):  # fx holds children in bare Modules
        raise LoweringError(f"{training}: training=True; call model.eval() before compile()")
    if example_inputs is None and shapes:
        example_inputs = zeros_of(model, shapes)
    if example_inputs is None:
        raise LoweringError(
            f"{type(model).__name__}: a module has no input shapes of its own; "
            + in_words_of(
                python="pass example_inputs=(torch.zeros(1, 3, 224, 224),), or input_shapes={'x': (1, 3, 224, 224)}",
                command="give --input-shapes 'x:[1,3,224,224]'",
            )
        )
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.export's own use of deprecated pytree calls
            return torch.export.export(model, tuple(example_inputs))
    except Exception as refusal:  # torch.export raises whatever the traced code raises
        raise LoweringError(
            f"{type(model).__name__}: torch.export refuses it: {class_and_line(refusal)}. "
            + in_words_of(
                python="Check example_inputs, or pass an ExportedProgram or an ONNX model",
                command="Check --input-shapes, or export the model yourself and name the .pt2 or .onnx",
            )
        ) from refusal


def from_exported(program: Any, example_inputs: Any, shapes: Shapes) -> Imported:
    """An ExportedProgram as Relax, its open sizes as `shapes` or the examples have them. Raises as `to_relax`."""
    from tvm.relax.frontend.torch import from_exported_program

    from reparam_compiler.lowering.importing.torch_ops.program import decomposed
    from reparam_compiler.lowering.importing.torch_ops.table import converters

    signature = program.graph_signature
    _check_border(signature)
    names = tuple(str(name) for name in signature.user_inputs)
    outputs = tuple(str(name) for name in signature.user_outputs)
    examples = shapes_of_examples(names, example_inputs)
    program = _at_fixed_sizes(program, names, shapes, examples)
    with importing("torch.export"), own_dtypes():
        module = from_exported_program(decomposed(program), custom_convert_map=converters(), run_ep_decomposition=False)
    return fixed(module, names, outputs, shapes, examples)


def _at_fixed_sizes(program: Any, names: Sequence[str], shapes: Shapes, examples: Shapes) -> Any:
    """A program of open sizes, exported anew at the sizes that are known; itself where it has none.

    Raises: LoweringError where an open input has no known shape, or one that does not fit.
    """
    import torch
    from torch.utils import _pytree

    placed = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    sizes = {name: [size if isinstance(size, int) else str(size) for size in placed[name].shape] for name in names}
    if all(isinstance(size, int) for dims in sizes.values() for size in dims):
        return program
    known, bound = {**examples, **shapes}, dict[str, int]()
    for name, dims in sizes.items():
        is_open = any(isinstance(size, str) for size in dims)
        if is_open and name not in known:
            raise missing_shape(name, dims)
        shape: Sequence[Any] = known[name] if is_open else dims
        fits = len(shape) == len(dims) and all(
            size == (bound.setdefault(dim, size) if isinstance(dim, str) else dim)
            for dim, size in zip(dims, shape, strict=True)
        )
        if not fits:
            raise misfit(name, shape, dims, given=name in shapes)
        placed[name] = torch.zeros(tuple(shape), dtype=placed[name].dtype)
    args, kwargs = _pytree.tree_unflatten([placed[name] for name in names], program.call_spec.in_spec)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(program.module(), args, kwargs)
    except Exception:  # noqa: BLE001 - sizes outside the range that it was exported for: TVM's importer may take them
        return program


def _check_border(signature: Any) -> None:
    """Raises LoweringError for a program that takes or gives a number or None: a compiled function has tensors alone."""
    from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

    taken = ((spec.arg.name, spec.arg) for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT)
    given = [spec.arg for spec in signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    ends = [("an input", name, arg) for name, arg in taken]
    ends += [("an output", f"output {index}", arg) for index, arg in enumerate(given)]
    for what, name, arg in ends:
        if isinstance(arg, ConstantArgument):
            raise LoweringError(
                f"{name}: {what} that is {arg.value!r}; expected tensors alone; compile a module whose forward() sets it, or "
                "leaves it out"
            )
