"""`open`: a model of any kind, opened once. Every public function and command takes its model from here.

    open(model, inputs) -> Source     kind, native model, inputs; and, when they are asked for, the trace and the graph

A path is loaded, a plain module is traced, a graph is read: each at most once, and only where somebody asks.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree

from reparam_compiler.advice import ask_for_inputs
from reparam_compiler.checking.runners import TorchRunner
from reparam_compiler.checking.written import Inputs, input_tree, same_function
from reparam_compiler.errors import UnsupportedModelError
from reparam_compiler.frontends.base import Frontend, Kind, Reading, checked_kind
from reparam_compiler.frontends.torch.export import ExportFrontend
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.frontends.torch.module_state import is_compiled
from reparam_compiler.frontends.torch.placing.reading import ModuleFrontend
from reparam_compiler.frontends.torch.placing.through_export import ExportedModuleFrontend
from reparam_compiler.frontends.torch.tensors import arrays_as_tensors, check_count, check_values
from reparam_compiler.frontends.torch.tracing.calls import Trace
from reparam_compiler.frontends.torch.tracing.exporting import Exported, NotExportedError, exported
from reparam_compiler.frontends.torch.tracing.modules import NotTracedError, traced
from reparam_compiler.ir.graph import Graph
from reparam_compiler.models.io import WRITTEN, load_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Source:
    """A model that was opened.

    kind: what the caller gave; "onnx" for an .onnx file.
    model: the native model, as the caller has it or as its file holds it.
    inputs: the example inputs, a tuple or a list; None where there are none.
    copy: whether what is written of a plain module shares no tensor with it.
    name: the path that it was opened from, else its class.
    why_exported: what makes a trace of no use, for a plain module that is to be read as torch.export has it.
    """

    kind: Kind
    model: Any
    inputs: Sequence[Any] | None
    copy: bool = True
    name: str = ""
    why_exported: str = ""

    @property
    def trace(self) -> Trace | None:
        """A plain module, traced; None where no tracer takes it whole."""
        return self._traced if isinstance(self._traced, Trace) else None

    @property
    def why_not_traced(self) -> str:
        """Why no tracer takes a plain module whole."""
        return "" if isinstance(self._traced, Trace) else str(self._traced)

    @cached_property
    def _traced(self) -> Trace | NotTracedError:
        if self.why_exported:
            return NotTracedError(self.why_exported)
        try:
            return traced(self.model, self.inputs, copy=self.copy, agree=same_function)
        except NotTracedError as error:
            logger.info("symbolic tracing of %s failed: %s", type(self.model).__name__, error)
            return error

    @property
    def exported(self) -> fx.GraphModule | None:
        """A plain module as torch.export has it; None where that does not take it, or there are no inputs."""
        return self._exported.graph_module if isinstance(self._exported, Exported) else None

    @cached_property
    def _exported(self) -> Exported | str:
        """Else what stands in the way, and what to do."""
        if isinstance(self._traced, NotTracedError) and self._traced.advice:
            return self._traced.advice
        if self.inputs is None:
            return ask_for_inputs()
        try:
            return exported(self.model, self.inputs, copy=self.copy)
        except NotExportedError as error:
            return f"torch.export does not take it either ({error}); give a part of it that can be traced, or an ONNX export"

    @property
    def native(self) -> Any:
        """What is read and written: the model itself, or the trace of a plain module.

        Raises UnsupportedModelError for a module that no tracer takes whole.
        """
        if self.kind != "torch.nn":
            return self.model
        whole = self._exported if self.trace is None else self.trace
        if isinstance(whole, str):
            kind, why = type(self.model).__name__, self.why_not_traced.removesuffix(f"; {whole}")
            raise UnsupportedModelError(
                f"{kind} cannot be traced as a whole ({why}), and channels are coupled across the whole model; {whole}"
            )
        return whole.graph_module

    @property
    def is_own(self) -> bool:
        """True where `native` is a trace, which nobody else holds: what is written of it need not be a copy."""
        return self.kind == "torch.nn"

    @cached_property
    def frontend(self) -> Frontend[Any]:
        """What reads and writes the model."""
        if self.kind != "torch.nn":
            return frontend_for(self.model)
        return ModuleFrontend() if self.trace is not None else ExportedModuleFrontend()

    @property
    def reading(self) -> Reading[Any]:
        """The model, read; raises UnsupportedModelError for one that cannot be read, or that does not run on its inputs."""
        return self._read[0]

    @property
    def why_without_shapes(self) -> UnsupportedModelError | None:
        """What stopped shapes from being followed from the example inputs through a module."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[Reading[Any], UnsupportedModelError | None]:
        native = self.native  # raises where nothing reads it
        subject = native if self.kind != "torch.nn" else self.trace or self._exported
        try:
            return self.frontend.read(subject, self.inputs), None
        except UnsupportedModelError as error:
            if self.inputs is None or not isinstance(self.model, nn.Module):
                raise
            why = error
        TorchRunner(self.model, copy="weights shared").run(self.inputs)  # it may be the model that does not take them
        return self.frontend.read(subject, None), why  # a check of its own data fails on shapes: the tracer noted what will do

    @property
    def graph(self) -> Graph:
        """The model as a graph."""
        return self.reading.graph

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a report should say of how the model was traced."""
        if not self.is_own:
            return ()
        compiled = ", ".join(name or "the model" for name, part in self.model.named_modules() if is_compiled(part))
        unwrapped = (f"torch.compile had compiled {compiled}; the result is not: compile it anew",) if compiled else ()
        meta = {} if self.trace is None and self.exported is None else self.native.meta
        frozen = tuple(f"fixed while tracing, as the weights have it: {name}" for name in meta.get("frozen", ()))
        return (*unwrapped, *frozen, *meta.get("remarks", ()))

    @property
    def input_names(self) -> dict[str, str]:
        """What the model calls its inputs, by the ids of their nodes: a trace renames those that are Python's own words, and an
        export those that stand in a mapping.
        """
        called: dict[str, str] = {}
        if isinstance(self.native, ExportedProgram):
            ids = list(self.native.graph_signature.user_inputs)
        elif isinstance(self.native, fx.GraphModule):
            called = {node.name: str(node.target).lstrip("*") for node in self.native.graph.find_nodes(op="placeholder")}
            ids = list(called)
        else:
            return called
        spec = input_tree(self.native)
        keys = {} if spec is None else dict(zip(ids, _keys(spec), strict=False))
        named = called | {node_id: key for node_id, key in keys.items() if key}
        return named if len({*named.values()}) == len(named) else called

    @property
    def run_inputs(self) -> Inputs | None:
        """What the model can be run on: the example inputs, or those that a program brings with it."""
        return Inputs.of(self.model, self.inputs)


def _keys(spec: _pytree.TreeSpec) -> list[str]:
    """The name that each value has in the mapping or the object that holds it; empty for one in a list."""
    paths, _ = _pytree.tree_flatten_with_path(_pytree.tree_unflatten([0] * spec.num_leaves, spec))
    return [str(getattr(path[-1], "key", getattr(path[-1], "name", ""))) for path, _ in paths]


def open(model: Any, example_inputs: Any = None, *, copy: bool = True, weights_are_constant: bool = False) -> Source:
    """A model of any kind, or the path of an .onnx or .pt2 file.

    >>> from torch import nn
    >>> source = open(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).eval())
    >>> source.kind, len(source.graph.nodes)
    ('torch.nn', 3)

    Args:
        model: an nn.Module, fx.GraphModule, ExportedProgram, onnx.ModelProto, or a path.
        example_inputs: what it is called with, in a tuple; a tensor or an array alone is one input, and torch
            gets arrays as tensors.
        copy: leave the caller's module alone; without, its trace shares its tensors.
        weights_are_constant: no initializer of an ONNX model is an input of it, though it be listed as one.

    Raises:
        UnsupportedModelError: it is no model, its weights have no values, or its file cannot be read; or the inputs are no
            tuple, or more than an exported program takes.
    """
    native = _loaded(model)
    kind = checked_kind(native)
    if kind == "onnx":
        from reparam_compiler.frontends.onnx.checks import check
        from reparam_compiler.frontends.onnx.reader import with_constant_weights

        check(native)
        native = with_constant_weights(native, copy=copy and native is model) if weights_are_constant else native
    else:
        check_values(native)
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else type(model).__name__
    inputs = _given(example_inputs)
    if kind == "torch.export" and inputs is not None:
        check_count(type(native).__name__, inputs, len(native.graph_signature.user_inputs))
    return Source(kind, native, inputs if kind == "onnx" else arrays_as_tensors(inputs), copy, name)


def frontend_for(model: object) -> Frontend[Any]:
    """The frontend that reads a native model; raises UnsupportedModelError where there is none."""
    kind = checked_kind(model)
    if kind == "torch.fx":
        return FxFrontend()
    if kind == "torch.export":
        return ExportFrontend()
    if kind == "onnx":
        from reparam_compiler.frontends.onnx.frontend import OnnxFrontend

        return OnnxFrontend()
    raise UnsupportedModelError(f"a {type(model).__qualname__} must be traced before it is read: models.opening.open does that")


def _given(example_inputs: Any) -> Sequence[Any] | None:
    if isinstance(example_inputs, Tensor | np.ndarray):
        return (example_inputs,)
    if example_inputs is None or isinstance(example_inputs, tuple | list):
        return example_inputs
    raise UnsupportedModelError(
        f"example_inputs is a {type(example_inputs).__name__}; expected a tuple of what forward() takes, in its order"
    )


def _loaded(model: Any) -> Any:
    if not isinstance(model, str | os.PathLike):
        return model
    if Path(model).suffix.lower() not in WRITTEN:
        raise UnsupportedModelError(
            f"found the path {os.fspath(model)}; expected one that ends in .onnx or .pt2, or a model object"
        )
    return load_model(model)
