"""Whether what was imported for several batches may be run by pieces, as far as sizes tell.

    inputs  [b, …]  or []            of one batch b, else of the same sizes
    outputs [k b, …]                 the same k rows a sample, else of the same sizes

A softmax or a mean over the batch can have such sizes too; `checking/apart.py` runs them.
"""

from collections.abc import Sequence

from reparam_compiler.advice import in_words_of
from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.importing.shapes import Imported
from reparam_compiler.lowering.runtime.batches import batch_of
from reparam_compiler.lowering.runtime.description import TensorSpec


def check_batches(imports: Sequence[Imported]) -> None:
    """Raises LoweringError for an input or an output that is not of the batch along its first axis."""
    first = imports[0]
    for imported in imports:
        batch = batch_of(imported.inputs)
        for spec in imported.inputs:
            if spec.shape and spec.shape[0] != batch:
                raise LoweringError(
                    f"{spec.name}: found the shape {spec.shape} beside a batch of {batch}; every input must have the batch as "
                    f"its first axis, or no axes. {one_size()}"
                )
        if len(imported.outputs) != len(first.outputs):
            counts = f"{len(imported.outputs)} outputs for a batch of {batch}, {len(first.outputs)} for another"
            raise LoweringError(f"main: found {counts}; expected as many. {one_size()}")
        for spec, other in zip(imported.outputs, first.outputs, strict=True):
            if _rows(spec, batch) is None or _rows(spec, batch) != _rows(other, batch_of(first.inputs)):
                beside = "" if spec is other else f", and {other.shape} for one of {batch_of(first.inputs)}"
                raise LoweringError(
                    f"{spec.name}: an output of the shape {spec.shape} for a batch of {batch}{beside}; expected as many rows "
                    "for each sample. Something in the model mixes samples or fixes their number, such as a Reshape to a "
                    f"constant batch. {one_size()}"
                )


def one_size() -> str:
    """What to do with a model that mixes samples."""
    without = in_words_of(python="batches", command="--batches")
    return f"Mend that in the model, or compile it for one size, without {without}"


def _rows(spec: TensorSpec, batch: int) -> tuple[int, ...] | None:
    """The sizes of an output for each sample; None where they are not whole."""
    if not spec.shape or not spec.shape[0] or spec.shape[0] % batch:
        return None
    return (spec.shape[0] // batch, *spec.shape[1:])
