"""A plain `nn.Module` made readable: traced whole where a tracer takes it, else in the parts that can be traced.

Of 86 models that were tried, symbolic tracing takes 62, and needs no inputs; torch.export takes 82, and needs inputs. A model
that neither takes (a detector with control flow round a plain backbone, say) is fused child by child.

In five cases a symbolic trace computes something else than its model, and says nothing:

- a tracer does not see hooks: a module that has some is a call in the trace of what is round it, and is traced by itself;
- nor does it see a `forward` of the instance's own: such a model is left to its parts;
- a model that writes to a buffer does so while it is traced, and the trace never does: the buffers' versions show it;
- an argument that is None by default is traced as a value: here it is fixed to None;
- a traced value may answer a test wrongly (`isinstance(x, Tensor)`): a run on example inputs shows it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any

import torch
from torch import nn
from torch.fx.proxy import TraceError

from reparam_compiler.errors import ReparamError, VerificationError, first_line
from reparam_compiler.frontends.torch.hooks import (
    calls_otherwise,
    has_forward,
    has_hooks,
    signature_of,
    why_apart,
    without_hooks,
)
from reparam_compiler.frontends.torch.module_state import attributes_kept, buffers_kept, exchange, is_compiled, without_compiled
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.frontends.torch.tracing.attributes import missing, only_calls, reached_into
from reparam_compiler.frontends.torch.tracing.calls import Trace
from reparam_compiler.frontends.torch.tracing.shared_weights import make_own, share_weights
from reparam_compiler.frontends.torch.tracing.tracer import symbolic_trace

logger = logging.getLogger(__name__)
Agree = Callable[[nn.Module, nn.Module, Sequence[Any]], bool]
"""Whether two modules compute the same on these inputs: `checking` runs them."""


class NotTracedError(ReparamError):
    """Why no tracer takes a model whole.

    advice: what to give in its place, for a model that torch.export cannot take either; else empty.
    """

    def __init__(self, why: str, advice: str = "") -> None:
        self.advice = advice
        super().__init__(f"{why}; {advice}" if advice else why)


def traced(model: nn.Module, example_inputs: Sequence[Any] | None, *, copy: bool, agree: Agree | None = None) -> Trace:
    """The `forward` of a model, traced whole.

    With `copy` a copy is traced, and what is written of the trace shares no tensor with the model. What the tracer leaves
    behind in the modules is taken out again. Where there are example inputs, `agree` is asked whether the trace is the model,
    less its own hooks.

    Raises:
        NotTracedError: no tracer takes it.
        UnsupportedModelError: it cannot be copied.
    """
    if is_compiled(model):
        return traced(without_compiled(model), example_inputs, copy=copy, agree=agree)
    _check_readable(model)
    if calls_otherwise(model):
        raise NotTracedError("it is called by code that is not its class's forward()")
    subject, why = without_compiled(deep_copy(model) if copy else model), ""
    for fixed in _fixed_arguments(model, example_inputs):
        try:
            trace = _traced(subject, fixed)
        except Exception as error:  # noqa: BLE001 - a tracer runs the model's own code, which raises what it likes
            why = why or first_line(error)
            continue
        if copy:
            trace = replace(trace, shared=share_weights(subject, model))
        if example_inputs is None or agree is None or agree(without_hooks(model), trace.graph_module, example_inputs):
            return trace
        why = why or "its trace computes something else on the example inputs"
        make_own(subject, trace.shared)  # the tracer runs the model's own code once more
    raise NotTracedError(why)


def _check_readable(model: nn.Module) -> None:
    """Raises NotTracedError for a module that shows nobody what it does, with what to give in its place."""
    if isinstance(model, torch.jit.ScriptModule):
        raise NotTracedError("it is a script (torch.jit)", "give the module that it was made of, or an ONNX export of it")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise NotTracedError("it is a DistributedDataParallel", "give its .module, and wrap what comes back")
    if not has_forward(model):
        held = ", ".join(f".{name}" for name, _ in model.named_children())
        raise NotTracedError("it has no forward()", f"give what it holds: {held}" if held else "give a module that has one")


def _traced(model: nn.Module, fixed: Mapping[str, Any]) -> Trace:
    versions = _versions(model)
    with attributes_kept(model), buffers_kept(model):
        trace = symbolic_trace(model, fixed)
        if _versions(model) != versions:
            raise TraceError("it writes to its own tensors, which symbolic tracing does not record")
    for holder in trace.graph_module.modules():
        if type(holder) is nn.Module:  # made by the tracer to hold other modules by name
            holder.training = model.training
    return trace


def _versions(model: nn.Module) -> list[int | bytes]:
    """How often each tensor of a model was written to; its values, for one of inference mode, which does not count."""
    return [
        tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.is_inference() else tensor._version
        for tensor in (*model.parameters(), *model.buffers())
    ]


def _fixed_arguments(model: nn.Module, example_inputs: Sequence[Any] | None) -> Iterator[dict[str, Any]]:
    """The arguments to fix while tracing: those that are None; where that will not do, flags; else all that are no tensors."""
    absent = _absent(model, len(example_inputs or ()))
    yield absent
    arguments = list(signature_of(model).parameters.values())
    given = {a.name: value for a, value in zip(arguments, example_inputs or (), strict=False) if a.kind is not a.VAR_POSITIONAL}
    plain = {a.name: given.get(a.name, a.default) for a in arguments}
    for kinds in (bool | NoneType, bool | int | float | str | NoneType):
        flags = {name: value for name, value in plain.items() if isinstance(value, kinds)}
        if flags.keys() - absent.keys():
            yield absent | flags


def _absent(model: nn.Module, given: int) -> dict[str, None]:
    """The arguments of a model's forward() that are None where only the first so many are given."""
    arguments = list(signature_of(model).parameters.values())
    return {a.name: None for i, a in enumerate(arguments) if a.default is None and (i >= given or a.kind is a.KEYWORD_ONLY)}


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """A model that was fused in parts.

    reports: that of each fused part, by its path. kept: what was raised where a part was traced and could not be fused.
    """

    model: nn.Module
    reports: Mapping[str, Any]
    kept: Mapping[str, str]


