"""A written-back model -> a Relax module with fixed shapes, by TVM's own importers.

    nn.Module, fx.GraphModule --torch.export--> ExportedProgram --from_exported_program--> Relax
    onnx.ModelProto           ---------------------from_onnx-----------------------------> Relax

What TVM can import can be lowered: there is no table of ops here. Parameters become constants. Neither torch nor onnx
is imported unless a model of theirs comes in. Shapes are fixed here, the batch's too (docs/adr/0005-fixed-shapes.md).
"""

import contextlib
import gc
import inspect
import io
import operator
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from reparam_compiler.advice import in_words_of
from reparam_compiler.core.calls import by_position
from reparam_compiler.errors import LoweringError, UnsupportedModelError, class_and_line
from reparam_compiler.lowering.importing.dtypes import own_dtypes
from reparam_compiler.lowering.runtime.executable import TensorSpec
from reparam_compiler.lowering.runtime.filter_stderr import filter_stderr

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """A Relax module whose `main` takes `inputs` in order and returns `outputs`, flattened, in order."""

    module: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


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
        imported = _from_onnx(model, example_inputs, shapes)
    elif torch is not None and isinstance(model, torch.export.ExportedProgram):
        imported = _from_exported(model, example_inputs, shapes)
    elif torch is not None and isinstance(model, torch.nn.Module):
        imported = _from_exported(_export(model, example_inputs, shapes), example_inputs, shapes)
    else:
        raise UnsupportedModelError(
            f"compile: found a {type(model).__module__}.{type(model).__qualname__}; expected an nn.Module, "
            "an fx.GraphModule, an ExportedProgram or an onnx.ModelProto"
        )
    unknown = sorted(set(shapes) - {spec.name for spec in imported.inputs})
    if unknown:
        raise LoweringError(
            f"{_shapes_option()}: {', '.join(unknown)} is no input; the inputs are {', '.join(s.name for s in imported.inputs)}"
        )
    return imported


def open_batches(model: Any) -> dict[str, tuple[int, ...]]:
    """The inputs of an ONNX model whose first size alone is open, with the shape that a batch of one gives them."""
    onnx = sys.modules.get("onnx")
    if onnx is None or not isinstance(model, onnx.ModelProto):
        return {}
    found = {}
    for value in _onnx_inputs(model):
        first, *others = [_onnx_dim(dim) for dim in value.type.tensor_type.shape.dim] or [0]
        sizes = [size for size in others if isinstance(size, int)]
        if isinstance(first, str) and len(sizes) == len(others):
            found[str(value.name)] = (1, *sizes)
    return found


def _shapes_option() -> str:
    return in_words_of(python="input_shapes", command="--input-shapes")


def checked_shapes(input_shapes: Shapes | None) -> dict[str, tuple[int, ...]]:
    """Input shapes as tuples of integers.

    Raises: LoweringError where they are no mapping of names to sequences of sizes from 1.
    """
    example = "expected sizes from 1 by name, such as {'x': (1, 3, 224, 224)}"
    if not isinstance(input_shapes, Mapping | None):
        raise LoweringError(f"input_shapes: found {input_shapes!r}; {example}")
    shapes = {}
    for name, shape in (input_shapes or {}).items():
        try:
            sizes = tuple(operator.index(size) for size in shape)
        except TypeError:  # it is no sequence, or not of integers
            sizes = (0,)
        if any(size < 1 for size in sizes):
            raise LoweringError(f"input_shapes: found {shape!r} for {name}; {example}")
        shapes[name] = sizes
    return shapes


def zeros_of(model: Any, shapes: Shapes) -> tuple[Any, ...]:
    """What a module's forward is called with, in its order: zeros of these shapes, by the names of its parameters.

    Raises: LoweringError where these are not the names of a call by position (`core/calls.py`): TVM takes no None.
    """
    import torch

    try:
        names = by_position(inspect.signature(model.forward).parameters, list(shapes))
    except UnsupportedModelError as refusal:
        raise LoweringError(f"{_shapes_option()}: {refusal}") from None
    return tuple(torch.zeros(tuple(shapes[name])) for name in names)


def _export(model: Any, example_inputs: Any, shapes: Shapes) -> Any:
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


