"""What pruning sees in ONNX nodes that stay opaque to every other pass: a coupling model, for the sizes of the model.

A coupling model reads the first inputs of its node, in their order. Further inputs (shapes, axes, indices) must be constant.
"""

import numpy as np
from torch import Tensor

from reparam_compiler.frontends import coupling
from reparam_compiler.frontends.onnx.call import Call, Unsupported
from reparam_compiler.frontends.onnx.ops.registry import REDUCTIONS, Coupled, couples, slicewise
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import TensorType


@couples("Clip")
def _of_first(call: Call, result: TensorType | None) -> Coupled:
    return slicewise(result, 1)


@couples("PRelu")
def _of_both(call: Call, result: TensorType | None) -> Coupled:
    return slicewise(result, len(call.node.input))


def _but(axis: int, call: Call) -> Coupled:
    line = call.axis(axis)
    return ops.Slicewise(tuple(other for other in range(call.rank) if other != line)), 1


@couples("Softmax", "LogSoftmax")
def _softmax(call: Call, result: TensorType | None) -> Coupled:
    """Before opset 13 it runs over all axes from the given one on."""
    if call.opset >= 13:
        return _but(call.attribute("axis", -1), call)
    return ops.Slicewise(tuple(range(call.axis(call.attribute("axis", 1))))), 1


@couples("CumSum")
def _cumulated(call: Call, result: TensorType | None) -> Coupled:
    return _but(int(call.constant(1).reshape(())), call)


@couples("LpNormalization")
def _normalized(call: Call, result: TensorType | None) -> Coupled:
    return _but(call.attribute("axis", -1), call)


@couples("Trilu")
def _of_matrices(call: Call, result: TensorType | None) -> Coupled:
    return ops.Slicewise(tuple(range(call.rank - 2))), 1


@couples("Resize", "Upsample")
def _resize(call: Call, result: TensorType | None) -> Coupled:
    if call.attribute("axes", None) is not None:
        raise Unsupported("a resize of some axes")
    if call.has(3):
        kept = all(
            tuple(map(int, asked[:2])) == own[:2] for own, asked in zip(call.tried_shapes(0), call.samples(3), strict=True)
        )
    else:
        place = 1 if call.node.op_type == "Upsample" or call.opset < 11 else 2
        kept = bool((call.constant(place)[:2] == 1).all())
    if not kept:
        raise Unsupported("a resize of batch or channels")
    return ops.Slicewise((0, 1)), 1


@couples("Gather")
def _gather(call: Call, result: TensorType | None) -> Coupled:
    call.constant(1)
    return ops.Rearrange((call.axis(call.attribute("axis", 0)),)), 1


@couples("GatherND")
def _gather_places(call: Call, result: TensorType | None) -> Coupled:
    """GatherND: each row of the indices calls a place along the first axes, behind those of the batch."""
    first, places = call.attribute("batch_dims", 0), call.constant(1)
    return ops.Rearrange(tuple(range(first, first + places.shape[-1]))), 1


@couples("Reshape", "Flatten")
def _reshape(call: Call, result: TensorType | None) -> Coupled:
    return coupling.reshape(call.shape, coupling.shape_of(result)), 1


@couples("Squeeze", "Unsqueeze")
def _squeeze(call: Call, result: TensorType | None) -> Coupled:
    """Of named axes, whatever leaves; a Squeeze that names none is a reshape, for a channel that is left alone would go."""
    return (ops.Rearrange(), 1) if call.values(1, "axes") is not None else _reshape(call, result)


@couples("Slice")
def _slice(call: Call, result: TensorType | None) -> Coupled:
    """A slice along several axes, or one that runs backwards."""
    starts = call.values(1, "starts") or ()
    axes = call.values(3, "axes") or tuple(range(len(starts)))
    return ops.Rearrange(tuple(sorted(map(call.axis, axes)))), 1


@couples("Expand")
def _expand(call: Call, result: TensorType | None) -> Coupled:
    """To numbers; an open size that x has stays as it is."""
    own = call.shape
    op = coupling.expand(own, coupling.shape_of(result))
    for asked in call.samples(1) if op.shape[0] == -1 and own[0] == 1 else ():
        said = asked[len(asked) - len(own) :]
        if any(size != 1 and have != 1 for size, have in zip(said[1:], own[1:], strict=True)):
            raise Unsupported("an expansion to an open batch that says other sizes too")
    return op, 1


def expanded_type(call: Call) -> TensorType | None:
    """What an Expand gives, where inference does not see what its shape is made of: its sizes that depend on no open one."""
    tries = zip(call.tried_shapes(0), call.samples(1), strict=True)
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
    sizes = call.shapes.sizes(call.node.input[1]) or ()
    own = call.shape
    new = len(op.shape) - len(own)
    for axis, size in enumerate(sizes if len(sizes) == len(op.shape) else ()):
        if not isinstance(size, int) and size[1] == axis > 0 and (axis < new or own[axis - new] == 1 != op.shape[axis]):
            return size[0]
    return None


@couples(*REDUCTIONS)
def _reduce(call: Call, result: TensorType | None) -> Coupled:
    axes = call.values(1, "axes")
    if not axes and call.attribute("noop_with_empty_axes", 0):
        return slicewise(result, 1)
    axes = axes or tuple(range(call.rank))
    return ops.Reduce(
        REDUCTIONS[call.node.op_type], tuple(sorted(map(call.axis, axes))), bool(call.attribute("keepdims", 1))
    ), 1


@couples("MatMul")
def _matmul(call: Call, result: TensorType | None) -> Coupled:
    left, right = (len(coupling.shape_of(call.type(index))) for index in (0, 1))
    return coupling.matmul(left, right), 2


@couples("Einsum")
def _einsum(call: Call, result: TensorType | None) -> Coupled:
    return coupling.einsum(call.attribute("equation", "")), 2


@couples("LayerNormalization", "RMSNormalization")
def _layer_norm(call: Call, result: TensorType | None) -> Coupled:
    if len([name for name in call.node.output if name]) > 1:
        raise Unsupported("a norm with several outputs")
    first = call.axis(call.attribute("axis", -1))
    eps = float(call.attribute("epsilon", 1e-5))
    centred = call.node.op_type == "LayerNormalization"
    return ops.LayerNorm((-1,) * (call.rank - first), eps, centred), min(len(call.node.input), 3)


@couples("GroupNormalization")
def _group_norm(call: Call, result: TensorType | None) -> Coupled:
    groups = call.attribute("num_groups", 0)
    if call.opset < 21 or groups == call.shape[1]:
        raise Unsupported("a group norm with a scale for each group, or a group for each channel")
    return ops.GroupNorm(groups, float(call.attribute("epsilon", 1e-5))), 3


@couples("InstanceNormalization")
def _instance_norm(call: Call, result: TensorType | None) -> Coupled:
    return ops.GroupNorm(None, float(call.attribute("epsilon", 1e-5))), 3


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
