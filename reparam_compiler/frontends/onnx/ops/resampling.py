"""How a Resize or an Upsample is run: along one axis after the other, by what ONNX's reference evaluator makes of a ramp there.

The evaluator takes each pixel in Python, which is minutes for the feature maps that calibration runs. Nearest and linear
resampling go along each axis alone, and a ramp 0, 1, 2 … comes out as the places that are read: 1.25 is three quarters of
the second and a quarter of the third.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import NodeProto, helper
from torch import Tensor

Run = Callable[..., Any]
_PLAIN = {
    "mode": ("nearest", "linear"),
    "antialias": (0,),
    "exclude_outside": (0,),
    "keep_aspect_ratio_policy": ("stretch",),
    "coordinate_transformation_mode": ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"),
}
"""The attributes that have a say in it, and with which values each axis goes by itself and reads two neighbours at most."""


def resized(run: Run, node: NodeProto, opset: int) -> Run:
    """What runs a Resize or an Upsample to the batch and channels that its input has, whatever its `sizes` say of them."""
    stated = {attribute.name: _text(helper.get_attribute_value(attribute)) for attribute in node.attribute}
    by_axis = "axes" not in stated and all(stated[key] in plain for key, plain in _PLAIN.items() if key in stated)
    scales = 0 if node.op_type == "Upsample" or opset < 11 else 1

    def resize(x: Tensor, *rest: Tensor | None) -> Any:
        given = list(rest)
        if len(given) > 2 and (sizes := given[2]) is not None:
            given[2] = torch.tensor([*x.shape[:2], *sizes.tolist()[2:]])
        at = 2 if len(given) > 2 and given[2] is not None else scales
        told = given[at] if at < len(given) else None
        keeps = told is not None and len(told) == x.ndim and (at == 2 or bool((told[:2] == 1).all()))
        if told is None or not (by_axis and keeps and x.is_floating_point()):
            return run(x, *given)
        for axis in range(2, x.ndim):
            alone = [1] * axis + [told[axis].item()] + [1] * (x.ndim - axis - 1)
            given[at] = torch.tensor(alone, dtype=told.dtype)
            ramp = torch.arange(x.shape[axis], dtype=torch.float64).reshape(_along(axis, x.ndim))
            x = _read(x, axis, run(ramp, *given).reshape(-1))
        return x

    return resize


def _along(axis: int, rank: int) -> Sequence[int]:
    return [-1 if place == axis else 1 for place in range(rank)]


def _read(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """The elements at these places along an axis; between two elements both, in proportion."""
    low = places.floor().long()
    share = (places - low).to(x.dtype).reshape(_along(axis, x.ndim))
    first = x.index_select(axis, low)
    if not share.any():
        return first
    return first + share * (x.index_select(axis, (low + 1).clamp(max=x.shape[axis] - 1)) - first)


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
