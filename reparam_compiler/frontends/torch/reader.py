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
import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import dropwhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from reparam_compiler.frontends.torch.aliasing import Writes, find_writes, first_argument
from reparam_compiler.frontends.torch.call import Call, Read, Unsupported
from reparam_compiler.frontends.torch.constant_folding import (
    FACTORIES,
    Constant,
    assigned,
    call,
    folded,
    is_pure,
    nearest,
    of_a_value,
)
from reparam_compiler.frontends.torch.ops.coupling_models import COUPLING_MODELS, expanded, operand_places
from reparam_compiler.frontends.torch.ops.modules import COUPLING_MODULES, ModuleTensor, module_call
from reparam_compiler.frontends.torch.ops.table import READERS
from reparam_compiler.frontends.torch.partial_writes import Part, PartReader
from reparam_compiler.frontends.torch.tensors import lazy_param, param_of, type_of
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, NodeId, Operand, Param

_NAMES: dict[Any, str] = {
    F.max_pool1d: "max_pool1d",
    F.max_pool2d: "max_pool2d",
    F.max_pool3d: "max_pool3d",
    F.batch_norm: "functional.batch_norm",
    F.instance_norm: "functional.instance_norm",
    operator.pos: "identity",
}
_NORMS = frozenset({"_native_batch_norm_legit_no_training"})
"""Calls that give a tuple, of which only the first element is of interest."""
_WRITES: dict[Any, str] = {
    getattr(operator, f"i{name}"): name
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")
    if hasattr(operator, f"i{name}")
} | {operator.iand: "and", operator.ior: "or"}
"""The operators behind `x += y` and its like, with the name of what they compute."""
_SIZES = frozenset({"size", "dim", "ndimension", "numel", "sym_size", "sym_numel", "shape", "ndim"})


