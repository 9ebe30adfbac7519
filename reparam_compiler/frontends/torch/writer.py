"""Ops of the graph as torch modules and calls: how a difference is written back to torch."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam_compiler.core.kernel import Ints
from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.torch.padded_conv import Pad, PaddedConv, conv_of
from reparam_compiler.interpreter.size_expressions import stale_numbers
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param

_CONVS: dict[int, Callable[..., Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_CONVS_TRANSPOSED: dict[int, Callable[..., Any]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def new_module(node: Node, tensor: Callable[[Param], Tensor], *, trains: bool = True) -> nn.Module:
    """The module of a node that a pass made; `tensor` gives its parameters their torch form."""
    if not isinstance(node.op, ops.Weighted) or (weight := node.param("weight")) is None:
        raise RewriteError(f"{node.id}: {node.op.name} has no torch module; a pass may make convs and linears only")
    bias = node.param("bias")
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
    if isinstance(before[node.id].op, ops.Opaque | ops.Concat | ops.Stack):
        _set_nth_tensor(fx_node, before, node, index, value)
        return
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


def _set_nth_tensor(fx_node: fx.Node, before: Graph, node: Node, index: int, value: fx.Node) -> None:
    """Exchanges a tensor of a call whose tensors come in the order of the node's inputs."""
    place = sum(operand is not None for operand in node.inputs[:index])
    if isinstance(stated(before[node.id].op), ops.Embedding) and isinstance(fx_node.target, torch._ops.OpOverload):
        place = 1 - place  # aten has the weight first
    seen = 0

    def exchanged(argument: fx.Node) -> fx.Node:
        nonlocal seen
        if _is_number(argument, before):
            return argument
        seen += 1
        return value if seen == place + 1 else argument

    fx_node.args, fx_node.kwargs = fx.map_arg((fx_node.args, dict(fx_node.kwargs)), exchanged)
    if seen <= place:
        raise RewriteError(f"{node.id}: input {index} of {node.op.name} stands in no argument, and cannot be exchanged")


def _is_number(argument: fx.Node, before: Graph) -> bool:
    known = before.nodes.get(argument.name)
    return known is not None and known.type is None and isinstance(known.op, ops.Opaque) and known.op.coupling is None


def _is_constant(argument: object, before: Graph) -> bool:
    """True for an argument that depends on parameters alone."""
    if not isinstance(argument, fx.Node):
        return True
    return argument.name not in before.nodes and all(_is_constant(source, before) for source in argument.all_input_nodes)


def stated(op: ops.Op) -> ops.Op:
    """What an op is, or is like."""
    return op.coupling if isinstance(op, ops.Opaque) and op.coupling is not None else op


def stale_in(before: Graph, after: Graph) -> frozenset[str]:
    """The nodes that compute a size which comes out otherwise in the second graph."""
    shapes = {n.id: n.type.shape for n in after if n.type is not None and n.id in before.nodes and before[n.id].type != n.type}
    return stale_numbers(before, shapes) if shapes else frozenset()


def update_module(module: nn.Module, node: Node) -> None:
    """Sets what a module says of its widths to those of its tensors, which are already exchanged."""
    module = conv_of(module)
    weight = node.inputs[1] if len(node.inputs) > 1 and isinstance(node.inputs[1], Param) else None
    known: dict[str, object]
    match stated(node.op):
        case ops.Conv(groups=groups) if weight is not None:
            known = {"groups": groups, "out_channels": weight.shape[0], "in_channels": weight.shape[1] * groups}
        case ops.ConvTranspose(groups=groups) if weight is not None:
            known = {"groups": groups, "in_channels": weight.shape[0], "out_channels": weight.shape[1] * groups}
        case ops.Linear() if weight is not None:
            known = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
        case ops.BatchNorm():
            mean = node.param("mean")
            known = {"num_features": mean.shape[0]} if mean else {}
        case ops.LayerNorm(shape):
            known = {"normalized_shape": shape}
        case ops.GroupNorm(groups) if isinstance(module, nn.GroupNorm) and weight is not None:
            known = {"num_channels": weight.shape[0], "num_groups": groups}
        case ops.GroupNorm() if weight is not None:
            known = {"num_features": weight.shape[0]}
        case ops.Embedding() if weight is not None:
            known = {"embedding_dim": weight.shape[1]}
        case ops.PerChannel() if weight is not None:
            known = {"num_parameters": weight.count}
        case ops.Reshape(shape) if isinstance(module, nn.Unflatten):
            axis = module.dim if module.dim >= 0 else module.dim + len(shape) - len(module.unflattened_size) + 1
            known = {"unflattened_size": shape[axis : axis + len(module.unflattened_size)]}
        case _:
            raise RewriteError(f"{node.id}: a {type(module).__name__} module cannot be made to do {node.op.name}")
    for name, value in known.items():
        setattr(module, name, value)


