"""A native model as something that runs, in float64 where it can, and once more with its weights moved by a rounding.

    torch     a deep copy in float64, else (a model that converts to another dtype on its way) in its own dtype
    ONNX      the graph of `ir/`, evaluated in float64, where every node can be and ONNX Runtime agrees; else ONNX Runtime

ONNX Runtime is asked because the reader is ours: what it misread would be misread before and after a rewrite alike.
Models and inputs are never changed; random ops draw the same numbers in every run.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree

from reparam_compiler.errors import ReparamError, UnsupportedModelError
from reparam_compiler.frontends.torch.tensors import deep_copy, dtype_word
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir.graph import Graph, Param
from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

Outputs = Mapping[str, Tensor]
"""The tensors and numbers that a model gives, by where they stand in what it returns ("['logits']", "[0]", "")."""
EPS = {word: row.eps for word, row in FLOATING.items()}
"""The distance of 1 and the next number; rounding moves a number by half of it at most."""
_AGREE = 1e-3
"""The largest relative difference of a float32 model in ONNX Runtime and its graph in float64; coarser dtypes get more."""
_FEW = 8
"""A constant of so few elements is no weight: bounds, scales, exponents."""


class Run(Protocol):
    """A model that runs on its example inputs.

    stored: the coarsest dtype of its weights ("f32"). computed: the one that it runs in. runtime: what runs it, in words.
    examples: what it gives for the example inputs.
    """

    stored: str
    computed: str
    runtime: str
    examples: Outputs

    def __call__(self, inputs: Sequence[Any]) -> Outputs:
        """What the model gives; raises UnsupportedModelError where it does not take these inputs."""
        ...

    def nudged(self, inputs: Sequence[Any]) -> Outputs:
        """The same with every weight moved at random by no more than its rounding."""
        ...


def runnable(model: object, example_inputs: Sequence[Any]) -> Run:
    """The model as something that runs; raises UnsupportedModelError for one that does not run on the example inputs."""
    if isinstance(model, nn.Module | ExportedProgram):
        return TorchRun(model, example_inputs)
    if type(model).__module__.partition(".")[0] == "onnx" and type(model).__name__ == "ModelProto":
        proto: Any = model
        return OnnxRun(proto, example_inputs)
    raise UnsupportedModelError(
        f"found a {type(model).__module__}.{type(model).__qualname__}; expected an nn.Module, an fx.GraphModule, an "
        "ExportedProgram, an onnx.ModelProto, or the path of an .onnx or .pt2 file"
    )


class TorchRun:
    """A module or a program, run by torch."""

    def __init__(self, model: nn.Module | ExportedProgram, example_inputs: Sequence[Any]) -> None:
        if isinstance(model, nn.Module):
            _check_mode(model)
        self._name = type(model).__name__
        self._model = model.module() if isinstance(model, ExportedProgram) else model
        self._dtypes = {name: dtype_word(tensor.dtype) for name, tensor in _tensors(self._model)}
        self.stored = coarsest(self._dtypes.values())
        try:
            self._copy = self._fresh(exact=True)
            self.computed = "f64"
            self.examples = self(example_inputs)
        except UnsupportedModelError:
            self._copy = self._fresh(exact=False)
            self.computed = self.stored
            self.examples = self(example_inputs)
        self.runtime = f"torch, {FLOATING[self.computed].name}"

    def __call__(self, inputs: Sequence[Any]) -> Outputs:
        return self._run(self._copy, inputs)

    def nudged(self, inputs: Sequence[Any]) -> Outputs:
        moved = self._fresh(exact=self.computed == "f64")
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, tensor in _tensors(moved):
                if tensor.is_floating_point():
                    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
                    tensor.mul_(_moved(noise, self._dtypes[name], exact=self.computed == "f64").to(tensor.dtype))
        return self._run(moved, inputs)

    def _fresh(self, *, exact: bool) -> nn.Module:
        try:
            model = deep_copy(self._model)
        except Exception as error:
            raise UnsupportedModelError(f"{self._name} cannot be copied, and it must not be changed: {error}") from error
        return model.double() if exact else model

    def _run(self, model: nn.Module, inputs: Sequence[Any]) -> Outputs:
        device = next((tensor.device for _, tensor in _tensors(model)), torch.device("cpu"))

        def prepared(tensor: Tensor) -> Tensor:
            wide = self.computed == "f64" and tensor.is_floating_point()
            return tensor.detach().to(device, torch.float64 if wide else tensor.dtype, copy=True)

        given = _pytree.tree_map_only(Tensor, prepared, tuple(inputs))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return leaves(model(*given))
        except Exception as error:
            shapes = [tuple(x.shape) for x in _pytree.tree_leaves(given) if isinstance(x, Tensor)]
            raise UnsupportedModelError(f"{self._name} does not run on inputs of shapes {shapes}: {_line(error)}") from error


class OnnxRun:
    """An ONNX model: its graph in float64, else ONNX Runtime in the model's dtype."""

    def __init__(self, model: "ModelProto", example_inputs: Sequence[Any]) -> None:
        from reparam_compiler.frontends.onnx.tensors import dtype_word as word_of

        self._model = model
        self.stored = coarsest(word_of(tensor.data_type) for tensor in model.graph.initializer if _is_weight(tensor))
        self.computed, self.runtime = "f64", "the graph of the ONNX model, float64"
        try:
            exact = self._evaluated(example_inputs, nudge=False)
        except ReparamError as error:
            self._use_runtime(f"not in float64: {_line(error)}")
            self.examples = self(example_inputs)
            return
        self.examples = exact
        try:
            own = self._native(self._model, example_inputs)
        except UnsupportedModelError:  # a dtype that its kernels do not take, say: there is nothing to check against
            return
        same = exact.keys() == own.keys()
        apart = max((difference(exact[name], own[name]).relative for name in exact), default=0.0) if same else math.inf
        if not apart <= max(_AGREE, 64 * EPS[self.stored]):
            self._use_runtime(f"the graph as read gives something else, by {apart:.1e}")
            self.examples = own

    def __call__(self, inputs: Sequence[Any]) -> Outputs:
        self._check_sizes(inputs)
        return self._evaluated(inputs, nudge=False) if self.computed == "f64" else self._native(self._model, inputs)

    def nudged(self, inputs: Sequence[Any]) -> Outputs:
        return self._evaluated(inputs, nudge=True) if self.computed == "f64" else self._native(self._nudged_model(), inputs)

    def _use_runtime(self, why: str) -> None:
        self.computed = self.stored
        self.runtime = f"ONNX Runtime, {FLOATING[self.stored].name} ({why})"

    def _check_sizes(self, inputs: Sequence[Any]) -> None:
        """The graph would run on sizes that the file excludes, and constants made of sizes would be wrong there."""
        from reparam_compiler.frontends.onnx.frontend import named_inputs
        from reparam_compiler.frontends.onnx.tensors import type_of

        declared = {value.name: type_of(value.type)[1] for value in self._model.graph.input}
        for name, array in named_inputs(self._model, inputs).items():
            known = declared[name]
            if known is None:
                continue
            fixed = [size for size in zip(known.shape, array.shape, strict=False) if isinstance(size[0], int)]
            if len(known.shape) != array.ndim or any(size != given for size, given in fixed):
                raise UnsupportedModelError(f"the ONNX model fixes {name} to {list(known.shape)}; found {list(array.shape)}")

    def _evaluated(self, inputs: Sequence[Any], *, nudge: bool) -> Outputs:
        from reparam_compiler.frontends.onnx.frontend import OnnxFrontend, named_inputs

        feeds = {name: torch.from_numpy(np.array(array)) for name, array in named_inputs(self._model, inputs).items()}
        graph = OnnxFrontend().read(self._model, [*feeds.values()]).graph
        return leaves(evaluate(_nudged_graph(graph) if nudge else graph, feeds), self._names())

    def _native(self, model: "ModelProto", inputs: Sequence[Any]) -> Outputs:
        from reparam_compiler.frontends.onnx.frontend import RUNTIME_ERRORS, named_inputs, run_model
        from reparam_compiler.frontends.onnx.tensors import type_of

        rows = {value.name: DTYPES.get(type_of(value.type)[0] or "") for value in model.graph.input}
        arrays = named_inputs(model, inputs)
        feeds = {name: array.astype(row.numpy if (row := rows[name]) else array.dtype) for name, array in arrays.items()}
        try:
            return leaves(dict(zip(self._names(), run_model(model, feeds), strict=True)), self._names())
        except RUNTIME_ERRORS as error:
            shapes = [array.shape for array in feeds.values()]
            raise UnsupportedModelError(f"ONNX Runtime does not run the model on shapes {shapes}: {_line(error)}") from error

    def _names(self) -> list[str]:
        return [value.name for value in self._model.graph.output]

    def _nudged_model(self) -> "ModelProto":
        from onnx import ModelProto, TensorProto, numpy_helper

        model, generator = ModelProto(), torch.Generator().manual_seed(0)
        model.CopyFrom(self._model)
        for tensor in model.graph.initializer:
            if _is_weight(tensor) and tensor.data_location != TensorProto.EXTERNAL:
                array = numpy_helper.to_array(tensor)
                noise = _moved(torch.rand(array.shape, generator=generator, dtype=torch.float64), self.stored, exact=False)
                tensor.CopyFrom(numpy_helper.from_array((array * noise.numpy()).astype(array.dtype), tensor.name))
        return model


