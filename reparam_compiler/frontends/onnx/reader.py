"""An ONNX model read as a Graph; the ids are the names of the values.

Three things that the format hides are made explicit here:

- what depends on no input is a parameter: initializers, Constant nodes, and what is computed from those (weights that an
  exporter left parametrized), evaluated when it is asked for. An initializer that is also a model input can be overridden by
  the caller, so it is an input; before IR version 4 every initializer had to be listed as one, and none can be overridden;
- a node with several outputs is a tuple, taken apart by `TupleGet` nodes that have the outputs' names;
- what the body of an If, Loop or Scan reads from outside is read by that node.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from onnx import ModelProto, NodeProto

from reparam_compiler.errors import UnsupportedModelError, class_and_line
from reparam_compiler.frontends.onnx.bound import Bound
from reparam_compiler.frontends.onnx.call import Call, Read, Unsupported, attributes_of
from reparam_compiler.frontends.onnx.causes import why_opaque
from reparam_compiler.frontends.onnx.io import copy_without
from reparam_compiler.frontends.onnx.node_runner import captured, has_body, runner
from reparam_compiler.frontends.onnx.ops.coupling_models import expanded, expanded_type, shaped_like
from reparam_compiler.frontends.onnx.ops.resampling import resized
from reparam_compiler.frontends.onnx.ops.table import coupling_model, read
from reparam_compiler.frontends.onnx.shapes import evaluator as shapes
from reparam_compiler.frontends.onnx.tensors import RUN_CHECKER, Constant, called, constant_of
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Operand, Param, TensorType
from reparam_compiler.ir.ops import Facts
from reparam_compiler.ir.windows import ConvPadding
from reparam_compiler.passes.pruning.coupling.registry import COUPLING_RULES, registered_coupling
from reparam_compiler.vocabulary.dtypes import DTYPES
from reparam_compiler.vocabulary.resolve import onnx_facts

logger = logging.getLogger(__name__)
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the model has a parameter: the value's name, and whether the parameter is that matrix the other way round."""

    name: str
    transposed: bool


