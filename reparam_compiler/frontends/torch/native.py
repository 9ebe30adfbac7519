"""The fx nodes of a model that is being written, by the ids of the graph: which nodes read a value, and which nothing reads.

In the graph a write in place is a value of its own; in the model it is a call on a tensor that other nodes hold as well. A
write that returns the whole tensor can be read itself. A write to a part (`partial_writes.py`) cannot: the written tensor is
read under its old names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from torch import fx

from reparam_compiler.frontends.torch.aliasing import Writes
from reparam_compiler.frontends.torch.called import tuple_behind
from reparam_compiler.ir.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class InPlace:
    """What the in-place calls of a model do, by the names of its nodes.

    rebound: for each write the nodes that name the written tensor; later readers of these read the new value.
    parts: for each write to a part the name of the value that it writes into.
    into_inputs: writes to the model's inputs, which stay, for the caller sees them.
    """

    rebound: Mapping[str, tuple[str, ...]]
    parts: Mapping[str, str]
    into_inputs: frozenset[str] = frozenset()

    @staticmethod
    def of(writes: Writes, written_into: Mapping[str, str]) -> "InPlace":
        """The in-place calls of a graph that has been read."""
        rebound = {node.name: tuple(other.name for other in same) for node, same in writes.rebound.items()}
        into_inputs = frozenset(node.name for node in writes.into_inputs)
        return InPlace(rebound, {node.name: written_into[node.name] for node in writes.parts}, into_inputs)


def reading_calls(before: Graph, nodes: "NativeNodes", origin: str) -> set[fx.Node]:
    """The calls that read a parameter of the model as one of the graph's, of the graph that was read."""
    readers = [reader for param, users in before.param_users.items() if param.origin == origin for reader, _ in users]
    return {nodes.call(reader) for reader in readers}


@dataclass
class NativeNodes:
    """The nodes of a model; from now on every later reader of a tensor that was written to whole reads the write itself.

    nodes: by their names, in order.
    """

    nodes: dict[str, fx.Node]
    in_place: InPlace
    _parts: dict[str, fx.Node] = field(init=False)
    _names_of: dict[fx.Node, tuple[str, ...]] = field(init=False)
    _useful: set[fx.Node] = field(init=False)

    def __post_init__(self) -> None:
        place = {node: index for index, node in enumerate(self.nodes.values())}
        self._parts = {name: self.nodes[name] for name in self.in_place.parts}
        self._names_of = {write: self.in_place.rebound[name] for name, write in self._parts.items()}
        self._useful = set()
        for name, old_names in self.in_place.rebound.items():
            write = self.nodes[name]
            for old in (self.nodes[old_name] for old_name in old_names):
                later = [user for user in old.users if place[user] > place[write]]
                if name in self._parts:
                    self._useful.update([write] if later else [])
                    continue
                for user in later:
                    user.replace_input_with(old, write)
        self._useful.update(node for node in place if node.users)

    def __getitem__(self, node_id: str) -> fx.Node:
        """The node that holds a value; the value of a write to a part is held by the node that it writes into."""
        while node_id in self._parts:
            node_id = self.in_place.parts[node_id]
        return self.nodes[node_id]

    def call(self, node_id: str) -> fx.Node:
        """The node that makes a value: where that is read as the first element of a tuple, the call that gives the tuple."""
        node = self.nodes[node_id]
        return tuple_behind(node) or node

    def first_reader(self, before: Graph, node: Node) -> fx.Node:
        """Where a new op goes: before the first reader of its source, which may be written to before a later one."""
        readers = [i for i in node.replaces if node.sources[0] in before[i].sources]
        return self.nodes[min(readers, key=before.position.__getitem__)]

    def replace(self, node_id: str, new: fx.Node) -> None:
        """Makes all that read a value read a new node."""
        write = self._parts.pop(node_id, None)
        if write is None:
            self.nodes[node_id].replace_all_uses_with(new)
        else:
            later = set(takewhile(lambda node: node is not write, reversed(write.graph.nodes)))
            for old in (self.nodes[name] for name in self._names_of[write]):
                for user in [user for user in old.users if user in later]:
                    user.replace_input_with(old, new)
        self.nodes[node_id] = new

    def erase_unread(self, graph: fx.Graph, removed: Iterable[str] = ()) -> list[fx.Node]:
        """Erases the calls and constants that nothing reads any more; returns them, and placeholders among them.

        removed: ids that the graph has no more. A check of a shape goes with the value that it checks.

        Nothing reads a write to a part. Such a write goes where no later node reads the tensor that it writes into. A write to
        an input stays: the caller sees it.
        """
        caller_sees = {self.nodes[name] for name in self.in_place.into_inputs if name in self.nodes}
        erased: list[fx.Node] = []
        later: set[fx.Node] = set()
        useful = self._useful | {self.nodes[name] for name in removed}
        for node in reversed(graph.nodes):
            names = [self.nodes[name] for name in self._names_of.get(node, ())]
            read_later = node in caller_sees or any(user in later for name in names for user in name.users)
            if node in useful and not node.users and not read_later and node.op != "output":
                graph.erase_node(node)
                erased.append(node)
            else:
                later.add(node)
        return erased