def leaves(value: Any, order: Iterable[str] | None = None) -> Outputs:
    """The tensors, arrays and numbers in a value, by their places; those of a mapping in this order of its keys."""
    if order is not None:
        value = {name: value[name] for name in order}
    found = {}
    for path, leaf in _pytree.tree_flatten_with_path(value)[0]:
        if isinstance(leaf, Tensor):
            found[_pytree.keystr(path)] = leaf.detach().cpu()
        elif isinstance(leaf, np.ndarray | np.generic | int | float) and np.asarray(leaf).dtype.kind in "fiubV":
            array = np.asarray(leaf)
            wide = array.astype(np.float32) if array.dtype.kind == "V" else array  # V: ml_dtypes
            found[_pytree.keystr(path)] = torch.from_numpy(np.array(wide))
    return found


def coarsest(dtypes: Iterable[str]) -> str:
    """The coarsest of the floating dtypes among these; float32 where there is none."""
    return max((dtype for dtype in dtypes if dtype in EPS), key=EPS.__getitem__, default="f32")


def _moved(noise: Tensor, dtype: str, *, exact: bool) -> Tensor:
    """Factors that move a number by its rounding, from noise in 0 … 1; in the dtype itself by a whole step or not at all."""
    factor = 2 * noise - 1
    return 1 + factor * EPS[dtype] / 2 if exact else 1 + factor.round() * EPS[dtype]


