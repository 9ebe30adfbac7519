"""A plain `nn.Module` made readable: traced whole where a tracer takes it, else in the parts that can be traced.

Of 86 models that were tried, symbolic tracing takes 62, and needs no inputs; torch.export takes 82, and needs inputs. A model
that neither takes (a detector with control flow round a plain backbone, say) is fused child by child.

In four cases a symbolic trace computes something else than its model, and says nothing:

- a tracer does not see hooks, nor a `forward` of the instance's own: such a model is left to its parts;
- a model that writes to a buffer does so while it is traced, and the trace never does: the buffers' versions show it;
- an argument that is None by default is traced as a value: here it is fixed to None;
- a traced value may answer a test wrongly (`isinstance(x, Tensor)`): a run on example inputs shows it.
"""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam_compiler.errors import ReparamError, VerificationError
from reparam_compiler.frontends.torch.hooks import does_more_than_forward
from reparam_compiler.frontends.torch.tensors import deep_copy
from reparam_compiler.frontends.torch.tracing.attributes import missing, only_calls, plain_attributes
from reparam_compiler.frontends.torch.tracing.quiet import quiet_export
from reparam_compiler.frontends.torch.tracing.tracer import symbolic_trace

logger = logging.getLogger(__name__)
Agree = Callable[[nn.Module, nn.Module, Sequence[Any]], bool]
"""Whether two modules compute the same on these inputs: `checking` runs them."""


def traced(
    model: nn.Module, example_inputs: Sequence[Any] | None, *, copy: bool, agree: Agree | None = None
) -> fx.GraphModule | None:
    """The whole model as a GraphModule, or None where no tracer takes it.

    With `copy` a copy is traced, and the result shares no tensor with the model. Without, the model itself is traced, which can
    leave a Proxy in one of its modules. Where there are example inputs, `agree` is asked whether a symbolic trace is the model.
    """
    if does_more_than_forward(model):
        logger.info("%s has hooks or a forward() of its own, which a tracer does not see", type(model).__name__)
        return None
    subject = deep_copy(model) if copy else model
    versions = _versions(subject)
    try:
        graph_module = symbolic_trace(subject, _absent(model, len(example_inputs or ())))
        for holder in graph_module.modules():
            if type(holder) is nn.Module:  # made by the tracer to hold other modules by name
                holder.training = model.training
        if _versions(subject) != versions:
            logger.info("%s writes to its own tensors, which symbolic tracing does not record", type(model).__name__)
        elif example_inputs is None or agree is None or agree(model, graph_module, example_inputs):
            return graph_module
        else:
            logger.info("the symbolic trace of %s computes something else on the example inputs", type(model).__name__)
    except Exception as error:  # noqa: BLE001 - a tracer runs the model's own code, which raises what it likes
        logger.info("symbolic tracing of %s failed: %s", type(model).__name__, error)
    if example_inputs is None:
        return None
    try:
        with quiet_export():
            exported = torch.export.export(deep_copy(model) if copy else model, tuple(example_inputs)).module()
    except Exception as error:  # noqa: BLE001 - as above
        logger.info("torch.export of %s failed: %s", type(model).__name__, error)
        return None
    for part in exported.modules():  # born in training mode, and its eval() is forbidden
        part.training = model.training
    shapes = ", ".join("x".join(map(str, x.shape)) for x in example_inputs if isinstance(x, Tensor))
    only = f"the result takes inputs of the example's shapes only ({shapes})"
    exported.meta["remarks"] = (f"no tracer takes {type(model).__name__}, so it was exported: {only}",)
    return exported


def _versions(model: nn.Module) -> list[int | bytes]:
    """How often each tensor of a model was written to; its values, for one of inference mode, which does not count."""
    return [
        tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.is_inference() else tensor._version
        for tensor in (*model.parameters(), *model.buffers())
    ]


def _absent(model: nn.Module, given: int) -> dict[str, None]:
    """The arguments of a model's forward() that are None where only the first so many are given."""
    arguments = list(inspect.signature(model.forward).parameters.values())
    return {a.name: None for i, a in enumerate(arguments) if a.default is None and (i >= given or a.kind is a.KEYWORD_ONLY)}


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """A model that was fused in parts.

    reports: that of each fused part, by its path. kept: what was raised where a part was traced and could not be fused.
    """

    model: nn.Module
    reports: Mapping[str, Any]
    kept: Mapping[str, str]


def fuse_parts(model: nn.Module, fuse_one: Callable[[fx.GraphModule], tuple[fx.GraphModule, Any]], *, copy: bool) -> Parts:
    """The model with every child fused that can be traced.

    A child is entered instead where it cannot be traced; where it takes arguments that may be None; where it is a container
    that its parent may index; and where the code round it reads what the fused one would not have. One that fails to be fused
    is entered as well, unless its rewrite is at fault: then it stays.

    Args:
        model: what no tracer takes whole.
        fuse_one: fuses a part, in place; a ReparamError keeps that part as it was.
        copy: leave the caller's model as it is.
    """
    parts = _Parts(fuse_one)
    whole = deep_copy(model) if copy else model
    parts.enter(whole, "", ())
    return Parts(whole, parts.reports, parts.kept)


@dataclass(slots=True)
class _Parts:
    """done: what became of each module, so that one in several places stays one. closed: those that stay with all in them."""

    fuse_one: Callable[[fx.GraphModule], tuple[fx.GraphModule, Any]]
    reports: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    done: dict[nn.Module, nn.Module] = field(default_factory=dict)
    closed: set[nn.Module] = field(default_factory=set)

    def enter(self, parent: nn.Module, path: str, above: tuple[nn.Module, ...]) -> None:
        """Fuses the children of a module. above: what holds it, from the whole model down."""
        ancestors = (*above, parent)
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            where = f"{path}.{name}" if path else name
            if child not in self.done:
                self.done[child] = child  # met again inside itself, it is itself
                self.done[child] = self._fused(child, where, ancestors)
                if self.done[child] is child and child not in self.closed:
                    self.enter(child, where, ancestors)
            if self.done[child] is not child:
                setattr(parent, name, self.done[child])

    def _fused(self, child: nn.Module, where: str, ancestors: tuple[nn.Module, ...]) -> nn.Module:
        if not list(child.children()) or isinstance(child, nn.ModuleList | nn.ModuleDict):
            return child
        indexed = any(hasattr(type(child), method) for method in ("__getitem__", "__len__", "__iter__"))
        if indexed and not only_calls(ancestors, where.rpartition(".")[2]):
            return child
        part = None if _absent(child, 0) else traced(child, None, copy=True)
        if part is None:
            return child
        try:
            result, report = self.fuse_one(part)
        except ReparamError as error:
            self.kept[where] = str(error)
            if isinstance(error, VerificationError):
                self.closed.add(child)
            return child
        if not report.fusions:
            return child
        plain = {name: value for name, value in plain_attributes(child).items() if not hasattr(result, name)}
        for attribute, value in plain.items():
            setattr(result, attribute, value)
        result.meta.setdefault("_user_preserved_attributes", {}).update(plain)  # GraphModule's own copies keep these alone
        if (read := missing(ancestors, child, result)) is not None:
            logger.info("%s is not fused as a whole: the code round it reads its %s", where, read)
            return child
        self.reports[where] = report
        return result
