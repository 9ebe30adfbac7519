"""A module that no tracer takes, as torch.export has it: for inputs of other sizes as well where the model allows it.

Batch and spatial sizes are open at first (`Dim.AUTO`), and torch.export fixes those that the model's code decides by. It also
fixes every size of 1, so a batch of one is exported as a batch of two. Guards that are left are of the model's own making: a
width that must be even, because the code has a branch for odd ones.

torch writes which sizes are open onto the tensors that it is given, and where it fails leaves that there: each try has its own.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from reparam_compiler.errors import ReparamError, class_and_line
from reparam_compiler.frontends.torch.module_state import buffers_kept, without_compiled
from reparam_compiler.frontends.torch.tensors import deep_copy, type_of
from reparam_compiler.frontends.torch.tracing.quiet import quiet_export

logger = logging.getLogger(__name__)


class NotExportedError(ReparamError):
    """Why torch.export does not take a model."""


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """A module that was exported.

    graph_module: its program as a module, which shares its tensors; `meta["remarks"]` says for which sizes.
    module: what was exported. inputs, shapes: with which inputs, and which of their sizes were open; None for none.
    """

    graph_module: fx.GraphModule
    module: nn.Module
    inputs: tuple[Any, ...]
    shapes: Any

    def again(self, module: nn.Module) -> fx.GraphModule:
        """Another module, exported in the same way; raises NotExportedError."""
        try:
            return _program(module, self.inputs, self.shapes)[1]
        except Exception as error:  # the model's own code runs
            raise NotExportedError(class_and_line(error)) from error


def exported(model: nn.Module, example_inputs: Sequence[Any], *, copy: bool) -> Exported:
    """The whole model as torch.export has it.

    copy: share no tensor with the model.

    Raises NotExportedError where torch.export does not take it.
    """
    subject, why = without_compiled(deep_copy(model) if copy else model), ""
    for inputs, shapes in _tries(tuple(example_inputs)):
        try:
            program, module = _program(subject, inputs, shapes)
            if shapes is not None:  # what a batch of two fixed may refuse one of one
                with quiet_export(), buffers_kept(module), torch.no_grad():
                    module(*deep_copy(tuple(example_inputs)))
        except Exception as error:  # noqa: BLE001 - torch.export runs the model's own code, which raises what it likes
            logger.info("torch.export of %s failed: %s", type(model).__name__, error)
            why = class_and_line(error)
            continue
        exported_as_is = (
            f"no tracer takes {type(model).__name__}, so it was exported, and train() and eval() change nothing in it"
        )
        module.meta["remarks"] = (f"{exported_as_is}: {_sizes(program)}",)
        return Exported(module, subject, inputs, shapes)
    raise NotExportedError(why)


def _program(model: nn.Module, inputs: tuple[Any, ...], shapes: Any) -> tuple[ExportedProgram, fx.GraphModule]:
    """torch.export's program, made with inputs that nothing was written onto, and it as a module in the model's mode."""
    unmarked = tuple(value.detach() if isinstance(value, Tensor) else value for value in inputs)
    bound = inspect.signature(model.forward).bind(*shapes).arguments if shapes is not None else None
    with quiet_export():
        program = torch.export.export(model, unmarked, dynamic_shapes=bound)
        module: fx.GraphModule = program.module()
    for name in ("train", "eval"):  # torch forbids both by attributes of the module, as neither changes what it computes
        vars(module).pop(name, None)
    for part in module.modules():  # born in training mode
        part.training = model.training
    return program, module


def _tries(inputs: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Inputs to export with, and which of their sizes are open: all but the channels, at last none."""
    open_sizes = tuple(
        {axis: Dim.AUTO for axis in range(value.ndim) if axis != 1} if isinstance(value, Tensor) and value.ndim else None
        for value in inputs
    )
    if any(open_sizes):
        two = tuple(torch.cat([v, v]) if isinstance(v, Tensor) and v.ndim and len(v) == 1 else v for v in inputs)
        yield two, open_sizes
        if any(a is not b for a, b in zip(two, inputs, strict=True)):
            yield inputs, open_sizes
    yield inputs, None


def _sizes(program: ExportedProgram) -> str:
    """Which inputs the program takes, in words."""
    named = set(program.graph_signature.user_inputs)
    types = (type_of(node.meta.get("val")) for node in program.graph.find_nodes(op="placeholder") if node.name in named)
    shapes = [[str(size) if isinstance(size, int) else "N" for size in known.shape] for known in types if known is not None]
    words = ", ".join(map("x".join, shapes))
    return (
        f"the result takes inputs of {words}"
        if "N" in words
        else f"the result takes inputs of the example's shapes only ({words})"
    )
