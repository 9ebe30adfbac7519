"""The tensors that a call reads: which of them are new after a pass, and where they go among its arguments.

F.conv2d(x, w)      with a bias that repair made      becomes      F.conv2d(x, w, conv2d_bias)
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import fx

from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.torch.arguments import argument, set_argument
from reparam_compiler.frontends.torch.spellings import is_aten, row_of
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param
from reparam_compiler.ir.kind import OperandName

Places = Mapping[OperandName | None, int]
"""For an operand the place of its argument, which is called as the operand is."""


def _places(weight: int, bias: int) -> Places:
    return {"weight": weight, "bias": bias}


_PLACES: dict[str, Places] = {
    **{f"{kind}{rank}d": _places(1, 2) for kind in ("conv", "conv_transpose") for rank in (1, 2, 3)},
    **dict.fromkeys(("convolution", "linear", "instance_norm"), _places(1, 2)),
    **dict.fromkeys(("layer_norm", "rms_norm", "group_norm"), _places(2, 3)),
    "functional.instance_norm": _places(3, 4),
    "embedding": {"weight": 0},
}
"""Where the calls of a row have their weight and bias."""


def new_params(before: Graph, node: Node) -> list[tuple[int, Param]]:
    """The parameters of a node that the graph did not have before, with the input that each is."""
    return [(i, p) for i, p in enumerate(node.inputs) if isinstance(p, Param) and p not in before.param_users]


def exchanged_params(before: Graph, node: Node, fx_node: fx.Node) -> list[tuple[int, Param]]:
    """The parameters to write for a call, with the input that each is: the new ones.

    A linear that is spelled as a product becomes a call of `linear`, for which all of them are written.
    """
    new = new_params(before, node)
    name = _row_name(fx_node)
    if not new or not isinstance(node.op, ops.Linear) or fx_node.op == "call_module" or name == "linear":
        return new
    x = argument(fx_node, 1, "mat1") if name == "addmm" else argument(fx_node, 0, "input", "self")
    fx_node.op = "call_function"
    fx_node.target = torch.ops.aten.linear.default if is_aten(fx_node.target) else F.linear
    fx_node.args, fx_node.kwargs = (x, None), {}
    return [(i, Param(p.role, p.dtype, p.shape, p.load)) for i, p in enumerate(node.inputs) if isinstance(p, Param)]


def set_tensor_argument(fx_node: fx.Node, before: Graph, node: Node, index: int, value: fx.Node) -> None:
    """Makes the parameter that is input `index` of a node another value.

    Raises:
        RewriteError: the parameter stands in no argument that is known.
    """
    operand = node.op.signature.name(index)
    place = _PLACES.get(_row_name(fx_node), {}).get(operand)
    if fx_node.target is F.embedding:
        place = 1  # behind the indices; torch.embedding and aten have it before them
    if place is not None:
        set_argument(fx_node, place, str(operand), value=value)
    elif isinstance(before[node.id].op, ops.Opaque | ops.Concat | ops.Stack):
        _set_nth_tensor(fx_node, before, node, index, value)
    elif isinstance(node.op, ops.Add | ops.Mul | ops.Div):
        first = not isinstance(node.op, ops.Div) and _is_constant(argument(fx_node, 0, "input", "self"), before)
        if first or index == 0:  # a constant may come first in the model; in the graph it is second
            set_argument(fx_node, 0, "input", "self", value=value)
        else:
            set_argument(fx_node, 1, "other", value=value)
    else:
        raise RewriteError(f"{node.id}: input {index} of {node.op.name} is computed from parameters and cannot be exchanged")


def _row_name(fx_node: fx.Node) -> str:
    row = row_of(fx_node)
    return "" if row is None else row.name


def _set_nth_tensor(fx_node: fx.Node, before: Graph, node: Node, index: int, value: fx.Node) -> None:
    """Exchanges a tensor of a call whose tensors come in the order of the node's inputs."""
    place = sum(operand is not None for operand in node.inputs[:index])
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
    node = before.nodes.get(argument.name)
    return node is not None and node.type is None and isinstance(node.op, ops.Opaque) and node.op.coupling is None


def _is_constant(argument: object, before: Graph) -> bool:
    """True for an argument that depends on parameters alone."""
    if not isinstance(argument, fx.Node):
        return True
    return argument.name not in before.nodes and all(_is_constant(source, before) for source in argument.all_input_nodes)