def _of_examples(names: Sequence[str], example_inputs: Any) -> Shapes:
    """The shapes of the example inputs by the names of a model's inputs; none where these are other ones in number."""
    leaves = list(_tensors_in(example_inputs))
    return dict(zip(names, leaves, strict=True)) if len(leaves) == len(names) else {}


def _tensors_in(value: Any) -> Iterator[tuple[int, ...]]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _tensors_in(part)
    elif hasattr(value, "shape"):
        yield tuple(int(size) for size in value.shape)


def _from_exported(program: Any, example_inputs: Any, shapes: Shapes) -> Imported:
    from tvm.relax.frontend.torch import from_exported_program

    _check_border(program.graph_signature)
    with _importing("torch.export"), own_dtypes():
        module = from_exported_program(program)
    signature = program.graph_signature
    names = tuple(str(name) for name in signature.user_inputs)
    outputs = tuple(str(name) for name in signature.user_outputs)
    return _fixed(module, names, outputs, shapes, _of_examples(names, example_inputs))


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


def _from_onnx(model: Any, example_inputs: Any, shapes: Shapes) -> Imported:
    from tvm.relax.frontend.onnx import from_onnx

    wanted = _onnx_inputs(model)
    declared = {value.name: [_onnx_dim(dim) for dim in value.type.tensor_type.shape.dim] for value in wanted}
    given = _of_examples(list(declared), example_inputs)
    known = {name: list(shapes.get(name, _filled(dims, given.get(name)))) for name, dims in declared.items()}
    for name, dims in known.items():
        if any(not isinstance(dim, int) for dim in dims) or (not dims and not _has_rank(model, name)):
            raise _missing_shape(name, dims)
    with _importing("ONNX"):
        module = from_onnx(model, shape_dict=known, dtype_dict=_onnx_dtypes(wanted))
    return _fixed(module, tuple(known), tuple(value.name for value in model.graph.output), shapes)


def _filled(dims: Sequence[int | str], given: Sequence[int] | None) -> Sequence[int | str]:
    """The declared sizes, the open ones as they are in an example that fits."""
    if given is None or len(given) != len(dims):
        return dims
    return [size if isinstance(dim, str) else dim for dim, size in zip(dims, given, strict=True)]


