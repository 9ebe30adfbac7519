"""What a tracer notes of where a call comes from: the modules round it, the line of code, the function.

Those who read a graph later find a call by it: quantizers the convs of a module, `torch.export.unflatten` the layers, a
profiler the source. So a new call has that of what it stands for.
"""

import copy
import math

from torch import fx

from reparam_compiler.ir.graph import Graph, Node, NodeId
from reparam_compiler.ir.kind import Weighted

_OF_THE_PLACE = ("nn_module_stack", "stack_trace")
_OF_THE_FUNCTION = ("source_fn_stack", "torch_fn")


def stands_for(before: Graph, node: Node) -> NodeId:
    """The node that a new op stands for: of the convs and linears that it replaces the largest, else the sink."""

    def elements(node_id: NodeId) -> int:
        weight = before[node_id].param("weight")
        return 0 if weight is None else math.prod(weight.shape)

    return max((i for i in node.replaces if isinstance(before[i].op, Weighted)), key=elements, default=node.id)


def inherit(new: fx.Node, original: fx.Node, *, helps: bool = False) -> None:
    """Gives a new call what is noted of the one that it stands for.

    helps: where the new call only prepares another one (a pad before its conv), its place alone.
    """
    for key in _OF_THE_PLACE if helps else _OF_THE_PLACE + _OF_THE_FUNCTION:
        if key in original.meta:
            new.meta[key] = copy.copy(original.meta[key])
