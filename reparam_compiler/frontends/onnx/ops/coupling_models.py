"""What pruning sees in ONNX nodes that stay opaque to every other pass: a coupling model, for the sizes of the model.

A coupling model reads the first inputs of its node, in their order. Further inputs (shapes, axes, indices) must be constant.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from reparam_compiler.frontends.onnx.call import Call, Unsupported
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import TensorType
from reparam_compiler.vocabulary.resolve import ROWS
from reparam_compiler.vocabulary.row import Form

Like = tuple[ops.Op, int]
"""The op, and how many inputs it has."""


Function = Literal["mean", "sum", "max", "min", "norm"]


def _known(result: TensorType | None) -> TensorType:
    if result is None:
        raise Unsupported("a value of no known shape")
    return result


def _elementwise(call: Call, result: TensorType | None) -> Like:
    return ops.Slicewise(tuple(range(len(_known(result).shape)))), len(call.node.input)


def _of_first(call: Call, result: TensorType | None) -> Like:
    return ops.Slicewise(tuple(range(len(_known(result).shape)))), 1


def _but(axis: int, call: Call) -> Like:
    line = call.axis(axis)
    return ops.Slicewise(tuple(other for other in range(call.rank) if other != line)), 1


def _softmax(call: Call, result: TensorType | None) -> Like:
    """Before opset 13 it runs over all axes from the given one on."""
    if call.opset >= 13:
        return _but(call.attribute("axis", -1), call)
    return ops.Slicewise(tuple(range(call.axis(call.attribute("axis", 1))))), 1


def _cumulated(call: Call, result: TensorType | None) -> Like:
    return _but(int(call.constant(1).reshape(())), call)


def _normalized(call: Call, result: TensorType | None) -> Like:
    return _but(call.attribute("axis", -1), call)


def _of_matrices(call: Call, result: TensorType | None) -> Like:
    return ops.Slicewise(tuple(range(call.rank - 2))), 1


def _resize(call: Call, result: TensorType | None) -> Like:
    if call.attribute("axes", None) is not None:
        raise Unsupported("a resize of some axes")
    if call.has(3):
        kept = all(tuple(map(int, asked[:2])) == own[:2] for own, asked in zip(call.shapes(0), call.samples(3), strict=True))
    else:
        place = 1 if call.node.op_type == "Upsample" or call.opset < 11 else 2
        kept = bool((call.constant(place)[:2] == 1).all())
    if not kept:
        raise Unsupported("a resize of batch or channels")
    return ops.Slicewise((0, 1)), 1


def _resampled(call: Call, result: TensorType | None) -> Like:
    return ops.Slicewise((0, 1)), 1


def _rearranged(call: Call, result: TensorType | None) -> Like:
    return ops.Rearrange(), 1


def _gather(call: Call, result: TensorType | None) -> Like:
    call.constant(1)
    return ops.Rearrange((call.axis(call.attribute("axis", 0)),)), 1


def _gather_places(call: Call, result: TensorType | None) -> Like:
    """GatherND: each row of the indices calls a place along the first axes, behind those of the batch."""
    first, places = call.attribute("batch_dims", 0), call.constant(1)
    return ops.Rearrange(tuple(range(first, first + places.shape[-1]))), 1


def _reshape(call: Call, result: TensorType | None) -> Like:
    own = call.shape
    shape = [
        size if isinstance(size, int) else 0 if size is not None and own[axis : axis + 1] == (size,) else -1
        for axis, size in enumerate(_known(result).shape)
    ]
    if shape.count(-1) > 1:
        raise Unsupported("a reshape to several open sizes")
    return ops.Reshape(tuple(shape)), 1


def _slice(call: Call, result: TensorType | None) -> Like:
    """A slice along several axes, or one that runs backwards."""
    starts = call.values(1, "starts") or ()
    axes = call.values(3, "axes") or tuple(range(len(starts)))
    return ops.Rearrange(tuple(sorted(map(call.axis, axes)))), 1


def _expand(call: Call, result: TensorType | None) -> Like:
    """To numbers; an open size that x has stays as it is."""
    own, shape = call.shape, _known(result).shape
    new = len(shape) - len(own)
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    if any(size == -1 and axis and (axis < new or own[axis - new] != shape[axis]) for axis, size in enumerate(sizes)):
        raise Unsupported("an expansion to an open size")
    for asked in call.samples(1) if sizes[0] == -1 and own[0] == 1 else ():
        said = asked[len(asked) - len(own) :]
        if any(size != 1 and have != 1 for size, have in zip(said[1:], own[1:], strict=True)):
            raise Unsupported("an expansion to an open batch that says other sizes too")
    return ops.Expand(tuple(sizes)), 1


def expanded_type(call: Call) -> TensorType | None:
    """What an Expand gives, where inference does not see what its shape is made of: its sizes that depend on no open one."""
    tries = zip(call.shapes(0), call.samples(1), strict=True)
    try:
        found = [np.broadcast_shapes(own, tuple(map(int, asked))) for own, asked in tries]
    except ValueError:  # sizes that are open here and known there
        return None
    dtype = call.dtype(0)
    if dtype is None or len({len(shape) for shape in found}) > 1:
        return None
    return TensorType(dtype, tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*found, strict=True)))


def shaped_like(call: Call, op: ops.Expand) -> str | None:
    """The value whose width an Expand takes over: `x.expand_as(y)` reads the shape of y."""
    sizes = call.sizes_of(call.node.input[1]) or ()
    own = call.shape
    new = len(op.shape) - len(own)
    for axis, size in enumerate(sizes if len(sizes) == len(op.shape) else ()):
        if not isinstance(size, int) and size[1] == axis > 0 and (axis < new or own[axis - new] == 1 != op.shape[axis]):
            return size[0]
    return None


def _reduce(function: Function, call: Call, result: TensorType | None) -> Like:
    axes = call.values(1, "axes") or tuple(range(call.rank))
    return ops.Reduce(function, tuple(sorted(map(call.axis, axes))), bool(call.attribute("keepdims", 1))), 1


def _matmul(call: Call, result: TensorType | None) -> Like:
    ranks = [len(_known(call.type(index)).shape) for index in (0, 1)]
    if min(ranks) < 2:
        raise Unsupported("a product with a vector")
    batch = "abcdefgh"[: max(ranks) - 2]
    letters = (batch[len(batch) - ranks[0] + 2 :] + "yz", batch[len(batch) - ranks[1] + 2 :] + "zx")
    return ops.Einsum(*letters, batch + "yx"), 2


def _einsum(call: Call, result: TensorType | None) -> Like:
    equation = call.attribute("equation", "")
    terms, arrow, out = equation.replace(" ", "").partition("->")
    sides = terms.split(",")
    if len(sides) != 2 or not arrow or not all(side.isalpha() and len(set(side)) == len(side) for side in sides):
        raise Unsupported(f"Einsum of {equation}")
    return ops.Einsum(sides[0], sides[1], out), 2


def _layer_norm(call: Call, result: TensorType | None) -> Like:
    if len([name for name in call.node.output if name]) > 1:
        raise Unsupported("a norm with several outputs")
    first = call.axis(call.attribute("axis", -1))
    eps = float(call.attribute("epsilon", 1e-5))
    centred = call.node.op_type == "LayerNormalization"
    return ops.LayerNorm((-1,) * (call.rank - first), eps, centred), min(len(call.node.input), 3)


def _group_norm(call: Call, result: TensorType | None) -> Like:
    groups = call.attribute("num_groups", 0)
    if call.opset < 21 or groups == call.shape[1]:
        raise Unsupported("a group norm with a scale for each group, or a group for each channel")
    return ops.GroupNorm(groups, float(call.attribute("epsilon", 1e-5))), 3


def _instance_norm(call: Call, result: TensorType | None) -> Like:
    return ops.GroupNorm(None, float(call.attribute("epsilon", 1e-5))), 3


_FORMS: dict[Form, Callable[[Call, TensorType | None], Like]] = {
    "pointwise": _elementwise,
    "elementwise": _elementwise,
    "move": _rearranged,
    "rearranged": _rearranged,
}
COUPLING_MODELS: dict[str, Callable[[Call, TensorType | None], Like]] = {
    **{stated.name: _FORMS[row.form] for row in ROWS.values() if row.form is not None for stated in row.onnx},
    "PRelu": _elementwise,
    **dict.fromkeys(("Cast", "CastLike", "Clip"), _of_first),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    "CumSum": _cumulated,
    "LpNormalization": _normalized,
    "Trilu": _of_matrices,
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool", "GlobalLpPool"), _resampled),
    "Gather": _gather,
    "GatherND": _gather_places,
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), _reshape),
    "Expand": _expand,
    "Slice": _slice,
    "ReduceMean": partial(_reduce, "mean"),
    "ReduceSum": partial(_reduce, "sum"),
    "ReduceMax": partial(_reduce, "max"),
    "ReduceMin": partial(_reduce, "min"),
    "ReduceL2": partial(_reduce, "norm"),
    "MatMul": _matmul,
    "Einsum": _einsum,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
}
"""For each op of ONNX's own domain its likeness."""


def sizes_from_value(run: Callable[..., object]) -> Callable[..., object]:
    """What runs a Resize to the batch and channels that its input has, whatever its `sizes` say of them."""

    def resize(x: Tensor, *rest: Tensor | None) -> object:
        given = list(rest)
        if len(given) > 2 and (sizes := given[2]) is not None:
            given[2] = torch.tensor([*x.shape[:2], *sizes.tolist()[2:]])
        return run(x, *given)

    return resize


def expanded(x: Tensor, *rest: Tensor) -> Tensor:
    """An Expand: x, perhaps the value whose width it takes over, and the shape.

    Where x is longer than 1 it keeps its own size, whatever the shape says of it.
    """
    other, sizes = rest[0] if len(rest) > 1 else None, rest[-1].tolist()
    new = max(len(sizes) - x.ndim, 0)
    sizes = [1] * (x.ndim - len(sizes)) + sizes
    for axis, size in enumerate(sizes):
        if axis >= new and x.shape[axis - new] > 1:
            sizes[axis] = -1
        elif size > 1 and other is not None:
            sizes[axis] = other.shape[axis]
    return x.expand(sizes)