def _nudged_graph(graph: Graph) -> Graph:
    generator, moved = torch.Generator().manual_seed(0), dict[Param, Param]()
    for param in graph.param_users:
        if param.dtype in EPS and (param.role != "const" or param.count > _FEW):
            moved[param] = _nudged_param(param, torch.rand(param.shape, generator=generator, dtype=torch.float64))
    nodes = [replace(node, inputs=tuple(moved.get(x, x) if isinstance(x, Param) else x for x in node.inputs)) for node in graph]
    return Graph.of(nodes, graph.outputs, sizes_are_fixed=graph.sizes_are_fixed)


def _nudged_param(param: Param, noise: Tensor) -> Param:
    factors = _moved(noise, param.dtype, exact=True).numpy()
    return replace(param, load=lambda: param.float64() * factors)


def _is_weight(tensor: "TensorProto") -> bool:
    return int(np.prod(tensor.dims, dtype=np.int64)) > _FEW


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _check_mode(model: nn.Module) -> None:
    """Raises where a module would behave as in training. (A traced module's own flag says nothing: it runs what was traced.)"""
    for name, module in model.named_modules():
        if module.training and isinstance(module, _NormBase | _DropoutNd):
            raise UnsupportedModelError(
                f"{name or 'the model'} ({type(module).__name__}): training=True; expected a model in evaluation mode: "
                "call model.eval() before equivalent()"
            )
    if model.training and not isinstance(model, fx.GraphModule):
        raise UnsupportedModelError(
            f"{type(model).__name__}: training=True; expected a model in evaluation mode: call model.eval() before equivalent()"
        )


def _line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
