"""torch.export.ExportedProgram in, ExportedProgram out.

Parameters of a program are lifted: they are placeholders, named by the signature, with their values in the state dict. So a
new conv is an aten call with two new placeholders, and what it replaces takes its own placeholders away with it. The result
saves, loads, runs and exports again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputSpec, TensorArgument

from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.base import Comparison
from reparam_compiler.frontends.torch.fx import compare_copies
from reparam_compiler.frontends.torch.native import InPlace, NativeNodes
from reparam_compiler.frontends.torch.reader import TorchReader
from reparam_compiler.frontends.torch.spellings import ComputedSizes, update_call
from reparam_compiler.frontends.torch.tensor_arguments import exchanged_params, set_tensor_argument
from reparam_compiler.frontends.torch.tensors import deep_copy, tensor_from
from reparam_compiler.frontends.torch.writer import new_call
from reparam_compiler.ir.graph import Diff, Graph, Node, Param, diff

_LIKE_THEIR_INPUT = frozenset(
    {
        "batch_norm",
        "relu",
        "relu6",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "silu",
        "gelu",
        "mish",
        "elu",
        "leaky_relu",
    }
    | {"tanh", "dropout", "softmax", "layer_norm", "group_norm", "clone"}
)
"""Calls that give a tensor of the shape and dtype of their first argument."""


class ExportFrontend:
    """Reads and writes `torch.export.ExportedProgram`."""

    name = "torch.export"

    def matches(self, model: object) -> bool:
        """True for an ExportedProgram."""
        return isinstance(model, ExportedProgram)

    def read(self, model: ExportedProgram, example_inputs: Sequence[Any] | None = None) -> "ExportReading":
        """The graph; shapes come from the program itself."""
        graph, tensors = model.graph_module.graph, {}
        for spec in model.graph_signature.input_specs:
            value = model.state_dict.get(spec.target) if spec.target else None
            value = model.constants.get(spec.target) if value is None and spec.target else value
            if isinstance(value, Tensor):
                tensors[spec.arg.name] = (str(spec.target), value)
        values = {node.name: node.meta["val"] for node in graph.nodes if "val" in node.meta}
        mutated = set(model.graph_signature.buffers_to_mutate.values())
        mutable = frozenset(name for name, (target, _) in tensors.items() if target in mutated)
        reader = TorchReader(graph, model.graph_module, tensors, values, mutable)
        read = reader.read()
        return ExportReading(model, read, InPlace.of(reader.writes, reader.written_into))


@dataclass(frozen=True, slots=True)
class ExportReading:
    """A program that has been read."""

    model: ExportedProgram
    graph: Graph
    in_place: InPlace

    def write(self, after: Graph, *, inplace: bool = False) -> ExportedProgram:
        """The program that computes `after`."""
        written = self._write(after, exact=False, share=inplace)
        if not inplace:
            return written
        self.model.__dict__.update(written.__dict__)
        return self.model

    def compare(self, after: Graph, example_inputs: Sequence[Any] | None) -> Comparison | None:
        """Both programs as modules, as `FxReading.compare` does it, on the example inputs or the program's own."""
        inputs, kind = example_inputs, "example inputs"
        if inputs is None and self.model.example_inputs is not None:
            inputs, kind = self.model.example_inputs[0], "the program's own example inputs"
        if inputs is None:
            return None

        def copies(exact: bool) -> tuple[nn.Module, nn.Module]:
            models = (self.model.module(), self._write(after, exact=exact, share=True).module())
            before_model, after_model = (deep_copy(model).double() if exact else deep_copy(model) for model in models)
            return before_model, after_model

        worst, dtype = compare_copies(copies, inputs)
        return Comparison(worst, dtype, "torch", kind)

    def _write(self, after: Graph, *, exact: bool, share: bool) -> ExportedProgram:
        changes = diff(self.graph, after)
        writer = _Writer(self.model, self.graph, self.in_place, exact, ComputedSizes.after_cut(self.graph, after))
        for node in changes.changed:
            writer.replace(node) if node.replaces else writer.update(node)
        return writer.program(changes, share=share)


