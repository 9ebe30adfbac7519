"""The difference of two graphs, written into an ONNX model.

onnx-graphsurgeon rewires a skeleton of the model, nodes and the values between them without attributes or weights, and
says which nodes are still needed. The model is then made of the original protobufs of those, and of new ones for what
changed: nothing else can change, and no attribute reaches graphsurgeon (docs/adr/0003-onnx-write-back.md).

A changed parameter is always written under a new name first, so that whoever shares the old one keeps it. Where nobody does
any more, the new one takes the old name over.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from reparam_compiler.core.kernel import Ints
from reparam_compiler.core.names import free_name
from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.onnx.call import Call
from reparam_compiler.frontends.onnx.emitter import Emitter, trimmed
from reparam_compiler.frontends.onnx.node_runner import captured
from reparam_compiler.frontends.onnx.ops.scatter import written_box
from reparam_compiler.frontends.onnx.reader import Stored
from reparam_compiler.frontends.onnx.shapes.inference import opset_of
from reparam_compiler.frontends.onnx.spelling import INPUTS, Numbers, Place, is_stated_anew, numbers
from reparam_compiler.frontends.onnx.tensors import Constant, set_type, tensor_from
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Diff, Graph, Node, NodeId, Operand, Param, TensorType, diff
from reparam_compiler.vocabulary.bodies import bodies_of
from reparam_compiler.vocabulary.dtypes import DTYPES


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written. root: the value of the model that it is a new version of, if any."""

    name: str
    param: Param
    dtype: str
    transposed: bool
    root: str | None

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is stored."""
        return self.param.shape[::-1] if self.transposed else self.param.shape

    def is_like(self, other: "NewTensor") -> bool:
        """True for the same elements."""
        if self.param is other.param:
            return True
        return self.param.shape == other.param.shape and np.array_equal(self.param.load(), other.param.load())


@dataclass(frozen=True, slots=True)
class Edit:
    """What becomes of a model's graph.

    nodes: all of them.
    tensors: by name, in place of the initializer of that name or after all others; each is computed when it is asked for, so
        that weights are not held twice.
    dropped: initializers that only what is gone did read. gone: values that are there no more, those initializers too.
    types: values that have another type: the one before, and the one after.
    """

    nodes: tuple[NodeProto, ...]
    tensors: Mapping[str, Callable[[], TensorProto]]
    dropped: frozenset[str]
    gone: frozenset[str]
    types: Mapping[str, tuple[TensorType | None, TensorType]]

    def loaded(self) -> "Edit":
        """The edit with all that can fail done."""
        tensors = {name: make() for name, make in self.tensors.items()}
        return replace(self, tensors={name: partial(tensors.__getitem__, name) for name in tensors})


@dataclass
class OnnxWriter:
    """Plans the write-back of one difference; the model is only read.

    node_index, stored, sized, call_of: as the reader left them.
    """

    model: ModelProto
    before: Graph
    after: Graph
    node_index: Mapping[NodeId, int]
    stored: Mapping[Param, Stored]
    sized: Mapping[str, Constant]
    call_of: Callable[[NodeProto], Call]
    _tensors: list[NewTensor] = field(default_factory=list)
    _alike: dict[tuple[str | Param, str, bool], list[NewTensor]] = field(default_factory=dict)

    def plan(self) -> Edit:
        """What to do; raises RewriteError for a change that has no ONNX form."""
        if self.before.outputs != self.after.outputs:
            raise RewriteError(f"a pass made {self.after.outputs} of the outputs {self.before.outputs}; they must stay")
        changes = diff(self.before, self.after)
        self._names = names_of(self.model.graph)
        self._emitter = Emitter(opset_of(self.model), self._stored_name, self._add, self._free, self._rank)
        replaced: dict[int, list[NodeProto]] = {}
        for node in self._touched(changes):
            if (index := self.node_index.get(node.id)) is None:
                raise RewriteError(f"{node.id}: {node.op.name} is no node of the model, so it cannot be changed")
            gone = isinstance(node.op, ops.Identity) and node.replaces
            replaced[index] = [] if gone else self._replacement(node, self.model.graph.node[index])
        self._pass_on({n.id: n.sources[0] for n in changes.changed if isinstance(n.op, ops.Identity) and n.replaces}, replaced)
        self._keep_sizes(changes, replaced)
        alive = self._alive(replaced)
        nodes = [
            node
            for index, old in enumerate(self.model.graph.node)
            for place, node in enumerate(replaced.get(index, [old]))
            if (f"{index}.{place}" if index in replaced else str(index)) in alive
        ]
        return self._edit(changes, replaced, nodes)

    def _pass_on(self, read_instead: Mapping[NodeId, NodeId], replaced: dict[int, list[NodeProto]]) -> None:
        """Makes what reads a value of a node that does nothing any more read what that node read."""
        for index, native in enumerate(self.model.graph.node if read_instead else ()):
            for node in replaced.get(index, [native]):
                if read_instead.keys().isdisjoint(node.input):
                    continue
                if node is native:
                    node = NodeProto()
                    node.CopyFrom(native)
                    replaced[index] = [node]
                for place, name in enumerate(node.input):
                    while name in read_instead:
                        name = read_instead[name]
                    node.input[place] = name

    def _keep_sizes(self, changes: Diff, replaced: dict[int, list[NodeProto]]) -> None:
        """Sizes of values that are gone, or have others now, become the tensors that they were read as."""
        stale = set(changes.removed) | {node.id for node in self.after if self._is_retyped(node.id)}
        if not stale or not self.sized:
            return
        known = set(self.node_index.values())
        for index, node in enumerate(self.model.graph.node):
            if index in known or not stale.intersection(node.input):
                continue
            stale.update(node.output)
            outputs = [self.sized[name] for name in node.output if name in self.sized]
            if len(outputs) == len(node.output):
                replaced[index] = []
                self._tensors += [NewTensor(c.name, c.param("const"), c.dtype, False, None) for c in outputs]

    def _touched(self, changes: Diff) -> list[Node]:
        """The nodes that must be written: those that changed, and those that state a width that changed."""
        found = [node for node in changes.changed if not isinstance(node.op, ops.TupleGet)]
        known = {node.id for node in found}
        for node in self.after:
            index = self.node_index.get(node.id)
            if index is None or node.id in known or not any(map(self._is_retyped, (node.id, *node.sources))):
                continue
            states_places = isinstance(node.op, ops.SliceUpdate) and node.type is not None and node.type.static_shape
            if states_places or numbers(self._place(node, self.model.graph.node[index])):
                found.append(node)
        return found

    def _is_retyped(self, node_id: NodeId) -> bool:
        return self.before[node_id].type != self.after[node_id].type

    def _place(self, node: Node, native: NodeProto) -> Place:
        return Place(self.before[node.id], node, native, self.call_of(native), self._type(node.inputs[0]))

    def _type(self, operand: Operand) -> TensorType | None:
        if isinstance(operand, Param):
            return TensorType(operand.dtype, operand.shape)
        return self.after[operand].type if isinstance(operand, str) and operand in self.after.nodes else None

    def _replacement(self, node: Node, native: NodeProto) -> list[NodeProto]:
        old = self.before[node.id]
        if node.op.has_mask and node.operand("mask") is not None:
            raise RewriteError(f"{node.id}: a mask of {node.op.name} has no ONNX form; write the graph that was cut")
        if isinstance(node.op, ops.SliceUpdate) and not node.replaces:
            return [self._scattered(node, node.op, native)]
        if not node.replaces and is_stated_anew(old.op, node.op):
            clone = self._clone(node, old, native)
            if clone is not None:
                return [self._restated(clone, numbers(self._place(node, native)), native)]
        if isinstance(node.op, ops.Opaque | ops.Input):
            raise RewriteError(f"{node.id}: {node.op.name} was changed, but only what is read as an exact op can be written")
        nodes = self._emitter.emit(node, node.id)
        nodes[-1].name = native.name
        if not node.replaces:
            nodes[-1].doc_string = native.doc_string
            nodes[-1].metadata_props.extend(native.metadata_props)
        else:
            nodes[-1].name = self._layer_name(node) or native.name
        return nodes

    def _scattered(self, node: Node, op: ops.SliceUpdate, native: NodeProto) -> NodeProto:
        """A ScatterND to the places of these cuts, as they are numbered now, of a value that fills them."""
        shape = node.type.static_shape if node.type is not None else None
        if shape is None:
            raise RewriteError(f"{node.id}: {op.name} was changed, and its places cannot be numbered where a size is not known")
        axes = max(self.call_of(native).samples(1)[0].shape[-1], *(axis + 1 for axis, _, _ in op.cuts), 1)
        box = written_box(op, shape)
        places = np.stack(np.meshgrid(*map(np.array, box[:axes]), indexing="ij"), -1).astype(np.int64)
        indices = Param.of(places, role="const", dtype="i64")
        value = node.operand("value")
        if isinstance(value, Param):
            filled = np.broadcast_to(value.load(), [len(places) for places in box])
            whole = Param.of(filled, role=value.role, dtype=value.dtype)
            value = self._add(f"{node.id}.{value.role}", whole, value.dtype, False)
        clone = NodeProto()
        clone.CopyFrom(native)
        clone.input[:] = [str(node.operand("x")), self._add(f"{node.id}.indices", indices, "i64", False), value or ""]
        return clone

    def _restated(self, clone: NodeProto, found: Numbers, native: NodeProto) -> NodeProto:
        """The model's own node with other numbers; those that are inputs get the dtype that they had."""
        inputs = INPUTS.get(clone.op_type, {})
        for key, value in found.items():
            index, since = inputs.get(key, (0, self._emitter.opset + 1))
            if self._emitter.opset < since:
                _set_attribute(clone, key, value)
                continue
            had = self.call_of(native).dtype(index) if index < len(native.input) else None
            dtype = had or "i64"
            param = Param.of(np.array(value, DTYPES[dtype].numpy), role="const", dtype=dtype)
            clone.input.extend([""] * (index + 1 - len(clone.input)))
            clone.input[index] = self._add(f"{clone.output[0]}.{key}", param, dtype, False)
        return clone

    def _layer_name(self, node: Node) -> str:
        """The name of the first conv or linear that was replaced: a user looks for the layer, not for the add."""
        for node_id in node.replaces:
            if isinstance(self.before[node_id].op, type(node.op)):
                return str(self.model.graph.node[self.node_index[node_id]].name)
        return ""

    def _clone(self, node: Node, old: Node, native: NodeProto) -> NodeProto | None:
        """The model's own node with other inputs; None where a parameter is not stored as the node reads it."""
        inputs = [*native.input, *[""] * (len(node.inputs) - len(native.input) - len(captured(native)))]
        for index, operand in enumerate(node.inputs):
            was = old.inputs[index] if index < len(old.inputs) else None
            if operand is was:
                continue
            if index >= len(inputs):
                raise RewriteError(f"{node.id}: what the body of {node.op.name} reads cannot be changed")
            if not isinstance(operand, Param):
                inputs[index] = operand or ""
                continue
            place = self.stored.get(was) if isinstance(was, Param) else None
            if (place is None and was is not None) or (index > 1 and native.op_type == "MatMul"):
                return None
            inputs[index] = self._stored_name(operand) or self._add(
                f"{node.id}.{operand.role}",
                operand,
                was.dtype if isinstance(was, Param) else self._emitter.dtype_of(node, operand),
                bool(place and place.transposed),
                place.name if place else None,
            )
        clone = NodeProto()
        clone.CopyFrom(native)
        del clone.input[:]
        clone.input.extend(trimmed(inputs))
        return clone

    def _stored_name(self, param: Param) -> str | None:
        place = self.stored.get(param)
        return place.name if place and not place.transposed else None

    def _add(self, wanted: str, param: Param, dtype: str, transposed: bool, root: str | None = None) -> str:
        """Notes a new tensor, or finds one with the same elements and root; gives its name."""
        new = NewTensor(wanted, param, dtype, transposed, root)
        alike = self._alike.setdefault((root or param, dtype, transposed), [])
        for other in alike:
            if new.is_like(other):
                return other.name
        alike.append(replace(new, name=self._free(wanted)))
        self._tensors.append(alike[-1])
        return alike[-1].name

    def _free(self, wanted: str) -> str:
        name = free_name(wanted, self._names)
        self._names.add(name)
        return name

    def _rank(self, value: str) -> int | None:
        known = self.after.nodes[value].type if value in self.after.nodes else None
        return len(known.shape) if known else None

    def _alive(self, replaced: Mapping[int, Sequence[NodeProto]]) -> set[str]:
        """The names of the nodes that stay: those that an output depends on, and those of the model that nothing ever read."""
        graph = self.model.graph
        read = readers_of(graph)
        values = {name: gs.Variable(name) for node in graph.node for name in node.output if name}
        values |= {name: gs.Variable(name) for nodes in replaced.values() for n in nodes for name in n.output if name}
        outputs = [values[value.name] for value in graph.output if value.name in values]
        nodes = []
        for index, old in enumerate(graph.node):
            if index not in replaced and not read.intersection(old.output):
                outputs += [values[name] for name in old.output if name]
            for place, node in enumerate(replaced.get(index, [old])):
                inputs = [values[name] for name in (*node.input, *captured(node)) if name in values]
                made = [values[name] for name in node.output if name]
                name = f"{index}.{place}" if index in replaced else str(index)
                nodes.append(gs.Node(node.op_type, name, inputs=inputs, outputs=made))
        skeleton = gs.Graph(nodes=nodes, outputs=outputs)
        return {node.name for node in skeleton.cleanup(recurse_subgraphs=False, recurse_functions=False).nodes}

    def _edit(self, changes: Diff, replaced: Mapping[int, Sequence[NodeProto]], nodes: list[NodeProto]) -> Edit:
        graph = self.model.graph
        read_before, read_after = readers_of(graph), readers_of(graph, nodes)
        initializers = {tensor.name for tensor in graph.initializer}
        inputs = {value.name for value in graph.input} if self.model.ir_version >= 4 else set()
        dropped = (initializers & read_before) - read_after - inputs
        renamed = self._taken_over(dropped)
        _rename(nodes, {id(node) for made in replaced.values() for node in made}, renamed)
        _check_order(nodes, initializers - dropped | {t.name for t in self._tensors} | set(renamed.values()), graph)
        made = {renamed.get(t.name, t.name): t for t in self._tensors if t.name in read_after}
        types = {
            node.id: (self.before[node.id].type, node.type)
            for node in (*changes.changed, *changes.retyped)
            if node.type and self._is_retyped(node.id)
        }
        types |= {name: (None, TensorType(t.dtype, t.shape)) for name, t in made.items() if name in renamed.values()}
        there = {name for node in nodes for name in node.output} | set(made)
        gone = ({name for node in graph.node for name in node.output} | dropped) - there
        tensors = {name: partial(_stored, name, tensor) for name, tensor in made.items()}
        return Edit(tuple(nodes), tensors, frozenset(dropped - set(tensors)), frozenset(gone), types)

    def _taken_over(self, dropped: Iterable[str]) -> dict[str, str]:
        """For each new tensor that is alone in coming after an initializer that nobody reads any more, the name of that."""
        successors: dict[str, list[str]] = {}
        for tensor in self._tensors:
            if tensor.root is not None:
                successors.setdefault(tensor.root, []).append(tensor.name)
        return {successors[root][0]: root for root in dropped if len(successors.get(root, ())) == 1}


