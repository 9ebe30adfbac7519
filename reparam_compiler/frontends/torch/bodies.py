"""What an exported program computes inside its nodes: under `no_grad` or autocast, in the branches of a `cond`.

torch calls such nodes higher-order ops: they run a graph of their own, the body, and get all that it reads as operands, weights
among them. A body is read as a model of its own, its weights where they have their names in the whole, and fused as that. It
goes back in its place: what it reads now are its operands, and weights that nothing reads any more go.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch.export import ExportedProgram

from reparam_compiler.core.names import free_name
from reparam_compiler.frontends.base import Reading
from reparam_compiler.frontends.torch.called import resolve
from reparam_compiler.frontends.torch.fake_values import FakeValues
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.frontends.torch.graph_module_writer import GraphModuleWriter, attribute
from reparam_compiler.frontends.torch.module_state import register
from reparam_compiler.frontends.torch.native import InPlace, NativeNodes
from reparam_compiler.frontends.torch.program_writer import ProgramWriter
from reparam_compiler.frontends.torch.spellings import ComputedSizes
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.ir.graph import Diff, Graph

Model = fx.GraphModule | ExportedProgram
_UNWRAPPED = frozenset(
    {"wrap_with_set_grad_enabled", "wrap_with_autocast", "tag_activation_checkpoint", "wrap_activation_checkpoint"}
)
"""Ops that give their body the operands that follow it."""
_IN_A_TUPLE = frozenset({"cond"})
"""Ops that give their bodies the operands of the tuple that follows them."""
_FUSED = ("conv1d", "conv2d", "conv3d", "convolution", "linear", "batch_norm", "functional.batch_norm")
_NOTHING = Graph.of([], [])


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a higher-order op. bodies: the nodes that name them. operands: what each of them gets."""

    node: fx.Node
    bodies: tuple[fx.Node, ...]
    operands: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Of the op."""
        return str(self.node.target)

    @property
    def is_known(self) -> bool:
        """Whether it is known which operand a body gets as which input."""
        return self.name in _UNWRAPPED | _IN_A_TUPLE

    def give(self, operands: Sequence[Any]) -> None:
        """Other operands."""
        first = 1 + max(self.node.args.index(body) for body in self.bodies)
        rest = [tuple(operands)] if self.name in _IN_A_TUPLE else operands
        self.node.args = (*self.node.args[:first], *rest)


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """A body, read. path: where the model has it. inner: those inside it."""

    path: str
    reading: Reading[fx.GraphModule]
    inner: "Bodies"


@dataclass(frozen=True, slots=True)
class Bodies:
    """The bodies of a model. left: why others stay as they are."""

    found: tuple[Body, ...]
    left: tuple[str, ...]

    def fused(self, reading: Reading[Any], fuse: Callable[[str, Graph], Graph], path: str = "") -> Reading[Any]:
        """The reading of the model, which writes these bodies fused.

        fuse: is told where a body is ("submod_1"), and gives its graph as it is to be.
        """
        if not self.found:
            return reading
        changed = {}
        for body in self.found:
            where = f"{path}{body.path}"
            after = fuse(where, body.reading.graph)
            changed[body.path] = (body.inner.fused(body.reading, fuse, f"{where}."), after)
        return _WithBodies(reading, changed)

    def remarks(self, path: str = "") -> Iterator[str]:
        """Why bodies stay as they are, at any depth."""
        yield from (f"{path}{reason}" for reason in self.left)
        for body in self.found:
            yield from body.inner.remarks(f"{path}{body.path}.")


@dataclass(frozen=True, slots=True, eq=False)
class _WithBodies:
    """A reading that writes other bodies as well. bodies: by path a reading of each, and the graph to write."""

    outer: Reading[Any]
    bodies: Mapping[str, tuple[Reading[fx.GraphModule], Graph]]

    @property
    def graph(self) -> Graph:
        """That of the model, without what the bodies compute."""
        return self.outer.graph

    def write(self, after: Graph, *, inplace: bool = False, exact: bool = False) -> Any:
        """The model that computes `after`, and in its bodies what is to be written of them."""
        parts = {path: reading.write(body, exact=exact) for path, (reading, body) in self.bodies.items()}
        written = self.outer.write(after, inplace=inplace, exact=exact)
        if isinstance(written, fx.GraphModule):
            _put_into_module(written, parts)
            return written
        with_bodies = _put_into_program(written, parts)
        if not inplace:
            return with_bodies
        written.__dict__.update(with_bodies.__dict__)
        return written


def read_bodies(model: Model) -> Bodies:
    """The bodies of a model's higher-order ops, each as a model of its own."""
    module = model.graph_module if isinstance(model, ExportedProgram) else model
    calls = list(_calls(module))
    if not calls:
        return Bodies((), ())
    constants = _constants(model)
    uses = Counter(body.target for call in calls for body in call.bodies)
    found: list[Body] = []
    left: list[str] = []
    for call in calls:
        shared = next((body for body in call.bodies if uses[body.target] > 1), None)
        if call.is_known and shared is None:
            parts = ((str(body.target), _part(module, body, call.operands, constants)) for body in call.bodies)
            found += [Body(path, FxFrontend().read(part), read_bodies(part)) for path, part in parts]
        elif any(_has_layers(module.get_submodule(str(body.target))) for body in call.bodies):
            why = f"other calls run {shared.target} too" if shared is not None else "its operands may change as it runs"
            left.append(f"{call.node.name} ({call.name}): what it computes inside was left as it was: {why}")
    return Bodies(tuple(found), tuple(left))