def _onnx_inputs(model: Any) -> list[Any]:
    """What a run must be given: ONNX may list weights among the inputs too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _onnx_dim(dim: Any) -> int | str:
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or "?"


def _has_rank(model: Any, name: str) -> bool:
    return any(v.name == name and v.type.tensor_type.HasField("shape") for v in model.graph.input)


def _onnx_dtypes(values: Sequence[Any]) -> dict[str, str]:
    import onnx

    return {v.name: str(onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)) for v in values}


def _fixed(
    module: Any, names: tuple[str, ...], outputs: tuple[str, ...], shapes: Shapes, examples: Shapes | None = None
) -> Imported:
    """Bind what `shapes` says of symbolic dimensions, or else the examples; refuse what stays symbolic."""
    params = list(module["main"].params)
    if len(params) != len(names):
        raise LoweringError(f"main: TVM gave {len(params)} inputs for {len(names)} ({', '.join(names)}); report the model")
    bound: dict[Any, int] = {}
    for name, param in zip(names, params, strict=True):
        dims = _dims(param.ty)
        is_open = any(isinstance(dim, tvm.tirx.Var) for dim in dims)
        shape = shapes.get(name, (examples or {}).get(name) if is_open else None)
        if shape is None:
            continue
        fits = len(dims) == len(shape)
        for dim, size in zip(dims, shape, strict=False):
            if isinstance(dim, tvm.tirx.Var):
                fits &= bound.setdefault(dim, size) == size
            else:
                fits &= not isinstance(dim, tvm.tirx.IntImm) or int(dim) == size
        if not fits:
            said = f"{_shapes_option()} says" if name in shapes else "the example input has the shape"
            raise LoweringError(f"{name}: {said} {tuple(shape)}, the model ({', '.join(map(str, dims))}); pass one that fits")
    if bound:
        module = relax.transform.BindSymbolicVars(bound, "main")(module)
    main = module["main"]
    inputs = tuple(_spec(name, param.ty) for name, param in zip(names, main.params, strict=True))
    flat = list(_leaves(main.ret_ty))
    if len(outputs) != len(flat):
        outputs = tuple(f"output_{index}" for index in range(len(flat)))
    return Imported(module, inputs, tuple(_spec(name, leaf) for name, leaf in zip(outputs, flat, strict=True)))


def _dims(ty: Any) -> list[Any]:
    return list(ty.shape.values) if isinstance(ty, relax.TensorType) and ty.shape is not None else []


def _leaves(ty: Any) -> Iterator[Any]:
    if isinstance(ty, relax.TupleType):
        for field in ty.fields:
            yield from _leaves(field)
    else:
        yield ty


def _spec(name: str, ty: Any) -> TensorSpec:
    if not isinstance(ty, relax.TensorType) or ty.shape is None:
        raise LoweringError(f"{name}: found a value of type {ty}; only tensors of fixed shape can cross the border")
    dims = _dims(ty)
    if not all(isinstance(dim, tvm.tirx.IntImm) for dim in dims):
        raise _missing_shape(name, dims)
    return TensorSpec(name, tuple(int(dim) for dim in dims), str(ty.dtype))


def _missing_shape(name: str, dims: Sequence[Any]) -> LoweringError:
    sizes = [int(dim) if isinstance(dim, int | tvm.tirx.IntImm) else str(dim) for dim in dims]
    example = ",".join(str(size) if isinstance(size, int) else "1" for size in sizes) or "1,3,224,224"
    return LoweringError(
        f"{name}: found the shape ({', '.join(map(str, sizes))}), expected fixed sizes; "
        + in_words_of(
            python=f"pass input_shapes={{'{name}': ({example})}}", command=f"give --input-shapes '{name}:[{example}]'"
        )
    )


@contextlib.contextmanager
def _importing(kind: str) -> Iterator[None]:
    """Quiet the importers' warnings and prints; turn what they raise into one typed error that names the node."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), filter_stderr():
        warnings.simplefilter("ignore")
        try:
            yield
        except LoweringError:
            raise
        except Exception as refusal:  # the importers raise AssertionError, KeyError, ValueError, OpNotImplemented …
            nodes = _nodes_of(refusal)
            traceback.clear_frames(refusal.__traceback__)
            gc.collect()  # a half-built function complains on stderr when it is freed: here, where that is quiet
            named = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
            raise LoweringError(
                f"{named or 'main'}: the {kind} importer of TVM {tvm.__version__} refuses it: {class_and_line(refusal)}. "
                "Expected only ops that it imports; rewrite that op in the model, or cut the model before it"
            ) from refusal


def _nodes_of(refusal: BaseException) -> list[str]:
    """The nodes at which an importer stopped, as `name (op)`; none where it stopped elsewhere.

    TVM's messages name ops at best, so the nodes are read from the frames of the importer that raised.
    """
    found: list[str] = []
    for frame, _ in traceback.walk_tb(refusal.__traceback__):
        local = frame.f_locals
        if frame.f_code.co_name in {"_construct_nodes", "_convert_subgraph", "_translate_fx_graph"} and "node" in local:
            found = [_named(local["node"])]
        elif frame.f_code.co_name == "_check_for_unsupported_ops" and "unsupported_ops" in local:
            found = [_named(node) for node in local["graph"].node if node.op_type in local["unsupported_ops"]]
        elif frame.f_code.co_name == "_check_unsupported_func_type" and "missing_func_types" in local:
            called = (node for node in local["nodes"] if node.op == "call_function")
            found = [_named(node) for node in called if node.target.__name__ in local["missing_func_types"]]
    return found


def _named(node: Any) -> str:
    """`name (op)` of a NodeProto or an fx.Node, with the layer that the latter stands in."""
    if hasattr(node, "op_type"):
        domain = f"{node.domain}::" if node.domain else ""
        return f"{node.name or next(iter(node.output), '?')} ({domain}{node.op_type})"
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    layer = f", in {stack[-1][0]}" if stack and stack[-1][0] else ""
    return f"{node.name} ({node.target}{layer})"
