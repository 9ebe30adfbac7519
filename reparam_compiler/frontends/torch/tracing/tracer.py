"""A symbolic tracer that can be asked about parameters.

`torch.fx` gives up where Python asks a traced value for its own: `if self.alpha:` (PP-YOLOE, YOLO-NAS), `float(self.scale)`,
`range(self.weight.shape[0])`. Where the value depends on parameters and buffers alone, the answer is known: it is computed
from the real tensors, and frozen in the trace. That is right in evaluation mode, where parameters do not change between calls;
in training mode nothing is frozen, and fx's own refusal stands. A fused model does not follow a change of what was frozen, as
it does not follow one of any weight. `GraphModule.meta["frozen"]` names the values that were asked for.

A value that depends on the input is never frozen. Two questions of it can be answered all the same:

- where one of both answers leads to nothing but an exception (`assert x.shape[1] == self.channels`, `if x.shape[1] !=
  self.channels: raise …`), the other is given, and recorded as a call of `torch._assert`: the trace refuses what its original
  refuses, with an AssertionError that quotes what the model would raise;
- how many tensors `x.chunk(2, 1)` gives is in its arguments. On an axis that is too short for them the trace raises.
"""

import inspect
import operator
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, Proxy, TraceError

from reparam_compiler.frontends.torch.aliasing import writes
from reparam_compiler.frontends.torch.arguments import argument
from reparam_compiler.frontends.torch.called import resolve
from reparam_compiler.frontends.torch.hooks import has_hooks, innermost, own_forward, signature_of, why_apart
from reparam_compiler.frontends.torch.tracing.calls import ModuleCall, Trace, arguments_of, refs
from reparam_compiler.frontends.torch.tracing.checks import check_at


def symbolic_trace(
    model: nn.Module, concrete_args: Mapping[str, Any] | None = None, *, leaves: frozenset[str] = frozenset()
) -> Trace:
    """A module as a GraphModule, which shares the module's tensors. One with hooks stays a call: what they do is not traced.

    Args:
        model: what to trace. Its code runs; it may be left with traced values in its attributes.
        concrete_args: arguments that are fixed to these values.
        leaves: the paths of modules that stay calls.

    Raises:
        TraceError: the model asks for a value that depends on its input, draws random numbers that would be frozen, or writes
            to a parameter that it also asks for.
        Exception: whatever the model's code raises when it meets a traced value.
    """
    tracer = _Tracer(leaves)
    drawn = _random_state()
    with _forward_of_its_own(model):
        graph = tracer.trace(model, dict(concrete_args) if concrete_args else None)
    if tracer.refused:
        raise TraceError(f"{type(model).__name__} catches that it gets no answer: {tracer.refused[0]}")
    if _random_state() != drawn:
        raise TraceError(
            f"{type(model).__name__} draws random numbers that do not depend on its input; a trace would freeze them"
        )
    for node in graph.nodes:
        if tracer.asked and writes(node, tracer.root) and any(tracer.is_constant(source) for source in node.all_input_nodes):
            raise TraceError(f"{type(model).__name__} writes to its own parameters at {node.name}, and asks for others' values")
    for node in reversed(graph.nodes):
        if node in tracer.values and not node.users:
            graph.erase_node(node)  # what was read only to be asked for
    graph._tracer_cls = fx.Tracer  # an ordinary GraphModule, which needs nothing of ours to be loaded
    traced = fx.GraphModule(tracer.root, graph, type(model).__name__)
    traced.meta["frozen"] = tuple(dict.fromkeys(tracer.asked))
    called = dict.fromkeys(str(node.target) for node in graph.find_nodes(op="call_module"))
    apart = {path: why for path in called if (why := why_apart(model.get_submodule(path)))}
    return Trace(traced, model, tracer.owners, tracer.calls, dict(concrete_args or {}), apart)


@contextmanager
def _forward_of_its_own(model: nn.Module) -> Iterator[None]:
    """Makes a `forward` that was set on a model that of its class, which is what fx traces."""
    own: Any = own_forward(model)
    kind: Any = type(model)
    if own is not None:
        model.__class__ = type(kind.__name__, (kind,), {"forward": own, "__module__": kind.__module__})
    try:
        yield
    finally:
        model.__class__ = kind