def _calls(module: fx.GraphModule) -> Iterator[_Call]:
    """The calls of ops that run graphs."""
    for node in module.graph.nodes:
        if not isinstance(node.target, HigherOrderOperator):
            continue
        given = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]
        bodies = tuple(a for a in given if isinstance(attribute(module, str(a.target)), fx.GraphModule))
        if bodies:
            rest = node.args[1 + max(map(node.args.index, bodies)) :]
            yield _Call(node, bodies, tuple(rest[0]) if str(node.target) in _IN_A_TUPLE else rest)


def _has_layers(body: nn.Module) -> bool:
    """Whether anything in a body might be fused."""
    graphs = [part for part in body.modules() if isinstance(part, fx.GraphModule)]
    calls = ((n, part) for part in graphs for n in part.graph.nodes if n.op.startswith("call"))
    return any(resolve(node, part).is_(*_FUSED) for node, part in calls)


def _constants(model: Model) -> dict[str, tuple[str, Tensor]]:
    """For the nodes that stand for a tensor that no run changes, by name, its path and the tensor."""
    if isinstance(model, ExportedProgram):
        mutated = set(model.graph_signature.buffers_to_mutate.values())
        targets = {s.arg.name: s.target for s in model.graph_signature.input_specs if s.target and s.target not in mutated}
        tensors = {**model.state_dict, **model.constants}
        return {name: (t, tensors[t]) for name, t in targets.items() if isinstance(tensors.get(t), Tensor)}
    stored = [node for node in model.graph.nodes if node.op == "get_attr"]
    changing = {n.target for n in stored for user in n.users if user.op.startswith("call") and resolve(user, model).writes}
    values = {n.name: (str(n.target), attribute(model, str(n.target))) for n in stored if n.target not in changing}
    return {name: (path, tensor) for name, (path, tensor) in values.items() if isinstance(tensor, Tensor)}


def _part(
    module: fx.GraphModule, body: fx.Node, operands: Sequence[Any], constants: Mapping[str, tuple[str, Tensor]]
) -> fx.GraphModule:
    """A body as a model: what it gets of the whole's tensors it has itself, under their names there."""
    original: Any = module.get_submodule(str(body.target))
    part = fx.GraphModule(original, deep_copy(original.graph))
    part.training = original.training
    for placeholder, operand in zip(part.graph.find_nodes(op="placeholder"), operands, strict=True):
        if not isinstance(operand, fx.Node) or operand.name not in constants:
            continue
        path, tensor = constants[operand.name]
        register(part, path, tensor)
        with part.graph.inserting_before(placeholder):
            stored = part.graph.get_attr(path)
        stored.meta = dict(placeholder.meta)
        placeholder.replace_all_uses_with(stored)
        part.graph.erase_node(placeholder)
    part.recompile()
    return part


