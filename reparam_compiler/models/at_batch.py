"""A model for another number of samples than it was given with: what `compile(batches=…)` compiles.

    module, GraphModule      with example inputs of that many samples, the given ones over again
    program                  with shapes of that batch, where its batch is open
    ONNX model               likewise; a batch that the file fixes is opened first

The batch is the first axis of every input that has axes. Whether the model computes each sample by itself is not known here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree

from reparam_compiler.errors import LoweringError
from reparam_compiler.models.opening import Source
from reparam_compiler.models.stated import declared

Size = int | str | None


class AtBatch(NamedTuple):
    """A model with example inputs, or with shapes by name."""

    model: Any
    inputs: tuple[Any, ...] | None
    shapes: Mapping[str, Sequence[int]] | None


def own_batch(source: Source) -> int | None:
    """How many samples the model states, or its example inputs hold; None where any number will do or nothing is known.

    Raises: LoweringError where an input has another first size than the others.
    """
    if source.kind == "onnx" or isinstance(source.model, ExportedProgram):
        sizes = {name: shape[0] for name, shape in _shapes(source.model).items() if shape}
    elif source.inputs is None:
        return None
    else:
        leaves = _pytree.tree_leaves(source.inputs)
        tensors = {f"input {place}": x for place, x in enumerate(leaves) if isinstance(x, Tensor)}
        sizes = {name: len(x) for name, x in tensors.items() if x.ndim}
    found = _one_of(sizes)
    return found if isinstance(found, int) else None


def at_batch(source: Source, model: Any, shapes: Mapping[str, Sequence[int]] | None, batch: int) -> AtBatch:
    """A model for so many samples.

    Args:
        source: what the caller gave. model: the same, or what `fuse` made of it.
        shapes: by the names of the inputs; their first sizes do not count.

    Raises: LoweringError where inputs have several first sizes, or a program was exported for another batch alone.
    """
    own = own_batch(source)
    if source.kind != "onnx" and not isinstance(model, ExportedProgram):
        return AtBatch(model, _repeated(source.inputs, batch), None)
    stated = _shapes(model)
    if own not in (None, batch):
        if isinstance(model, ExportedProgram):
            name = next(name for name, shape in stated.items() if shape)
            raise LoweringError(
                f"{name}: the program was exported for a batch of {own} alone, and batches ask for {batch}; export it with an "
                f"open one, dynamic_shapes={{{name!r}: {{0: torch.export.Dim('batch')}}}}, or give the module itself"
            )
        from reparam_compiler.frontends.onnx.open_batch import with_open_batch

        model = with_open_batch(model)
    examples = [x for x in _pytree.tree_leaves(_examples(source)) if hasattr(x, "shape")]
    known = {name: tuple(x.shape) for name, x in zip(stated, examples, strict=False) if len(examples) == len(stated)}
    wanted = {name: (shapes or {}).get(name, known.get(name, shape)) for name, shape in stated.items()}
    return AtBatch(model, None, {name: (batch, *shape[1:])[: len(shape)] for name, shape in wanted.items() if _is_known(shape)})


def _one_of(sizes: Mapping[str, Size]) -> Size:
    """The first size that all inputs have. Raises: LoweringError where there are several, or no input has axes."""
    kinds = {name: size if isinstance(size, int) else None for name, size in sizes.items()}
    if len(set(kinds.values())) != 1:
        found = ", ".join(f"{size if isinstance(size, int) else 'open'} in {name}" for name, size in kinds.items())
        raise LoweringError(
            f"batches: found the first sizes {found or 'of no input'}; every input must have the batch as its first axis, or "
            "no axes. Compile the model for one size, or make the other inputs constants of it"
        )
    return next(iter(kinds.values()))


def _shapes(model: Any) -> dict[str, tuple[Size, ...]]:
    """Of the inputs of a program or an ONNX model; nothing of those of unknown rank."""
    return {name: () if type is None else tuple(type.shape) for name, (_, type) in (declared(model) or {}).items()}


def _examples(source: Source) -> Any:
    """The example inputs, or those that a program brings with it."""
    return source.model.example_inputs if source.inputs is None and isinstance(source.model, ExportedProgram) else source.inputs


def _repeated(inputs: Sequence[Any] | None, batch: int) -> tuple[Any, ...] | None:
    """Inputs of so many samples: the given ones, over again; those without axes as they are."""
    if inputs is None:
        return None
    again = torch.arange(batch)
    found: tuple[Any, ...] = _pytree.tree_map_only(Tensor, lambda x: x[again % len(x)] if x.ndim else x, tuple(inputs))
    return found


def _is_known(shape: Sequence[Size]) -> bool:
    return all(isinstance(size, int) for size in shape[1:])