@dataclass
class _Writer:
    """Builds a program from another one's graph and the changes to it."""

    model: ExportedProgram
    before: Graph
    in_place: InPlace
    exact: bool
    sizes: ComputedSizes
    graph: fx.Graph = field(init=False)
    nodes: NativeNodes = field(init=False)
    first: fx.Node = field(init=False)
    new_specs: list[InputSpec] = field(default_factory=list)
    new_tensors: dict[str, Tensor] = field(default_factory=dict)
    updated: set[fx.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.graph = deep_copy(self.model.graph_module.graph)
        originals = self.model.graph_module.graph.nodes
        nodes = {original.name: node for original, node in zip(originals, self.graph.nodes, strict=True)}
        for name, node in nodes.items():
            node.name = name  # copying renames what is called as a builtin is (`input`), and the signature goes by names
        self.first = next(iter(self.graph.nodes))
        self.nodes = NativeNodes(nodes, self.in_place)

    def replace(self, node: Node) -> None:
        """A new conv or linear in place of the node of the same id."""
        stem = self._free_name(node)
        weight, bias = (self._parameter(f"{stem}.{p.role}", p) if p else None for p in (node.param("weight"), node.param("bias")))
        x = self.nodes[node.sources[0]]
        with self.graph.inserting_before(self.nodes.first_reader(self.before, node)):
            new = new_call(node, self._call, (x, weight, bias))
        self.nodes.replace(node.id, new)

    def update(self, node: Node) -> None:
        """New parameters and attributes for a node of the program's own."""
        fx_node = self.nodes.call(node.id)
        for index, param in exchanged_params(self.before, node, fx_node):
            if param.origin is None:
                set_tensor_argument(fx_node, self.before, node, index, self._parameter(f"{fx_node.name}.{param.role}", param))
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
        gone = {node.name for node in self.nodes.erase_unread(self.graph, changes.removed) if node.op == "placeholder"}
        specs = [*self.new_specs, *self.model.graph_signature.input_specs]
        gone |= self._orphans(specs, gone)
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name in gone and not node.users:
                self.graph.erase_node(node)
        kept = [spec for spec in specs if getattr(spec.arg, "name", None) not in gone]
        by_name = {spec.arg.name: spec for spec in kept}
        order = [node.name for node in self.graph.nodes if node.op == "placeholder"]
        signature = ExportGraphSignature([by_name[name] for name in order], self._output_specs())
        targets = {spec.target for spec in kept}
        state = {name: tensor for name, tensor in self.model.state_dict.items() if name in targets}
        constants = dict(self.model.constants)
        if not share:
            state, constants = ({n: t for n, t in kind.items() if n not in self.new_tensors} for kind in (state, constants))
            state, constants = deep_copy((state, constants))
        known = any(tensor.requires_grad for tensor in self.model.state_dict.values() if isinstance(tensor, nn.Parameter))
        parameters = {spec.target for spec in kept if spec.kind == InputKind.PARAMETER}
        for name, tensor in self.new_tensors.items():
            holder = constants if name in self.model.constants else state
            old = self.model.state_dict.get(name)
            trains = old.requires_grad if isinstance(old, nn.Parameter) else name not in self.model.state_dict and known
            holder[name] = nn.Parameter(tensor, requires_grad=trains) if name in parameters else tensor
        state = {name: state[name] for name in [*self.model.state_dict, *state] if name in state}  # in the order that it had
        if changes.retyped:
            self._retype(state | constants, kept)
        self.graph.lint()
        root = fx.GraphModule(self.model.graph_module, self.graph)
        return ExportedProgram(
            root,
            self.graph,
            signature,
            state,
            dict(self.model.range_constraints),
            list(self.model.module_call_graph),
            self.model.example_inputs,
            constants,
            verifiers=self.model.verifiers,
        )

    def _output_specs(self) -> list[OutputSpec]:
        """The signature's outputs under the names that their values have now."""
        given: Any = self.graph.output_node().args[0]
        specs = self.model.graph_signature.output_specs
        return [
            replace(spec, arg=TensorArgument(value.name))
            if isinstance(spec.arg, TensorArgument) and isinstance(value, fx.Node)
            else spec
            for spec, value in zip(specs, given, strict=True)
        ]

    def _orphans(self, specs: Sequence[InputSpec], gone: set[str]) -> set[str]:
        """Tensors that nothing reads, of modules whose read tensors are all gone: a batch norm's counter."""
        modules = {str(spec.target).rpartition(".")[0] for spec in specs if spec.target and spec.arg.name in gone}
        read = {node.name for node in self.graph.nodes if node.op == "placeholder" and node.users}
        alive = {str(spec.target).rpartition(".")[0] for spec in specs if spec.target and spec.arg.name in read}
        mutated = set(self.model.graph_signature.buffers_to_mutate.values())
        return {
            spec.arg.name
            for spec in specs
            if spec.target
            and str(spec.target).rpartition(".")[0] in modules - alive
            and spec.arg.name not in read
            and spec.target not in mutated
        }

    def _parameter(self, target: str, param: Param) -> fx.Node:
        """A new placeholder with its parameter."""
        tensor = tensor_from(param, exact=self.exact)
        taken = self.new_tensors.keys() | self.model.state_dict.keys()
        target = next(t for i in range(len(taken) + 1) if (t := f"{target}_{i}" if i else target) not in taken)
        name = "p_" + target.replace(".", "_")
        with self.graph.inserting_before(self.first):
            node = self.graph.placeholder(name)
        node.meta["val"] = self._fake_mode().from_tensor(nn.Parameter(tensor_from(param)), static_shapes=True)
        self.new_specs.append(InputSpec(InputKind.PARAMETER, TensorArgument(node.name), target))
        self.new_tensors[target] = tensor
        return node

    def _call(self, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta["val"] = self._run(node)
        return node

    def _run(self, node: fx.Node) -> Any:
        # without the dispatcher of Python, aten.pad takes symbolic sizes for the numbers that they were exported with
        with self._fake_mode(), enable_python_dispatcher(), torch.no_grad():
            return self._called(node)

    def _called(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._value)
        target: Any = node.target
        return target(*args, **kwargs)

    def _value(self, node: fx.Node) -> Any:
        """The fake value of a node; of one that names a subgraph (the body of an autocast), that."""
        if node.op != "get_attr" or "val" in node.meta:
            return node.meta["val"]
        return self.model.graph_module.get_submodule(str(node.target))

    def _retype(self, tensors: Mapping[str, Tensor], specs: Sequence[InputSpec]) -> None:
        """New fake values for tensors whose shapes have changed, and for all that is computed from them."""
        placed, mode = {spec.arg.name: spec.target for spec in specs}, self._fake_mode()
        changed: set[fx.Node] = set()
        with mode, enable_python_dispatcher(), torch.no_grad():
            for node in self.graph.nodes:
                target = placed.get(node.name)
                if node.op == "placeholder" and target in self.new_tensors:
                    tensor = tensors[target].float() if self.exact else tensors[target]
                    node.meta["val"] = mode.from_tensor(tensor, static_shapes=True)
                    changed.add(node)
                elif node.op == "call_function" and "val" in node.meta and self._may_differ(node, changed):
                    node.meta["val"] = self._retyped(node)
                    changed.add(node)

    def _may_differ(self, node: fx.Node, changed: set[fx.Node]) -> bool:
        return node in self.updated or not changed.isdisjoint(node.all_input_nodes)

    def _retyped(self, node: fx.Node) -> Any:
        x = node.args[0] if node.args else None
        name = node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else ""
        if isinstance(x, fx.Node) and name.removeprefix("aten::").rstrip("_") in _LIKE_THEIR_INPUT:
            return torch.empty_like(x.meta["val"])  # their fake kernels are decompositions, hundreds of times as slow
        return self._called(node)

    def _fake_mode(self) -> Any:
        values = (node.meta.get("val") for node in self.graph.nodes)
        return next(value.fake_mode for value in values if hasattr(value, "fake_mode"))

    def _free_name(self, node: Node) -> str:
        """`stage1.0.fused` for tensors of `stage1.0.conv3` and `stage1.0.bn`."""
        origins = [p.origin.split(".")[:-1] for i in node.replaces for p in self.before[i].params if p.origin]
        common: list[str] = []
        for level in zip(*origins, strict=False):
            if len(set(level)) > 1:
                break
            common.append(level[0])
        stem = ".".join([*common, "fused"])
        taken = {name.rpartition(".")[0] for name in (*self.model.state_dict, *self.new_tensors)}
        return next(name for i in range(len(taken) + 1) if (name := stem if i == 0 else f"{stem}_{i}") not in taken)
