"""One module out of a trace that was rewritten: a GraphModule with the arguments of the module's own `forward`."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam_compiler.errors import ReparamError
from reparam_compiler.frontends.torch.graph_module_writer import attribute
from reparam_compiler.frontends.torch.hooks import signature_of
from reparam_compiler.frontends.torch.tracing.attributes import copy_attributes
from reparam_compiler.frontends.torch.tracing.calls import ModuleCall, Ref, is_within, resolved

_WRITTEN_IN_CODE = (int, float, bool, str, type(None), torch.dtype)
"""Default values that a GraphModule can have."""


class NotPlacedError(ReparamError):
    """A rewrite that cannot be put back into the module as its class has it."""


def in_its_stead(module: nn.Module, written: fx.GraphModule, refusal: NotPlacedError) -> fx.GraphModule:
    """The rewritten trace or program of a module that could not be rewritten itself; its `meta["remarks"]` say why."""
    why = f"the result is a GraphModule, and no {type(module).__name__}: {refusal}"
    written.meta["remarks"] = (*written.meta.get("remarks", ()), why)
    return written


@dataclass
class Carving:
    """A GraphModule that computes what one call of a module does in a rewritten trace.

    module: the one that was called. call: what it was called with. trace: the rewritten trace.
    nodes: those of the trace that go with the call, in order. free: whether a node goes with any call that reads it.
    node_of: the node that holds a value now, by the name that it had; raises NotPlacedError where there is none.
    canonical: the node that the graph knows the value of a node by, where it has several.
    names: for new layers, where they stand in the whole model.
    """

    module: nn.Module
    call: ModuleCall
    trace: fx.GraphModule
    nodes: Sequence[fx.Node]
    free: Callable[[fx.Node], bool]
    node_of: Callable[[str], fx.Node]
    canonical: Callable[[fx.Node], fx.Node]
    names: Mapping[fx.Node, str]
    _graph: fx.Graph = field(default_factory=fx.Graph, init=False)
    _copies: dict[fx.Node, fx.Node] = field(default_factory=dict, init=False)
    _held: dict[str, Any] = field(default_factory=dict, init=False)

    def carve(self) -> fx.GraphModule:
        """The GraphModule; raises NotPlacedError where it would need what the call is not given."""
        parts = self._arguments()
        for node in self.nodes:
            self._copy(node)
        self._graph.output(resolved(self.call.result, lambda name: self._copied(self.node_of(name))))
        for part in reversed(parts):
            if not part.users:
                self._graph.erase_node(part)
        carved = fx.GraphModule(self._held, self._graph, type(self.module).__name__)
        held = {id(value) for value in self._held.values()}
        for holder in carved.modules():
            if holder is carved or (type(holder) is nn.Module and id(holder) not in held):
                holder.training = self.module.training
        copy_attributes(self.module, carved)
        return carved

    def _arguments(self) -> list[fx.Node]:
        """Placeholders for the arguments of `forward`; returns what was taken out of those that are lists or mappings."""
        parts: list[fx.Node] = []
        for name, parameter in signature_of(self.module).parameters.items():
            given = self.call.arguments.get(name)
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                if given:
                    raise NotPlacedError(f"{self.call.path} is called with *{name}")
                continue
            if parameter.default is not parameter.empty and not isinstance(parameter.default, _WRITTEN_IN_CODE):
                raise NotPlacedError(f"{self.call.path}: the default of {name} is a {type(parameter.default).__name__}")
            node = self._graph.placeholder(name, default_value=parameter.default)
            self._bind(given, node, parts)
        return parts

    def _bind(self, given: Any, node: fx.Node, parts: list[fx.Node]) -> None:
        """Says that a node of the new graph is what the call was given."""
        if isinstance(given, Ref):
            held = self.node_of(given.name)
            self._copies.setdefault(held, node)
            self._copies.setdefault(self.canonical(held), node)
        elif isinstance(given, list | tuple | dict):
            for key, value in given.items() if isinstance(given, dict) else enumerate(given):
                parts.append(self._graph.call_function(operator.getitem, (node, key)))
                self._bind(value, parts[-1], parts)

    def _copied(self, node: fx.Node) -> fx.Node:
        """The copy of a node; what is free is copied when it is asked for."""
        if node not in self._copies and (same := self.canonical(node)) is not node:
            return self._copied(same)
        if node not in self._copies and not self.free(node):
            raise NotPlacedError(f"{self.call.path} reads {node.name}, which it is not given")
        self._copy(node)
        return self._copies[node]

    def _copy(self, node: fx.Node) -> None:
        if node in self._copies:
            return
        copy = self._copies[node] = self._graph.node_copy(node, self._copied)
        copy.meta.pop("nn_module_stack", None)
        if node.op in ("get_attr", "call_module"):
            copy.target = self._local(node)
            value = attribute(self.trace, str(node.target))
            if not isinstance(value, Tensor | nn.Module):
                raise NotPlacedError(f"{self.call.path} reads {node.target}, which is no tensor")
            self._held[copy.target] = value

    def _local(self, node: fx.Node) -> str:
        """Where the carved module holds what a node reads."""
        path = self.names.get(node, str(node.target))
        if is_within(path, self.call.path) and path != self.call.path:
            return path[len(self.call.path) + 1 :]
        return path.replace(".", "_")
