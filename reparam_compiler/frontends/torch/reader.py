"""A torch.fx graph read as a Graph: what FX modules and exported programs have in common.

Three things that tracing hides are made explicit here:

- a call whose tensors are all parameters is a parameter itself (a parametrization, a kernel computed in the graph), evaluated
  in float64 when it is asked for (`frontends/torch/constant_folding.py`);
- an in-place call writes into its first argument: whatever reads that argument later reads the call's value, also where it is
  a part that is written (`partial_writes.py`). Where a view of the same storage is read later, everything that touches it is
  opaque, and a parameter that is written to is none (`frontends/torch/aliasing.py`);
- sizes and other numbers that are computed in the graph are opaque, and so is what a constant becomes by them.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree

from reparam_compiler.errors import UnsupportedModelError, class_and_line
from reparam_compiler.frontends.torch.aliasing import Writes, find_writes, first_argument
from reparam_compiler.frontends.torch.arguments import by_own_words
from reparam_compiler.frontends.torch.call import Call, Read, Unsupported
from reparam_compiler.frontends.torch.called import inplace_place, is_read_by_its_first, resolve, scalar_arguments, tuple_behind
from reparam_compiler.frontends.torch.causes import is_layer, why_call, why_module, why_unbatched
from reparam_compiler.frontends.torch.constant_folding import (
    Constant,
    assigned,
    folded,
    in_float64,
    is_pure,
    nearest,
    of_a_value,
)
from reparam_compiler.frontends.torch.opaque_call import OpaqueCall
from reparam_compiler.frontends.torch.ops.coupling_models import COUPLING_MODELS, operand_places
from reparam_compiler.frontends.torch.ops.modules import ModuleTensor, module_arguments
from reparam_compiler.frontends.torch.ops.table import READERS
from reparam_compiler.frontends.torch.partial_writes import Part, PartReader
from reparam_compiler.frontends.torch.tensors import lazy_param, param_of, type_of
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Operand, Param
from reparam_compiler.ir.ops import IN_PLACE, Facts
from reparam_compiler.passes.pruning.coupling.registry import COUPLING_RULES, registered_coupling
from reparam_compiler.vocabulary.resolve import Resolved

_GUARDS = frozenset({"torch.export._unlift.GuardsFn"})
"""What an exported program checks its inputs by, as a module."""


@dataclass
class TorchReader:
    """Reads one fx graph.

    fx_graph: what to read.
    module: where its modules live.
    tensors: for each placeholder and get_attr node that stands for a parameter, its name and the tensor.
    mutable: those of them that a run of the model changes: they are no constants.
    values: for each node the tensor (fake or real) that it gives, where it is known.
    written_into: once it is read, for each in-place write to a part of a value what it writes into.
    same: once it is read, for each node that is another name of a value (an identity, a copy) that value.
    """

    fx_graph: fx.Graph
    module: nn.Module
    tensors: Mapping[str, tuple[str, Tensor]]
    values: Mapping[str, Any]
    mutable: frozenset[str] = frozenset()
    writes: Writes = field(init=False)
    written_into: dict[str, NodeId] = field(default_factory=dict)
    same: dict[str, NodeId] = field(default_factory=dict)
    _resolved: dict[fx.Node, Resolved] = field(default_factory=dict)
    _changing: set[int] = field(default_factory=set)
    _bound: dict[fx.Node, NodeId] = field(default_factory=dict)
    _constants: dict[fx.Node, Constant] = field(default_factory=dict)
    _numbers: set[fx.Node] = field(default_factory=set)
    _params: dict[int | str | Constant, Param] = field(default_factory=dict)
    _nodes: list[Node] = field(default_factory=list)
    _parts: PartReader = field(init=False)
    _led_to_writes: set[str] = field(default_factory=set)

    def read(self) -> Graph:
        """The graph; the ids are the fx nodes' names."""
        keys = {name: id(tensor) for name, (_, tensor) in self.tensors.items()}
        self._parts = PartReader(self._resolve, self._rank)
        self.writes = find_writes(self.fx_graph, self._resolve, lambda node: keys.get(node.name), self._parts.written)
        self._changing = {keys[name] for name in self.mutable} | {keys[n.name] for n in self.writes.opaque if n.name in keys}
        outputs: list[NodeId] = []
        for node in self.fx_graph.nodes:
            if keys.get(node.name) in self._changing:
                self._emit(node, ops.Opaque("get_attr"), ())
            elif node.name in self.tensors:
                self._constants[node] = Constant.stored(*self.tensors[node.name])
            elif node.op == "placeholder":
                self._read_argument(node)
            elif node.op == "output":
                outputs = [self._bound[source] for source in node.all_input_nodes if source in self._bound]
            elif node.op == "get_attr" or not self._fold(node):
                self._read_call(node)
        return Graph.of(self._needed(outputs), outputs)

    def _read_argument(self, node: fx.Node) -> None:
        """An input; or, where it is known to be no tensor (a flag, None, the default of what is not given), a number."""
        value = self.values.get(node.name)
        given = any(isinstance(leaf, Tensor | torch.SymInt | torch.SymFloat) for leaf in _pytree.tree_leaves(value))
        if given or node.name not in self.values:
            self._emit(node, ops.Input(), ())
            return
        self._numbers.add(node)
        self._emit(node, ops.Opaque("argument", lambda: value, facts=Facts.ARGUMENT), ())

    def _needed(self, outputs: list[NodeId]) -> list[Node]:
        """The nodes, less those that only led to a write to a part of a value, where the graph has it as one op."""
        needed: list[Node] = []
        read = set(outputs)
        for node in reversed(self._nodes):
            if node.id in read or node.id not in self._led_to_writes:
                needed.append(node)
                read.update(node.sources)
        return needed[::-1]

    def _resolve(self, node: fx.Node) -> Resolved:
        """What a call is."""
        known = self._resolved.get(node)
        if known is None:
            known = self._resolved[node] = resolve(node, self.module)
        return known

    def _read_call(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self._emit(node, ops.Opaque("get_attr"), ())
            return
        called = self._resolve(node)
        if is_read_by_its_first(node):
            return  # read where its first element is taken
        if Facts.SIZE_QUERY in called.facts or self._is_computed_number(node):
            self._numbers.add(node)
        try:
            part = self._part(node, called)
            if part is not None:
                self._assign(node, part)
                return
            if Facts.GIVES_FIRST in called.facts:
                raise Unsupported("a tuple of which more than the first element is read")
            op, operands = self._known(tuple_behind(node) or node)
        except Unsupported:
            if (behind := tuple_behind(node)) is not None:
                self._emit(behind, *self._opaque(behind, self._resolve(behind)))
            op, operands = self._opaque(node, called)
        if isinstance(op, ops.Identity) and isinstance(operands[0], str) and not self._may_change(node):
            self._bound[node] = operands[0]  # another name of the same value; tracers differ in which they keep
            self.same[node.name] = operands[0]
        else:
            self._emit(node, op, operands)
        self._rebind(node)

    def _part(self, node: fx.Node, called: Resolved) -> Part | None:
        """What a write to a part of a value writes; None for any other call."""
        if node in self.writes.parts:
            return self.writes.parts[node]
        if node in self._numbers or node in self.writes.opaque:
            raise Unsupported("not a tensor, or written to through a view")
        return self._parts.scattered(node) if called.is_("slice_scatter") else None

    def _is_computed_number(self, node: fx.Node) -> bool:
        traced = [source for source in node.all_input_nodes if source not in self._constants]
        return bool(traced) and all(source in self._numbers for source in traced) and self._is_number(node)

    def _rebind(self, node: fx.Node) -> None:
        for written in self.writes.rebound.get(node, ()):
            self._bound[written] = node.name
            self._constants.pop(written, None)

    def _assign(self, node: fx.Node, part: Part) -> None:
        """A write to a part of a value, in place or not. What only led to it is no part of the graph."""
        base, value = self._operand(part.base, "const"), self._operand(self._value(part.value, part.base), "const")
        self._led_to_writes.update(source.name for source in part.through)
        self.written_into[node.name] = base if isinstance(base, str) else part.base.name
        if isinstance(base, Param) and isinstance(value, Param):
            into, index = self._constants[part.base], [slice(None)] * len(base.shape)
            for axis, start, stop in part.cuts:
                index[axis] = slice(start, stop)
            with_part = assigned(into, tuple(index), self._constants.get(part.value, part.value))
            for written in (node, *self.writes.rebound.get(node, ())):
                self._constants[written] = with_part
            return
        self._emit(node, ops.SliceUpdate(part.cuts), (base, value), like=part.base)
        self._rebind(node)

    def _value(self, value: Any, base: fx.Node) -> Any:
        """What is written, without a view that only takes leading axes of 1 away: it is broadcast."""
        if not isinstance(value, fx.Node) or not isinstance(constant := self._constants.get(value), Constant):
            return value
        before = self._constants.get(first) if (first := first_argument(value)) is not None else None
        shapes = [tuple(c.value.shape) for c in (constant, before) if c is not None and isinstance(c.value, Tensor)]
        same = len(shapes) == 2 and self._resolve(value).is_("view", "reshape") and _core(shapes[0]) == _core(shapes[1])
        known = self._type(base)
        return first if same and known is not None and len(shapes[1]) <= len(known.shape) else value

    def _is_number(self, node: fx.Node) -> bool:
        """Whether a call of numbers and constants gives a number; without a recorded value operators on numbers do."""
        if node.name in self.values:
            return not isinstance(self.values[node.name], Tensor)
        constants = [self._constants[source].value for source in node.all_input_nodes if source in self._constants]
        module = getattr(node.target, "__module__", None)
        return module in ("_operator", "builtins", "math") and not any(isinstance(value, Tensor) for value in constants)

    def _may_change(self, node: fx.Node) -> bool:
        return any(other in self.writes.changing for other in (node, *node.all_input_nodes))

    def _known(self, node: fx.Node) -> Read:
        call, mode = self._call(node, self._number_or_node), None
        row = self._resolve(node).row
        if row is None or row not in READERS:
            raise Unsupported(call.name)
        if node.op == "call_module":
            mode = getattr(self.module.get_submodule(str(node.target)), "padding_mode", None)
        op, operands = READERS[row](call)
        if any(self._bound.get(number) in operands for number in self._numbers if number in node.all_input_nodes):
            raise Unsupported("an operand that is a computed number")
        return (replace(op, mode=mode) if isinstance(op, ops.Conv) and mode else op), operands

    def _call(self, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Call:
        """A call with the arguments that the function of its row takes, without what says that it writes in place."""
        called = self._resolve(node)
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), value_of)
        if node.op == "call_module":
            if called.row is None or len(args) != 1 or kwargs:
                raise Unsupported(f"a {called.name} module")
            path = str(node.target)
            args = (args[0], *module_arguments(called.row, self.module.get_submodule(path), path))
        elif node.op == "call_function" and (place := inplace_place(node.target)) is not None:
            args, kwargs = args[:place], {key: value for key, value in kwargs.items() if key != "inplace"}
        return Call(called.name, tuple(args), by_own_words(kwargs), self._operand, self._type, self._size_of)

    def _opaque(self, node: fx.Node, called: Resolved) -> Read:
        """What has no rule. Running it changes nothing that is read later, but where the graph leaves writes as they are."""
        constants = ((source, self._constants.get(source)) for source in node.all_input_nodes)
        numbers = {source: c.value for source, c in constants if c is not None and not isinstance(c.value, Tensor)}
        sources = [source for source in node.all_input_nodes if source not in numbers]
        model, operands = self._coupling_model(node, called)
        inputs, places = operand_places([self._operand(source, "const") for source in sources], operands)
        copies = called.writes and node not in self.writes.opaque
        given = node.args, dict(node.kwargs)
        run = OpaqueCall(node, self.module, given, called, model, numbers, tuple(sources), places, copies)
        arguments = scalar_arguments(node, self.module, self._value_or_node)
        facts = called.facts | (Facts.CHECK if called.name in _GUARDS else Facts.NONE)
        facts |= Facts.WRITTEN if node in self.writes.opaque else Facts.NONE
        return ops.Opaque(called.name, run, model, len(operands), facts, arguments, self._why(node, called)), inputs

    def _why(self, node: fx.Node, called: Resolved) -> str:
        """Why a layer is opaque; empty for every other call."""
        if node.op == "call_module":
            why = why_module(self.module.get_submodule(str(node.target)))
        else:
            why = why_call(node, called.row, self._constants, self.tensors)
        if not why and node in self.writes.opaque and is_layer(called.row):
            return IN_PLACE
        x = first_argument(node)
        return why or why_unbatched(called.row, None if x is None else self.values.get(x.name))

    def _coupling_model(self, node: fx.Node, called: Resolved) -> tuple[ops.Op | None, tuple[Operand, ...]]:
        """What pruning sees in an opaque node, and the operands of that."""
        if node in self._numbers or node in self.writes.opaque:
            return None, ()
        if called.name in COUPLING_RULES:
            return self._registered_coupling(node, called)
        model = COUPLING_MODELS.get(called.row) if called.row else None
        if model is None:
            return None, ()
        try:
            return model(self._call(node, self._value_or_node), type_of(self.values.get(node.name)))
        except Unsupported:
            return None, ()

    def _registered_coupling(self, node: fx.Node, called: Resolved) -> tuple[ops.Op | None, tuple[Operand, ...]]:
        """The same for an op that a caller registered a rule for."""
        tensors = [s for s in node.all_input_nodes if s not in self._numbers and isinstance(self._number_or_node(s), fx.Node)]
        operands = tuple(self._operand(source, "const") for source in tensors)
        seen = ops.Opaque(called.name, facts=called.facts, arguments=scalar_arguments(node, self.module, self._value_or_node))
        model = registered_coupling(Node(node.name, seen, operands, type_of(self.values.get(node.name))))
        return (None, ()) if model is None else (model, operands)

    def _value_or_node(self, node: fx.Node) -> Any:
        """A number as it was when the model was traced, where that is known."""
        number = self.values.get(node.name) if node in self._numbers else None
        if isinstance(number, int | float) or (isinstance(number, tuple) and all(type(size) is int for size in number)):
            return number
        return self._number_or_node(node)

    def _fold(self, node: fx.Node) -> bool:
        """Makes a call of parameters alone a parameter; False for every other node."""
        sources = node.all_input_nodes
        called = self._resolve(node)
        if sources and called.is_("dtype", "device") and isinstance(value := self.values.get(sources[0].name), Tensor):
            self._constants[node] = of_a_value(value, called.name)
            return True
        if node in self.writes.opaque or node in self.writes.parts or not all(s in self._constants for s in sources):
            return False
        if (
            not sources and Facts.FACTORY not in called.facts
        ) or "quantize" in called.name:  # who quantizes a weight wants to find it so
            return False
        if node.op == "call_module" and not self._is_constant_module(self.module.get_submodule(str(node.target))):
            return False
        try:
            constant = folded(node, self.module, {s: self._constants[s] for s in sources}, writes=called.writes)
        except Unsupported:
            return False
        except Exception as error:  # of torch's, of a custom op's
            raise UnsupportedModelError(
                f"{node.name}: found a call of {called.name} on parameters alone that fails: {class_and_line(error)}. Expected "
                "one that runs, as it is in every run of the model: mend it where the model is made"
            ) from error
        for written in (node, *self.writes.rebound.get(node, ())):
            self._constants[written] = constant
        return True

    def _is_constant_module(self, module: nn.Module) -> bool:
        return is_pure(module) and not any(id(t) in self._changing for t in (*module.parameters(), *module.buffers()))

    def _emit(self, node: fx.Node, op: ops.Op, operands: tuple[Operand, ...], *, like: fx.Node | None = None) -> None:
        self._nodes.append(Node(node.name, op, operands, type_of(self.values.get((like or node).name))))
        self._bound[node] = node.name

    def _operand(self, argument: Any, role: str) -> Operand:
        if argument is None:
            return None
        if isinstance(argument, fx.Node):
            return self._bound[argument] if argument in self._bound else self._constant_param(argument, role)
        if isinstance(argument, ModuleTensor):
            return self._module_param(argument, role)
        if isinstance(argument, bool) or not isinstance(argument, int | float):
            raise Unsupported(f"an operand {argument!r}")
        return param_of(torch.tensor(argument, dtype=torch.float64), role=role, origin=None)

    def _constant_param(self, node: fx.Node, role: str) -> Param:
        constant = self._constants[node]
        if not isinstance(constant.value, Tensor):
            raise Unsupported(f"an operand {constant.value!r}")
        key = id(constant.value) if constant.origin else constant
        if key not in self._params:
            if constant.origin:
                self._params[key] = param_of(constant.value, role=role, origin=constant.origin)
            else:
                self._params[key] = lazy_param(constant.float64, constant.value, role=role)
        return self._params[key]

    def _module_param(self, tensor: ModuleTensor, role: str) -> Param | None:
        module = self.module.get_submodule(tensor.module)
        if parametrize.is_parametrized(module, tensor.attribute):
            if module.training:
                raise Unsupported("a parametrization in training mode, which may change with every call")
            if tensor.origin not in self._params:
                value = getattr(module, tensor.attribute)
                exact = lambda: getattr(copy.deepcopy(module).double(), tensor.attribute)  # noqa: E731
                load = lambda: nearest(in_float64(exact, value), value)  # noqa: E731
                self._params[tensor.origin] = lazy_param(load, value, role=role)
            return self._params[tensor.origin]
        value = getattr(module, tensor.attribute)
        if value is None:
            return None
        if id(value) in self._changing:
            raise Unsupported("a parameter that the model writes to")
        if id(value) not in self._params:
            self._params[id(value)] = param_of(value, role=role, origin=tensor.origin)
        return self._params[id(value)]

    def _number_or_node(self, node: fx.Node) -> Any:
        constant = self._constants.get(node)
        return node if constant is None or isinstance(constant.value, Tensor) else constant.value

    def _rank(self, node: fx.Node) -> int:
        known = type_of(self.values.get(node.name))
        if known is None:
            raise Unsupported(f"{node.name}: the shape is not known")
        return len(known.shape)

    def _type(self, argument: Any) -> Any:
        return type_of(self.values.get(argument.name)) if isinstance(argument, fx.Node) else None

    def _size_of(self, argument: Any) -> tuple[Any, int] | None:
        """`x.size(k)`, `x.shape[k]`, `x.size()[k]` and aten's sym_size: (x, k)."""
        if not isinstance(argument, fx.Node):
            return None
        called, args = self._resolve(argument), argument.args
        if called.is_("getitem") and isinstance(args[0], fx.Node) and isinstance(args[1], int):
            sizes = args[0].op.startswith("call") and self._resolve(args[0]).is_("shape", "size")
            return (args[0].args[0], args[1]) if sizes and inner_is_whole(args[0]) else None
        if called.is_("size", "sym_size") and len(args) == 2 and isinstance(args[1], int):
            return args[0], args[1]
        return None


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without leading ones."""
    return tuple(dropwhile(lambda size: size == 1, shape))


def inner_is_whole(size: fx.Node) -> bool:
    """True for `x.shape` and `x.size()`, False for `x.size(k)`."""
    return size.op != "call_method" or (len(size.args) == 1 and not size.kwargs)
