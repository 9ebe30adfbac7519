"""Resize and what samples an image at points known before the model runs.

Along each axis an output is a sum of weights times elements: `Taps`. One tap is a Gather, a few are Gathers, products and a
sum, many (antialias, where an image shrinks) a product with the matrix of the weights.
"""

import math
from dataclasses import dataclass

import numpy as np

from reparam_compiler.lowering.importing.onnx_ops.graph import Graph, Node
from reparam_compiler.lowering.importing.onnx_ops.table import instead_of

FEW = 4
"""Taps up to which Gathers stand for a matrix."""


@dataclass(frozen=True, slots=True)
class Taps:
    """Of one axis: `outputs x taps` indices into the input, and their weights."""

    index: np.ndarray
    weight: np.ndarray


@instead_of("Resize", tvm="is off at ratios that are no integers, and knows no antialias, axes or policies")
def resize(graph: Graph, node: Node) -> str:
    """Taps along each axis that is resized; TVM's own where sizes are multiplied by whole numbers."""
    x, shape = node.inputs[0], graph.shape(node.inputs[0])
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise node.refusal("a crop with tf_crop_and_resize, which ONNX and ONNX Runtime read in two ways")
    axes = [axis % len(shape) for axis in node.attrs.get("axes", range(len(shape)))]
    scales, sizes = _scales_and_sizes(graph, node, axes)
    if _as_tvm_has_it(node, shape, scales, sizes):
        return _by_tvm(graph, node, sizes)
    for axis in axes:
        if sizes[axis] != shape[axis] or scales[axis] != 1:
            x = _applied(graph, x, axis, taps(node, shape[axis], sizes[axis], scales[axis]))
    return x


def _scales_and_sizes(graph: Graph, node: Node, axes: list[int]) -> tuple[dict[int, float], dict[int, int]]:
    """By axis; those that are not resized keep their size."""
    shape = graph.shape(node.inputs[0])
    scales, sizes = dict.fromkeys(range(len(shape)), 1.0), dict(enumerate(shape))
    if node.input(2) and graph.shape(node.input(2)) != (0,):
        given = [float(scale) for scale in graph.required(node, 2, "scales")]
        for axis, scale in zip(axes, given, strict=True):
            scales[axis], sizes[axis] = scale, math.floor(shape[axis] * np.float32(scale))
        return scales, sizes
    wanted = [int(size) for size in graph.required(node, 3, "sizes")]
    policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        choose = min if policy == "not_larger" else max
        scale = choose(size / shape[axis] for axis, size in zip(axes, wanted, strict=True))
        wanted = [math.floor(scale * shape[axis] + 0.5) for axis in axes]
        scales.update(dict.fromkeys(axes, scale))
    for axis, size in zip(axes, wanted, strict=True):
        sizes[axis] = size
        scales[axis] = scales[axis] if policy != "stretch" else size / shape[axis]
    return scales, sizes


def _as_tvm_has_it(node: Node, shape: tuple[int, ...], scales: dict[int, float], sizes: dict[int, int]) -> bool:
    """Height and width times whole numbers, by nearest or linear interpolation."""
    mode, attrs = node.attrs.get("mode", "nearest"), node.attrs
    whole = all(sizes[axis] == shape[axis] * scales[axis] and scales[axis].is_integer() for axis in range(len(shape)))
    if len(shape) != 4 or not whole or (scales[0], scales[1]) != (1, 1) or max(scales.values()) == 1:
        return False
    coordinates = attrs.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        rounding = attrs.get("nearest_mode", "round_prefer_floor")
        plain = coordinates == "asymmetric" and rounding in ("floor", "of opset 10")
        return plain or (coordinates == "half_pixel" and rounding.startswith("round"))
    return bool(mode == "linear") and coordinates in ("half_pixel", "align_corners", "asymmetric")


def _by_tvm(graph: Graph, node: Node, sizes: dict[int, int]) -> str:
    mode = node.attrs.get("mode", "nearest")
    if mode == "nearest":
        attrs = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        attrs = {"coordinate_transformation_mode": node.attrs.get("coordinate_transformation_mode", "half_pixel")}
    inputs = [node.inputs[0], "", "", graph.ints(*(sizes[axis] for axis in range(4)))]
    return graph.keep(Node("Resize", inputs, {"mode": mode, **attrs}, 1, node.name))[0]


