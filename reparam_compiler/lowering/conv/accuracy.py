"""How exact an algorithm is on a layer's own weights: its arithmetic in their dtype against float64, on sampled tiles.

    error = max |Y - Y64| / max |Y64|          over 16 tiles of rectified normal data, every output channel

A Winograd tile loses digits where large numbers cancel, which depends on the weights; so each layer is measured, in numpy, by
the same transforms that its kernel applies. The direct form is F(1, r): one pixel a tile, no transform.
It is an estimate and no bound: data far from zero that a kernel's taps cancel loses more.
"""

import math

import numpy as np
from jaxtyping import Float, Float64, Shaped

from reparam_compiler.core import winograd
from reparam_compiler.core.winograd import Transform
from reparam_compiler.lowering.conv.algorithms import Algorithm, ConvShape, Winograd

SAMPLES = 16
MAX_ERROR = 1e-4
"""The error that an algorithm may have on a layer's weights unless the caller says otherwise."""
Tiles = Float[np.ndarray, "nh nw G samples K"]
"""Tiles of data, or of what is made of them: rows, columns, groups, samples, channels."""
Outputs = Float[np.ndarray, "mh mw G samples Og"]


def measured_error(weight: Shaped[np.ndarray, "O kh kw Ig"], shape: ConvShape, algorithm: Algorithm) -> float:
    """The relative error of one layer before its epilogue; infinite where weights or outputs are not finite."""
    with np.errstate(all="ignore"):
        error = _measured(weight, shape, algorithm)
    return error if np.isfinite(error) else math.inf


def _measured(weight: Shaped[np.ndarray, "O kh kw Ig"], shape: ConvShape, algorithm: Algorithm) -> float:
    taps = weight.astype(np.float64).transpose(0, 3, 1, 2)
    if isinstance(algorithm, Winograd):
        (height, width), taps = algorithm.transforms(shape), winograd.phases(taps, shape.stride)
    else:
        height, width = map(winograd.transform, (1, 1), shape.kernel)
    kernels = winograd.kernels(taps, height, width).reshape(height.size, width.size, shape.groups, shape.group_out, -1)
    draw = np.random.default_rng(0).standard_normal((height.size, width.size, shape.groups, SAMPLES, kernels.shape[-1]))
    data = np.maximum(draw, 0).astype(weight.dtype)
    exact = _outputs(data.astype(np.float64), kernels, height, width)
    found = _outputs(data, kernels.astype(weight.dtype), height, width)
    largest = float(np.abs(exact).max(initial=0))
    return float(np.abs(found - exact).max(initial=0)) / largest if largest else 0.0


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
