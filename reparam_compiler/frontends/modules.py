"""A plain `nn.Module` made readable: traced whole where a tracer takes it, else in the parts that can be traced.

Symbolic tracing sees no data and takes 62 of 86 models that were tried; export takes 82, but needs inputs. What neither takes
(a detector with control flow round a plain backbone, say) is fused child by child.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from reparam_compiler.frontends.torch_values import deep_copy

logger = logging.getLogger(__name__)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def traced(model: nn.Module, example_inputs: Sequence[Any] | None, *, copy: bool) -> fx.GraphModule | None:
    """The whole model as a GraphModule, or None where no tracer takes it.

    With `copy` it shares no tensor with the model. (Tracing can leave a Proxy in a module: but for `copy=False` the
    model itself is never traced.)
    """
    subject = deep_copy(model) if copy else model
    try:
        graph_module = fx.symbolic_trace(subject)
        for holder in graph_module.modules():
            if type(holder) is nn.Module:  # what the tracer makes to hold the others by their names
                holder.training = model.training
        return graph_module
    except Exception as error:  # noqa: BLE001 - a tracer runs the model's own code, which raises what it likes
        logger.info("symbolic tracing of %s failed: %s", type(model).__name__, error)
    if example_inputs is None:
        return None
    try:
        exported = torch.export.export(deep_copy(model) if copy else model, tuple(example_inputs)).module()
    except Exception as error:  # noqa: BLE001 - as above
        logger.info("torch.export of %s failed: %s", type(model).__name__, error)
        return None
    return exported if isinstance(exported, fx.GraphModule) else None


def fuse_parts(
    model: nn.Module, fuse_one: Callable[[fx.GraphModule], tuple[fx.GraphModule, Any]], *, copy: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """The model with every child fused that can be traced, and the report of each by its path.

    A child that cannot be traced, or is a container that its parent may index, is entered instead.
    """
    whole = deep_copy(model) if copy else model
    reports: dict[str, Any] = {}
    done: dict[nn.Module, nn.Module] = {}

    def enter(parent: nn.Module, path: str) -> None:
        for name, child in list(parent.named_children()):
            where = f"{path}.{name}" if path else name
            if child not in done:
                done[child] = _fused_child(child, where)
                if done[child] is child:
                    enter(child, where)
            setattr(parent, name, done[child])

    def _fused_child(child: nn.Module, where: str) -> nn.Module:
        if isinstance(child, _CONTAINERS) or not list(child.children()):
            return child
        part = traced(child, None, copy=True)
        if part is None:
            return child
        result, report = fuse_one(part)
        if not report.fusions:
            return child
        reports[where] = report
        for attribute, value in vars(child).items():
            if not attribute.startswith("_") and attribute not in vars(result):
                setattr(result, attribute, value)
        return result

    enter(whole, "")
    return whole, reports
