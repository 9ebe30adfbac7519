"""In-place calls in an fx graph: who reads what was written.

An in-place call n on v gives v itself, with another content. In the graph, where values never change, whoever reads v (or
another name of the same tensor) after n reads n. A *view* of the storage that is read after n would read a part of n that
no op of ours names: then all that share the storage are left opaque.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

_SAME = frozenset({"identity", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "detach"})
_VIEWS = frozenset(
    {"view", "view_as", "reshape", "flatten", "unflatten", "getitem", "slice", "select", "narrow", "unbind", "diagonal"}
    | {"chunk", "split", "split_with_sizes", "transpose", "permute", "movedim", "swapaxes", "t", "unsqueeze", "squeeze"}
    | {"expand", "expand_as", "alias", "contiguous", "as_strided", "to"}
)


@dataclass(frozen=True, slots=True)
class Writes:
    """rebound: for each in-place call the nodes that are names of its value from then on. opaque: nodes to leave alone."""

    rebound: dict[fx.Node, tuple[fx.Node, ...]]
    opaque: set[fx.Node]


def find_writes(graph: fx.Graph, name_of: Callable[[fx.Node], tuple[str, bool]]) -> Writes:
    """The in-place calls of a graph; `name_of` gives a call's name and whether it writes into its first argument."""
    place = {node: index for index, node in enumerate(graph.nodes)}
    tensor: dict[fx.Node, fx.Node] = {}
    storage: dict[fx.Node, fx.Node] = {}
    sharing: dict[fx.Node, list[fx.Node]] = {}
    rebound: dict[fx.Node, tuple[fx.Node, ...]] = {}
    opaque: set[fx.Node] = set()
    for node in graph.nodes:
        tensor[node] = storage[node] = node
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if not node.op.startswith("call") or first is None:
            continue
        name, inplace = name_of(node)
        if inplace or name in _SAME | _VIEWS:
            storage[node] = storage[first]
        if inplace or name in _SAME:
            tensor[node] = tensor[first]
        shared = sharing.setdefault(storage[node], [storage[node]])
        if inplace:
            same = tuple(other for other in shared if tensor[other] is tensor[node])
            views_read_later = any(place[user] > place[node] for other in shared if other not in same for user in other.users)
            if views_read_later or storage[node].op == "get_attr":
                opaque.update(shared, (node,))
            rebound[node] = same
        if node is not shared[0]:
            shared.append(node)
    return Writes(rebound, opaque)
