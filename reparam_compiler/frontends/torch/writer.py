"""What a pass made as torch modules and aten calls: convs, transposed convs and linears."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam_compiler.core.kernel import Ints
from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.torch.padded_conv import Pad, PaddedConv
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Node, Param
from reparam_compiler.vocabulary.padding import TORCH_PAD

aten = torch.ops.aten
_MODULES: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_MODULES_TRANSPOSED: dict[int, Callable[..., nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_CALLS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_CALLS_TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}


def new_module(node: Node, tensor: Callable[[Param], Tensor], *, trains: bool = True) -> nn.Module:
    """The module of a node that a pass made; `tensor` gives its parameters their torch form. What is gone is an identity."""
    if isinstance(node.op, ops.Identity):
        return nn.Identity().eval()
    weight, bias = node.param("weight"), node.param("bias")
    if weight is None or not isinstance(node.op, ops.Conv | ops.ConvTranspose | ops.Linear):
        raise RewriteError(f"{node.id}: {node.op.name} has no torch module; a pass may make convs and linears only")
    params = {"weight": weight} | ({"bias": bias} if bias else {})
    tensors = {name: nn.Parameter(tensor(param), requires_grad=trains) for name, param in params.items()}
    match node.op:
        case ops.Linear():
            module: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        case ops.ConvTranspose() as op:
            padding, extra = transposed_padding(node.id, op)
            channels = (weight.shape[0], weight.shape[1] * op.groups, weight.shape[2:])
            sizes = (op.stride, padding, extra, op.groups, bias is not None, op.dilation)
            module = _MODULES_TRANSPOSED[len(op.stride)](*channels, *sizes, device="meta")
        case op:
            return _conv_module(op, weight, tensors)
    return _filled(module, tensors)


def _conv_module(op: ops.Conv, weight: Param, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A conv, with a pad before it where the padding is not the same at both ends."""
    symmetric = all(low == high >= 0 for low, high in op.padding)
    conv = _MODULES[len(op.stride)](
        weight.shape[1] * op.groups,
        weight.shape[0],
        weight.shape[2:],
        op.stride,
        tuple(low for low, _ in op.padding) if symmetric else 0,
        op.dilation,
        op.groups,
        bias="bias" in tensors,
        padding_mode=op.mode if symmetric else "zeros",
        device="meta",
    )
    filled = _filled(conv, tensors)
    return filled if symmetric else PaddedConv(Pad(op.padding, op.mode), filled).eval()


def new_call(node: Node, call: Callable[..., fx.Node], operands: Sequence[fx.Node | None]) -> fx.Node:
    """The aten call of a node that a pass made.

    call: makes a call of an overload with these arguments. operands: x, weight and bias or None.
    """
    x, weight, bias = operands
    match node.op:
        case ops.Linear():
            return call(aten.linear.default, x, weight, bias)
        case ops.Conv(stride, padding, dilation, groups, mode):
            symmetric = mode == "zeros" and all(low == high >= 0 for low, high in padding)
            if not symmetric:
                amounts = [amount for pair in reversed(padding) for amount in pair]
                x = call(aten.pad.default, x, amounts, TORCH_PAD[mode])
            lows = [low if symmetric else 0 for low, _ in padding]
            return call(_CALLS[len(stride)], x, weight, bias, list(stride), lows, list(dilation), groups)
        case ops.ConvTranspose() as op:
            cut, extra = map(list, transposed_padding(node.id, op))
            rest: tuple[Any, ...] = (list(op.stride), cut, extra, op.groups, list(op.dilation))
            return call(_CALLS_TRANSPOSED[len(op.stride)], x, weight, bias, *rest)
        case _:
            raise RewriteError(f"{node.id}: {node.op.name} has no aten call; a pass may make convs and linears only")


def transposed_padding(node_id: str, op: ops.ConvTranspose) -> tuple[Ints, Ints]:
    """torch's padding, the same at both ends, and its output_padding, for what a transposed conv cuts off.

    Raises RewriteError where torch has no such transposed conv.
    """
    padding = tuple(low for low, _ in op.padding)
    extra = tuple(low - high + extra for (low, high), extra in zip(op.padding, op.output_padding, strict=True))
    most = tuple(max(pair) for pair in zip(op.stride, op.dilation, strict=True))
    if any(low < 0 for low in padding) or any(not 0 <= e < m for e, m in zip(extra, most, strict=True)):
        raise RewriteError(
            f"{node_id}: a transposed conv that cuts {op.padding} off and adds {op.output_padding} was found; torch's cuts the"
            f" same off both ends, and then adds less than {most}; leave this region as it is"
        )
    return padding, extra


def _filled(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    for name, tensor in tensors.items():
        setattr(module, name, tensor)
    return module.eval()