class _Tracer(fx.Tracer):
    """values: those that were computed. asked: the names of those that Python asked for. refused: why it got no answer.

    owners, calls: as in `Trace`.
    """

    def __init__(self, leaves: frozenset[str]) -> None:
        super().__init__()
        self.leaves = leaves
        self.values: dict[fx.Node, Any] = {}
        self._constant: dict[fx.Node, bool] = {}
        self.asked: list[str] = []
        self.refused: list[str] = []
        self.owners: dict[str, ModuleCall | None] = {}
        self.calls: list[ModuleCall] = []
        self._running: list[ModuleCall] = []
        self._thread = threading.get_ident()

    @property
    def _is_elsewhere(self) -> bool:
        """Whether it is another thread that asks: fx takes the calls of every module of the process."""
        return threading.get_ident() != self._thread

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """As fx has it; a wrapper that passes on what it is given has the arguments of what is in it."""
        inner = innermost(self.root)
        if inner is self.root:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        _, (root, *given) = super().create_args_for_root(type(inner).forward, is_module, concrete_args)
        named = [p for p in signature_of(inner).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        last = sum(p.kind is not p.KEYWORD_ONLY for p in named)
        by_name = {p.name: value for p, value in zip(named[last:], given[last : len(named)], strict=True)}
        called = root.module if isinstance(root, nn.DataParallel) else partial(root_fn, root)
        return lambda *values: called(*values, **by_name), given[:last]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """As fx has it, and modules with hooks, and scripts; a DataParallel is what it has replicas of."""
        if module_qualified_name in self.leaves or has_hooks(m) or isinstance(m, torch.jit.ScriptModule):
            return True
        return not isinstance(m, nn.DataParallel) and super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As fx has it; the call is noted. A call of another thread is none of the model's."""
        if self._is_elsewhere:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        if isinstance(m, nn.DataParallel):
            forward = m.module
        caller = self._running[-1] if self._running else None
        self._running.append(ModuleCall(path, caller, refs(arguments_of(m, args, kwargs))))
        try:
            result = super().call_module(m, forward, args, kwargs)
        finally:
            call = self._running.pop()
        call.result = refs(result)
        self.calls.append(call)
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """As fx has it; whose code it was is noted."""
        node = super().create_node(*args, **kwargs)
        self.owners[node.name] = self._running[-1] if self._running else None
        return node

    def proxy(self, node: fx.Node) -> Proxy:
        """A value that can be asked."""
        return _Value(node, self)

    def create_arg(self, a: Any) -> Any:
        """As fx has it, which walks through the whole model for each tensor that it is asked for."""
        name = self._name_in_model(a) if isinstance(a, Tensor) else None
        return super().create_arg(a) if name is None else self.create_node("get_attr", name, (), {})

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Proxy]) -> Any:
        """As above."""
        if self._is_elsewhere:
            return attr_val
        name = self._name_in_model(attr_val) if isinstance(attr_val, nn.Parameter) else None
        if name is None:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    @cached_property
    def _names(self) -> dict[int, str]:
        """The parameters and buffers of the model by their `id`, as they were when it was first asked for one."""
        named = (*self.root.named_buffers(), *self.root.named_parameters())
        return {id(tensor): name for name, tensor in named}

    def _name_in_model(self, tensor: Tensor) -> str | None:
        """Where the model has this tensor, if it still has it there."""
        name = self._names.get(id(tensor))
        return name if name is not None and operator.attrgetter(name)(_Untraced(self.root)) is tensor else None

    def to_bool(self, obj: Proxy) -> bool:
        """What `if` and `while` ask."""
        return bool(self.answer(obj.node))

    def iter(self, obj: Proxy) -> Iterator[Any]:
        """What `for` and `list()` ask: the rows of a parameter, or the tensors that a call gives."""
        return (obj[index] for index in range(self.length(obj.node)))  # type: ignore[index]

    def length(self, node: fx.Node) -> int:
        """How many elements a value has."""
        pieces = _pieces(node, self.root)
        return len(self.answer(node)) if pieces is None else pieces

    def answer(self, node: fx.Node) -> Any:
        """The value of a node that depends on parameters and buffers alone."""
        try:
            if self.root.training and self.is_constant(node):
                raise TraceError(f"{node.name} is asked for its value in training mode; call model.eval() first")
            value = self._value(node)
        except TraceError as error:
            self.refused.append(str(error))
            raise
        self.asked.append(_name_of(node))
        return value.detach() if isinstance(value, Tensor) else value

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a node depends on parameters and buffers alone."""
        if node not in self._constant:
            sources = node.all_input_nodes
            computed = node.op.startswith("call") and bool(sources) and all(map(self.is_constant, sources))
            self._constant[node] = node.op == "get_attr" or computed
        return self._constant[node]

    def _value(self, node: fx.Node) -> Any:
        if node not in self.values:
            self.values[node] = self._computed(node)
        return self.values[node]

    def _computed(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(_Untraced(self.root))
        if not node.op.startswith("call") or not node.all_input_nodes or writes(node, self.root):
            raise TraceError(f"{node.name} is asked for its value, which depends on the input or is written to")
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._value)
        with torch.no_grad():
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            if node.op == "call_module":
                module = self.root.get_submodule(str(node.target))
                if any(True for _ in (*module.parameters(), *module.buffers(), *module.children())) or module.training:
                    raise TraceError(f"{node.name} is asked for its value, which the module {node.target} computes")
                return module.forward(*args, **kwargs)
            target: Any = node.target
            return target(*args, **kwargs)


class _Untraced:
    """A module as `operator.attrgetter` needs it while `nn.Module.__getattr__` gives traced values."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        for held in (self.module._parameters, self.module._buffers, vars(self.module)):
            if name in held:
                return held[name]
        return _Untraced(self.module._modules[name])  # type: ignore[arg-type]


