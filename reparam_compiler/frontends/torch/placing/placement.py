"""A rewritten trace put back into the module that it was traced from, so that the module comes back as its own class.

    a new conv for a chain of layers       stands where the first conv of the chain stood; the other layers become nn.Identity
    a new conv for anything else           the smallest module that has all of it is replaced by a GraphModule of its own
    a call that was changed                so is the module whose code makes the call
    layers that were cut                   are those of the trace, which shares them

A module whose own `forward` would have to change cannot be had. That what was put together is right does not follow from how
that was done: it is traced anew, and must be the rewritten trace (`same_trace`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from reparam_compiler.core.names import prefixes
from reparam_compiler.frontends.torch.fx import WrittenTrace
from reparam_compiler.frontends.torch.graph_module_writer import attribute
from reparam_compiler.frontends.torch.placing.carving import Carving, NotPlacedError
from reparam_compiler.frontends.torch.placing.other_calls import OtherCalls, called_paths, parameters_without
from reparam_compiler.frontends.torch.tracing.calls import ModuleCall, Trace, resolved
from reparam_compiler.ir.graph import Node

_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass
class Placement:
    """Where a rewritten trace goes in the module.

    trace: of the module. written: that trace, or a copy of it, after the changes; its layers are those of the module to change.
    """

    trace: Trace
    written: WrittenTrace
    _hosts: dict[fx.Node, "Host"] = field(default_factory=dict, init=False)
    _values: dict[str, str | fx.Node] = field(default_factory=dict, init=False)
    _identities: dict[str, nn.Module] = field(default_factory=dict, init=False)
    _changed: dict[str, ModuleCall] = field(default_factory=dict, init=False)
    _names: dict[fx.Node, str] = field(default_factory=dict, init=False)
    _chains: list[list[str]] = field(default_factory=list, init=False)
    _alive: set[fx.Node] = field(default_factory=set, init=False)
    _order: dict[str, int] = field(default_factory=dict, init=False)

    def plan(self, module: nn.Module) -> dict[Any, Any]:
        """What to put in the place of which layers and tensors of a module: the one that was traced, or a copy of it.

        Raises NotPlacedError where its own code would have to change.
        """
        self._alive = set(self.written.model.graph.nodes)
        self._names = {node: name for name, node in self.written.nodes.items() if node in self._alive}
        self._order = {name: place for place, name in enumerate(self.written.calls)}
        for node in self.written.changes.changed:
            if node.replaces:
                self._host(node)
        self._find_changed_calls()
        self._changed = {path: call for path, call in self._changed.items() if self._part_of(path) == path}
        self._check_other_calls()
        nodes, places = self._nodes_of_parts(), {n: host.layer for n, host in self._hosts.items() if host.layer is not None}
        new: dict[str, nn.Module] = {
            path: self._carved(module, call, nodes[path], places) for path, call in self._changed.items()
        }
        hosted = {path: self.written.model.get_submodule(str(node.target)) for node, path in places.items()}
        kept = {**self._identities, **hosted, **self._exchanged_layers(module)}
        new |= {path: layer for path, layer in kept.items() if self._part_of(path) is None}
        exchanged: dict[Any, Any] = {module.get_submodule(path): layer for path, layer in new.items()}
        return exchanged | self._exchanged_tensors(module)

    def _part_of(self, path: str) -> str | None:
        """The outermost part whose code changes that a path is in, or is."""
        return next((part for part in prefixes(path) if part in self._changed), None)

    def _check_other_calls(self) -> None:
        """Raises NotPlacedError where the module, called with what was fixed for the trace, does something else."""
        units = [list(dict.fromkeys(self._unit(name) for name in chain)) for chain in self._chains]
        changed = self.written.changes.changed
        unread = parameters_without(self.trace.module, called_paths(self.written.calls.values()))
        OtherCalls(self.trace, units, list(self._changed), any(not node.replaces for node in changed), unread).check()

    def _unit(self, name: str) -> str:
        """The path of a layer, or of the part that it goes with."""
        call, owner = self.written.calls[name], self.trace.owners.get(name)
        path = str(call.target) if call.op == "call_module" else owner.path if owner is not None else ""
        return self._part_of(path) or path

    def _host(self, node: Node) -> None:
        """Finds where a new layer goes: to a layer of a chain, else to the module that has all the branches."""
        new = self.written.nodes[node.id]
        before, core, after = self._parts(node)
        chain = [*before, *after]
        if core:
            owner = self._common_owner(core)
            self._change(owner)
            self._hosts[new] = Host(owner)
            self._values[core[-1]] = new
        elif (host := self._host_of_chain(chain)) is None:
            owner = self._common_owner(chain)
            self._change(owner)
            self._hosts[new] = Host(owner)
        else:
            before, after = chain[:host], chain[host:]
            self._hosts[new] = Host(self.trace.owners.get(chain[host]), str(self.written.calls[chain[host]].target))
            self._chains.append(chain)
        self._values |= dict.fromkeys(before, node.sources[0]) | dict.fromkeys(after, new)
        for name in chain:
            self._pass_by(name, self._hosts[new])

    def _pass_by(self, name: str, host: "Host") -> None:
        """Makes a call of a chain give what it is given."""
        call = self.written.calls[name]
        if call.op != "call_module":
            self._change(self._owner(name))
        elif call.target != host.layer:
            self._identities[str(call.target)] = nn.Identity().train(self.trace.module.training)

    def _parts(self, node: Node) -> tuple[list[str], list[str], list[str]]:
        """The calls that a new layer replaces: in a row before the branches; these, with their join; in a row behind."""
        names = sorted(filter(self._order.__contains__, node.replaces), key=self._order.__getitem__)
        reads = {name: {self._as_read(source) for source in self._reads(name)} for name in names}
        first, last, value = 0, len(names), node.sources[0]
        while first < last and [name for name in names if value in reads[name]] == [names[first]]:
            if reads[names[first]] != {value}:
                break
            value, first = names[first], first + 1
        while first < last and len(reads[names[last - 1]]) == 1 and reads[names[last - 1]] <= set(names[first:last]):
            last -= 1
        return names[:first], names[first:last], names[last:]

    def _reads(self, name: str) -> set[str]:
        """The values that a call reads, other than those of the model's own tensors."""
        call = self.written.calls[name]
        read: set[str] = set()
        resolved((call.args, call.kwargs), lambda source: read.add(source))
        return {source for source in read if not self._is_constant(source)}

    def _as_read(self, name: str) -> str:
        """What the graph calls a value."""
        return self.written.same.get(name, name)

    def _is_constant(self, name: str) -> bool:
        call = self.written.calls[name]
        return call.op == "get_attr" or (call.op == "call_function" and not self._reads(name) and _has_refs(call.args))

    def _host_of_chain(self, chain: list[str]) -> int | None:
        """The layer of a chain in whose place the new one goes."""
        calls = [self.written.calls[name] for name in chain]
        layers = [place for place, call in enumerate(calls) if call.op == "call_module"]
        weighted = (p for p in layers if isinstance(self.trace.module.get_submodule(str(calls[p].target)), _WEIGHTED))
        return next(weighted, next(iter(layers), None))

    def _owner(self, name: str) -> ModuleCall:
        owner = self.trace.owners.get(name)
        if owner is None:
            raise NotPlacedError(f"{name} is computed in {type(self.trace.module).__name__}.forward() itself")
        return owner

    def _common_owner(self, names: Sequence[str]) -> ModuleCall:
        """The innermost call in which all of these are made."""
        lines = [list(_line(self.trace.owners.get(name))) for name in names]
        common = [call for call in lines[0] if all(call in line for line in lines)]
        if not common:
            raise NotPlacedError(
                f"the branches of {names[-1]} are joined in {type(self.trace.module).__name__}.forward() itself"
            )
        return common[0]

    def _change(self, call: ModuleCall) -> None:
        self._changed.setdefault(call.path, call)

    def _find_changed_calls(self) -> None:
        """Marks the modules whose code makes a call that is another one now."""
        for name, call in self.written.calls.items():
            node = self.written.nodes[name]
            if node not in self._alive or node in self._hosts or node.op in ("placeholder", "get_attr"):
                continue
            before = resolved((call.args, call.kwargs), self._node_of)
            if node.op != call.op or node.target != call.target or before != (node.args, dict(node.kwargs)):
                self._change(self._owner(name))

    def _node_of(self, name: str) -> fx.Node:
        """The node that holds a value now; raises NotPlacedError where none does."""
        value: str | fx.Node = name
        while isinstance(value, str) and self.written.nodes[value] not in self._alive:
            if value not in self._values and value not in self.written.same:
                raise NotPlacedError(f"{name} is not computed any more, and code that stays reads it")
            value = self._values[value] if value in self._values else self.written.same[value]
        return self.written.nodes[value] if isinstance(value, str) else value

    def _canonical(self, node: fx.Node) -> fx.Node:
        """The node that the graph knows a value by."""
        same = self.written.same.get(self._names.get(node, ""))
        return node if same is None else self._node_of(same)

    def _nodes_of_parts(self) -> dict[str, list[fx.Node]]:
        """For each part whose code changes what its call computes, in order; constants go where they are read."""
        nodes: dict[str, list[fx.Node]] = {path: [] for path in self._changed}
        for node in self.written.model.graph.nodes:
            host = self._hosts.get(node)
            call = host.call if host is not None else self.trace.owners.get(self._names.get(node, ""))
            part = next((c for c in _line(call) if self._changed.get(c.path) is c), None)
            if part is not None and node.op != "get_attr":
                nodes[part.path].append(node)
        return nodes

    def _carved(
        self, module: nn.Module, call: ModuleCall, nodes: Sequence[fx.Node], places: Mapping[fx.Node, str]
    ) -> fx.GraphModule:
        return Carving(
            module.get_submodule(call.path),
            call,
            self.written.model,
            nodes,
            self._is_free,
            self._node_of,
            self._canonical,
            places,
        ).carve()

    def _is_free(self, node: fx.Node) -> bool:
        """Whether a node goes wherever it is read: a tensor of the model's, or what the rewrite added."""
        return node.op == "get_attr" or node not in self._names

    def _exchanged_layers(self, module: nn.Module) -> dict[str, nn.Module]:
        """Layers of the trace that are others than those of the module, by their paths."""
        exchanged: dict[str, nn.Module] = {}
        for name in self.written.calls:
            node = self.written.nodes[name]
            if node in self._alive and node not in self._hosts and node.op == "call_module":
                path, layer = str(node.target), self.written.model.get_submodule(str(node.target))
                if attribute(module, path) is not layer:
                    exchanged[path] = layer
        return exchanged

    def _exchanged_tensors(self, module: nn.Module) -> dict[Tensor, Tensor]:
        """What became of the tensors that the code reads."""
        exchanged: dict[Tensor, Tensor] = {}
        for node in self.written.model.graph.find_nodes(op="get_attr"):
            now, old = attribute(self.written.model, str(node.target)), attribute(module, str(node.target))
            if isinstance(now, Tensor) and isinstance(old, Tensor) and now is not old:
                exchanged[old] = now
        return exchanged


@dataclass(frozen=True, slots=True)
class Host:
    """Where a new layer stands: in which call, and in the place of which layer; None for a place of its own."""

    call: ModuleCall | None
    layer: str | None = None


def _line(call: ModuleCall | None) -> Iterable[ModuleCall]:
    """A call, and those that it was made in, from the inside out."""
    while call is not None:
        yield call
        call = call.caller


def _has_refs(value: Any) -> bool:
    found: list[str] = []
    resolved(value, found.append)
    return bool(found)