def _put_into_module(model: fx.GraphModule, parts: Mapping[str, fx.GraphModule]) -> None:
    """Puts bodies into a GraphModule, in place."""
    nodes = NativeNodes({node.name: node for node in model.graph.nodes}, InPlace({}, {}))
    writer = GraphModuleWriter(model, _NOTHING, Diff((), (), ()), False, ComputedSizes({}, frozenset()))
    values = FakeValues(model.graph, model)
    for call in list(_calls(model)):
        if not any(body.target in parts for body in call.bodies):
            continue

        def store(path: str, tensor: Tensor, call: _Call = call) -> fx.Node:
            register(model, path, tensor)
            with model.graph.inserting_before(call.node):
                stored = model.graph.get_attr(path)
            if values.are_known:
                stored.meta["val"] = values.of_parameter(tensor)
            return stored

        paths = {path: node for node in call.operands if isinstance(node, fx.Node) for path in _path(node)}
        for path, body in _lifted(call, parts, paths, store, lambda path: attribute(model, path) is not None).items():
            model.set_submodule(path, body)
    writer.write(nodes)


def _path(node: fx.Node) -> tuple[str, ...]:
    return (str(node.target),) if node.op == "get_attr" else ()


def _put_into_program(program: ExportedProgram, parts: Mapping[str, fx.GraphModule]) -> ExportedProgram:
    """A program with other bodies."""
    writer = ProgramWriter(program, _NOTHING, InPlace({}, {}), False, ComputedSizes({}, frozenset()))
    named = {spec.arg.name: str(spec.target) for spec in program.graph_signature.input_specs if spec.target}
    holders = {name.rpartition(".")[0] for name in program.state_dict}
    root = fx.GraphModule(program.graph_module, writer.graph)
    for call in list(_calls(root)):
        if not any(body.target in parts for body in call.bodies):
            continue
        paths = {named[n.name]: n for n in call.operands if isinstance(n, fx.Node) and n.name in named}

        def store(path: str, tensor: Tensor) -> fx.Node:
            holders.add(path.rpartition(".")[0])
            return writer.store(path, tensor, trains=isinstance(tensor, nn.Parameter))

        writer.bodies.update(_lifted(call, parts, paths, store, lambda path: path in holders))
    return writer.program(Diff((), (), ()), share=True)


def _lifted(
    call: _Call,
    parts: Mapping[str, fx.GraphModule],
    known: Mapping[str, fx.Node],
    store: Callable[[str, Tensor], fx.Node],
    taken: Callable[[str], bool],
) -> dict[str, fx.GraphModule]:
    """The bodies of a call with their tensors as operands, which the call gets; by path.

    known: the nodes that stand for tensors of the whole, by path. store: makes one for a new tensor. taken: whether the whole
    has something at a path already.
    """
    operands = [o for o in call.operands if not (isinstance(o, fx.Node) and o in set(known.values()))]
    own = {str(body.target): parts[str(body.target)] for body in call.bodies}
    nodes_of: dict[str, dict[str, fx.Node]] = {}
    for target, part in own.items():
        nodes_of[target], moved = {}, {}
        for stored in part.graph.nodes:
            path = str(stored.target)
            if stored.op != "get_attr" or not stored.users or path in nodes_of[target]:
                continue
            if not isinstance(tensor := attribute(part, path), Tensor):
                continue
            holder, _, leaf = path.rpartition(".")
            if path not in known and holder not in moved:
                moved[holder] = free_name(holder, taken)
            nodes_of[target][path] = known[path] if path in known else store(f"{moved[holder]}.{leaf}", tensor)
    given = list(dict.fromkeys(node for nodes in nodes_of.values() for node in nodes.values()))
    call.give([*operands, *given])
    return {target: _with_operands(part, given, nodes_of[target]) for target, part in own.items()}


def _with_operands(part: fx.GraphModule, given: Sequence[fx.Node], node_of: Mapping[str, fx.Node]) -> fx.GraphModule:
    """A body that gets its tensors. given: what it gets after its other inputs. node_of: which of that each tensor is."""
    graph = part.graph
    free = graph.find_nodes(op="placeholder")
    inputs = {}
    with graph.inserting_after(free[-1]) if free else graph.inserting_before(next(iter(graph.nodes))):
        for node in reversed(given) if free else given:
            inputs[node] = graph.placeholder(node.name.replace(".", "_"))
            if "val" in node.meta:
                inputs[node].meta["val"] = node.meta["val"]
    for stored in graph.find_nodes(op="get_attr"):
        if (given_as := node_of.get(str(stored.target))) is not None:
            stored.replace_all_uses_with(inputs[given_as])
        if not stored.users:
            graph.erase_node(stored)
    body = fx.GraphModule(part, graph)
    body.training = part.training
    return body