class _Questions:
    """What Python's own types ask a traced value for."""

    tracer: _Tracer
    node: fx.Node

    def __getattr__(self, name: str) -> "_Attribute":
        return _Attribute(self, name)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        frame = inspect.currentframe()
        caller = frame.f_back if frame is not None else None
        if caller is not None and not self.tracer.is_constant(self.node) and (check := check_at(caller)) is not None:
            condition = self if check.answer else self.tracer.create_proxy("call_function", operator.not_, (self,), {})
            self.tracer.create_proxy("call_function", torch._assert, (condition, check.refusal), {})
            return check.answer
        return self.tracer.to_bool(self)  # type: ignore[arg-type]

    def __float__(self) -> float:
        return float(self.tracer.answer(self.node))

    def __int__(self) -> int:
        return int(self.tracer.answer(self.node))

    def __index__(self) -> int:
        refused = len(self.tracer.refused)
        try:
            return operator.index(self.tracer.answer(self.node))
        except TraceError:
            del self.tracer.refused[refused:]  # torch asks whatever it is given, and records the call where there is no answer
            raise

    def __len__(self) -> int:
        return self.tracer.length(self.node)


class _Value(_Questions, Proxy):  # type: ignore[misc]
    """A traced value."""


class _Attribute(_Questions, Attribute):  # type: ignore[misc]
    """An attribute of a traced value."""


def _pieces(node: fx.Node, model: nn.Module) -> int | None:
    """How many tensors a call gives, where its arguments say so; None elsewhere."""
    if node.op not in ("call_function", "call_method"):
        return None
    called = resolve(node, model)
    given = argument(node, 1, "chunks", "sections", "indices_or_sections", "indices", "split_size_or_sections", "split_sizes")
    if called.is_("chunk", "tensor_split") and isinstance(given, int):
        return given
    if called.is_("split", "split_with_sizes", "tensor_split") and isinstance(given, list | tuple):
        return len(given) + called.is_("tensor_split")
    return None


def _name_of(node: fx.Node) -> str:
    """What a value is computed from, in the words of the model."""
    if node.op == "get_attr":
        return str(node.target)
    return ", ".join(dict.fromkeys(_name_of(source) for source in node.all_input_nodes))


def _random_state() -> tuple[Any, bytes]:
    """Where Python's and torch's generators are."""
    state: Tensor = torch.get_rng_state()
    return random.getstate(), state.numpy().tobytes()
