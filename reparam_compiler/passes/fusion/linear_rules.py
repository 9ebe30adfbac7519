"""Rules of ops with one computed input: each is a convolution operator by itself.

conv             itself
transposed conv  y[o, p] = b[o] + sum W[i, o, t] x[i, q] over s q + d t - l = p: a flipped kernel on a source upsampled by s
linear           a conv without spatial axes, over the last axis
batch norm       Eq. 2
average pool     depthwise, every tap the same
identity
pixel unshuffle  every phase of the positions a channel
"""

import numpy as np

from reparam_compiler.core import affine
from reparam_compiler.core.kernel import Bias, ConvKernel, NotFusable
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param
from reparam_compiler.passes.fusion.abstract_values import SourceLayout


def _array(param: Param | None) -> Bias | None:
    return None if param is None else param.float64()


def _weights(node: Node) -> tuple[Param, Param | None]:
    weight, bias = node.operand("weight"), node.operand("bias")
    if not isinstance(weight, Param) or isinstance(bias, str):
        raise NotFusable("the weight is computed from the input")
    return weight, bias


def conv(node: Node, reads: SourceLayout) -> ConvKernel:
    """A conv is its own kernel."""
    op, (weight, bias) = node.op, _weights(node)
    if not isinstance(op, ops.Conv):
        raise NotFusable(f"{op.name} is not a conv")
    taps = weight.float64()
    shift = np.zeros(len(taps)) if bias is None else bias.float64()
    return ConvKernel(taps, shift, op.stride, op.dilation, op.padding, op.groups, op.mode)


def conv_transpose(node: Node, reads: SourceLayout) -> ConvKernel:
    """`I O/groups *K` flipped to `O I/groups *K`; what is cut off the full output pads that much less than the span."""
    op, (weight, bias) = node.op, _weights(node)
    if not isinstance(op, ops.ConvTranspose):
        raise NotFusable(f"{op.name} is not a transposed conv")
    taps = weight.float64()
    blocks = taps.reshape(op.groups, taps.shape[0] // op.groups, *taps.shape[1:]).swapaxes(1, 2)
    flipped = np.flip(blocks, axis=tuple(range(3, blocks.ndim))).reshape(-1, blocks.shape[2], *taps.shape[2:])
    shift = np.zeros(len(flipped)) if bias is None else bias.float64()
    spans = [d * (k - 1) for d, k in zip(op.dilation, taps.shape[2:], strict=True)]
    padding = tuple(
        (span - low, span - high + extra) for span, (low, high), extra in zip(spans, op.padding, op.output_padding, strict=True)
    )
    ones = (1,) * len(spans)
    return ConvKernel(flipped, shift, ones, op.dilation, padding, op.groups, upsampling=op.stride)


def linear(node: Node, reads: SourceLayout) -> ConvKernel:
    """A linear layer is a conv without spatial axes, whose channels are on the last axis."""
    weight, bias = _weights(node)
    if not reads.last:
        raise NotFusable("linear over an axis that is not that of the channels")
    matrix = weight.float64()
    shift = np.zeros(len(matrix)) if bias is None else bias.float64()
    return ConvKernel(matrix, shift, (), (), ())


def batch_norm(node: Node, reads: SourceLayout) -> ConvKernel:
    """Eq. 2, with the statistics that the model was trained to."""
    if not isinstance(node.op, ops.BatchNorm) or node.op.training:
        raise NotFusable(f"{node.id}: training=True; call model.eval() before fuse()")
    if reads.last and reads.axes != 2:
        raise NotFusable("batch norm over an axis that is not that of the channels")
    gamma, beta = _array(node.param("weight")), _array(node.param("bias"))
    mean, var = _array(node.param("mean")), _array(node.param("var"))
    if mean is None or var is None:
        raise NotFusable("batch norm without statistics")
    return affine.batch_norm(gamma, beta, mean, var, eps=node.op.eps, rank=reads.rank)


def identity(node: Node, reads: SourceLayout) -> ConvKernel:
    """Identity, dropout in evaluation, contiguous."""
    return affine.identity(reads.channels, reads.rank)


def average_pool(node: Node, reads: SourceLayout) -> ConvKernel:
    """A depthwise conv whose taps are all the same."""
    op = node.op
    if not isinstance(op, ops.AvgPool):
        raise NotFusable(f"{op.name} is not an average pool")
    hangs_over = op.ceil_mode and (
        reads.sizes is None
        or any(
            (size + low + high - k) % s
            for size, k, s, (low, high) in zip(reads.sizes, op.size, op.stride, op.padding, strict=True)
        )
    )
    return affine.average_pool(
        reads.channels,
        op.size,
        op.stride,
        op.padding,
        count_include_pad=op.count_include_pad,
        ceil_mode=hangs_over,
        divisor=op.divisor,
    )


def pixel_unshuffle(node: Node, reads: SourceLayout) -> ConvKernel:
    """Every r x r positions as channels: those of one channel together, or, for space to depth, those of one phase."""
    factor = node.op.arguments[0] if isinstance(node.op, ops.Move) else None
    if reads.rank != 2 or not isinstance(factor, int):
        raise NotFusable(f"{node.op.name} of other axes than two")
    return affine.space_to_depth(reads.channels, factor, reads.rank, phases_first=node.op.name == "space_to_depth")
