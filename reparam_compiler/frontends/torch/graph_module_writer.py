"""Writes changes into a GraphModule: new modules beside those that they replace, pruned tensors where the old ones stood."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from reparam_compiler.core.names import common_path, free_name, prefixes
from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.torch.fake_values import FakeValues
from reparam_compiler.frontends.torch.module_state import register
from reparam_compiler.frontends.torch.module_widths import plain_module, tensor_name, update_module
from reparam_compiler.frontends.torch.native import NativeNodes, reading_calls
from reparam_compiler.frontends.torch.padded_conv import conv_of
from reparam_compiler.frontends.torch.provenance import inherit, stands_for
from reparam_compiler.frontends.torch.spellings import ComputedSizes, is_aten, update_call
from reparam_compiler.frontends.torch.tensor_arguments import (
    call_that_reads,
    exchanged_params,
    set_tensor_argument,
    takes_gradient,
)
from reparam_compiler.frontends.torch.tensors import deep_copy, tensor_from
from reparam_compiler.frontends.torch.wide import LARGE, wide_tensor
from reparam_compiler.frontends.torch.writer import new_call, new_module
from reparam_compiler.ir.graph import Diff, Graph, Node, Param


@dataclass
class GraphModuleWriter:
    """Writes changes into a GraphModule.

    model: the module, which it changes. before: what was read of it. exact: leave the new tensors in float64. sizes: those that
    the model computes, after the cut.
    """

    model: fx.GraphModule
    before: Graph
    changes: Diff
    exact: bool
    sizes: ComputedSizes
    _cut: dict[str, Param] = field(default_factory=dict, init=False)
    _holders: dict[int, list[tuple[nn.Module, str]]] = field(default_factory=dict, init=False)

    def write(self, nodes: NativeNodes) -> None:
        """Writes the changes. nodes: those of the model."""
        for module in self.model.modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                self._holders.setdefault(id(tensor), []).append((module, name))
        old_targets = self._targets()
        for node in self.changes.changed:
            if node.replaces:
                nodes.replace(node.id, self._replace(nodes, node))
            else:
                self._update(nodes.call(node.id), node)
        nodes.erase_unread(self.model.graph, self.changes.removed)
        readers = self._readers()
        for origin, param in self._cut.items():
            self._keep_whole(origin, readers, reading_calls(self.before, nodes, origin))
            self._set_tensor(origin, tensor_from(param, exact=self.exact))
        self.model.graph.lint()
        self._delete(old_targets - self._targets())
        self.model.recompile()

    def _trains(self, node: Node) -> bool:
        """Whether any parameter of what a new module replaces takes a gradient; True where there is none."""
        origins = {param.origin for old in (node.replaces or (node.id,)) for param in self.before[old].params}
        tensors = [attribute(self.model, origin) for origin in origins if origin]
        trained = [tensor.requires_grad for tensor in tensors if isinstance(tensor, nn.Parameter)]
        return any(trained) or not trained

    def _replace(self, nodes: NativeNodes, node: Node) -> fx.Node:
        """A new conv or linear: a module, or, where the model is a program's graph, a call of the operator."""
        sink, original, x = nodes[node.id], nodes.call(stands_for(self.before, node)), nodes[node.sources[0]]
        built = self._built(node)
        with self.model.graph.inserting_before(nodes.first_reader(self.before, node)):
            if is_aten(original.target):
                target = self._free_name(_beside([p.origin for i in node.replaces for p in self.before[i].params if p.origin]))
                new = self._called(node, target, built, x, original)
            else:
                called = [str(nodes.call(i).target) for i in node.replaces if nodes.call(i).op == "call_module"]
                target = self._free_name(_beside(called))
                self.model.add_submodule(target, built)
                new = self.model.graph.call_module(target, (x,))
        inherit(new, original)
        new.meta.update({key: sink.meta[key] for key in ("tensor_meta", "val") if key in sink.meta})
        return new

    def _built(self, node: Node) -> nn.Module:
        """The module of a new node, in the mode of the model."""
        device = self._device(node)
        with torch.no_grad():
            built = new_module(node, lambda param: self._new_tensor(param, device), trains=self._trains(node))
        return built.train(self.model.training)

    def _new_tensor(self, param: Param, device: torch.device) -> Tensor:
        """A parameter's elements as torch has them; a large one in float64 is loaded when it is read."""
        if self.exact and param.count >= LARGE:
            return wide_tensor(lambda: tensor_from(param, device=device, exact=True), param.shape, device)
        return tensor_from(param, device=device, exact=self.exact)

    def _called(self, node: Node, target: str, built: nn.Module, x: fx.Node, original: fx.Node) -> fx.Node:
        """A new call of an operator; its tensors stand at the path `target`, as those of a module would."""
        holder, graph, values = nn.Module(), self.model.graph, FakeValues(self.model.graph, self.model)
        holder.training = built.training
        self.model.add_submodule(target, holder)
        is_typed = hasattr(x.meta.get("val"), "fake_mode") and not self.exact
        operands: list[fx.Node | None] = [x]
        for role in ("weight", "bias"):
            tensor = getattr(conv_of(built), role)
            holder.register_parameter(role, tensor)
            operands.append(None if tensor is None else graph.get_attr(f"{target}.{role}"))
            if is_typed and (stored := operands[-1]) is not None:
                stored.meta["val"] = values.of_parameter(tensor)

        def call(operator: Any, *args: Any) -> fx.Node:
            made = graph.call_function(operator, args)
            inherit(made, original, helps=True)
            if is_typed:
                made.meta["val"] = values.of_call(made)
            return made

        return new_call(node, call, operands)

    def _device(self, node: Node) -> torch.device:
        """The device of what is replaced."""
        for node_id in node.replaces:
            for param in self.before[node_id].params:
                if param.origin and isinstance(tensor := attribute(self.model, param.origin), Tensor):
                    return tensor.device
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def _update(self, fx_node: fx.Node, node: Node) -> None:
        if fx_node.op == "call_module" and parametrize.is_parametrized(self.model.get_submodule(str(fx_node.target))):
            self._take_parametrizations_off(str(fx_node.target))
        for index, param in exchanged_params(self.before, node, fx_node):
            if param.origin is None:
                self._exchange(call_that_reads(fx_node, node), node, index, param)
            elif self._cut.setdefault(param.origin, param) is not param:
                raise RewriteError(f"{node.id}: {param.origin} is shared, and its users changed it in different ways")
        if fx_node.op == "call_module":
            update_module(self.model.get_submodule(str(fx_node.target)), node)
        else:
            update_call(fx_node, self.before[node.id], node, self.sizes)

    def _take_parametrizations_off(self, target: str) -> None:
        """A plain module with the same tensors instead: torch's own removal edits a class that the caller's module has too."""
        module = self.model.get_submodule(target)
        plain = plain_module(module)
        self.model.set_submodule(target, plain)
        for name, tensor in (*plain._parameters.items(), *plain._buffers.items()):
            self._holders.setdefault(id(tensor), []).append((plain, name))

    def _readers(self) -> dict[int, list[fx.Node]]:
        """For each tensor of the model, by `id`, the nodes that hold it."""
        readers: dict[int, list[fx.Node]] = {}
        for node in self.model.graph.nodes:
            if node.op == "call_module":
                for tensor in _tensors(self.model.get_submodule(str(node.target))):
                    readers.setdefault(id(tensor), []).append(node)
            elif node.op == "get_attr":
                readers.setdefault(id(attribute(self.model, str(node.target))), []).append(node)
        return readers

    def _keep_whole(self, origin: str, readers: Mapping[int, Sequence[fx.Node]], cut: Collection[fx.Node]) -> None:
        """Gives a tensor that is about to be cut a second name, for the calls that need it whole: constant expressions.

        readers: the nodes that held a tensor before any was cut. cut: the calls that read it cut.
        """
        old = attribute(self.model, origin)
        if not isinstance(old, Tensor):
            return
        name = ""
        for node in [node for node in readers.get(id(old), ()) if node not in cut]:
            if node.op == "call_module" and _holds(self.model.get_submodule(str(node.target)), old):
                copied = deep_copy(self.model.get_submodule(str(node.target)))
                node.target = self._free_name(f"{node.target}_whole")
                self.model.add_submodule(node.target, copied)
            elif node.op == "get_attr":
                others = [user for user in node.users if user not in cut]
                if others and not name:
                    name = self._free_name(f"{origin}_whole".replace(".", "_"))
                    register(self.model, name, old)
                with self.model.graph.inserting_after(node):
                    whole = self.model.graph.get_attr(name) if others else node
                for user in others:
                    user.replace_input_with(node, whole)

    def _set_tensor(self, path: str, tensor: Tensor) -> None:
        """Puts a tensor of another shape in place of one, under all its names, as a parameter where that was one."""
        holder, _, leaf = path.rpartition(".")
        old = getattr(self.model.get_submodule(holder), leaf)
        new = tensor.to(old.device)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for module, name in self._holders.get(id(old), [(self.model.get_submodule(holder), leaf)]):
            setattr(module, name, new)

    def _exchange(self, fx_node: fx.Node, node: Node, index: int, param: Param) -> None:
        """A tensor that the model had no name for: a bias where there was none, or what was computed from parameters."""
        tensor = tensor_from(param, exact=self.exact)
        if takes_gradient(node, index, param):
            tensor = nn.Parameter(tensor, requires_grad=self._trains(node))
        if fx_node.op == "call_module":
            setattr(conv_of(self.model.get_submodule(str(fx_node.target))), tensor_name(node, index), tensor)
            return
        name = self._free_name(f"{fx_node.name}_{param.role}")
        register(self.model, name, tensor)
        with self.model.graph.inserting_before(fx_node):
            stored = self.model.graph.get_attr(name)
        set_tensor_argument(fx_node, self.before, node, index, stored)

    def _free_name(self, wanted: str) -> str:
        """The wanted path, or one beside it where something stands already."""
        return free_name(wanted, self._stands)

    def _stands(self, path: str) -> bool:
        """Whether something has this path: each step alone is looked up, for a large model has thousands of names."""
        holder: Any = self.model
        for step in path.split("."):
            if not hasattr(holder, step):
                return False
            holder = getattr(holder, step)
        return True

    def _targets(self) -> set[str]:
        return {str(node.target) for node in self.model.graph.nodes if node.op in ("call_module", "get_attr")}

    def _delete(self, targets: set[str]) -> None:
        """Removes modules and attributes that nothing calls any more, and what is left empty by that."""
        kept = {prefix for target in self._targets() for prefix in prefixes(target)}
        called = {str(node.target) for node in self.model.graph.find_nodes(op="call_module")}
        for target in sorted(targets, key=lambda t: -t.count(".")):
            path, _, leaf = target.rpartition(".")
            if target in kept or not called.isdisjoint(prefixes(target)):
                continue
            holder = self.model.get_submodule(path)
            if hasattr(holder, leaf):
                delattr(holder, leaf)
            while path and not any((holder._modules, holder._parameters, holder._buffers)):
                path, _, leaf = path.rpartition(".")
                holder = self.model.get_submodule(path)
                delattr(holder, leaf)


def _tensors(module: nn.Module) -> tuple[Tensor, ...]:
    return (*module.parameters(), *module.buffers())


def _holds(module: nn.Module, tensor: object) -> bool:
    return any(held is tensor for held in _tensors(module))


def _beside(targets: Sequence[str]) -> str:
    """`stage1.0.fused` for `stage1.0.conv3.conv` and `stage1.0.conv1.bn`: a name beside theirs, never below one."""
    return ".".join([*common_path([target.split(".")[:-1] for target in targets]), "fused"])


def attribute(model: nn.Module, path: str) -> object:
    """What stands at a path; None where nothing does."""
    value: object = model
    for name in path.split("."):
        value = getattr(value, name, None)
    return value
