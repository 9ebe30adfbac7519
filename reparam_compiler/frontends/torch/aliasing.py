"""In-place calls in an fx graph: who reads what was written.

An in-place call n on v gives v itself, with another content. In the graph, where values never change, whoever reads v (or
another name of the same tensor) after n reads n; so it is where n writes to a part of v (`partial_writes.py`). A *view* of the
storage that is read after n would read a part of n that no op of ours names: then all that share the storage, and all that
read them, are left opaque. So are those of a parameter that is written to, and of writes that are no value themselves
(`x[mask] = y`, `out=x`).
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from reparam_compiler.frontends.torch.arguments import argument
from reparam_compiler.frontends.torch.called import resolve, schema
from reparam_compiler.frontends.torch.partial_writes import Part
from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.resolve import Resolved

_NO_CALL = Resolved("")


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
    first = argument(node, 0, "input")
    if isinstance(first, str):  # the equation of an einsum
        first = next(iter(node.all_input_nodes), None)
    return first if isinstance(first, fx.Node) else None


def find_writes(
    graph: fx.Graph,
    resolve: Callable[[fx.Node], Resolved],
    tensor_of: Callable[[fx.Node], Hashable | None],
    part_of: Callable[[fx.Node], Part | None] = lambda node: None,
) -> Writes:
    """The in-place calls of a graph.

    Args:
        graph: what to look through.
        resolve: the op that a call is, and whether it writes into its first argument.
        tensor_of: for a node that stands for a tensor of the model, a key that all nodes of this tensor have.
        part_of: for an in-place call the part of a value that it writes to, where it is one.
    """
    finder = _WriteFinder(resolve, tensor_of, part_of, {node: index for index, node in enumerate(graph.nodes)})
    for node in graph.nodes:
        finder.follow(node)
    return finder.writes()


@dataclass
class _WriteFinder:
    """Follows the nodes of a graph in order.

    place: where each node stands.
    tensor, storage: for each node the first one that is the same tensor, and the first one of the same storage.
    sharing: for each storage the nodes that have it, so far.
    held: for each tensor of the model the first node that stands for it.
    left: storages that are left alone. joined: those that one call may give views of.
    """

    resolve: Callable[[fx.Node], Resolved]
    tensor_of: Callable[[fx.Node], Hashable | None]
    part_of: Callable[[fx.Node], Part | None]
    place: Mapping[fx.Node, int]
    tensor: dict[fx.Node, fx.Node] = field(default_factory=dict)
    storage: dict[fx.Node, fx.Node] = field(default_factory=dict)
    sharing: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    held: dict[Hashable, fx.Node] = field(default_factory=dict)
    left: set[fx.Node] = field(default_factory=set)
    joined: list[list[fx.Node]] = field(default_factory=list)
    found: Writes = field(default_factory=Writes)

    def follow(self, node: fx.Node) -> None:
        """Notes what a node gives, and what it writes to."""
        called = self.resolve(node) if node.op.startswith("call") else _NO_CALL
        first = first_argument(node) if node.op.startswith("call") else None
        self._locate(node, called, first)
        shared = self.sharing.setdefault(self.storage[node], [])
        writes = called.writes or called.is_("setitem")
        if writes and self.storage[first or node].op == "placeholder":
            self.found.into_inputs.add(node)
        if writes and not node.users and self._write_part(node):
            shared.append(node)
            return
        if first is not None and called.writes and Facts.SAME not in called.facts:
            self._write_whole(node, shared)
        shared.append(node)
        for written in written_aside(node, called):
            self.left.add(self.storage[written])
            self.found.opaque.add(node)
            self.found.changing.add(self.storage[written])

    def writes(self) -> Writes:
        """What was found, once all nodes have been followed."""
        found, storage = self.found, self.storage
        for roots in self.joined:
            if any(root in found.changing for root in roots):
                self.left.update(roots)
        _leave_alone(found, self.left, self.sharing, storage)
        found.changing.update(node for node, root in storage.items() if root in found.changing)
        return found

    def _locate(self, node: fx.Node, called: Resolved, first: fx.Node | None) -> None:
        """Which tensor, and whose storage, a node gives."""
        self.tensor[node] = self.storage[node] = node
        if (key := self.tensor_of(node)) is not None:
            self.tensor[node] = self.storage[node] = self.held.setdefault(key, node)
        same = called.writes or Facts.SAME in called.facts
        views = Facts.VIEW in called.facts or _is_foreign(node, called)
        if first is not None and (same or views):
            self.storage[node] = self.storage[first]
        if first is not None and same:
            self.tensor[node] = self.tensor[first]
        if views and len(roots := [self.storage[other] for other in node.all_input_nodes]) > 1 and len(set(roots)) > 1:
            self.joined.append(roots)

    def _write_part(self, node: fx.Node) -> bool:
        """Notes a write to a part of a value that no view of it is read after; False for any other write."""
        part = self.part_of(node)
        if part is None or self.tensor_of(self.storage[part.base]) is not None:
            return False
        sharers = self.sharing[self.storage[part.base]]
        same = tuple(other for other in sharers if self.tensor[other] is self.tensor[part.base])
        if self._read_after(node, sharers, same):
            return False
        self.found.parts[node], self.found.rebound[node] = part, same
        self.found.changing.add(self.storage[part.base])
        return True

    def _write_whole(self, node: fx.Node, shared: list[fx.Node]) -> None:
        same = tuple(other for other in shared if self.tensor[other] is self.tensor[node])
        if self._read_after(node, shared, same) or self.tensor_of(self.storage[node]) is not None:
            self.left.add(self.storage[node])
        self.found.rebound[node] = same
        self.found.changing.add(self.storage[node])

    def _read_after(self, write: fx.Node, sharers: list[fx.Node], same: tuple[fx.Node, ...]) -> bool:
        """True where a view, that is no name of the whole tensor, is read after a write."""
        when = self.place[write]
        return any(self.place[user] > when for other in sharers if other not in same for user in other.users)


def _is_foreign(node: fx.Node, called: Resolved) -> bool:
    """Whether a call runs a function or a module that nobody here knows: it may give a view of what it reads.

    An operator of a library may not, by the contract of torch's dispatcher.
    """
    return called.row is None and (node.op == "call_module" or (node.op == "call_function" and "." in called.name))


def written_aside(node: fx.Node, called: Resolved) -> list[fx.Node]:
    """What a call writes to without giving it: `x[i] = y`, `out=x`, what the schema of an operator says it mutates."""
    out = node.kwargs.get("out")
    outs = list(out) if isinstance(out, list | tuple) else [out]
    first = first_argument(node) if called.is_("setitem") else None
    return [v for v in (*outs, first, *_mutated(node, called)) if isinstance(v, fx.Node)]


def writes(node: fx.Node, model: nn.Module) -> bool:
    """Whether a call writes to one of its arguments, as the vocabulary has it: a function of the user's is no op of torch's."""
    if not node.op.startswith("call"):
        return False
    called = resolve(node, model)
    return called.writes or bool(written_aside(node, called))


def _mutated(node: fx.Node, called: Resolved) -> list[Any]:
    """The arguments that an operator which is none of torch's own writes to."""
    target: Any = node.target
    if called.row is not None or called.writes or not isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return []
    written = [(place, argument.name) for place, argument in enumerate(schema(target)) if argument.is_write]
    return [node.args[place] if place < len(node.args) else node.kwargs.get(name) for place, name in written]


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