def _stored(name: str, tensor: NewTensor) -> TensorProto:
    param = tensor.param
    if not tensor.transposed:
        return tensor_from(name, param, tensor.dtype)
    return tensor_from(name, Param(param.role, param.dtype, tensor.shape, lambda: param.load().T), tensor.dtype)


def _set_attribute(node: NodeProto, key: str, value: Ints | int | None) -> None:
    """Sets an attribute, or takes it away where the value is None."""
    for index in reversed(range(len(node.attribute))):
        if node.attribute[index].name == key:
            del node.attribute[index]
    if value is not None:
        node.attribute.append(helper.make_attribute(key, value))


def _rename(nodes: Iterable[NodeProto], fresh: Collection[int], renamed: Mapping[str, str]) -> None:
    """Gives the fresh nodes, told by their identity, the final names of what they read, and a name that no other node has."""
    taken = {node.name for node in nodes if id(node) not in fresh}
    for node in nodes:
        if id(node) in fresh:
            names = [renamed.get(name, name) for name in node.input]
            del node.input[:]
            node.input.extend(names)
            node.name = _unique(node.name, taken)


def _unique(name: str, taken: set[str]) -> str:
    free = free_name(name, taken) if name else name
    taken.add(free)
    return free


def _check_order(nodes: Iterable[NodeProto], tensors: set[str], graph: GraphProto) -> None:
    """Raises RewriteError where a node reads what comes later; ONNX wants topological order."""
    known = {value.name for value in graph.input} | {tensor.values.name for tensor in graph.sparse_initializer} | tensors
    for node in nodes:
        for name in filter(None, (*node.input, *captured(node))):
            if name not in known:
                raise RewriteError(f"{node.name or node.op_type}: reads {name}, which does not come before it")
        known.update(node.output)