def update_arguments(fx_node: fx.Node, before: Node, node: Node, stale: Collection[str] = ()) -> None:
    """Sets the widths in a call's arguments: groups, shapes, split sizes, slice bounds, the scale of an attention.

    stale: the nodes that compute a size which comes out otherwise now; it is written as a number.
    """
    if isinstance(node.op, ops.Opaque) and (node.op.coupling == stated(before.op) or node.op.target in _SHAPED_AS):
        return
    args = list(fx_node.args)
    match stated(before.op), stated(node.op):
        case (ops.Reshape(), ops.Reshape()) | (ops.Expand(), ops.Expand()) if before.op != node.op:
            _set_shape(fx_node, before, node, stale)
        case old, new if old == new:
            return
        case (ops.Conv(), ops.Conv(groups=groups)) | (ops.ConvTranspose(), ops.ConvTranspose(groups=groups)):
            named = "convolution" in str(fx_node.target)
            _set(fx_node, args, 8 if named else 6, "groups", groups)
        case ops.GroupNorm(), ops.GroupNorm(groups):
            _set(fx_node, args, 1, "num_groups", groups)
        case ops.LayerNorm(), ops.LayerNorm(shape):
            _set(fx_node, args, 1, "normalized_shape", list(shape))
        case ops.Attention(), ops.Attention(scale):
            fx_node.args = tuple(args[:6])
            fx_node.kwargs = {**fx_node.kwargs, "scale": scale}
        case ops.Split(), ops.Split(axis, sizes):
            fx_node.args = (args[0], list(sizes), axis)
            fx_node.kwargs = {}
            _retarget_split(fx_node)
        case ops.Slice(), ops.Slice(axis, start, stop, step):
            _set_slice(fx_node, args, (axis, start, stop, step))
        case _:
            raise RewriteError(f"{node.id}: a change from {before.op} to {node.op} cannot be written back to torch")


_SHAPED_AS = ("reshape_as", "view_as", "expand_as")
_STATE_A_SHAPE = ("view", "reshape", "_unsafe_view", "expand", "broadcast_to")


def _set_shape(fx_node: fx.Node, before: Node, node: Node, stale: Collection[str]) -> None:
    """The sizes that changed, in numbers; those that the model computes stay where they come out as they did."""
    was, now = stated(before.op), stated(node.op)
    if not isinstance(now, ops.Reshape | ops.Expand) or not isinstance(was, ops.Reshape | ops.Expand):
        raise RewriteError(f"{node.id}: {node.op} states no shape")
    x, *rest = fx_node.args
    given = rest[0] if rest and isinstance(rest[0], list | tuple) else rest or fx_node.kwargs.get("shape", ())
    sizes = list(now.shape)
    if before.op.name in _STATE_A_SHAPE and isinstance(given, list | tuple) and len(given) == len(sizes):
        for place, (size, old) in enumerate(zip(given, was.shape, strict=True)):
            if sizes[place] == old and not (isinstance(size, fx.Node) and size.name in stale):
                sizes[place] = size
    else:
        expands = isinstance(now, ops.Expand)
        of_torch = torch.broadcast_to if expands else torch.reshape
        of_aten = torch.ops.aten.expand.default if expands else torch.ops.aten.reshape.default
        fx_node.target = of_aten if isinstance(fx_node.target, torch._ops.OpOverload) else of_torch
        fx_node.op = "call_function"
        sizes = [-1 if size == 0 else size for size in sizes]
    if sizes.count(-1) > 1 and isinstance(now, ops.Reshape):
        raise RewriteError(f"{node.id}: a reshape to {sizes}, of which several are open, cannot be written back to torch")
    fx_node.args, fx_node.kwargs = (x, sizes), {}


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
