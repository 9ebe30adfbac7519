"""The tensors that a call reads: which of them are new after a pass, and where they go among its arguments.

F.conv2d(x, w)      with a bias that repair made      becomes      F.conv2d(x, w, conv2d_bias)
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import fx

from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.torch.arguments import argument, set_argument
from reparam_compiler.frontends.torch.spellings import is_aten, row_of
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param
from reparam_compiler.vocabulary.dtypes import FLOATING

Places = Mapping[int, tuple[int, tuple[str, ...]]]
"""For an input of a node the place of its argument, and what that is called."""


def _places(**places: int) -> Places:
    """Those of the inputs after the first one, in order."""
    return {index: (place, (name,)) for index, (name, place) in enumerate(places.items(), start=1)}


_PLACES: dict[str, Places] = {
    **{f"{kind}{rank}d": _places(weight=1, bias=2) for kind in ("conv", "conv_transpose") for rank in (1, 2, 3)},
    **dict.fromkeys(("convolution", "linear"), _places(weight=1, bias=2)),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm", "group_norm"), _places(weight=2, bias=3)),
    **{f"functional.{name}_norm": _places(weight=3, bias=4, running_mean=1, running_var=2) for name in ("batch", "instance")},
    **dict.fromkeys(
        ("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm"),
        _places(weight=1, bias=2, running_mean=3, running_var=4),
    ),
    "embedding": _places(weight=0),
    "functional.embedding": _places(weight=1),
    "prelu": _places(weight=1),
    **{name: {0: (0, ("input",)), 1: (1, ("other", "mat2"))} for name in ("matmul", "bmm", "mm")},
    "scaled_dot_product_attention": {0: (0, ("query",)), **_places(key=1, value=2, attn_mask=3)},
    "setitem": _places(value=2),
    "copy": _places(src=1),
    "fill": _places(value=1),
    "slice_scatter": {0: (0, ("input",)), 1: (1, ("src",))},
}
"""Where the calls of a row have their tensors, if not in the order of the node's inputs."""


def new_params(before: Graph, node: Node) -> list[tuple[int, Param]]:
    """The parameters of a node that the graph did not have before, with the input that each is."""
    return [(i, p) for i, p in enumerate(node.inputs) if isinstance(p, Param) and p not in before.param_users]


def exchanged_params(before: Graph, node: Node, fx_node: fx.Node) -> list[tuple[int, Param]]:
    """The parameters to write for a call, with the input that each is: the new ones.

    A linear that is spelled as a product becomes a call of `linear`, for which all of them are written.
    """
    new = new_params(before, node)
    if isinstance(node.op, ops.SliceUpdate):  # what is written, without what broadcasts it to a stated width on the way
        return [(index, replace(param, origin=None) if index == 1 else param) for index, param in new]
    name = _row_name(fx_node)
    if not new or not isinstance(node.op, ops.Linear) or fx_node.op == "call_module" or name == "linear":
        return new
    x = argument(fx_node, 1, "mat1") if name == "addmm" else argument(fx_node, 0, "input", "self")
    fx_node.op = "call_function"
    fx_node.target = torch.ops.aten.linear.default if is_aten(fx_node.target) else F.linear
    fx_node.args, fx_node.kwargs = (x, None), {}
    return [(i, Param(p.role, p.dtype, p.shape, p.load)) for i, p in enumerate(node.inputs) if isinstance(p, Param)]


def takes_gradient(node: Node, index: int, param: Param) -> bool:
    """Whether the new input `index` of a node is a parameter of the model: no statistic, and of numbers that are not whole."""
    return param.dtype in FLOATING and node.op.signature.name(index) not in ("mean", "var")


def set_tensor_argument(fx_node: fx.Node, before: Graph, node: Node, index: int, value: fx.Node) -> None:
    """Makes the parameter that is input `index` of a node another value.

    Raises:
        RewriteError: the parameter stands in no argument that is known.
    """
    place = _PLACES.get(_row_name(fx_node), {}).get(index)
    if place is not None:
        set_argument(fx_node, place[0], *place[1], value=value)
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


def call_that_reads(fx_node: fx.Node, node: Node) -> fx.Node:
    """The call that reads the new parameters of a node: of a write to a part that is several calls, the innermost one.

    `slice_scatter(y, copy(slice(y, 2, 0, 1), expand(v, …)), 2, 0, 1)` is such a write; `copy` reads what is written.
    """
    if not isinstance(node.op, ops.SliceUpdate) or _row_name(fx_node) != "slice_scatter":
        return fx_node
    source = argument(fx_node, 1, "src")
    if not isinstance(source, fx.Node) or not source.op.startswith("call"):
        return fx_node
    return call_that_reads(source, node) if _row_name(source) in ("slice_scatter", "copy", "fill") else fx_node


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