def call_name(node: fx.Node, module: nn.Module) -> tuple[str, bool]:
    """What a node calls, in one word, and whether it writes into its first argument."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        known = module_call(called)
        return known.function if known else type(called).__name__, bool(getattr(called, "inplace", False))
    target: Any = node.target
    if node.op == "call_method":
        name = str(target)
    elif isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[1]
    elif target is getattr:
        name = str(node.args[1])
    else:
        name = _NAMES.get(target) or str(getattr(target, "__name__", target))
    if name.endswith("_") and not name.endswith("__"):
        return name[:-1], True
    if node.op == "call_function" and target in _WRITES:
        return _WRITES[target], True
    place = _inplace_place(target) if node.op == "call_function" else None
    positional = place is not None and place < len(node.args) and bool(node.args[place])
    return name, positional or bool(node.kwargs.get("inplace", False))


@cache
def _inplace_place(target: Any) -> int | None:
    """Where a function of torch.nn.functional takes `inplace`."""
    try:
        names = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):  # a builtin
        return None
    return names.index("inplace") if "inplace" in names else None


@dataclass
class TorchReader:
    """Reads one fx graph.

    fx_graph: what to read.
    module: where its modules live.
    tensors: for each placeholder and get_attr node that stands for a parameter, its name and the tensor.
    mutable: those of them that a run of the model changes: they are no constants.
    values: for each node the tensor (fake or real) that it gives, where it is known.
    written_into: once it is read, for each in-place write to a part of a value what it writes into.
    """

    fx_graph: fx.Graph
    module: nn.Module
    tensors: Mapping[str, tuple[str, Tensor]]
    values: Mapping[str, Any]
    mutable: frozenset[str] = frozenset()
    writes: Writes = field(init=False)
    written_into: dict[str, NodeId] = field(default_factory=dict)
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
        self._parts = PartReader(lambda node: call_name(node, self.module)[0], self._rank)
        self.writes = find_writes(
            self.fx_graph, lambda node: call_name(node, self.module), lambda node: keys.get(node.name), self._parts.written
        )
        self._changing = {keys[name] for name in self.mutable} | {keys[n.name] for n in self.writes.opaque if n.name in keys}
        outputs: list[NodeId] = []
        for node in self.fx_graph.nodes:
            if keys.get(node.name) in self._changing:
                self._emit(node, ops.Opaque("get_attr"), ())
            elif node.name in self.tensors:
                self._constants[node] = Constant.stored(*self.tensors[node.name])
            elif node.op == "placeholder":
                self._emit(node, ops.Input(), ())
            elif node.op == "output":
                outputs = [self._bound[source] for source in node.all_input_nodes if source in self._bound]
            elif node.op == "get_attr" or not self._fold(node):
                self._read_call(node)
        return Graph.of(self._needed(outputs), outputs)

    def _needed(self, outputs: list[NodeId]) -> list[Node]:
        """The nodes, less those that only led to a write to a part of a value, where the graph has it as one op."""
        needed: list[Node] = []
        read = set(outputs)
        for node in reversed(self._nodes):
            if node.id in read or node.id not in self._led_to_writes:
                needed.append(node)
                read.update(node.sources)
        return needed[::-1]

    def _read_call(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self._emit(node, ops.Opaque("get_attr"), ())
            return
        name, _ = call_name(node, self.module)
        if node in self.writes.parts:
            self._assign(node, self.writes.parts[node])
            return
        if name in _NORMS and all(_takes_first(user) for user in node.users):
            return  # read where its first element is taken
        traced = [source for source in node.all_input_nodes if source not in self._constants]
        if name in _SIZES or (traced and all(source in self._numbers for source in traced) and self._is_number(node)):
            self._numbers.add(node)
        called = node
        if name == "getitem" and isinstance(norm := node.args[0], fx.Node) and norm not in self._bound and _takes_first(node):
            called, name = norm, call_name(norm, self.module)[0]
        try:
            if name == "slice_scatter" and node not in self.writes.opaque:
                self._assign(node, self._parts.scattered(node))
                return
            if node in self._numbers or node in self.writes.opaque:
                raise Unsupported("not a tensor, or written to through a view")
            op, operands = self._known(called, name)
        except Unsupported:
            op, operands = self._opaque(node, name)
        if isinstance(op, ops.Identity) and isinstance(operands[0], str) and not self._may_change(node):
            self._bound[node] = operands[0]  # another name of the same value; tracers differ in which they keep
        else:
            self._emit(node, op, operands)
        self._rebind(node)

    def _rebind(self, node: fx.Node) -> None:
        for written in self.writes.rebound.get(node, ()):
            self._bound[written] = node.name
            self._constants.pop(written, None)

    def _assign(self, node: fx.Node, part: Part) -> None:
        """A write to a part of a value, in place or not. What only led to it is no part of the graph."""
        base, value = self._operand(part.base, "const"), self._operand(self._value(part.value), "const")
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

    def _value(self, value: Any) -> Any:
        """What is written, without a view that only takes leading axes of 1 away: it is broadcast."""
        if not isinstance(value, fx.Node) or not isinstance(constant := self._constants.get(value), Constant):
            return value
        before = self._constants.get(first) if (first := first_argument(value)) is not None else None
        shapes = [tuple(c.value.shape) for c in (constant, before) if c is not None and isinstance(c.value, Tensor)]
        same = (
            len(shapes) == 2
            and call_name(value, self.module)[0] in ("view", "reshape")
            and _core(shapes[0]) == _core(shapes[1])
        )
        return first if same else value

    def _is_number(self, node: fx.Node) -> bool:
        """Whether a call of numbers and constants gives a number; without a recorded value operators on numbers do."""
        if node.name in self.values:
            return not isinstance(self.values[node.name], Tensor)
        constants = [self._constants[source].value for source in node.all_input_nodes if source in self._constants]
        module = getattr(node.target, "__module__", None)
        return module in ("_operator", "builtins", "math") and not any(isinstance(value, Tensor) for value in constants)

    def _may_change(self, node: fx.Node) -> bool:
        return any(other in self.writes.changing for other in (node, *node.all_input_nodes))

    def _known(self, node: fx.Node, name: str) -> Read:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._number_or_node)
        mode = None
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            known = module_call(module)
            if known is None or len(args) != 1 or kwargs:
                raise Unsupported(f"a {type(module).__name__} module")
            args, mode = (args[0], *known.arguments(module, str(node.target))), getattr(module, "padding_mode", None)
        if name not in READERS:
            raise Unsupported(name)
        call = Call(name, tuple(args), kwargs, self._operand, self._type, self._size_of)
        op, operands = READERS[name](call)
        if any(self._bound.get(number) in operands for number in self._numbers if number in node.all_input_nodes):
            raise Unsupported("an operand that is a computed number")
        return (replace(op, mode=mode) if isinstance(op, ops.Conv) and mode else op), operands

    def _opaque(self, node: fx.Node, name: str) -> Read:
        """What has no rule. Running it changes nothing that is read later, but where the graph leaves writes as they are."""
        module = self.module
        writes = call_name(node, module)[1] and node not in self.writes.opaque
        numbers = {
            s: c.value for s in node.all_input_nodes if (c := self._constants.get(s)) and not isinstance(c.value, Tensor)
        }
        sources = [source for source in node.all_input_nodes if source not in numbers]
        like, operands = self._coupling_model(node, name)
        inputs, places = operand_places([self._operand(source, "const") for source in sources], operands)
        of_module = node.op == "call_module" and isinstance(like, ops.PerChannel)

        def run(*values: Any) -> Any:
            if of_module:
                return F.prelu(*values)
            copies = [v.clone() if writes and isinstance(v, Tensor) else v for v in (values[place] for place in places)]
            given = numbers | dict(zip(sources, copies, strict=True))
            args: Any
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), given.__getitem__)
            if name == "view" and not isinstance(args[1], torch.dtype):
                return args[0].reshape(*args[1:])  # a copy before it may be no node of the graph
            if name == "expand" and isinstance(like, ops.Expand):
                return expanded(args[0], args[1] if isinstance(args[1], list | tuple) else args[1:])
            return call(node, module, args, kwargs)

        return ops.Opaque(name, run, like, len(operands)), inputs

    def _coupling_model(self, node: fx.Node, name: str) -> tuple[ops.Op | None, tuple[Operand, ...]]:
        """What pruning sees in an opaque node, and the operands of that."""
        if node in self._numbers or node in self.writes.opaque:
            return None, ()
        result = type_of(self.values.get(node.name))
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._value_or_node)
        try:
            if node.op == "call_module":
                module = self.module.get_submodule(str(node.target))
                known = module_call(module, COUPLING_MODULES)
                if known is None or len(args) != 1 or kwargs:
                    return None, ()
                name, args = known.function, (args[0], *known.arguments(module, str(node.target)))
            if name not in COUPLING_MODELS:
                return None, ()
            return COUPLING_MODELS[name](Call(name, tuple(args), kwargs, self._operand, self._type, self._size_of), result)
        except Unsupported:
            return None, ()

    def _value_or_node(self, node: fx.Node) -> Any:
        """A number as it was when the model was traced, where that is known."""
        if node in self._numbers and isinstance(number := self.values.get(node.name), int | float):
            return number
        return self._number_or_node(node)

    def _fold(self, node: fx.Node) -> bool:
        """Makes a call of parameters alone a parameter; False for every other node."""
        sources = node.all_input_nodes
        name, writes = call_name(node, self.module)
        if sources and name in ("dtype", "device") and isinstance(known := self.values.get(sources[0].name), Tensor):
            self._constants[node] = of_a_value(known, name)
            return True
        if node in self.writes.opaque or node in self.writes.parts or not all(s in self._constants for s in sources):
            return False
        if (not sources and name not in FACTORIES) or "quantize" in name:  # who quantizes a weight wants to find it so
            return False
        if node.op == "call_module" and not self._is_constant_module(self.module.get_submodule(str(node.target))):
            return False
        try:
            constant = folded(node, self.module, {s: self._constants[s] for s in sources}, writes=writes)
        except Unsupported:
            return False
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
                load = lambda: nearest(getattr(copy.deepcopy(module).double(), tensor.attribute), value)  # noqa: E731
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
        name, _ = call_name(argument, self.module)
        args = argument.args
        if name == "getitem" and isinstance(args[0], fx.Node) and isinstance(args[1], int):
            inner, _ = call_name(args[0], self.module) if args[0].op.startswith("call") else ("", False)
            return (args[0].args[0], args[1]) if inner in ("shape", "size") and inner_is_whole(args[0]) else None
        if name in ("size", "sym_size") and len(args) == 2 and isinstance(args[1], int):
            return args[0], args[1]
        return None


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without leading ones."""
    return tuple(dropwhile(lambda size: size == 1, shape))


def _takes_first(user: fx.Node) -> bool:
    return user.target is operator.getitem and user.args[1:] == (0,)


def inner_is_whole(size: fx.Node) -> bool:
    """True for `x.shape` and `x.size()`, False for `x.size(k)`."""
    return size.op != "call_method" or (len(size.args) == 1 and not size.kwargs)
