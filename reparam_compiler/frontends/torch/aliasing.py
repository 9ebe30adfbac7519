"""In-place calls in an fx graph: who reads what was written.

An in-place call n on v gives v itself, with another content. In the graph, where values never change, whoever reads v (or
another name of the same tensor) after n reads n; so it is where n writes to a part of v (`partial_writes.py`). A *view* of the
storage that is read after n would read a part of n that no op of ours names: then all that share the storage, and all that
read them, are left opaque. So are those of a parameter that is written to, and of writes that are no value themselves
(`x[mask] = y`, `out=x`).
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

from torch import fx

from reparam_compiler.frontends.torch.partial_writes import Part

_SAME = frozenset({"identity", "detach", "alias", "requires_grad"})
"""Calls that give their first argument, whole."""
_VIEWS = frozenset(
    {"view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "Flatten", "Unflatten", "ravel", "getitem", "slice"}
    | {"select", "narrow", "unbind", "diagonal", "as_strided", "unfold", "chunk", "split", "split_with_sizes", "tensor_split"}
    | {"hsplit", "vsplit", "dsplit", "transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "T", "mT", "H"}
    | {"mH", "adjoint", "unsqueeze", "squeeze", "expand", "expand_as", "broadcast_to", "real", "imag", "data", "view_as_real"}
    | {"view_as_complex", "atleast_1d", "atleast_2d", "atleast_3d", "contiguous", "to", "type", "type_as", "float", "double"}
    | {"half", "bfloat16", "cpu", "cuda", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout"}
    | {"feature_alpha_dropout", "Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout"}
    | {"FeatureAlphaDropout", "einsum", "broadcast_tensors", "meshgrid", "unsafe_chunk", "unsafe_split", "positive", "conj"}
    | {"unsafe_split_with_sizes", "resolve_conj", "resolve_neg", "conj_physical", "_reshape_alias", "lift_fresh", "rot90"}
    | {"swapdims_", "view_as_real_copy", "native_dropout", "cartesian_prod", "nested_tensor", "sum_to_size", "expand_copy"}
)
"""Calls that give a part of their first argument's storage, or may."""


@dataclass(frozen=True, slots=True)
class Writes:
    """What in-place calls do.

    rebound: for each in-place call the nodes that are names of its value from then on.
    parts: those of them that write to a part, and give nothing or only that part.
    opaque: nodes to leave alone.
    changing: nodes whose storage is written to at some time. A copy of one is not another name for it.
    into_inputs: in-place calls on storage of the caller's, who may look at it afterwards.
    """

    rebound: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    parts: dict[fx.Node, Part] = field(default_factory=dict)
    opaque: set[fx.Node] = field(default_factory=set)
    changing: set[fx.Node] = field(default_factory=set)
    into_inputs: set[fx.Node] = field(default_factory=set)


def first_argument(node: fx.Node) -> fx.Node | None:
    """What a call works on, where that is computed."""
    first = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("self"))
    if isinstance(first, str):  # the equation of an einsum
        first = next(iter(node.all_input_nodes), None)
    return first if isinstance(first, fx.Node) else None


def find_writes(
    graph: fx.Graph,
    name_of: Callable[[fx.Node], tuple[str, bool]],
    tensor_of: Callable[[fx.Node], Hashable | None],
    part_of: Callable[[fx.Node], Part | None] = lambda node: None,
) -> Writes:
    """The in-place calls of a graph.

    Args:
        graph: what to look through.
        name_of: a call's name, and whether it writes into its first argument.
        tensor_of: for a node that stands for a tensor of the model, a key that all nodes of this tensor have.
        part_of: for an in-place call the part of a value that it writes to, where it is one.
    """
    place = {node: index for index, node in enumerate(graph.nodes)}
    tensor: dict[fx.Node, fx.Node] = {}
    storage: dict[fx.Node, fx.Node] = {}
    sharing: dict[fx.Node, list[fx.Node]] = {}
    held: dict[Hashable, fx.Node] = {}
    left: set[fx.Node] = set()
    joined: list[list[fx.Node]] = []  # what one call may give views of
    found = Writes()
    for node in graph.nodes:
        tensor[node] = storage[node] = node
        if (key := tensor_of(node)) is not None:
            tensor[node] = storage[node] = held.setdefault(key, node)
        first = first_argument(node) if node.op.startswith("call") else None
        name, writes = name_of(node) if node.op.startswith("call") else ("", False)
        if first is not None and (writes or name in _SAME | _VIEWS):
            storage[node] = storage[first]
        if first is not None and (writes or name in _SAME):
            tensor[node] = tensor[first]
        if name in _VIEWS and len({storage[other] for other in node.all_input_nodes}) > 1:
            joined.append([storage[other] for other in node.all_input_nodes])
        shared = sharing.setdefault(storage[node], [])
        if (writes or name == "setitem") and storage[first or node].op == "placeholder":
            found.into_inputs.add(node)
        part = part_of(node) if (writes or name == "setitem") and not node.users else None
        if part is not None and tensor_of(storage[part.base]) is None:
            sharers = sharing[storage[part.base]]
            same = tuple(other for other in sharers if tensor[other] is tensor[part.base])
            if not _read_after(place[node], sharers, same, place):
                found.parts[node], found.rebound[node] = part, same
                found.changing.add(storage[part.base])
                shared.append(node)
                continue
        if first is not None and writes and name not in _SAME:
            same = tuple(other for other in shared if tensor[other] is tensor[node])
            if _read_after(place[node], shared, same, place) or tensor_of(storage[node]) is not None:
                left.add(storage[node])
            found.rebound[node] = same
            found.changing.add(storage[node])
        shared.append(node)
        for written in _written_aside(node, name):
            left.add(storage[written])
            found.opaque.add(node)
            found.changing.add(storage[written])
    for roots in joined:
        if any(root in found.changing for root in roots):
            left.update(roots)
    _leave_alone(found, left, sharing, storage)
    found.changing.update(node for node, root in storage.items() if root in found.changing)
    return found


def _read_after(when: int, sharers: list[fx.Node], same: tuple[fx.Node, ...], place: Mapping[fx.Node, int]) -> bool:
    """True where a view, that is no name of the whole tensor, is read after a write."""
    return any(place[user] > when for other in sharers if other not in same for user in other.users)


def _written_aside(node: fx.Node, name: str) -> list[fx.Node]:
    """What a call writes to without giving it: `x[i] = y`, `out=x`."""
    out = node.kwargs.get("out")
    outs = list(out) if isinstance(out, list | tuple) else [out]
    return [v for v in (*outs, first_argument(node) if name == "setitem" else None) if isinstance(v, fx.Node)]


def _leave_alone(
    found: Writes, left: set[fx.Node], sharing: Mapping[fx.Node, list[fx.Node]], storage: Mapping[fx.Node, fx.Node]
) -> None:
    """All that share these storages, and all that read them. What writes to a part of one writes in place then."""
    for root in left:
        for other in sharing[root]:
            found.opaque.update((other, *other.users))
    for node in [node for node, part in found.parts.items() if storage[part.base] in left]:
        del found.parts[node], found.rebound[node]
        found.opaque.add(node)
