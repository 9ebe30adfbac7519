"""Ops of the graph as torch modules and calls: how a difference is written back to torch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam_compiler.core.kernel import Ints
from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.padded_conv import Pad, PaddedConv, conv_of
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param

_CONVS: dict[int, Callable[..., Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONVS_TRANSPOSED: dict[int, Callable[..., Any]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def new_module(node: Node, tensor: Callable[[Param], Tensor], *, trains: bool = True) -> nn.Module:
    """The module of a node that a pass made; `tensor` gives its parameters their torch form."""
    weight, bias = node.param(1), node.param(2)
    if weight is None or not isinstance(node.op, ops.Conv | ops.ConvTranspose | ops.Linear):
        raise RewriteError(f"{node.id}: {node.op.name} has no torch module; a pass may make convs and linears only")
    given = {"weight": weight} | ({"bias": bias} if bias else {})
    tensors = {name: nn.Parameter(tensor(param), requires_grad=trains) for name, param in given.items()}
    if isinstance(node.op, ops.Linear):
        return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta"), tensors)
    op, rank = node.op, len(node.op.stride)
    if isinstance(op, ops.ConvTranspose):
        padding, extra = transposed_padding(node.id, op)
        channels = (weight.shape[0], weight.shape[1] * op.groups, weight.shape[2:])
        sizes = (op.stride, padding, extra, op.groups, bias is not None, op.dilation)
        return _filled(_CONVS_TRANSPOSED[rank](*channels, *sizes, device="meta"), tensors)
    symmetric = all(low == high >= 0 for low, high in op.padding)
    conv = _CONVS[rank](
        weight.shape[1] * op.groups,
        weight.shape[0],
        weight.shape[2:],
        op.stride,
        tuple(low for low, _ in op.padding) if symmetric else 0,
        op.dilation,
        op.groups,
        bias=bias is not None,
        padding_mode=op.mode if symmetric else "zeros",
        device="meta",
    )
    filled = _filled(conv, tensors)
    if symmetric:
        return filled
    return PaddedConv(Pad(op.padding, op.mode), filled)


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


def new_params(before: Graph, node: Node) -> list[tuple[int, Param]]:
    """The parameters of a node that the graph did not have before, with the input that each is."""
    return [(i, p) for i, p in enumerate(node.inputs) if isinstance(p, Param) and p not in before.param_users]


def exchanged_params(before: Graph, node: Node, fx_node: fx.Node) -> list[tuple[int, Param]]:
    """The parameters to write for a call, with the input that each is: the new ones.

    A linear that is spelled as a product becomes a call of `linear`, for which all of them are written.
    """
    found = new_params(before, node)
    if not found or not isinstance(node.op, ops.Linear) or fx_node.op == "call_module" or "linear" in str(fx_node.target):
        return found
    place, key = (1, "mat1") if "addmm" in str(fx_node.target) else (0, "input")
    x = fx_node.args[place] if place < len(fx_node.args) else fx_node.kwargs[key]
    fx_node.op = "call_function"
    fx_node.target = torch.ops.aten.linear.default if isinstance(fx_node.target, torch._ops.OpOverload) else F.linear
    fx_node.args, fx_node.kwargs = (x, None), {}
    return [(i, Param(p.role, p.dtype, p.shape, p.load)) for i, p in enumerate(node.inputs) if isinstance(p, Param)]


def set_tensor_argument(fx_node: fx.Node, before: Graph, node: Node, index: int, value: fx.Node) -> None:
    """Makes the parameter that is input `index` of a node another value.

    torch and aten give the tensors of these ops in the graph's order, but for a constant that stands before what it is added to
    or multiplied with.
    """
    has_weight = isinstance(node.op, ops.Conv | ops.ConvTranspose | ops.Linear)
    if not has_weight and not isinstance(node.op, ops.Add | ops.Mul | ops.Div):
        raise RewriteError(f"{node.id}: input {index} of {node.op.name} is computed from parameters and cannot be exchanged")
    names = ("input", "weight", "bias") if has_weight else ("input", "other")
    if isinstance(node.op, ops.Add | ops.Mul) and fx_node.args and _is_constant(fx_node.args[0], before):
        index = 0
    kept = {key: argument for key, argument in fx_node.kwargs.items() if key != names[index]}
    if index < len(fx_node.args) or (index == len(fx_node.args) and names[index] not in fx_node.kwargs):
        fx_node.args = (*fx_node.args[:index], value, *fx_node.args[index + 1 :])
        fx_node.kwargs = kept
    else:
        fx_node.kwargs = {**kept, names[index]: value}


def _is_constant(argument: object, before: Graph) -> bool:
    """True for an argument that depends on parameters alone."""
    if not isinstance(argument, fx.Node):
        return True
    return argument.name not in before.nodes and all(_is_constant(source, before) for source in argument.all_input_nodes)


def update_module(module: nn.Module, node: Node) -> None:
    """Sets what a module says of its widths to those of its tensors, which are already exchanged."""
    module = conv_of(module)
    weight = node.param(1) if len(node.inputs) > 1 else None
    match node.op:
        case ops.Conv(groups=groups) if weight is not None:
            known = {"groups": groups, "out_channels": weight.shape[0], "in_channels": weight.shape[1] * groups}
        case ops.ConvTranspose(groups=groups) if weight is not None:
            known = {"groups": groups, "in_channels": weight.shape[0], "out_channels": weight.shape[1] * groups}
        case ops.Linear() if weight is not None:
            known = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
        case ops.BatchNorm():
            mean = node.param(3)
            known = {"num_features": mean.shape[0]} if mean else {}
        case _:
            raise RewriteError(f"{node.id}: a {type(module).__name__} module cannot be made to do {node.op}")
    for name, value in known.items():
        setattr(module, name, value)


def update_arguments(fx_node: fx.Node, before: Node, node: Node) -> None:
    """Sets the widths in a call's arguments: groups, reshape and split sizes, slice bounds."""
    args = list(fx_node.args)
    match before.op, node.op:
        case old, new if old == new:
            return
        case (ops.Conv(), ops.Conv(groups=groups)) | (ops.ConvTranspose(), ops.ConvTranspose(groups=groups)):
            place = 8 if "convolution" in str(fx_node.target) else 6
            _set(fx_node, args, place, "groups", groups)
        case ops.Reshape(), ops.Reshape(shape):
            old_shape = args[1] if isinstance(args[1], list | tuple) else args[1:]
            new_shape = [old if isinstance(old, fx.Node) else size for old, size in zip(old_shape, shape, strict=True)]
            fx_node.args = (args[0], new_shape)
        case ops.Split(), ops.Split(axis, sizes):
            fx_node.args = (args[0], list(sizes), axis)
            fx_node.kwargs = {}
            _retarget_split(fx_node)
        case ops.Slice(), ops.Slice(axis, start, stop, step):
            _set_slice(fx_node, args, (axis, start, stop, step))
        case _:
            raise RewriteError(f"{node.id}: a change from {before.op} to {node.op} cannot be written back to torch")


def _set(fx_node: fx.Node, args: list[Any], place: int, key: str, value: Any) -> None:
    if place < len(args):
        args[place] = value
        fx_node.args = tuple(args)
    else:
        fx_node.kwargs = {**fx_node.kwargs, key: value}


def _retarget_split(fx_node: fx.Node) -> None:
    """chunk and split by a number become split by sizes."""
    if fx_node.op == "call_method":
        fx_node.target = "split"
    elif isinstance(fx_node.target, torch._ops.OpOverload):
        fx_node.target = torch.ops.aten.split_with_sizes.default
    else:
        fx_node.target = torch.split


def _set_slice(fx_node: fx.Node, args: list[Any], cut: tuple[int, int, int | None, int]) -> None:
    axis, start, stop, step = cut
    if "getitem" in str(fx_node.target):
        fx_node.args = (args[0], (slice(None),) * axis + (slice(start, stop, step),))
    else:
        fx_node.args = (args[0], axis, start, 2**63 - 1 if stop is None else stop, step)
        fx_node.kwargs = {}
