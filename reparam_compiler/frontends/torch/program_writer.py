"""Builds an exported program from another one's graph and the changes to it: calls first, then the signature and the state."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputSpec, TensorArgument

from reparam_compiler.core.names import common_path, free_name
from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.torch.fake_values import FakeValues
from reparam_compiler.frontends.torch.native import InPlace, NativeNodes, reading_calls
from reparam_compiler.frontends.torch.provenance import inherit, stands_for
from reparam_compiler.frontends.torch.spellings import ComputedSizes, update_call
from reparam_compiler.frontends.torch.tensor_arguments import (
    call_that_reads,
    exchanged_params,
    set_tensor_argument,
    takes_gradient,
)
from reparam_compiler.frontends.torch.tensors import deep_copy, tensor_from
from reparam_compiler.frontends.torch.writer import new_call
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Diff, Dim, Graph, Node, Param

Tensors = dict[str, Tensor]


@dataclass
class ProgramWriter:
    """Writes changes into a copy of a program's graph, and makes a program of that.

    model: the program, which stays as it is. before: what was read of it. in_place: what its in-place calls do.
    exact: leave the new tensors in float64. sizes: those that the program computes, after the cut.
    graph: the copy, with its `nodes` by the names that they have in the program. new_specs, new_tensors: of new or changed
    parameters. updated: calls whose arguments have changed. bodies: what takes the place of graphs that its calls run, by path.
    """

    model: ExportedProgram
    before: Graph
    in_place: InPlace
    exact: bool
    sizes: ComputedSizes
    graph: fx.Graph = field(init=False)
    nodes: NativeNodes = field(init=False)
    values: FakeValues = field(init=False)
    new_specs: list[InputSpec] = field(default_factory=list)
    new_tensors: Tensors = field(default_factory=dict)
    updated: set[fx.Node] = field(default_factory=set)
    bodies: dict[str, fx.GraphModule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = deep_copy(self.model.graph_module.graph)
        originals = self.model.graph_module.graph.nodes
        nodes = {original.name: node for original, node in zip(originals, self.graph.nodes, strict=True)}
        for name, node in nodes.items():
            node.name = name  # copying renames what is called as a builtin is (`input`), and the signature goes by names
        self.nodes = NativeNodes(nodes, self.in_place)
        self.values = FakeValues(self.graph, self.model.graph_module)

    def replace(self, node: Node) -> None:
        """A new conv or linear in place of the node of the same id; what it reads in place of one that does nothing now."""
        if isinstance(node.op, ops.Identity):
            self.nodes.replace(node.id, self.nodes[node.sources[0]])
            return
        stem = self._stem(node)
        weight, bias = (
            self._parameter(f"{stem}.{p.role}", p) if p else None for p in (node.param("weight"), node.param("bias"))
        )
        x, original = self.nodes[node.sources[0]], self.nodes.call(stands_for(self.before, node))
        with self.graph.inserting_before(self.nodes.first_reader(self.before, node)):
            new = new_call(node, partial(self._call, original), (x, weight, bias))
        inherit(new, original)
        self.nodes.replace(node.id, new)

    def update(self, node: Node) -> None:
        """New parameters and attributes for a node of the program's own."""
        fx_node = self.nodes.call(node.id)
        for index, param in exchanged_params(self.before, node, fx_node):
            if param.origin is None:
                read = call_that_reads(fx_node, node)
                wanted, trains = f"{read.name}.{param.role}", takes_gradient(node, index, param)
                set_tensor_argument(read, self.before, node, index, self._parameter(wanted, param, trains=trains))
                self.updated.add(read)
                continue
            tensor = tensor_from(param, exact=self.exact)
            old = self.new_tensors.get(param.origin)
            if old is not None and not torch.equal(old, tensor):
                raise RewriteError(f"{node.id}: {param.origin} is shared, and its users changed it in different ways")
            self.new_tensors[param.origin] = tensor
        update_call(fx_node, self.before[node.id], node, self.sizes)
        self.updated.add(fx_node)

    def program(self, changes: Diff, *, share: bool) -> ExportedProgram:
        """The program of the graph as it is now; `share` leaves tensors that did not change in both programs."""
        specs = self._specs_that_stay(changes)
        state, constants = self._state(specs, share=share)
        if changes.retyped:
            nodes = (*self.before, *changes.changed, *changes.retyped)  # the last one of an id counts
            self._retype(state | constants, specs, {node.id: node.type.shape for node in nodes if node.type is not None})
        self.graph.lint()
        root = fx.GraphModule(self.model.graph_module, self.graph)
        for path, body in self.bodies.items():
            root.set_submodule(path, body)
        return ExportedProgram(
            root,
            self.graph,
            self._signature(specs),
            state,
            dict(self.model.range_constraints),
            list(self.model.module_call_graph),
            self.model.example_inputs,
            constants,
            verifiers=self.model.verifiers,
        )

    def _specs_that_stay(self, changes: Diff) -> list[InputSpec]:
        """Erases what nothing reads any more, and gives the specs of the inputs that are left."""
        erased = self.nodes.erase_unread(self.graph, changes.removed)
        self._keep_whole()
        gone = {node.name for node in erased if node.op == "placeholder"}
        specs = [*self.new_specs, *self.model.graph_signature.input_specs]
        gone |= self._orphans(specs, gone)
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name in gone and not node.users:
                self.graph.erase_node(node)
        return [spec for spec in specs if getattr(spec.arg, "name", None) not in gone]

    def _keep_whole(self) -> None:
        """Gives tensors that are cut a second name, for the calls that need them whole: constant expressions."""
        state = {**self.model.state_dict, **self.model.constants}
        placeholders = {node.name: node for node in self.graph.nodes if node.op == "placeholder"}
        for spec in self.model.graph_signature.input_specs:
            if spec.target not in self.new_tensors or spec.arg.name not in placeholders:
                continue
            stored = placeholders[spec.arg.name]
            others = stored.users.keys() - reading_calls(self.before, self.nodes, spec.target)
            if others:
                trains = spec.kind == InputKind.PARAMETER
                whole = self.store(f"{spec.target}_whole", state[spec.target].detach().clone(), trains=trains)
            for user in others:
                user.replace_input_with(stored, whole)

    def _orphans(self, specs: Sequence[InputSpec], gone: Collection[str]) -> set[str]:
        """Tensors that nothing reads, of modules whose read tensors are all gone: a batch norm's counter."""
        tensors = [(spec, _module(spec)) for spec in specs if spec.target]
        read = {node.name for node in self.graph.nodes if node.op == "placeholder" and node.users}
        emptied = {module for spec, module in tensors if spec.arg.name in gone}
        emptied -= {module for spec, module in tensors if spec.arg.name in read}
        mutated = set(self.model.graph_signature.buffers_to_mutate.values())
        return {
            spec.arg.name
            for spec, module in tensors
            if module in emptied and spec.arg.name not in read and spec.target not in mutated
        }

    def _signature(self, specs: Sequence[InputSpec]) -> ExportGraphSignature:
        """The inputs in the order of their placeholders, and the outputs under the names that their values have now."""
        by_name = {spec.arg.name: spec for spec in specs}
        inputs = [by_name[node.name] for node in self.graph.nodes if node.op == "placeholder"]
        returned: Any = self.graph.output_node().args[0]
        outputs = zip(self.model.graph_signature.output_specs, returned, strict=True)
        return ExportGraphSignature(inputs, [_output_spec(spec, value) for spec, value in outputs])

    def _state(self, specs: Sequence[InputSpec], *, share: bool) -> tuple[Tensors, dict[str, Any]]:
        """The state dict, in the order that it had, and the constants."""
        old_state, targets = self.model.state_dict, {spec.target for spec in specs}
        state = {name: tensor for name, tensor in old_state.items() if name in targets}
        constants = dict(self.model.constants)
        if not share:
            state, constants = deep_copy((_without(state, self.new_tensors), _without(constants, self.new_tensors)))
        parameters = {spec.target for spec in specs if spec.kind == InputKind.PARAMETER}
        for name, tensor in self.new_tensors.items():
            holder = constants if name in self.model.constants else state
            holder[name] = nn.Parameter(tensor, requires_grad=self._trains(name)) if name in parameters else tensor
        return {name: state[name] for name in [*old_state, *state] if name in state}, constants

    def _trains(self, name: str) -> bool:
        """Whether a parameter takes a gradient: as it did, or, where it is new, as any other of the program."""
        old_state = self.model.state_dict
        if name in old_state:
            return isinstance(old_state[name], nn.Parameter) and old_state[name].requires_grad
        return any(tensor.requires_grad for tensor in old_state.values() if isinstance(tensor, nn.Parameter))

    def _retype(self, tensors: Mapping[str, Any], specs: Sequence[InputSpec], shapes: Mapping[str, tuple[Dim, ...]]) -> None:
        target_of = {spec.arg.name: spec.target for spec in specs}

        def tensor_of(node: fx.Node) -> Tensor | None:
            target = target_of.get(node.name)
            if target not in self.new_tensors:
                return None
            tensor: Tensor = tensors[target]
            return tensor.float() if self.exact else tensor

        self.values.retype(tensor_of, self.updated, shapes)

    def _parameter(self, wanted: str, param: Param, *, trains: bool = True) -> fx.Node:
        """A new placeholder with its parameter, under the wanted name or one beside it."""
        exact = tensor_from(param, exact=True) if self.exact else None
        return self.store(wanted, tensor_from(param), exact, trains=trains)

    def store(self, wanted: str, tensor: Tensor, exact: Tensor | None = None, *, trains: bool) -> fx.Node:
        """A new placeholder with a tensor, that of a parameter where it trains, else of a buffer."""
        target = free_name(wanted, self.new_tensors.keys() | self.model.state_dict.keys())
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            node = self.graph.placeholder(("p_" if trains else "b_") + target.replace(".", "_"))
        node.meta["val"] = self.values.of_parameter(nn.Parameter(tensor) if trains else tensor)
        kind, persistent = (InputKind.PARAMETER, None) if trains else (InputKind.BUFFER, True)
        self.new_specs.append(InputSpec(kind, TensorArgument(node.name), target, persistent))
        self.new_tensors[target] = tensor if exact is None else exact
        return node

    def _call(self, original: fx.Node, target: Any, *args: Any) -> fx.Node:
        """A new call where another one stood."""
        node = self.graph.call_function(target, args)
        node.meta["val"] = self.values.of_call(node)
        inherit(node, original, helps=True)
        return node

    def _stem(self, node: Node) -> str:
        """`stage1.0.fused` for tensors of `stage1.0.conv3` and `stage1.0.bn`."""
        origins = [p.origin.split(".")[:-1] for i in node.replaces for p in self.before[i].params if p.origin]
        taken = {name.rpartition(".")[0] for name in (*self.model.state_dict, *self.new_tensors)}
        return free_name(".".join([*common_path(origins), "fused"]), taken)


def _module(spec: InputSpec) -> str:
    """The path of the module that holds a tensor."""
    return str(spec.target).rpartition(".")[0]


def _output_spec(spec: OutputSpec, value: Any) -> OutputSpec:
    if isinstance(spec.arg, TensorArgument) and isinstance(value, fx.Node):
        return replace(spec, arg=TensorArgument(value.name))
    return spec


def _without(tensors: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}
