"""An ONNX model read as a Graph; the ids are the names of the values.

Three things that the format hides are made explicit here:

- what depends on no input is a parameter: initializers, Constant nodes, and what is computed from those (weights that an
  exporter left parametrized), evaluated when it is asked for. An initializer that is also a model input can be overridden by
  the caller, so it is an input; before IR version 4 every initializer had to be listed as one, and none can be overridden;
- a node with several outputs is a tuple, taken apart by `TupleGet` nodes that have the outputs' names;
- what the body of an If, Loop or Scan reads from outside is read by that node.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx.call import OWN_DOMAIN, Call, Read, Unsupported, attributes_of, qualified_type
from reparam_compiler.frontends.onnx.node_runner import captured, runner
from reparam_compiler.frontends.onnx.ops.coupling_models import expanded, expanded_type, shaped_like, sizes_from_value
from reparam_compiler.frontends.onnx.ops.table import coupling_model, read
from reparam_compiler.frontends.onnx.shapes.inference import (
    Sizes,
    Types,
    infer_outputs,
    infer_types,
    opset_of,
    refined,
)
from reparam_compiler.frontends.onnx.shapes.sampled import SampledShapes
from reparam_compiler.frontends.onnx.tensors import Constant, constant_of, dtype_word
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Operand, Param, TensorType
from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING
from reparam_compiler.vocabulary.resolve import onnx_facts


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the model has a parameter: the value's name, and whether the parameter is that matrix the other way round."""

    name: str
    transposed: bool