def coordinates(node: Node, size: int, out: int, scale: float) -> np.ndarray:
    """Where each output lies in the input, in elements; in float32, so that a tie is one for ONNX Runtime too."""
    at, by, half = np.arange(out, dtype=np.float32), np.float32(scale), np.float32(0.5)
    mode = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    if mode == "asymmetric":
        return np.asarray(at / by)
    if mode == "align_corners":
        return np.asarray(at * np.float32(0 if out == 1 else (size - 1) / (out - 1)))
    if mode == "pytorch_half_pixel" and out == 1:
        return np.zeros(out, np.float32)
    if mode == "half_pixel_symmetric":
        return np.asarray(size * half * (1 - out / (by * np.float32(size))) + (at + half) / by - half)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return np.asarray((at + half) / by - half)
    raise node.refusal(f"coordinate_transformation_mode={mode} has no rule")


def taps(node: Node, size: int, out: int, scale: float) -> Taps:
    """What each output along an axis takes from the input, by the definition of ONNX's Resize."""
    place = coordinates(node, size, out, scale)
    if node.attrs.get("mode", "nearest") == "nearest":
        rounding = node.attrs.get("nearest_mode", "round_prefer_floor")
        index = _nearest(place, ("ceil" if scale < 1 else "floor") if rounding == "of opset 10" else rounding)
        return Taps(np.clip(index, 0, size - 1)[:, None], np.ones((out, 1)))
    stretch = min(scale, 1.0) if node.attrs.get("antialias", 0) else 1.0
    cubic = node.attrs["mode"] == "cubic"
    reach = (2 if cubic else 1) / stretch
    first = np.floor(place - reach).astype(np.int64) + 1
    index = first[:, None] + np.arange(math.ceil(2 * reach) + (stretch < 1))
    weight = _kernel((index - place[:, None]) * stretch, node.attrs.get("cubic_coeff_a", -0.75) if cubic else None)
    if node.attrs.get("exclude_outside", 0):
        weight = np.where((index >= 0) & (index < size), weight, 0)
    weight = weight / weight.sum(1, keepdims=True)
    return Taps(np.clip(index, 0, size - 1), weight)


def _nearest(place: np.ndarray, rounding: str) -> np.ndarray:
    if rounding == "round_prefer_floor":
        return np.ceil(place - 0.5).astype(np.int64)
    if rounding == "round_prefer_ceil":
        return np.floor(place + 0.5).astype(np.int64)
    return np.asarray(np.floor(place) if rounding == "floor" else np.ceil(place)).astype(np.int64)


def _kernel(distance: np.ndarray, cubic: float | None) -> np.ndarray:
    """The weight of an element at a distance: of the triangle, or of the cubic with that coefficient."""
    far = np.abs(distance)
    if cubic is None:
        return np.asarray(np.clip(1 - far, 0, None))
    a = cubic
    near = ((a + 2) * far - (a + 3)) * far**2 + 1
    next_ = ((far - 5) * far + 8) * far * a - 4 * a
    return np.asarray(np.where(far <= 1, near, np.where(far < 2, next_, 0)))


def _applied(graph: Graph, x: str, axis: int, found: Taps) -> str:
    """The taps of one axis, applied to it."""
    rank, kind, size = graph.rank(x), graph.dtype(x), graph.shape(x)[axis]
    used = np.abs(found.weight).max(0) > 0
    index, weight = found.index[:, used], found.weight[:, used]
    along = [1] * axis + [len(index)] + [1] * (rank - axis - 1)
    if index.shape[1] == 1 and np.all(weight == 1):
        made = graph.emit("Gather", x, graph.constant(index[:, 0]), axis=axis)
    elif index.shape[1] <= FEW:
        parts = [
            graph.emit("Mul", graph.emit("Gather", x, graph.constant(i), axis=axis), graph.constant(w.reshape(along), kind))
            for i, w in zip(index.T, weight.T, strict=True)
        ]
        made = graph.emit("Sum", *parts)
    else:
        matrix = np.zeros((size, len(index)))
        np.add.at(matrix, (index, np.arange(len(index))[:, None]), weight)
        order = [other for other in range(rank) if other != axis] + [axis]
        moved = graph.emit("MatMul", graph.emit("Transpose", x, perm=order), graph.constant(matrix, kind))
        made = graph.emit("Transpose", moved, perm=[order.index(other) for other in range(rank)])
    return made
