"""How exact an algorithm is on a layer's own weights: its arithmetic in their dtype against float64, on samples.

    error = max |Y - Y64| / max |Y64|          over 16 tiles or outputs of rectified normal data, every output channel

A Winograd tile loses digits where large numbers cancel, which depends on the weights; so each layer is measured, in numpy, by
the same transforms that its kernel applies. The direct form is a sum of products, of a kernel of any size.
A layer of many weights is measured on some of its channels then.
It is an estimate and no bound: data far from zero that a kernel's taps cancel loses more.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Shaped

from reparam_compiler.core import winograd
from reparam_compiler.core.winograd import Transform
from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape, Winograd

SAMPLES = 16
WEIGHTS = 1 << 22
"""Weights of a layer that the direct form is measured on: a sum of products is as exact in one channel as in the next."""
MAX_ERROR = 1e-4
"""The error that an algorithm may have on a layer's weights unless the caller says otherwise."""
Tiles = Float[np.ndarray, "nh nw G samples K"]
"""Tiles of data, or of what is made of them: rows, columns, groups, samples, channels."""
Outputs = Float[np.ndarray, "mh mw G samples Og"]
Sums = Float[np.ndarray, "G Og samples"]


def measured_error(weight: Shaped[np.ndarray, "O kh kw Ig"], shape: ConvShape, algorithm: Algorithm) -> float:
    """The relative error of one layer before its epilogue; infinite where weights or outputs are not finite."""
    with np.errstate(all="ignore"):
        error = _measured(weight, shape, algorithm) if np.isfinite(weight).all() else math.inf
    return error if np.isfinite(error) else math.inf


def _measured(weight: Shaped[np.ndarray, "O kh kw Ig"], shape: ConvShape, algorithm: Algorithm) -> float:
    exact, found = _by_tiles(weight, shape, algorithm) if isinstance(algorithm, Winograd) else _by_sums(weight, shape)
    largest = float(np.abs(exact).max(initial=0))
    return float(np.abs(found - exact).max(initial=0)) / largest if largest else 0.0


def _by_sums(weight: Shaped[np.ndarray, "O kh kw Ig"], shape: ConvShape) -> tuple[Sums, Sums]:
    """Sampled outputs of the direct form: exactly, and in the dtype of the weights; of a layer of many, of some channels."""
    taps = weight.reshape(shape.groups, shape.group_out, -1)[:, :: -(-weight.size // WEIGHTS)]
    data = _rectified((shape.groups, taps.shape[-1], SAMPLES), weight.dtype)
    return taps.astype(np.float64) @ data.astype(np.float64), taps @ data


def _by_tiles(weight: Shaped[np.ndarray, "O kh kw Ig"], shape: ConvShape, algorithm: Winograd) -> tuple[Outputs, Outputs]:
    """Sampled tiles of a Winograd conv: exactly, and in the dtype of the weights."""
    (height, width), taps = algorithm.transforms(shape), weight.astype(np.float64).transpose(0, 3, 1, 2)
    kernels = winograd.kernels(winograd.phases(taps, shape.stride), height, width)
    kernels = kernels.reshape(height.size, width.size, shape.groups, shape.group_out, -1)
    data = _rectified((height.size, width.size, shape.groups, SAMPLES, kernels.shape[-1]), weight.dtype)
    exact = _outputs(data.astype(np.float64), kernels, height, width)
    return exact, _outputs(data, kernels.astype(weight.dtype), height, width)


def _rectified(size: tuple[int, ...], dtype: np.dtype[Any]) -> Shaped[np.ndarray, "..."]:
    """Normal data, rectified."""
    return np.maximum(np.random.default_rng(0).standard_normal(size), 0).astype(dtype)


def _outputs(data: Tiles, kernels: Float[np.ndarray, "nh nw G Og K"], height: Transform, width: Transform) -> Outputs:
    """A^T [U * (B^T d B)] A, each step in the dtype of the data."""
    products = _both(height.data, width.data, data) @ kernels.swapaxes(-1, -2)
    return _both(height.output, width.output, products)


def _both(
    rows: Float64[np.ndarray, "mh nh"], columns: Float64[np.ndarray, "mw nw"], tiles: Tiles
) -> Float[np.ndarray, "mh mw G samples K"]:
    """A matrix applied to the rows of each tile and another to its columns."""
    by_rows = np.tensordot(rows.astype(tiles.dtype), tiles, (1, 0))
    return np.tensordot(columns.astype(tiles.dtype), by_rows, (1, 1)).swapaxes(0, 1)
