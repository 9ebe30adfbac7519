"""`torch.compile(model, backend="reparam")`: dynamo's graphs with their branches fused, the rest left to another backend.

In a graph of dynamo's the tensors of the model are placeholders like any other input, and come with every call. The backend
binds those that belong to modules to their values, fuses the graph as any GraphModule, and makes each tensor that was not
folded into a new conv a placeholder again: so a tensor that the graph writes to (the statistics of a batch norm in training)
stays the model's own. Each call compares the folded tensors with what they were. Where one has changed, the backend fuses the
graph anew, into the weights that the compiled graph reads; nothing is compiled again.

The entry point group `torch_dynamo_backends` names `reparam`; nothing here is imported before torch.compile asks for it.
"""

import logging
import operator
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from reparam_compiler.errors import RewriteError
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.ir.graph import diff
from reparam_compiler.passes.fusion import pipeline
from reparam_compiler.passes.fusion.fuse_branches import Options

logger = logging.getLogger(__name__)
Compiled = Callable[..., Any]
Inner = Callable[[fx.GraphModule, Sequence[Any]], Compiled]


def reparam(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """The backend: `torch.compile(model, backend="reparam")` fuses each of dynamo's graphs and compiles the rest with inductor.

    Every graph that dynamo makes is fused by itself, so control flow is no obstacle; the model is not touched. What cannot be
    read or fused goes on as it is. Weights may change in place between calls, by `load_state_dict` or an optimizer: the next
    call fuses them anew. Its limits:

    - with gradients enabled, a graph of parameters that require them is compiled unfused, and a log line says so: call the
      model under `torch.no_grad()` or `torch.inference_mode()`. Batch norms in training mode are never folded;
    - a write that torch does not count is not seen (`parameter.data.copy_(…)`, or through numpy): call
      `torch.compiler.reset()` after one;
    - where changed weights fuse into a graph of another form, it runs unfused and uncompiled from then on, with a warning.

    Args:
        graph_module: dynamo's graph.
        example_inputs: what it is called with.
        mode: as for `torch.compile`, handed on.
        options: "inner", another backend (its name, or a function of a graph and its inputs) in place of inductor; "verify",
            False for no proof of the fused regions. All others are handed on.

    Returns:
        What computes the graph.
    """
    rest = dict(options or {})
    verify = bool(rest.pop("verify", True))
    inner = _inner(rest.pop("inner", "inductor"), mode, rest)
    own = _own_tensors(graph_module)
    if _needs_gradients(graph_module, own.values()):
        logger.info(
            "a graph of %d nodes is not fused: gradients are enabled, and its parameters require them; "
            "call the model under torch.no_grad() to have it fused",
            len(graph_module.graph.nodes),
        )
        return inner(graph_module, example_inputs)
    fused = _fuse(graph_module, own, verify=verify)
    if fused is None:
        return inner(graph_module, example_inputs)
    following = _Following(_bound(graph_module, {}), fused, fused.form(), fused.state(example_inputs), verify)
    following.compiled = inner(fused.module, [example_inputs[index] for index in fused.kept])
    return following.run


def _inner(backend: Any, mode: str | None, options: dict[str, Any]) -> Inner:
    """What compiles the rest: inductor, or the backend of that name, or a function."""
    if backend == "inductor":

        def inductor(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
            from torch._inductor import list_mode_options
            from torch._inductor.compile_fx import compile_fx

            patches = {**list_mode_options(mode or "default"), **options}
            return compile_fx(graph_module, list(inputs), config_patches=patches)

        return inductor
    from torch._dynamo.backends.registry import lookup_backend

    compiler: Any = lookup_backend(backend)
    handed_on = {key: value for key, value in (("mode", mode), ("options", options)) if value}
    return lambda graph_module, inputs: compiler(graph_module, list(inputs), **handed_on)


def _own_tensors(graph_module: fx.GraphModule) -> dict[int, Tensor]:
    """The tensors of modules among a graph's inputs, by position.

    Those are parameters, buffers, plain attributes, and the numbers (a norm's eps) that dynamo makes tensors of where sizes
    are dynamic.
    """
    own: dict[int, Tensor] = {}
    for index, node in enumerate(graph_module.graph.find_nodes(op="placeholder")):
        argument = node.meta.get("grapharg")
        source, value = getattr(argument, "source", None), getattr(argument, "example", None)
        if source is not None and source.guard_source.is_unspecialized_nn_module() and _is_plain(value):
            own[index] = value
    return own


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """A tensor whose values can be read and whose changes are counted."""
    if not isinstance(value, Tensor) or type(value) not in (Tensor, nn.Parameter):
        return False
    return value.layout == torch.strided and not value.is_meta and not value.is_inference()


def _needs_gradients(graph_module: fx.GraphModule, own: Iterable[Tensor]) -> bool:
    """Whether the graph may be asked for gradients of what would be folded."""
    switches = graph_module.graph.find_nodes(op="call_function", target=torch._C._set_grad_enabled)
    enabled = torch.is_grad_enabled() or any(node.args != (False,) for node in switches)
    return enabled and any(tensor.requires_grad for tensor in own)


@dataclass(frozen=True, slots=True, eq=False)
class _Fused:
    """A graph of dynamo's, fused.

    module: takes the inputs `kept`, by their positions in the original.
    own: the positions of the model's tensors. folded: those of them that are in the new weights.
    weights: the new weights, by name.
    """

    module: fx.GraphModule
    kept: tuple[int, ...]
    own: tuple[int, ...]
    folded: tuple[int, ...]
    weights: Mapping[str, Tensor]

    def form(self) -> tuple[Any, ...]:
        """Everything but the values of the new weights."""
        weights = [(name, weight.shape, weight.dtype, weight.device) for name, weight in self.weights.items()]
        return self.module.code, self.kept, self.folded, weights

    def state(self, inputs: Sequence[Any]) -> "tuple[_State, ...]":
        """What the folded tensors are now."""
        return tuple(_State.of(inputs[index]) for index in self.folded)


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """What a tensor was when it was folded. number: the value of a scalar: dynamo makes a new tensor of one for each call."""

    tensor: "weakref.ref[Tensor]"
    version: int
    address: int
    number: float | None

    @classmethod
    def of(cls, tensor: Tensor) -> "_State":
        """What it is now."""
        if tensor.ndim == 0 and tensor.is_cpu:
            return cls(weakref.ref(tensor), 0, 0, float(tensor))
        return cls(weakref.ref(tensor), tensor._version, tensor.data_ptr(), None)

    def holds(self, tensor: Tensor) -> bool:
        """Whether this is the tensor of then, with the values of then."""
        if self.number is not None:
            return float(tensor) == self.number
        return self.tensor() is tensor and tensor._version == self.version and tensor.data_ptr() == self.address


@dataclass
class _Following:
    """A compiled graph whose fused weights follow those of the model.

    plain: the graph as dynamo made it. form: that of `fused` before another compiler saw it. state: what was folded.
    compiled: what computes `fused.module`; None where the graph runs as it was.
    """

    plain: fx.GraphModule
    fused: _Fused
    form: tuple[Any, ...]
    state: tuple[_State, ...]
    verify: bool
    compiled: Compiled | None = None

    def run(self, *inputs: Any) -> Any:
        """What the graph gives for these inputs."""
        folded = [inputs[index] for index in self.fused.folded]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in folded):
            return self.plain(*inputs)
        if self.compiled is not None and not all(was.holds(now) for was, now in zip(self.state, folded, strict=True)):
            self._follow(inputs)
        if self.compiled is None:
            return self.plain(*inputs)
        return self.compiled(*(inputs[index] for index in self.fused.kept))

    def _follow(self, inputs: Sequence[Any]) -> None:
        """Fuses the weights as they are now into those that the compiled graph reads."""
        with torch.inference_mode(False):  # a scalar that dynamo made under inference mode would be of no use outside
            own = {index: inputs[index].clone() if inputs[index].ndim == 0 else inputs[index] for index in self.fused.own}
        fresh = _fuse(self.plain, own, verify=self.verify) if all(map(_is_plain, own.values())) else None
        if fresh is None or fresh.form() != self.form:
            logger.warning(
                "the model's weights changed, and fuse into a graph of another form: it runs as it was, not compiled; "
                "call torch.compiler.reset() to have it fused and compiled anew"
            )
            self.compiled = None
            return
        with torch.no_grad():
            for name, weight in self.fused.weights.items():
                weight.copy_(fresh.weights[name])
        self.state = self.fused.state(inputs)
        logger.info("the model's weights changed: %d fused ones follow", len(self.fused.weights))


def _fuse(graph_module: fx.GraphModule, own: Mapping[int, Tensor], *, verify: bool) -> _Fused | None:
    """The graph, fused; None where there is nothing to fuse, or it cannot be read."""
    try:
        with torch.inference_mode(False), torch.no_grad():
            return _fused(graph_module, own, verify=verify)
    except Exception as error:  # noqa: BLE001 - reading runs ops of any kind; a model that compiles without us must with us
        logger.warning("a graph of dynamo's is compiled as it is, for it cannot be fused: %s: %s", type(error).__name__, error)
        return None


def _fused(graph_module: fx.GraphModule, own: Mapping[int, Tensor], *, verify: bool) -> _Fused | None:
    bound = _bound(graph_module, own)
    placeholders = bound.graph.find_nodes(op="placeholder")
    reading = FxFrontend().read(bound)
    after = pipeline.run(reading.graph, Options(verify=verify)).graph
    changes = diff(reading.graph, after)
    if not changes:
        return None
    old_names = {name for name, _ in _tensors(bound)}
    readers = {index: _readers(bound, _name(index)) for index in own}
    before = {node.name for node in bound.graph.nodes}
    module = reading.write(after, inplace=True)
    changed = before - {node.name for node in module.graph.nodes} | {node.id for node in changes.changed}
    folded = tuple(index for index in own if readers[index] & changed)
    for index, tensor in own.items():
        _unbind(module, placeholders[index], _name(index), tensor)
    kept = tuple(index for index, node in enumerate(placeholders) if node.users or index not in own)
    for index in own.keys() - set(kept):
        module.graph.erase_node(placeholders[index])
    module.graph.lint()
    module.recompile()
    weights = {name: weight for name, weight in _tensors(module) if name not in old_names}
    for weight in weights.values():
        weight.requires_grad_(False)
    _tell_sources(module)
    return _Fused(module, kept, tuple(own), folded, weights)


def _name(index: int) -> str:
    """The attribute that holds the model's tensor of that position while its graph is fused."""
    return f"reparam_own_{index}"


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _bound(graph_module: fx.GraphModule, own: Mapping[int, Tensor]) -> fx.GraphModule:
    """A copy of the graph that reads the inputs `own` from attributes; it shares all tensors with the original."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    attributes: dict[str, Any] = {_name(index): tensor for index, tensor in own.items()}
    for node in graph_module.graph.nodes:
        copied = copies[node] = graph.node_copy(node, copies.__getitem__)
        if isinstance(value := node.meta.get("example_value"), Tensor):
            copied.meta["val"] = value
        if hasattr(node, "_dynamo_source"):
            copied._dynamo_source = node._dynamo_source
        if node.op in ("get_attr", "call_module"):
            attributes[node.target] = operator.attrgetter(node.target)(graph_module)
    last = copies[placeholders[-1]] if placeholders else None
    for index, tensor in own.items():
        with graph.inserting_after(last):
            placeholder, last = copies[placeholders[index]], graph.get_attr(_name(index))
        last.meta["val"] = placeholder.meta.get("val", tensor)
        placeholder.replace_all_uses_with(last)
    bound = fx.GraphModule(attributes, graph)
    bound.meta.update(graph_module.meta)
    if "_param_name_to_source" in vars(graph_module):
        vars(bound)["_param_name_to_source"] = vars(graph_module)["_param_name_to_source"]
    return bound


def _readers(module: fx.GraphModule, name: str) -> set[str]:
    """The names of the nodes that read an attribute, or a value that is computed from it and other attributes alone."""
    constants: set[fx.Node] = set()
    derived: set[fx.Node] = set()
    for node in module.graph.nodes:
        sources = set(node.all_input_nodes)
        if node.op == "get_attr" or (node.op.startswith("call") and sources and sources <= constants):
            constants.add(node)
            if node.target == name or sources & derived:
                derived.add(node)
    return {user.name for node in derived for user in node.users}


def _unbind(module: fx.GraphModule, placeholder: fx.Node, name: str, tensor: Tensor) -> None:
    """Makes an attribute that is still read an input again."""
    for node in module.graph.find_nodes(op="get_attr", target=name):
        if getattr(module, name) is not tensor:
            raise RewriteError(f"{placeholder.name}: a pass changed this input in place; expected a new weight beside it")
        node.replace_all_uses_with(placeholder)
        module.graph.erase_node(node)
    if hasattr(module, name):
        delattr(module, name)


def _tell_sources(module: fx.GraphModule) -> None:
    """Gives each new weight a source: AOTAutograd looks up from where dynamo took each parameter."""
    from torch._dynamo.source import ConstantSource

    sources: Any = vars(module).get("_param_name_to_source")
    if sources is not None:
        named = {name: ConstantSource(f"reparam_{name.replace('.', '_')}") for name, _ in _tensors(module)}
        vars(module)["_param_name_to_source"] = named | sources
