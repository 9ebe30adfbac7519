"""One batch of calibration data, brought to the inputs of a model: which array is which input's, of its shape and its kind."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from reparam_compiler.advice import for_inputs_of_several
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir.graph import Node
from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING

Array = Shaped[np.ndarray, "..."]
Batch = tuple[Array, ...]


def selected(given: Any, inputs: Sequence[Node], names: Mapping[str, str]) -> list[Any]:
    """The values of one batch in the order of the inputs; what there is beyond them is left out."""
    ids = [node.id for node in inputs]
    called = [names.get(node_id, node_id) for node_id in ids]
    if isinstance(given, Mapping):
        values = _by_name(given, called, ids)
    else:
        values = _arrays(given, len(ids)) if isinstance(given, tuple | list) else [given]
    if any(_holds_arrays(value) for value in values):
        return selected(_taken_apart(values, called, ids), inputs, names)
    if len(values) < len(inputs):
        raise UnsupportedModelError(
            f"a calibration batch holds {len(values)} arrays; the model has the inputs {', '.join(called)}"
        )
    return values[: len(inputs)]


def fitted(batch: Any, inputs: Sequence[Node], names: Mapping[str, str]) -> Batch:
    """One batch as arrays in the order of the inputs, each of the input's shape but for the batch axis."""
    return tuple(_array(array, node) for array, node in zip(selected(batch, inputs, names), inputs, strict=True))


def _arrays(given: Iterable[Any], inputs: int) -> list[Any]:
    """The values without None; and, where there are more than inputs, without flags and numbers, which are none either."""
    values = [value for value in given if value is not None]
    if len(values) <= inputs:
        return values
    return [value for value in values if not isinstance(value, bool | int | float | str)]


def _holds_arrays(value: Any) -> bool:
    """Whether it is a list or a mapping of arrays, and none of numbers."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return any(isinstance(part, Tensor | np.ndarray) or _holds_arrays(part) for part in parts)


def _taken_apart(values: Sequence[Any], called: Sequence[str], ids: Sequence[str]) -> Any:
    """The mapping among the values of a batch that has the inputs' names; else all values, and what lists and mappings hold."""
    for value in values:
        if isinstance(value, Mapping) and ({*called} <= {*value} or {*ids} <= {*value}):
            return value
    parts: list[Any] = []
    for value in values:
        held = value.values() if isinstance(value, Mapping) else value
        parts += held if _holds_arrays(value) else [value]
    return parts


def _by_name(given: Mapping[str, Any], called: Sequence[str], ids: Sequence[str]) -> list[Any]:
    """The values of the inputs by what the model calls them, or by their ids; all in order where no name is an input's."""
    for names in (called, ids):
        if set(names) <= set(given):
            return [given[name] for name in names]
    if set(given) & {*called, *ids}:
        raise UnsupportedModelError(
            f"a calibration batch holds {', '.join(map(str, given))}; expected all of the model's inputs by their names, "
            f"{', '.join(called)}, or none of these names, and the arrays in that order"
        )
    return _arrays(given.values(), len(ids))


def _array(value: Any, node: Node) -> Array:
    """An array in memory that torch can take: native, and free to be written to."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of unequal lengths
        raise UnsupportedModelError(f"calibration data for {node.id} is no array: {error}") from error
    if array.dtype.kind not in "biuf":
        found = f"is a {type(value).__name__}" if array.dtype.kind == "O" else f"is of type {array.dtype}"
        raise UnsupportedModelError(f"calibration data for {node.id} {found}; expected numbers ({for_inputs_of_several()})")
    if node.type is not None:
        array = _of_kind(array, node.id, node.type.dtype)
    expected = node.type.shape if node.type is not None else None
    if expected is not None:
        fits = len(array.shape) == len(expected) and all(
            not isinstance(want, int) or want == got for want, got in zip(expected[1:], array.shape[1:], strict=True)
        )
        if not fits:
            wanted = " ".join(["N", *map(str, expected[1:])])
            raise UnsupportedModelError(f"calibration data for {node.id} has shape {array.shape}; expected {wanted}")
    return np.require(array, array.dtype.newbyteorder("="), ["C", "W"])


def _of_kind(array: Array, name: str, dtype: str) -> Array:
    """An array for an input of this dtype: whole numbers become its own; pixels are no floats, nor floats indices."""
    row = DTYPES.get(dtype)
    if row is None or (dtype in FLOATING) == (array.dtype.kind == "f"):
        return array if row is None or dtype in FLOATING else array.astype(row.numpy, copy=False)
    advice = "as the model sees them, pixels normalised" if dtype in FLOATING else "indices are not rounded"
    expected = "floating numbers" if dtype in FLOATING else "whole numbers"
    raise UnsupportedModelError(
        f"calibration data for {name} is of type {array.dtype}; the input is {row.name}: expected {expected}, {advice}"
    )
