"""The linear ops: how each becomes a `ConvKernel`. Adding an op is one decorated function:

    @register_linear("avg_pool")
    def average_pool(node: Node, reads: Signal) -> ConvKernel: ...

A *linear rule* sees an op with one computed input and gives the operator that the op is. A *merge rule* sees the operators of
all that its node reads, as functions of one common source, and gives that of the node. Both raise `NotFusable(reason)` where
the op has no exact convolution; the reason goes to the report.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from reparam_compiler.core import affine
from reparam_compiler.core.kernel import Bias, ConvKernel, NotFusable, add, concat, pad, scale
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param


@dataclass(frozen=True, slots=True)
class Signal:
    """What an op reads: how many channels, over how many spatial axes."""

    channels: int
    rank: int


LinearRule = Callable[[Node, Signal], ConvKernel]
MergeRule = Callable[[Node, Sequence["ConvKernel | Param"]], ConvKernel]
RULES: dict[str, LinearRule] = {}
MERGES: dict[str, MergeRule] = {}


def register_linear(name: str, *, override: bool = False) -> Callable[[LinearRule], LinearRule]:
    """Registers the rule of the op that the printer calls `name`; an opaque op goes by its target's name.

    Raises ValueError where there is a rule already and `override` is not set.
    """

    def register(rule: LinearRule) -> LinearRule:
        if not override and (name in RULES or name in MERGES):
            raise ValueError(f"{name} has a rule already; pass override=True to exchange it")
        RULES[name] = rule
        return rule

    return register


def is_linear(node: Node) -> bool:
    """True where there is a rule for the node, though it may refuse the node's attributes."""
    return linear_rule(node) is not None or merge_rule(node) is not None


def linear_rule(node: Node) -> LinearRule | None:
    """The rule of an op with one computed input."""
    return RULES.get(_name(node))


def merge_rule(node: Node) -> MergeRule | None:
    """The rule of an op that may read several."""
    return MERGES.get(_name(node))


def _name(node: Node) -> str:
    """What a rule goes by. An opaque `add` is one that no frontend could read: the rule of `add` is not its own."""
    return "" if isinstance(node.op, ops.Opaque) and node.op.name in _OWN else node.op.name


def _array(param: Param | None) -> Bias | None:
    return None if param is None else param.float64()


@register_linear("conv")
def conv(node: Node, reads: Signal) -> ConvKernel:
    """A conv is its own kernel."""
    op, weight, bias = node.op, node.param(1), node.param(2)
    if not isinstance(op, ops.Conv) or weight is None:
        raise NotFusable("the weight is computed in the graph")
    taps = weight.float64()
    shift = np.zeros(len(taps)) if bias is None else bias.float64()
    return ConvKernel(taps, shift, op.stride, op.dilation, op.padding, op.groups, op.mode)


@register_linear("linear")
def linear(node: Node, reads: Signal) -> ConvKernel:
    """A linear layer is a conv without spatial axes; on more than two axes its channels are not the second."""
    weight, bias = node.param(1), node.param(2)
    if weight is None or reads.rank:
        raise NotFusable("linear on more than two axes")
    matrix = weight.float64()
    shift = np.zeros(len(matrix)) if bias is None else bias.float64()
    return ConvKernel(matrix, shift, (), (), ())


@register_linear("batch_norm")
def batch_norm(node: Node, reads: Signal) -> ConvKernel:
    """Eq. 2, with the statistics that the model was trained to."""
    if not isinstance(node.op, ops.BatchNorm) or node.op.training:
        raise NotFusable(f"{node.id}: training=True; call model.eval() before fuse()")
    gamma, beta, mean, var = (_array(node.param(index)) for index in (1, 2, 3, 4))
    if mean is None or var is None:
        raise NotFusable("batch norm without statistics")
    return affine.batch_norm(gamma, beta, mean, var, eps=node.op.eps, rank=reads.rank)


@register_linear("identity")
def identity(node: Node, reads: Signal) -> ConvKernel:
    """Identity, dropout in evaluation, contiguous."""
    return affine.identity(reads.channels, reads.rank)