FuseOne = Callable[[nn.Module], tuple[nn.Module, Any] | None]
"""Fuses a module in place: the module, or what stands for it now, and the report; None where no tracer takes it.

A ReparamError keeps it as it was.
"""


def fuse_parts(model: nn.Module, fuse_one: FuseOne, *, copy: bool, whole: bool = False) -> Parts:
    """The model with every part fused that can be traced.

    A part is entered instead where it cannot be traced; where it takes arguments that may be None; where it is a container
    that its parent may index; and where the code round it reads more of it than what it gives. One that fails to be fused is
    entered as well, unless its rewrite is at fault: then it stays. Modules with hooks, which a trace does not enter, are parts.

    Args:
        model: what no tracer takes whole, or takes but for modules with hooks.
        copy: leave the caller's model as it is.
        whole: whether a tracer takes the model itself.
    """
    subject = without_compiled(deep_copy(model) if copy else model)
    parts = _Parts(subject, fuse_one)
    parts.visit(subject, "", (), may_be_fused=whole)
    return Parts(parts.whole, parts.reports, parts.kept)


@dataclass(slots=True)
class _Parts:
    """done: what became of each module, so that one in several places stays one. closed: those that stay with all in them."""

    whole: nn.Module
    fuse_one: FuseOne
    reports: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    done: dict[nn.Module, nn.Module] = field(default_factory=dict)
    closed: set[nn.Module] = field(default_factory=set)

    def visit(self, module: nn.Module, path: str, above: tuple[nn.Module, ...], *, may_be_fused: bool) -> None:
        """Fuses a module, or what is in it. above: what holds it, from the whole model down."""
        if module in self.done:
            return
        self.done[module] = module  # met again inside itself, it is itself
        self.done[module] = result = self._fused(module, path, above) if may_be_fused else module
        if module in self.closed:
            return
        if result is not module and above:
            exchange(self.whole, {module: result})
        elif not above:
            self.whole = result
        for name, child in list(module._modules.items()):
            if child is not None:
                where = f"{path}.{name}" if path else name
                self._enter(child, where, (*above, module), apart_only=path in self.reports)

    def _enter(self, child: nn.Module, path: str, above: tuple[nn.Module, ...], *, apart_only: bool) -> None:
        """Visits a child; of what was fused only modules that its trace did not enter, wherever they are in it."""
        if not apart_only or why_apart(child):
            self.visit(child, path, above, may_be_fused=self._may_be_fused(child, path, above))
            return
        for name, part in list(child._modules.items()):
            if part is not None:
                self._enter(part, f"{path}.{name}", (*above, child), apart_only=True)

    def _fused(self, module: nn.Module, path: str, above: tuple[nn.Module, ...]) -> nn.Module:
        try:
            fused = self.fuse_one(module)
        except ReparamError as error:
            self.kept[path] = str(error)
            if isinstance(error, VerificationError):
                self.closed.add(module)
            return module
        if fused is None or not fused[1].fusions:
            return module
        result, report = fused
        if result is not module and has_hooks(module):
            self.kept[path] = "it has hooks, which the copies of a GraphModule would lose"
            return module
        if result is not module and (read := missing(above, module, result)) is not None:
            logger.info("%s is not fused as a whole: the code round it reads its %s", path, read)
            return module
        self.reports[path] = report
        return result

    def _may_be_fused(self, module: nn.Module, path: str, above: tuple[nn.Module, ...]) -> bool:
        if not list(module.children()) or isinstance(module, nn.ModuleList | nn.ModuleDict | torch.jit.ScriptModule):
            return False
        if _absent(module, 0):
            return False
        indexed = any(hasattr(type(module), method) for method in ("__getitem__", "__len__", "__iter__"))
        if indexed and not only_calls(above, path.rpartition(".")[2]):
            return False
        read = reached_into(above, module)
        if read is not None:
            logger.info("%s is not fused as a whole: the code round it reads its %s", path, read)
        return read is None
