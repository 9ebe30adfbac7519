"""Calibration data, in any of the forms that people have, as batches: an array for each model input.

an array                one batch for a model of one input
a tuple of arrays       one batch, an array for each input
a mapping               one batch, arrays by the names of the inputs
the path of an .npz     the same: by name, or in order where the names are others
an iterable             of batches, each one of the above; what a batch holds beyond the inputs (labels) is left out
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from torch import Tensor

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.ir.graph import Node

Calibration = np.ndarray | Tensor | tuple[Any, ...] | Mapping[str, Any] | str | os.PathLike[str] | Iterable[Any]
Batch = tuple[np.ndarray[Any, Any], ...]


def batches(data: Calibration, inputs: Sequence[Node]) -> Iterator[Batch]:
    """The batches of calibration data for these input nodes.

    Raises:
        UnsupportedModelError: there are none, or one does not fit the inputs; the message names the input, what was found
            and what was expected.
    """
    if isinstance(data, str | os.PathLike):
        data = _read(Path(data))
    whole = isinstance(data, np.ndarray | Tensor | tuple | Mapping)
    count = 0
    for count, batch in enumerate([data] if whole else iter(data), start=1):  # noqa: B007
        yield _fitted(batch, inputs)
    if not count:
        raise UnsupportedModelError("the calibration data holds no batch; give a few dozen samples of what the model will see")


def _read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if path.suffix != ".npz":
        raise UnsupportedModelError(f"found the calibration file {path.name}; expected an .npz with an array for each input")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise UnsupportedModelError(f"{path.name} cannot be read as an .npz of plain arrays: {error}") from error


def _fitted(batch: Any, inputs: Sequence[Node]) -> Batch:
    """One batch as arrays in the order of the inputs, each of the input's shape but for the batch axis."""
    names = [node.id for node in inputs]
    if isinstance(batch, Mapping):
        arrays = [batch[name] for name in names] if set(names) <= set(batch) else list(batch.values())
    else:
        arrays = list(batch) if isinstance(batch, tuple | list) else [batch]
    if len(arrays) < len(inputs):
        raise UnsupportedModelError(
            f"a calibration batch holds {len(arrays)} arrays; the model has the inputs {', '.join(names)}"
        )
    return tuple(_array(array, node) for array, node in zip(arrays, inputs, strict=False))


def _array(value: Any, node: Node) -> np.ndarray[Any, Any]:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    expected = node.type.shape if node.type is not None else None
    if expected is not None:
        fits = len(array.shape) == len(expected) and all(
            not isinstance(want, int) or want == got for want, got in zip(expected[1:], array.shape[1:], strict=True)
        )
        if not fits:
            wanted = " ".join(["N", *map(str, expected[1:])])
            raise UnsupportedModelError(f"calibration data for {node.id} has shape {array.shape}; expected {wanted}")
    return array
