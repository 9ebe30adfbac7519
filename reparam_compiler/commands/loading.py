"""What comes in on a command line: a model by its name, inputs from calibration data."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reparam_compiler.core.calls import by_position
from reparam_compiler.core.files import UNREADABLE, check_place
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.torch.hooks import signature_of
from reparam_compiler.models import opening
from reparam_compiler.models.io import check_output, into_evaluation_mode, load_model

log = logging.getLogger(__name__)


def loaded(spec: str, unsafe: bool, constant: bool = False) -> Any:
    """The model that a spec names; one that comes in training mode, as most factories give it, in evaluation mode.

    There is no other use for it here: a norm in training mode is never folded.
    """
    model = opening.open(load_model(spec, unsafe=unsafe), copy=False, weights_are_constant=constant).model
    if into_evaluation_mode(model):
        log.warning("%s came in training mode; it is taken in evaluation mode", spec)
    return model


def first_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz by name, or that of an .npy or of the first .npy in a folder, whose shapes a module is to take.

    Raises:
        UnsupportedModelError: there are none, they are not plain arrays, or they are images.
    """
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    if not files:
        raise UnsupportedModelError(f"{path}: images take the model's size, and a torch module has none; give --input-shapes")
    if not path.is_dir() and path.suffix not in (".npz", ".npy"):
        raise UnsupportedModelError(f"{path}: found the suffix {path.suffix!r}; expected an .npz, an .npy, or a folder of .npy")
    try:
        with files[0].open("rb") as file:  # numpy leaves one that it cannot read open
            found = np.load(file, allow_pickle=False)
            return dict(found) if isinstance(found, np.lib.npyio.NpzFile) else {"": found}
    except UNREADABLE as error:
        raise UnsupportedModelError(f"{path}: it cannot be read as plain arrays: {error}") from error


def samples(arrays: Mapping[str, np.ndarray[Any, Any]], model: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    """The first sample of each array, as the inputs of a model: by their names, or in order where none is an input's.

    Floating numbers come in the dtype of the model's weights.
    """
    parameters = signature_of(model).parameters
    named = [name for name in arrays if name in parameters]
    names = by_position(parameters, named) if named else list(arrays)
    dtypes = (tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    dtype = next(dtypes, torch.float32)
    samples = (torch.from_numpy(arrays[name][:1].copy()) for name in names)
    return tuple(sample.to(dtype) if sample.is_floating_point() else sample for sample in samples)


def check_output_for(model: Any, output: Path, inputs: tuple[Any, ...] | None) -> None:
    """Raises, before any work, where what comes of a model cannot be written under this name, or not there."""
    check_output(model, output, example_inputs=inputs)
    check_place(output)