def readers_of(graph: GraphProto, nodes: Iterable[NodeProto] | None = None) -> set[str]:
    """The values that the graph reads, or would with other nodes."""
    found = {value.name for value in graph.output}
    found |= {entry.value for note in graph.quantization_annotation for entry in note.quant_parameter_tensor_names}
    for node in graph.node if nodes is None else nodes:
        found.update(node.input)
        found.update(captured(node))
    return found


def names_of(graph: GraphProto) -> set[str]:
    """Every name of a value, those inside bodies too."""
    found = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    found |= {tensor.name for tensor in graph.initializer} | {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        found.update(node.input, node.output)
        for body in bodies_of(node):
            found |= names_of(body)
    return found


def apply(edit: Edit, model: ModelProto) -> None:
    """Makes the edit in a model: the caller's own, or a copy that may lack the initializers that go."""
    graph, listed = model.graph, model.ir_version < 4
    nodes = list(edit.nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    _remove(graph.initializer, "name", edit.dropped)
    _store(edit, model)
    for values in (graph.value_info, graph.input) if listed else (graph.value_info,):
        _remove(values, "name", edit.gone)
    _remove(graph.quantization_annotation, "tensor_name", edit.gone)
    for value in (*graph.value_info, *graph.output, *(graph.input if listed else ())):
        if value.name in edit.types and value.type.HasField("tensor_type"):
            set_type(value.type, *edit.types[value.name])


def _store(edit: Edit, model: ModelProto) -> None:
    """New tensors: in place of the initializer of their name, or after all others; before IR version 4 as inputs too."""
    graph = model.graph
    places = {tensor.name: tensor for tensor in graph.initializer}
    for name, make in edit.tensors.items():
        tensor = make()
        if name in places:
            places[name].CopyFrom(tensor)
            continue
        graph.initializer.append(tensor)
        if model.ir_version < 4:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


def _remove(entries: Any, key: str, names: Collection[str]) -> None:
    """Deletes the entries of a protobuf's list whose `key` is one of these names."""
    for index in reversed(range(len(entries))):
        if getattr(entries[index], key) in names:
            del entries[index]