@dataclass
class OnnxReader:
    """Reads one model.

    examples: shapes of example inputs, by name. What the graph's types do not know is taken from there; how a node is read is
        not decided by it, for the model may be run on other sizes.
    node_index: for each id of a graph node that is a node of the model, its index there.
    stored: for each parameter that stands for a value of the model, that value.
    shapes: what is known of the model's values.
    """

    model: ModelProto
    examples: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    node_index: dict[NodeId, int] = field(default_factory=dict)
    stored: dict[Param, Stored] = field(default_factory=dict)
    _params: dict[tuple[Constant, bool], Param] = field(default_factory=dict)
    _nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shapes = shapes.of(self.model)
        self._bound = Bound.of(self.model, self.examples, self.shapes.type) if self.examples else None

    def read(self) -> Graph:
        """The graph; raises UnsupportedModelError for a model that is not a valid graph of tensors."""
        graph = self.model.graph
        self._read_by = self._readers()
        self._names = self._check_names()
        self._overridable = overridable_names(self.model)
        self._givers = {name: node for node in graph.node for name in node.output}
        self._read_inputs()
        for index, node in enumerate(graph.node):
            self._check_inputs(node)
            if not self.shapes.derive(node, index):
                self._read_node(node, index)
        outputs = [value.name for value in graph.output]
        for name in outputs:
            self._read_output(name)
        read = Graph.of(self._read_nodes(set(outputs)), outputs, sizes_are_fixed=self._bound is None)
        return replace(read, conv_padding=ConvPadding(("zeros",)))

    def _read_inputs(self) -> None:
        """Initializers become constants; the model's inputs, and sparse tensors, nodes."""
        graph = self.model.graph
        for tensor in graph.initializer:
            if tensor.name not in self._overridable:
                self.shapes.constants[tensor.name] = constant_of(tensor, tensor.name)
        for value in graph.input:
            if value.name not in self.shapes.constants:
                self._emit(value.name, ops.Input(), ())
        for sparse in graph.sparse_initializer:
            self._emit(sparse.values.name, ops.Opaque("sparse_initializer"), ())

    def _read_output(self, name: str) -> None:
        """Adds what gives a constant, or one of sizes, that the model returns."""
        if name in self.shapes.values:
            return
        if name not in self.shapes:
            raise UnsupportedModelError(f"the output {name} is given by no node; {RUN_CHECKER}")
        if self.shapes.constant(name) is None:
            self._emit_derived(name)
        else:
            self._emit(name, ops.Identity(), (self._param(name, "const", False),))

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
                    raise UnsupportedModelError(f"{name}: two nodes give this value, or it is an input as well; {RUN_CHECKER}")
                names.add(name)
        return names

    def _check_inputs(self, node: NodeProto) -> None:
        for name in filter(None, (*node.input, *captured(node))):
            if name not in self.shapes and name not in self.shapes.values:
                found = "comes later" if name in self._names else "does not exist"
                raise UnsupportedModelError(
                    f"{called(node)} reads {name}, which {found}; nodes must come in topological order: {RUN_CHECKER}"
                )

    def _read_node(self, node: NodeProto, index: int) -> None:
        used = [name for name in node.output if name and name in self._read_by]
        try:
            if not self.shapes.is_resolved(node):
                raise Unsupported(node.op_type)
            op, operands = self._of(node, lambda: read(self.call_of(node)))
            if not isinstance(op, ops.Split) and [name for name in used if name != node.output[0]]:
                raise Unsupported(f"{node.op_type} with several outputs")
        except Unsupported:
            op, operands = self._opaque(node)
        for operand in operands:
            if isinstance(operand, str) and operand not in self.shapes.values:
                self._emit_derived(operand)
        self.shapes.refine(node)
        outputs = [name for name in node.output if name]
        if isinstance(op, ops.Split) or (isinstance(op, ops.Opaque) and len(outputs) != 1):
            self._emit_tuple(node, index, op, operands, outputs)
        else:
            self._emit(node.output[0], op, operands, index)
            self.shapes.follow(node)

    def _of(self, node: NodeProto, ask: Callable[[], Found]) -> Found:
        """What the vocabulary says of a node.

        Where it stumbles: UnsupportedModelError with what ONNX says against the node, Unsupported where ONNX takes it.
        """
        try:
            return ask()
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            if (refusal := self.shapes.refusal(node)) is not None:
                raise UnsupportedModelError(f"{called(node)} is no valid node: {refusal}; {RUN_CHECKER}") from error
            logger.warning(
                "%s stays as it is: its reader did not foresee it (%s); please report it", called(node), class_and_line(error)
            )
            raise Unsupported(f"{node.op_type} that its reader did not foresee") from error

    def _emit_derived(self, name: str) -> None:
        """Adds what computes a value from open sizes, now that something reads it."""
        place, node = self.shapes.node(name)
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
        arrays = {name: DTYPES[dtype].numpy for name in given if (dtype := self.shapes.dtype(name)) and dtype in DTYPES}
        resolved, run = self.shapes.is_resolved(node), None
        facts = onnx_facts(node.op_type) if resolved else Facts.NONE
        draws = Facts.RANDOM in facts and Facts.VIEW not in facts  # a dropout gives its input in evaluation
        runs = has_body(node.op_type, self.shapes.opset) if resolved else self.shapes.is_function(node)
        if runs and not draws:
            run = runner(self.model, node, names, arrays, sum(map(bool, node.output)))
        if Facts.WIDTH_OF_INPUT in facts and run is not None:
            run = resized(run, node, self.shapes.opset)
        operands = tuple((self._operand(name) if name else None) for name in names)
        called = node.op_type if resolved else f"{node.domain}::{node.op_type}"
        why = why_opaque(node, self._givers, self._overridable, lambda name: self.shapes.constant(name) is not None)
        seen = ops.Opaque(called, run, facts=facts, arguments=attributes_of(node), why=why if resolved else "")
        like, reads = self._coupling_model(node, seen, operands)
        if isinstance(like, ops.Expand) and seen.target == "Expand":
            run = expanded
            if (other := shaped_like(self.call_of(node), like)) in self.shapes.values:
                reads, operands = 2, (operands[0], other, *operands[1:])
        return replace(seen, run=run, coupling=like, reads=reads), operands

    def _coupling_model(self, node: NodeProto, seen: ops.Opaque, operands: tuple[Operand, ...]) -> tuple[ops.Op | None, int]:
        """What pruning sees in an opaque node, and how many of its inputs that reads."""
        if captured(node):
            return None, 0
        if seen.target in COUPLING_RULES:
            return self._registered_coupling(node, seen, operands)
        if not self.shapes.is_resolved(node) or not has_body(node.op_type, self.shapes.opset):
            return None, 0
        self.shapes.refine(node)
        self._refine_expanded(node)
        try:
            if (bound := self._bound) is not None:
                return self._of(node, lambda: bound.coupling_model(node))
            return self._of(node, lambda: coupling_model(self.call_of(node), self.shapes.type(node.output[0])))
        except Unsupported:
            return None, 0

    def _registered_coupling(
        self, node: NodeProto, seen: ops.Opaque, operands: tuple[Operand, ...]
    ) -> tuple[ops.Op | None, int]:
        """The same for an op that a caller registered a rule for. One that cannot be run is left: nothing would be proven."""
        if seen.run is None:
            logger.info("%s has a coupling rule, but no body in the model that could be run: its channels stay", seen.target)
            return None, 0
        reads = next((index for index, operand in enumerate(operands) if operand is None), len(operands))
        like = registered_coupling(Node(node.output[0], seen, operands[:reads], self._type(node.output[0])))
        return (None, 0) if like is None else (like, reads)

    def _refine_expanded(self, node: NodeProto) -> None:
        known = self.shapes.type(node.output[0])
        if node.op_type != "Expand" or (known is not None and known.static_shape is not None):
            return
        try:
            found = self._of(node, lambda: expanded_type(self.call_of(node)))
        except Unsupported:
            return
        if found is not None:
            self.shapes.note_type(node.output[0], found)

    def _type(self, name: str) -> TensorType | None:
        """The type of a value; with example inputs its open sizes are those that it has for them."""
        known = self.shapes.type(name)
        return known if self._bound is None else self._bound.type(name, known)

    def _operand(self, name: str) -> Operand:
        return name if self.shapes.constant(name) is None else self._param(name, "const", False)

    def call_of(self, node: NodeProto) -> Call:
        """A node of the model, and what is known of its inputs."""
        return Call(node, self.shapes, self._param)

    def _param(self, name: str, role: str, transposed: bool) -> Param:
        """One parameter for each constant, so that it is seen where it is shared; the first reader gives it its role."""
        constant = self.shapes.constants[name]
        key = (constant, transposed)
        if key not in self._params:
            param = constant.transposed(role) if transposed else constant.param(role)
            self._params[key] = param
            self.stored[param] = Stored(constant.name, transposed)
        return self._params[key]

    def _emit(self, node_id: NodeId, op: ops.Op, operands: tuple[Operand, ...], index: int | None = None) -> None:
        """Adds a node. Where inference knew no dtype, exact ops of floats pass that of an operand on."""
        if isinstance(operands[0] if operands else None, str) and _keeps_type(op):
            self.shapes.note_same(str(operands[0]), node_id)
        self._nodes.append(Node(node_id, op, operands, self._type(node_id)))
        self.shapes.values.add(node_id)
        if index is not None:
            self.node_index[node_id] = index
        if not isinstance(op, ops.Opaque | ops.Input | ops.Split | ops.TupleGet):
            dtypes = (o.dtype if isinstance(o, Param) else self.shapes.dtype(o or "") for o in operands)
            self.shapes.note_dtype(node_id, next(filter(None, dtypes), None))


def _keeps_type(op: ops.Op) -> bool:
    return isinstance(op, ops.Identity) or (isinstance(op, ops.Reshape) and not any(op.shape))


def overridable_names(model: ModelProto) -> set[str]:
    """The initializers that a caller can override: those that are model inputs too, since IR version 4."""
    if model.ir_version < 4:
        return set()
    return {tensor.name for tensor in model.graph.initializer} & {value.name for value in model.graph.input}


def with_constant_weights(model: ModelProto, *, copy: bool) -> ModelProto:
    """The model with no initializer among its inputs, so that no caller can override one; a copy of it where that is asked for.

    Before IR version 4 all are listed, and none can be overridden: such a model stays as it is.
    """
    overridable = overridable_names(model)
    if not overridable:
        return model
    constant = copy_without(model, ()) if copy else model
    inputs = [value for value in model.graph.input if value.name not in overridable]
    del constant.graph.input[:]
    constant.graph.input.extend(inputs)
    return constant