@register_linear("avg_pool")
def average_pool(node: Node, reads: Signal) -> ConvKernel:
    """A depthwise conv whose taps are all the same."""
    op = node.op
    if not isinstance(op, ops.AvgPool):
        raise NotFusable(f"{op.name} is not an average pool")
    return affine.average_pool(
        reads.channels,
        op.size,
        op.stride,
        op.padding,
        count_include_pad=op.count_include_pad,
        ceil_mode=op.ceil_mode,
        divisor=op.divisor,
    )


def _add(node: Node, operands: Sequence[ConvKernel | Param]) -> ConvKernel:
    """sum of coefficient * operand; a constant moves the bias."""
    coefficients = node.op.coefficients if isinstance(node.op, ops.Add) else ()
    terms = [
        scale(operand, np.full(operand.channels[1], coefficient), np.zeros(1)) if coefficient != 1 else operand
        for coefficient, operand in zip(coefficients, operands, strict=True)
        if isinstance(operand, ConvKernel)
    ]
    total = add(*terms)
    for coefficient, operand in zip(coefficients, operands, strict=True):
        if isinstance(operand, Param):
            total = scale(total, np.ones(total.channels[1]), coefficient * per_channel(operand, total))
    return total


def _mul(node: Node, operands: Sequence[ConvKernel | Param]) -> ConvKernel:
    """A constant times a kernel, from either side."""
    kernels = [operand for operand in operands if isinstance(operand, ConvKernel)]
    if len(kernels) != 1:
        raise NotFusable("the product of two computed values is not linear")
    (kernel,), (factor,) = kernels, [operand for operand in operands if isinstance(operand, Param)]
    return scale(kernel, per_channel(factor, kernel), np.zeros(1))


def _div(node: Node, operands: Sequence[ConvKernel | Param]) -> ConvKernel:
    """A kernel over a constant."""
    kernel, divisor = operands
    if not isinstance(kernel, ConvKernel) or not isinstance(divisor, Param):
        raise NotFusable("a quotient by a computed value is not linear")
    return scale(kernel, 1.0 / per_channel(divisor, kernel), np.zeros(1))


def _concat(node: Node, operands: Sequence[ConvKernel | Param]) -> ConvKernel:
    """Parallel convs of one source are one wide conv."""
    kernels = [operand for operand in operands if isinstance(operand, ConvKernel)]
    if not isinstance(node.op, ops.Concat) or node.op.axis != 1 or len(kernels) != len(operands):
        raise NotFusable("a concat of other things than channels")
    return concat(*kernels)


def _pad(node: Node, operands: Sequence[ConvKernel | Param]) -> ConvKernel:
    """Padding by a number, which the kernel must give there itself."""
    (kernel,) = operands
    op = node.op
    if not isinstance(op, ops.Pad) or not isinstance(kernel, ConvKernel) or op.mode != "zeros":
        raise NotFusable(f"{op.name} with {getattr(op, 'mode', '')} padding on its own")
    batch_and_channels, spatial = op.padding[:2], op.padding[2:]
    if any(map(any, batch_and_channels)) or len(spatial) != kernel.rank:
        raise NotFusable("pads the batch or the channels")
    return pad(kernel, spatial, np.full(kernel.channels[1], op.value))


MERGES.update({"add": _add, "sub": _add, "mul": _mul, "div": _div, "concat": _concat, "pad": _pad})
_OWN = frozenset({*RULES, *MERGES})


def per_channel(constant: Param, kernel: ConvKernel) -> Bias:
    """A constant that is broadcast against a kernel's output, as one number for each channel.

    Raises NotFusable where it varies over the batch or over positions.
    """
    channels, axes = kernel.channels[1], kernel.rank + 2
    shape = (1,) * (axes - len(constant.shape)) + constant.shape
    if len(shape) > axes or shape[1] not in (1, channels) or any(size != 1 for size in (shape[0], *shape[2:])):
        raise NotFusable(f"a constant of shape {constant.shape} is not one number for each of {channels} channels")
    return np.broadcast_to(constant.float64().reshape(-1), (channels,)).copy()
