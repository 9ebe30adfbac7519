"""An ONNX model read as a Graph; the ids are the names of the values.

Three things that the format hides are made explicit here:

- what depends on no input is a parameter: initializers, Constant nodes, and what is computed from those (weights that an
  exporter left parametrized), evaluated when it is asked for. An initializer that is also a model input can be overridden by
  the caller, so it is an input; before IR version 4 every initializer had to be listed as one, and none can be overridden;
- a node with several outputs is a tuple, taken apart by `Item` nodes that have the outputs' names;
- what the body of an If, Loop or Scan reads from outside is read by that node.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.onnx_call import Call, Read, Unread
from reparam_compiler.frontends.onnx_ops import NOT_FOLDED, RANDOM, READERS
from reparam_compiler.frontends.onnx_run import captured, fold, runner
from reparam_compiler.frontends.onnx_types import Sizes, Types, infer_types, refined
from reparam_compiler.frontends.onnx_values import ARRAYS, Constant, constant_of, dtype_word
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Operand, Param, TensorType

OLDEST_OPSET = 7
_OWN_DOMAIN = ("", "ai.onnx")


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
    natives: for each id of a graph node that is a node of the model, its index there.
    stored: for each parameter that stands for a value of the model, that value.
    """

    model: ModelProto
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    natives: dict[NodeId, int] = field(default_factory=dict)
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
            if not self._fold(node):
                self._read_node(node, index)
        for value in graph.output:
            if value.name in self._constants:
                self._emit(value.name, ops.Identity(), (self._param(value.name, "const", False),))
            elif value.name not in self._ids:
                raise UnsupportedModelError(f"the output {value.name} is given by no node; run onnx.checker on the model")
        return Graph.of(self._nodes, [value.name for value in graph.output])

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
            if name not in self._constants and name not in self._ids:
                found = "comes later" if name in self._names else "does not exist"
                raise UnsupportedModelError(
                    f"{_called(node)} reads {name}, which {found}; nodes must come in topological order: "
                    "run onnx.checker on the model"
                )

    def _fold(self, node: NodeProto) -> bool:
        """Makes a node that depends on no input a constant; False for every other node."""
        if node.domain not in _OWN_DOMAIN or node.op_type in RANDOM | NOT_FOLDED or self._is_function(node):
            return False
        if node.op_type == "Constant":
            return self._read_constant(node)
        names = [name for name in node.input if name]
        if not names or any(name not in self._constants for name in (*names, *captured(node))):
            return False
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return False
        if node.op_type == "Identity":
            self._constants[node.output[0]] = self._constants[node.input[0]]
            return True
        return self._compute(node, names)

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

    def _compute(self, node: NodeProto, names: Sequence[str]) -> bool:
        """Constants that are computed when they are asked for, or at once where their types are not known."""
        sources = {name: self._constants[name] for name in names}

        def compute() -> list[np.ndarray]:
            found = fold(self.model, node, {name: source.load() for name, source in sources.items()})
            if found is None:
                raise UnsupportedModelError(
                    f"{_called(node)} depends on constants alone, but cannot be evaluated; fold it before, with onnxruntime"
                )
            return found

        outputs = [name for name in node.output if name]
        types = [self._types.types.get(name) for name in outputs]
        for place, (name, known) in enumerate(zip(outputs, types, strict=True)):
            shape = known.static_shape if known else None
            if known and shape is not None:
                load = lambda place=place, shape=shape: compute()[place].reshape(shape)  # noqa: E731
                self._constants[name] = Constant(name, known.dtype, shape, load, computed=True)
                continue
            found = fold(self.model, node, {n: source.load() for n, source in sources.items()})
            if found is None or found[place].dtype.kind in "OSU":
                return False
            tensor = numpy_helper.from_array(found[place], name)
            value = found[place]
            load_known = lambda value=value: value  # noqa: E731
            self._constants[name] = Constant(name, dtype_word(tensor.data_type), value.shape, load_known, computed=True)
        return True

    def _read_node(self, node: NodeProto, index: int) -> None:
        used = [name for name in node.output if name and name in self._read_by]
        try:
            if node.domain not in _OWN_DOMAIN or self._is_function(node) or node.op_type not in READERS:
                raise Unread(node.op_type)
            op, operands = READERS[node.op_type](self._call(node))
            if not isinstance(op, ops.Split) and [name for name in used if name != node.output[0]]:
                raise Unread(f"{node.op_type} with several outputs")
        except Unread:
            op, operands = self._opaque(node)
        outputs = [name for name in node.output if name]
        if isinstance(op, ops.Split) or (isinstance(op, ops.Opaque) and len(outputs) != 1):
            self._emit_tuple(node, index, op, operands, outputs)
        else:
            self._emit(node.output[0], op, operands, index)
            self._sizes.follow(node)

    def _emit_tuple(
        self, node: NodeProto, index: int, op: ops.Op, operands: tuple[Operand, ...], outputs: Sequence[str]
    ) -> None:
        wanted = f"{node.name or node.op_type}:outputs"
        numbered = (wanted if i == 0 else f"{wanted}:{i}" for i in range(len(self._names) + 1))
        whole = next(name for name in numbered if name not in self._names)
        self._names.add(whole)
        self._emit(whole, op, operands, index)
        for place, name in enumerate(outputs):
            self._emit(name, ops.Item(place), (whole,))

    def _opaque(self, node: NodeProto) -> Read:
        names = [*node.input, *captured(node)]
        given = [name for name in names if name]
        arrays = {name: ARRAYS[dtype] for name in given if (dtype := self._dtype(name)) in ARRAYS}
        known = node.domain in _OWN_DOMAIN or self._is_function(node)
        run = None
        if known and node.op_type not in RANDOM - {"Dropout"}:
            run = runner(self.model, node, names, arrays, sum(map(bool, node.output)))
        operands = tuple((self._operand(name) if name else None) for name in names)
        return ops.Opaque(node.op_type, run), operands

    def _operand(self, name: str) -> Operand:
        return self._param(name, "const", False) if name in self._constants else name

    def _call(self, node: NodeProto) -> Call:
        return Call(node, self._opset, self._constants.get, self._param, self._dtype, self._type, self._sizes.of)

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
        known = refined(self._types.types.get(node_id), self._examples.get(node_id))
        self._nodes.append(Node(node_id, op, operands, known))
        self._ids.add(node_id)
        if index is not None:
            self.natives[node_id] = index
        if node_id not in self._types.dtypes and not isinstance(op, ops.Opaque | ops.Input | ops.Split | ops.Item):
            dtypes = (o.dtype if isinstance(o, Param) else self._types.dtypes.get(o or "") for o in operands)
            if found := next(filter(None, dtypes), None):
                self._types.dtypes[node_id] = found

    def _is_function(self, node: NodeProto) -> bool:
        return (node.domain, node.op_type) in self._functions


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own domain; raises UnsupportedModelError for one that is too old, or where there is none."""
    versions = [entry.version for entry in model.opset_import if entry.domain in _OWN_DOMAIN]
    if not versions or versions[0] < OLDEST_OPSET:
        raise UnsupportedModelError(
            f"the model's opset is {versions[0] if versions else 'missing'}, at least {OLDEST_OPSET} was expected; "
            "convert it with onnx.version_converter"
        )
    return int(versions[0])


def overridable_names(model: ModelProto) -> set[str]:
    """The initializers that a caller can override: those that are model inputs too, since IR version 4."""
    if model.ir_version < 4:
        return set()
    return {tensor.name for tensor in model.graph.initializer} & {value.name for value in model.graph.input}


def _called(node: NodeProto) -> str:
    return f"{node.name or node.op_type} ({node.op_type})"