@dataclass
class OnnxReader:
    """Reads one model.

    shapes: of example inputs, by name. What the graph's types do not know is taken from there; how a node is read is not
        decided by it, for the model may be run on other sizes.
    node_index: for each id of a graph node that is a node of the model, its index there.
    stored: for each parameter that stands for a value of the model, that value.
    """

    model: ModelProto
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    node_index: dict[NodeId, int] = field(default_factory=dict)
    stored: dict[Param, Stored] = field(default_factory=dict)
    _constants: dict[str, Constant] = field(default_factory=dict)
    _params: dict[tuple[Constant, bool], Param] = field(default_factory=dict)
    _nodes: list[Node] = field(default_factory=list)
    _ids: set[NodeId] = field(default_factory=set)

    def read(self) -> Graph:
        """The graph; raises UnsupportedModelError for a model that is not a valid graph of tensors."""
        graph = self.model.graph
        self._opset = opset_of(self.model)
        self._functions = {(function.domain, function.name) for function in self.model.functions}
        self._types: Types = infer_types(self.model)
        self._examples = infer_types(self.model, self.shapes).types if self.shapes else {}
        self._sizes = Sizes(self._constants.get, self._types.types)
        self._sampled_shapes = SampledShapes(self.model, self._constants.get, self._dtype, self._type)
        self._better: set[str] = set()
        self._read_by = self._readers()
        self._names = self._check_names()
        overridable = overridable_names(self.model)
        for tensor in graph.initializer:
            if tensor.name not in overridable:
                self._constants[tensor.name] = constant_of(tensor, tensor.name)
        for value in graph.input:
            if value.name not in self._constants:
                self._emit(value.name, ops.Input(), ())
        for sparse in graph.sparse_initializer:
            self._emit(sparse.values.name, ops.Opaque("sparse_initializer"), ())
        for index, node in enumerate(graph.node):
            self._check_inputs(node)
            if not self._derive(node, index):
                self._read_node(node, index)
        for value in graph.output:
            if value.name in self._sampled_shapes and self._constant(value.name) is None:
                self._emit_derived(value.name)
            elif value.name in self._constants:
                self._emit(value.name, ops.Identity(), (self._param(value.name, "const", False),))
            elif value.name not in self._ids:
                raise UnsupportedModelError(f"the output {value.name} is given by no node; run onnx.checker on the model")
        outputs = [value.name for value in graph.output]
        return Graph.of(self._read_nodes(set(outputs)), outputs, sizes_are_fixed=not self._examples)

    @property
    def sized(self) -> dict[str, Constant]:
        """The constants that were taken from the sizes of computed values."""
        return {name: constant for name, constant in self._constants.items() if self._sampled_shapes.is_sized(name)}

    def _read_nodes(self, needed: set[NodeId]) -> list[Node]:
        """Without those whose every reader asks for sizes alone: they stay in the model, and are nothing to the graph."""
        kept = []
        for node in reversed(self._nodes):
            if node.id in self._read_by and node.id not in needed and not isinstance(node.op, ops.Input):
                self.node_index.pop(node.id, None)
                continue
            needed.update(node.sources)
            kept.append(node)
        return kept[::-1]

    def _readers(self) -> set[str]:
        """The values that something reads."""
        found = {value.name for value in self.model.graph.output}
        for node in self.model.graph.node:
            found.update(node.input)
            found.update(captured(node))
        return found

    def _check_names(self) -> set[str]:
        """All names of values; raises where two nodes give the same one."""
        graph = self.model.graph
        names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        names |= {tensor.values.name for tensor in graph.sparse_initializer}
        for node in graph.node:
            for name in filter(None, node.output):
                if name in names:
                    raise UnsupportedModelError(
                        f"{name}: two nodes give this value, or it is an input as well; run onnx.checker on the model"
                    )
                names.add(name)
        return names

    def _check_inputs(self, node: NodeProto) -> None:
        for name in filter(None, (*node.input, *captured(node))):
            if name not in self._constants and name not in self._ids and name not in self._sampled_shapes:
                found = "comes later" if name in self._names else "does not exist"
                raise UnsupportedModelError(
                    f"{_called(node)} reads {name}, which {found}; nodes must come in topological order: "
                    "run onnx.checker on the model"
                )

    def _derive(self, node: NodeProto, place: int) -> bool:
        """Notes what depends on constants and sizes alone; False for every other node."""
        if not self._is_resolved(node) or onnx_facts(node.op_type) & (Facts.RANDOM | Facts.QUANTIZED):
            return False
        if node.op_type == "Constant":
            return self._read_constant(node)
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return False
        if node.op_type == "Identity" and node.input[0] in self._constants:
            self._constants[node.output[0]] = self._constants[node.input[0]]
            return True
        if not self._sampled_shapes.follow(node, place):
            return False
        self._sizes.follow(node)
        self._refine(node)
        outputs = [name for name in node.output if name]
        found = {name: self._computed(name) for name in outputs if not self._sampled_shapes.is_open(name)}
        if not all(found.values()):
            self._sampled_shapes.forget(node)
            return False
        self._constants.update((name, constant) for name, constant in found.items() if constant)
        return True

    def _computed(self, name: str) -> Constant | None:
        """A constant that is computed when it is asked for, or at once where its shape is not known; None where that fails."""
        known = self._types.types.get(name)
        shape = known.static_shape if known else None
        if known and shape is not None:
            return Constant(name, known.dtype, shape, lambda: self._sampled_shapes.evaluate(name).reshape(shape), computed=True)
        try:
            value = self._sampled_shapes.evaluate(name)
        except UnsupportedModelError:
            return None
        return None if value.dtype.kind in "OSU" else self._evaluated(name, value)

    def _evaluated(self, name: str, value: np.ndarray) -> Constant:
        dtype = self._types.dtypes.get(name)
        if dtype is None:
            given = (self._dtype(source) for source in self._sampled_shapes.node(name)[1].input)
            floating = next((word for word in given if word and word in FLOATING), "f32")
            dtype = floating if value.dtype.kind == "f" else dtype_word(helper.np_dtype_to_tensor_dtype(value.dtype))
        return Constant(name, dtype, value.shape, lambda: value, computed=True)

    def _constant(self, name: str) -> Constant | None:
        """The constant of this name: where open sizes have a part in it, it is constant if they do not matter."""
        if name not in self._constants and name not in self._ids and self._sampled_shapes.is_open(name):
            value = self._sampled_shapes.same_in_all(name)
            if value is not None:
                self._constants[name] = self._evaluated(name, value)
        return self._constants.get(name)

    def _read_constant(self, node: NodeProto) -> bool:
        name, attribute = node.output[0], node.attribute[0] if node.attribute else None
        if attribute is None or attribute.name.startswith(("value_string", "sparse")):
            return False
        tensor = attribute.t
        if attribute.name != "value":
            value = helper.get_attribute_value(attribute)
            tensor = numpy_helper.from_array(np.array(value, np.float32 if "float" in attribute.name else np.int64))
        if tensor.data_type == TensorProto.STRING:
            return False
        self._constants[name] = constant_of(tensor, name)
        return True

    def _refine(self, node: NodeProto) -> None:
        """Types that ONNX's inference missed, because it does not see what a shape is made of."""
        types, given = self._types.types, [name for name in node.input if name]
        better = any(name in self._better or name in self._sampled_shapes for name in given)
        outputs = [name for name in node.output if name]
        if not better or all(name in types and types[name].static_shape is not None for name in outputs):
            return
        inputs = {name: self._constants.get(name) or types.get(name) for name in given}
        known = {name: found for name, found in inputs.items() if found is not None}
        if node.domain not in OWN_DOMAIN or len(known) < len(inputs):
            return
        for name, found in infer_outputs(self.model, node, known).items():
            if name not in types or _known_sizes(found) > _known_sizes(types[name]):
                types[name] = found
                self._types.dtypes[name] = found.dtype
                self._better.add(name)

    def _read_node(self, node: NodeProto, index: int) -> None:
        used = [name for name in node.output if name and name in self._read_by]
        try:
            if not self._is_resolved(node):
                raise Unsupported(node.op_type)
            op, operands = read(self.call_of(node))
            if not isinstance(op, ops.Split) and [name for name in used if name != node.output[0]]:
                raise Unsupported(f"{node.op_type} with several outputs")
        except Unsupported:
            op, operands = self._opaque(node)
        for operand in operands:
            if isinstance(operand, str) and operand not in self._ids:
                self._emit_derived(operand)
        self._refine(node)
        outputs = [name for name in node.output if name]
        if isinstance(op, ops.Split) or (isinstance(op, ops.Opaque) and len(outputs) != 1):
            self._emit_tuple(node, index, op, operands, outputs)
        else:
            self._emit(node.output[0], op, operands, index)
            self._sizes.follow(node)

    def _emit_derived(self, name: str) -> None:
        """Adds what computes a value from open sizes, now that something reads it."""
        place, node = self._sampled_shapes.node(name)
        self._read_node(node, place)

    def _emit_tuple(
        self, node: NodeProto, index: int, op: ops.Op, operands: tuple[Operand, ...], outputs: Sequence[str]
    ) -> None:
        wanted = f"{node.name or node.op_type}:outputs"
        numbered = (wanted if i == 0 else f"{wanted}:{i}" for i in range(len(self._names) + 1))
        whole = next(name for name in numbered if name not in self._names)
        self._names.add(whole)
        self._read_by.add(whole)
        self._emit(whole, op, operands, index)
        for place, name in enumerate(outputs):
            self._emit(name, ops.TupleGet(place), (whole,))

    def _opaque(self, node: NodeProto) -> Read:
        names = [*node.input, *captured(node)]
        given = [name for name in names if name]
        arrays = {name: DTYPES[dtype].numpy for name in given if (dtype := self._dtype(name)) and dtype in DTYPES}
        facts = onnx_facts(node.op_type) if self._is_resolved(node) else Facts.NONE
        run = None
        if (self._is_resolved(node) or self._is_function(node)) and (facts & (Facts.RANDOM | Facts.VIEW)) != Facts.RANDOM:
            run = runner(self.model, node, names, arrays, sum(map(bool, node.output)))
        if Facts.WIDTH_OF_INPUT in facts and run is not None:
            run = sizes_from_value(run)
        operands = tuple((self._operand(name) if name else None) for name in names)
        like, reads = self._coupling_model(node)
        other = shaped_like(self.call_of(node), like) if isinstance(like, ops.Expand) else None
        if isinstance(like, ops.Expand):
            run = expanded
        if other in self._ids:
            reads, operands = 2, (operands[0], other, *operands[1:])
        return ops.Opaque(qualified_type(node), run, like, reads, facts, attributes_of(node)), operands

    def _coupling_model(self, node: NodeProto) -> tuple[ops.Op | None, int]:
        """What pruning sees in an opaque node, and how many of its inputs that reads."""
        if not self._is_resolved(node) or captured(node):
            return None, 0
        self._refine(node)
        self._refine_expanded(node)
        example = self._examples.get(node.output[0])
        try:
            return coupling_model(self.call_of(node), refined(self._types.types.get(node.output[0]), example))
        except Unsupported:
            return None, 0

    def _refine_expanded(self, node: NodeProto) -> None:
        known = self._types.types.get(node.output[0])
        if node.op_type != "Expand" or (known is not None and known.static_shape is not None):
            return
        try:
            found = expanded_type(self.call_of(node))
        except Unsupported:
            return
        if found is not None and (known is None or _known_sizes(found) > _known_sizes(known)):
            self._types.types[node.output[0]] = found
            self._better.add(node.output[0])

    def _operand(self, name: str) -> Operand:
        return name if self._constant(name) is None else self._param(name, "const", False)

    def call_of(self, node: NodeProto) -> Call:
        """A node of the model, and what is known of its inputs."""
        return Call(
            node, self._opset, self._constant, self._param, self._dtype, self._type, self._sizes.of, self._samples, self._shapes
        )

    def _samples(self, name: str) -> list[np.ndarray] | None:
        if name in self._sampled_shapes:
            return self._sampled_shapes.sampled(name)
        constant = self._constants.get(name)
        return None if constant is None else [constant.load()] * self._sampled_shapes.tries

    def _shapes(self, name: str) -> list[tuple[int, ...]] | None:
        known = self._type(name)
        return None if known is None else self._sampled_shapes.shapes(known)

    def _param(self, name: str, role: str, transposed: bool) -> Param:
        """One parameter for each constant, so that it is seen where it is shared; the first reader gives it its role."""
        constant = self._constants[name]
        key = (constant, transposed)
        if key not in self._params:
            param = constant.transposed(role) if transposed else constant.param(role)
            self._params[key] = param
            self.stored[param] = Stored(constant.name, transposed)
        return self._params[key]

    def _dtype(self, name: str) -> str | None:
        constant = self._constants.get(name)
        return constant.dtype if constant else self._types.dtypes.get(name)

    def _type(self, name: str) -> TensorType | None:
        constant = self._constants.get(name)
        return TensorType(constant.dtype, constant.shape) if constant else self._types.types.get(name)

    def _emit(self, node_id: NodeId, op: ops.Op, operands: tuple[Operand, ...], index: int | None = None) -> None:
        """Adds a node. Where inference knew no dtype, exact ops of floats pass that of an operand on."""
        if isinstance(op, ops.Identity) or (isinstance(op, ops.Reshape) and not any(op.shape)):
            self._pass_type_on(operands[0], node_id)
        known = refined(self._types.types.get(node_id), self._examples.get(node_id))
        self._nodes.append(Node(node_id, op, operands, known))
        self._ids.add(node_id)
        if index is not None:
            self.node_index[node_id] = index
        if node_id not in self._types.dtypes and not isinstance(op, ops.Opaque | ops.Input | ops.Split | ops.TupleGet):
            dtypes = (o.dtype if isinstance(o, Param) else self._types.dtypes.get(o or "") for o in operands)
            if found := next(filter(None, dtypes), None):
                self._types.dtypes[node_id] = found

    def _pass_type_on(self, operand: Operand, node_id: NodeId) -> None:
        types = self._types.types
        known = types.get(operand) if isinstance(operand, str) else None
        if known is None or self._dtype(node_id) not in (known.dtype, None):
            return
        if node_id not in types or _known_sizes(known) > _known_sizes(types[node_id]):
            types[node_id] = known
            self._better.add(node_id)

    def _is_resolved(self, node: NodeProto) -> bool:
        """True for what the vocabulary may have a row of: a type of ONNX's own domain that the model does not define."""
        return node.domain in OWN_DOMAIN and not self._is_function(node)

    def _is_function(self, node: NodeProto) -> bool:
        return (node.domain, node.op_type) in self._functions


def _known_sizes(known: TensorType) -> tuple[int, int]:
    """How much a type says: sizes, then names of sizes."""
    return sum(isinstance(size, int) for size in known.shape), sum(size is not None for size in known.shape)


def overridable_names(model: ModelProto) -> set[str]:
    """The initializers that a caller can override: those that are model inputs too, since IR version 4."""
    if model.ir_version < 4:
        return set()
    return {tensor.name for tensor in model.graph.initializer} & {value.name for value in model.graph.input}


def _called(node: NodeProto) -> str:
    return f"{node.name or node.op_type} ({node.op_type})"
