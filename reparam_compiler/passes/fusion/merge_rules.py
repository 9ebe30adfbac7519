"""Rules of ops that see all that their node reads, as functions of one source: sums, products by constants, concats, crops.

    sum of c_k K_k x + constants     add, sub, neg, sum, stack().sum()
    a K x, K x / a                   mul, div, from either side
    (K x, L x)                       concat along the channels: one wide conv
    K x, extended or cropped         pad, concat with constants, slices of spatial axes, writing into a constant
    S K x                            slices and splits of the channels
    K x with its border overwritten  assign: exact in its taps where K gives nothing but its bias there

A constant that is added where K x was extended is not the same everywhere: the bias is then NaN (`core/kernel.py`).
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise

import numpy as np

from reparam_compiler.core.channels import groups, rows
from reparam_compiler.core.kernel import Bias, ConvKernel, NotFusable, add, concat, pad, scale, side_by_side, subsample
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param
from reparam_compiler.passes.fusion.abstract_values import (
    AbstractValue,
    DataIndependent,
    NoRule,
    Operand,
    Part,
    SourceLayout,
    Stacked,
)

MergeRule = Callable[[Node, Sequence[Operand], SourceLayout], AbstractValue]


def per_channel(constant: Param, channels: int, rank: int, source: SourceLayout | None = None) -> Bias:
    """The number that a broadcast constant has for each of so many channels.

    Raises NotFusable where it varies over the batch or over positions.
    """
    if source is not None and source.last:
        axes, channel_axis = source.axes or max(len(constant.shape), 1), -1
        fits = source.axes is not None or len(constant.shape) <= 1
    else:
        axes, channel_axis, fits = rank + 2, 1, True
    shape = (1,) * (axes - len(constant.shape)) + constant.shape
    others = list(shape)
    if not fits or len(shape) > axes or others.pop(channel_axis) not in (1, channels) or any(size != 1 for size in others):
        raise NotFusable(f"a constant of shape {constant.shape} is not one number for each of {channels} channels")
    return np.broadcast_to(constant.float64().reshape(-1), (channels,)).copy()


def _still(node: Node) -> DataIndependent:
    return DataIndependent(None if node.type is None else node.type.shape)


def sum_of(node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """sum of coefficient * operand; a constant moves the bias."""
    coefficients = node.op.coefficients if isinstance(node.op, ops.Add) else ()
    terms = [
        scale(operand, np.full(operand.channels[1], coefficient), np.zeros(1)) if coefficient != 1 else operand
        for coefficient, operand in zip(coefficients, operands, strict=True)
        if isinstance(operand, ConvKernel)
    ]
    if not terms:
        if any(isinstance(operand, Stacked | tuple) for operand in operands):
            raise NoRule("a sum of stacked values")
        return _still(node)
    total = add(*terms)
    ones = np.ones(total.channels[1])
    for coefficient, operand in zip(coefficients, operands, strict=True):
        if isinstance(operand, Param):
            total = scale(total, ones, coefficient * per_channel(operand, total.channels[1], total.rank, source))
        elif isinstance(operand, DataIndependent):
            total = scale(total, ones, ones * np.nan)
        elif not isinstance(operand, ConvKernel):
            raise NoRule("a sum of stacked values and others")
    return total


def product(node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """A constant times a kernel, from either side."""
    kernels = [operand for operand in operands if isinstance(operand, ConvKernel)]
    factors = [operand for operand in operands if isinstance(operand, Param)]
    if len(kernels) != 1 or len(factors) != 1:
        raise NotFusable("the product of two computed values is not linear")
    return scale(kernels[0], per_channel(factors[0], kernels[0].channels[1], kernels[0].rank, source), np.zeros(1))


def quotient(node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """A kernel over a constant."""
    kernel, divisor = operands
    if not isinstance(kernel, ConvKernel) or not isinstance(divisor, Param):
        raise NotFusable("a quotient by a computed value is not linear")
    return scale(kernel, 1.0 / per_channel(divisor, kernel.channels[1], kernel.rank, source), np.zeros(1))


def concatenation(node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """Parallel convs of one source are one wide conv; constants along a spatial axis are padding."""
    axis = node.op.axis if isinstance(node.op, ops.Concat) else 0
    kernels = [operand for operand in operands if isinstance(operand, ConvKernel)]
    if len(kernels) == len(operands):
        if axis != source.channel_axis:
            raise NoRule("a concat of other things than channels")
        return concat(*kernels)
    stacks = [operand for operand in operands if isinstance(operand, Stacked)]
    if len(stacks) == len(operands) and all(axis in stack.axes for stack in stacks):
        return Stacked(tuple(kernel for stack in stacks for kernel in stack.kernels), (axis,))
    if len(kernels) == 1 and axis >= 2 and not source.last:
        return _extended(kernels[0], operands, axis)
    raise NoRule("a concat of other things than channels")


def of_parts(rule: MergeRule, node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """Applies a rule to operands of which some read only a part of the source's channels.

    There are three forms: in a concat, parts that follow each other stand side by side; an op of parts that read the same
    channels reads these alone; in all other cases each part is written out as an operator on all channels.
    """
    parts = [operand for operand in operands if isinstance(operand, Part)]
    first = parts[0]
    if not any(isinstance(operand, ConvKernel | Stacked | tuple) for operand in operands):
        if len(parts) == len(operands) and isinstance(node.op, ops.Concat) and node.op.axis == source.channel_axis:
            with suppress(NotFusable):  # parts apart, or blocks of different shapes, are written out
                return _side_by_side(parts)
        elif all(part.channels_read == first.channels_read for part in parts):
            value = rule(node, [o.kernel if isinstance(o, Part) else o for o in operands], source)
            if isinstance(value, ConvKernel):
                return _covered(Part(value, first.start, first.channels))
    return rule(node, [o.whole if isinstance(o, Part) else o for o in operands], source)


def _side_by_side(parts: Sequence[Part]) -> Part | ConvKernel:
    """Parts that read channels one after another as one; raises NotFusable where they do not, or their shapes differ."""
    if any(before.channels_read.stop != after.channels_read.start for before, after in pairwise(parts)):
        raise NotFusable("parts of the channels that are not one after another")
    return _covered(Part(side_by_side(*(part.kernel for part in parts)), parts[0].start, parts[0].channels))


def _covered(part: Part) -> Part | ConvKernel:
    """The kernel alone, where it reads all channels."""
    return part.kernel if part.kernel.channels[0] == part.channels else part


def _extended(kernel: ConvKernel, operands: Sequence[Operand], axis: int) -> ConvKernel:
    """A kernel between constants along a spatial axis."""
    place = next(index for index, operand in enumerate(operands) if operand is kernel)
    lengths, values = [0, 0], []
    for index, operand in enumerate(operands):
        if isinstance(operand, ConvKernel):
            continue
        shape = operand.shape if isinstance(operand, Param | DataIndependent) else None
        if shape is None or len(shape) != kernel.rank + 2 or not isinstance(length := shape[axis], int):
            raise NoRule("a concat with constants whose sizes are not known")
        lengths[index > place] += length
        values.append(_border_value(operand, kernel))
    amounts = [(0, 0)] * kernel.rank
    amounts[axis - 2] = (lengths[0], lengths[1])
    value = values[0] if all(np.array_equal(values[0], other) for other in values) else values[0] * np.nan
    return pad(kernel, tuple(amounts), value)


def _border_value(constant: Operand, kernel: ConvKernel) -> Bias:
    """The number that a constant border has in each channel; NaN where it has several, or depends on sizes."""
    if not isinstance(constant, Param) or not constant.count:
        return np.full(kernel.channels[1], np.nan)
    elements = constant.float64()
    by_channel = np.moveaxis(elements, 1, 0).reshape(elements.shape[1], -1)
    number = np.where((by_channel == by_channel[:, :1]).all(1), by_channel[:, 0], np.nan)
    return np.broadcast_to(number, (kernel.channels[1],))


def stack(node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """Kernels side by side."""
    axis = node.op.axis if isinstance(node.op, ops.Stack) else 0
    kernels = tuple(operand for operand in operands if isinstance(operand, ConvKernel))
    if len(kernels) < len(operands):
        raise NoRule("a stack of other things than values of one source")
    return Stacked(kernels, (axis,))


def reduction(node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """The sum or mean over the axis along which kernels were stacked."""
    (stacked,), op = operands, node.op
    if not isinstance(stacked, Stacked) or not isinstance(op, ops.Reduce) or not op.affine:
        raise NoRule(f"{op.name} over other axes than that of a stack")
    if len(op.axes) != 1 or op.axes[0] not in stacked.axes:
        raise NoRule(f"{op.name} over other axes than that of a stack")
    total = add(*stacked.kernels)
    if op.function == "mean":
        total = scale(total, np.full(total.channels[1], 1 / len(stacked.kernels)), np.zeros(1))
    return Stacked((total,), op.axes) if op.keepdim else total


def reshape(node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """Adds an axis of size 1 or removes it; where channels are last, any reshape that keeps them there.

    A second operand gives its shape only.
    """
    value, *_ = operands
    if source.last and isinstance(value, ConvKernel):
        if node.type is None or node.type.shape[-1:] != (value.channels[1],):
            raise NoRule("a reshape that may move the channels from the last axis")
        return value
    before, after = _axes_before(node, value, source), node.type
    if before is None or after is None:
        raise NoRule("a reshape of sizes that are not known")
    if isinstance(value, ConvKernel) and len(after.shape) == before + 1:
        new = tuple(axis for axis, size in enumerate(_words(node)) if size == 1 and _keeps(node, axis))
        if new:
            return Stacked((value,), new)
    if isinstance(value, Stacked) and len(value.kernels) == 1 and len(after.shape) == before - 1:
        return value.kernels[0]
    raise NoRule("a reshape that does more than add an axis")


def _axes_before(node: Node, value: Operand, source: SourceLayout) -> int | None:
    own = source.axes if source.last else source.rank + 2
    return own if own is None or isinstance(value, ConvKernel) else own + 1


def _words(node: Node) -> tuple[int, ...]:
    return node.op.shape if isinstance(node.op, ops.Reshape) else ()


def _keeps(node: Node, new: int) -> bool:
    """True where the shape that the reshape states leaves all sizes before the new axis as they are."""
    shape, known = _words(node), node.type.shape if node.type is not None else ()
    return len(shape) == len(known) and all(size == 0 or size == known[axis] for axis, size in enumerate(shape[:new]))


def cut(node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """A slice: of the channels, of a spatial axis (a crop, or every so many positions), or of a stack."""
    (value,), op = operands, node.op
    if not isinstance(op, ops.Slice):
        raise NotFusable(f"{op.name} is not a slice")
    if isinstance(value, DataIndependent):
        return _still(node)
    if isinstance(value, Stacked) and op.axis in value.axes:
        return Stacked(value.kernels[op.start : op.stop : op.step], (op.axis,))
    if not isinstance(value, ConvKernel):
        raise NoRule("a slice of stacked values")
    if op.axis == source.channel_axis:
        start, stop, step = slice(op.start, op.stop, op.step).indices(value.channels[1])
        if start >= stop:
            raise NotFusable("nothing is left")
        return _piece(value, start, stop) if step == 1 else rows(value, start, stop, step)
    if source.last:
        raise NoRule("a slice of another axis than the channels")
    if op.axis < 2:
        raise NotFusable("a slice of the batch")
    return _cropped(value, op, source)


def indexed(node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """Slices of several spatial axes at once: `x[..., ::2, 1::2]`."""
    kernel, axes = operands[0], source.rank + 2
    parts = list(node.op.slices) if isinstance(node.op, ops.Opaque) else []
    if parts.count(Ellipsis) == 1:
        place = parts.index(Ellipsis)
        parts[place : place + 1] = [slice(None)] * (axes - len(parts) + 1)
    slices = [part for part in parts if isinstance(part, slice)]
    if not isinstance(kernel, ConvKernel) or len(operands) > 1 or not slices or len(slices) < len(parts) or source.last:
        raise NoRule("an index of other things than slices")
    if any(part not in (slice(None), slice(0, None)) for part in slices[:2]):
        raise NoRule("an index of the batch or the channels")
    for axis, part in enumerate(slices[2:], start=2):
        kernel = _cropped(kernel, ops.Slice(axis, part.start or 0, part.stop, part.step or 1), source)
    return kernel


def _cropped(kernel: ConvKernel, op: ops.Slice, source: SourceLayout) -> ConvKernel:
    axis, low, high = op.axis - 2, op.start, 0
    sizes = output_sizes(kernel, source.sizes)
    if low < 0:
        if sizes is None:
            raise NotFusable("a slice that starts at a position counted from the end, of a size that may change")
        low = max(low + sizes[axis], 0)
    if op.stop is not None and op.stop < 0:
        high = op.stop
    elif op.stop is not None:
        if sizes is None:
            raise NotFusable("a slice that ends at a position counted from the start, of a size that may change")
        high = min(op.stop - sizes[axis], 0)
    amounts = [(0, 0)] * kernel.rank
    amounts[axis] = (-low, high)
    steps = [1] * kernel.rank
    steps[axis] = op.step
    return subsample(pad(kernel, tuple(amounts), kernel.bias), tuple(steps))


def output_sizes(kernel: ConvKernel, sizes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """How many positions a kernel gives for a source of these sizes."""
    if sizes is None:
        return None
    parts = zip(sizes, kernel.upsampling, kernel.margin, kernel.stride, strict=True)
    return tuple(((size - 1) * u + margin) // s + 1 for size, u, margin, s in parts)


def split(node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """Pieces of the channels."""
    (value,), op = operands, node.op
    if not isinstance(value, ConvKernel) or not isinstance(op, ops.Split) or op.axis != source.channel_axis:
        raise NoRule("a split of other things than channels")
    if 0 in op.sizes:
        raise NotFusable("a piece of no channels")
    edges = accumulate(op.sizes, initial=0)
    return tuple(_piece(value, start, stop) for start, stop in pairwise(edges))


def _piece(kernel: ConvKernel, start: int, stop: int) -> ConvKernel | Part:
    """Some output channels of a kernel; a `Part` where they are whole groups, which read some channels only."""
    per_group = kernel.weight.shape[0] // kernel.groups
    if kernel.groups == 1 or start % per_group or stop % per_group:
        return rows(kernel, start, stop)
    first = start // per_group
    return Part(groups(kernel, first, stop // per_group), first * kernel.weight.shape[1], kernel.channels[0])


def tuple_get(node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """One of several values."""
    (pieces,) = operands
    if not isinstance(pieces, tuple) or not isinstance(node.op, ops.TupleGet):
        raise NoRule("an item of a value that is none of several")
    return pieces[node.op.index]


def padding(node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """Pads a kernel by a number, or by values from elsewhere in its output."""
    (kernel,) = operands
    op = node.op
    if not isinstance(op, ops.Pad) or not isinstance(kernel, ConvKernel) or source.last:
        raise NotFusable(f"{op.name} of other axes than spatial ones")
    batch_and_channels, spatial = op.padding[:2], op.padding[2:]
    if any(map(any, batch_and_channels)) or len(spatial) != kernel.rank:
        raise NoRule("pads the batch or the channels")
    return pad(kernel, spatial, np.full(kernel.channels[1], op.value), op.mode)


def slice_update(node: Node, operands: Sequence[Operand], source: SourceLayout) -> AbstractValue:
    """A constant written over a border where the kernel gives only its bias, or a kernel written into a constant."""
    op = node.op
    if not isinstance(op, ops.SliceUpdate) or source.last:
        raise NotFusable(f"{op.name} into a value whose channels are last")
    into, value = operands
    if isinstance(into, ConvKernel) and isinstance(value, Param | DataIndependent):
        if not any(_is_border(into, *one) for one in op.cuts):
            raise NotFusable("writes over computed values")
        return _with_unknown_bias(into)
    if isinstance(value, ConvKernel) and isinstance(into, Param | DataIndependent):
        return _framed(value, op, node, source)
    raise NotFusable("writes computed values over computed ones")


def _with_unknown_bias(kernel: ConvKernel) -> ConvKernel:
    ones = np.ones(kernel.channels[1])
    return scale(kernel, ones, ones * np.nan)


def _is_border(kernel: ConvKernel, axis: int, start: int, stop: int | None) -> bool:
    """True for a strip of outputs that read nothing but zeros beyond the source.

    Output p reads up to s p + span - l, which is below 0 for p < (l - span) / s; from the other end only a stride of 1 tells.
    """
    if axis < 2 or kernel.mode != "zeros":
        return False
    (low, high), span, s = kernel.padding[axis - 2], kernel.span[axis - 2], kernel.stride[axis - 2]
    if start >= 0:
        return stop is not None and 0 < stop <= -((span - low) // s)
    return s == 1 and -start <= high - span and (stop is None or stop < 0)


def _framed(kernel: ConvKernel, op: ops.SliceUpdate, node: Node, source: SourceLayout) -> ConvKernel:
    amounts = [(0, 0)] * kernel.rank
    sizes = output_sizes(kernel, source.sizes)
    shape = node.type.static_shape if node.type is not None else None
    for axis, start, stop in op.cuts:
        if axis < 2:
            raise NotFusable("writes some channels of a constant")
        if start < 0 or (stop is not None and stop > 0 and (sizes is None or shape is None)):
            raise NotFusable("writes to a place in a constant that is counted from the other end")
        high = 0 if stop is None else -stop if stop <= 0 else (shape or ())[axis] - stop
        amounts[axis - 2] = (start, high)
    return _with_unknown_bias(pad(kernel, tuple(amounts), kernel.bias))
