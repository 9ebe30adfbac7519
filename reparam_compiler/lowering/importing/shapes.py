"""What of an imported module is fixed: the shape of each input, and so of everything.

input_shapes, else what the model declares, else those of the example inputs        -> Imported, of fixed sizes
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from reparam_compiler.advice import in_words_of
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.runtime.description import TensorSpec

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """A Relax module whose `main` takes `inputs` in order and returns `outputs`, flattened, in order."""

    module: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


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


def shapes_option() -> str:
    return in_words_of(python="input_shapes", command="--input-shapes")


def shapes_of_examples(names: Sequence[str], example_inputs: Any) -> Shapes:
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


def fixed(
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
            raise misfit(name, shape, dims, given=name in shapes)
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
        raise missing_shape(name, dims)
    return TensorSpec(name, tuple(int(dim) for dim in dims), str(ty.dtype))


def misfit(name: str, shape: Sequence[int], dims: Sequence[Any], *, given: bool) -> LoweringError:
    """A shape that the model does not take. given: whether it is one of `input_shapes`, and not an example's."""
    said = f"{shapes_option()} says" if given else "the example input has the shape"
    return LoweringError(f"{name}: {said} {tuple(shape)}, the model ({', '.join(map(str, dims))}); pass one that fits")


def missing_shape(name: str, dims: Sequence[Any]) -> LoweringError:
    sizes = [int(dim) if isinstance(dim, int | tvm.tirx.IntImm) else str(dim) for dim in dims]
    example = ",".join(str(size) if isinstance(size, int) else "1" for size in sizes) or "1,3,224,224"
    return LoweringError(
        f"{name}: found the shape ({', '.join(map(str, sizes))}), expected fixed sizes; "
        + in_words_of(
            python=f"pass input_shapes={{'{name}': ({example})}}", command=f"give --input-shapes '{name}:[{example}]'"
        )
    )
