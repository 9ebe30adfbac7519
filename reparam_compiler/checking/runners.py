"""A native model as something that runs: the one place where models are run to be compared.

    TorchRunner   a module or a program, in float64 or in its own dtype
    GraphRunner   a graph of `ir/`, in float64
    OnnxRunner    a ModelProto in ONNX Runtime, in its own dtype

Models and inputs are never changed. Every run starts from the same random numbers, and leaves the caller's as they were; so
does it the caller's autocast and gradients.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree

from reparam_compiler.checking.tolerances import EPS
from reparam_compiler.errors import UnsupportedModelError, first_line
from reparam_compiler.frontends.torch.tensors import deep_copy, dtype_word
from reparam_compiler.frontends.torch.wide import in_float64
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Param
from reparam_compiler.vocabulary.dtypes import DTYPES, FLOATING

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

Outputs = Mapping[str, Tensor]
"""The tensors and numbers that a model gives, by where they stand in what it returns ("['logits']", "[0]", "")."""
Copy = Literal["deep", "weights shared", "none"]
"""What of a module is copied before it runs: all; all but its parameters; or only its buffers, anew for each run."""
_FEW = 8
"""A constant of so few elements is no weight: bounds, scales, exponents."""


class Runner(Protocol):
    """A model that runs.

    name: what it is, for messages. runtime: what runs it, in words.
    stored: the coarsest dtype of its weights ("f32"). computed: the one that it runs in.
    """

    @property
    def name(self) -> str: ...
    @property
    def runtime(self) -> str: ...
    @property
    def stored(self) -> str: ...
    @property
    def computed(self) -> str: ...

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, seed: int = 0) -> Outputs:
        """What the model gives for these inputs, tensors or trees of them.

        Raises: UnsupportedModelError where it does not take them.
        """
        ...

    def nudged(self, seed: int = 0) -> "Runner":
        """The same model with every weight moved at random by no more than its rounding."""
        ...


class TorchRunner:
    """A module, or the module of a program, run by torch on the device of its tensors.

    >>> TorchRunner(nn.ReLU(), exact=True).run([torch.tensor([-1.0, 2.0])])
    {'': tensor([0., 2.], dtype=torch.float64)}
    """

    def __init__(self, model: nn.Module | ExportedProgram, *, exact: bool = False, copy: Copy = "deep") -> None:
        """The model is run in float64 where `exact`; one that is not copied is of float64 already then.

        Raises: UnsupportedModelError where no copy of it can be made.
        """
        module: nn.Module = model.module() if isinstance(model, ExportedProgram) else model
        self.name = type(model).__name__
        self._dtypes = {name: dtype_word(tensor.dtype) for name, tensor in _tensors(module)}
        self.stored = coarsest(self._dtypes.values())
        self.computed = "f64" if exact else self.stored
        self.runtime = f"torch, {FLOATING[self.computed].name}"
        self._copy = copy
        if copy != "none":
            # what a forward writes to, buffers and attributes, is the copy's own
            shared = {id(p): p for p in module.parameters()} if copy == "weights shared" else {}
            module = _copied(module, in_float64 if exact else lambda given: deep_copy(given, shared))
        self._module = module

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, seed: int = 0) -> Outputs:
        device = next((tensor.device for _, tensor in _tensors(self._module)), torch.device("cpu"))

        def prepared(tensor: Tensor) -> Tensor:
            wide = self.computed == "f64" and tensor.is_floating_point()
            return tensor.detach().to(device, torch.float64 if wide else tensor.dtype, copy=True)

        given, named = _pytree.tree_map_only(Tensor, prepared, (tuple(args), dict(kwargs or {})))
        called = _Plainly(self._module)
        try:
            with _apart(device, seed):
                if self._copy == "none" and isinstance(self._module, torch.jit.ScriptModule):
                    return leaves(_copied(self._module)(*given, **named))  # its buffers cannot be stood in for
                if self._copy == "none":
                    buffers = {name: buffer.clone() for name, buffer in called.named_buffers()}
                    return leaves(torch.func.functional_call(called, buffers, given, named))
                return leaves(called(*given, **named))
        except Exception as error:
            shapes = [tuple(x.shape) for x in _pytree.tree_leaves((given, named)) if isinstance(x, Tensor)]
            raise UnsupportedModelError(
                f"{self.name} does not run on inputs of shapes {shapes}: {first_line(error)}"
            ) from error

    def nudged(self, seed: int = 0) -> "TorchRunner":
        """A copy with moved weights."""
        exact = self.computed == "f64"
        moved, generator = _copied(self._module), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in _tensors(moved):
                if tensor.is_floating_point():
                    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
                    tensor.mul_(_moved(noise, self._dtypes[name], exact=exact).to(tensor.dtype))
        return TorchRunner(moved, exact=exact, copy="none")


class _Plainly(nn.Module):
    """Calls a module; a GraphModule not by torch.fx's own `__call__`, which prints a page on stderr before it raises."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.module, fx.GraphModule):
            return super(type(self.module), self.module).__call__(*args, **kwargs)
        return self.module(*args, **kwargs)


@dataclass(frozen=True, slots=True, eq=False)
class GraphRunner:
    """A graph, evaluated in float64.

    read: the graph for these inputs, and the inputs by the ids of its `Input` nodes.
    names: the keys under which the outputs are given, in their order; None gives them by position.
    nudge: the seed of the numbers by which the weights are moved; None leaves them.
    """

    read: Callable[[Sequence[Any]], tuple[Graph, Mapping[str, Tensor]]]
    stored: str = "f32"
    names: Sequence[str] | None = None
    name: str = "the graph"
    runtime: str = "the graph, float64"
    computed: str = "f64"
    nudge: int | None = None

    @classmethod
    def of(cls, graph: Graph) -> "GraphRunner":
        """A graph that is there already, which takes its inputs in order."""
        ids = [node.id for node in graph if isinstance(node.op, ops.Input)]

        def read(args: Sequence[Any]) -> tuple[Graph, Mapping[str, Tensor]]:
            if len(ids) != len(args) or not all(isinstance(x, Tensor) for x in args):
                raise UnsupportedModelError(f"the graph takes {len(ids)} tensors; found {len(args)} inputs")
            return graph, dict(zip(ids, args, strict=True))

        return cls(read, coarsest(param.dtype for param in graph.param_users))

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, seed: int = 0) -> Outputs:
        graph, feeds = self.read([*args, *(kwargs or {}).values()])
        with _apart(torch.device("cpu"), seed):
            values = evaluate(graph if self.nudge is None else _nudged_graph(graph, self.nudge), feeds)
        if self.names is not None:
            return leaves(values, self.names)
        return leaves([values[node_id] for node_id in graph.outputs])

    def nudged(self, seed: int = 0) -> "GraphRunner":
        """The graph with moved parameters."""
        return replace(self, nudge=seed)


class OnnxRunner:
    """An ONNX model in ONNX Runtime, with the runtime's own fusions off: it is a rewrite that is measured.

    A model that should not be held twice is given as the path of a file.
    """

    def __init__(self, model: "ModelProto | Path") -> None:
        import onnx

        from reparam_compiler.frontends.onnx.tensors import dtype_word as word_of

        self._source = model
        self._model = onnx.load(model, load_external_data=False) if isinstance(model, Path) else model
        self.name = "ModelProto"
        weights = filter(_is_weight, self._model.graph.initializer)
        self.stored = coarsest(word_of(tensor.data_type) for tensor in weights)
        self.computed = self.stored
        self.runtime = f"ONNX Runtime, {FLOATING[self.stored].name}"

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in their order."""
        return [value.name for value in self._model.graph.output]

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, seed: int = 0) -> Outputs:
        from reparam_compiler.checking.onnx_runtime import RUNTIME_ERRORS, run_model
        from reparam_compiler.frontends.onnx.frontend import named_inputs
        from reparam_compiler.frontends.onnx.tensors import type_of

        rows = {value.name: DTYPES.get(type_of(value.type)[0] or "") for value in self._model.graph.input}
        given = named_inputs(self._model, [*args, *(kwargs or {}).values()])
        feeds = {
            name: array.astype(row.numpy if (row := rows[name]) else array.dtype, copy=False) for name, array in given.items()
        }
        try:
            outputs = run_model(self._source, feeds)
        except RUNTIME_ERRORS as error:
            shapes = [array.shape for array in feeds.values()]
            raise UnsupportedModelError(
                f"ONNX Runtime does not run the model on shapes {shapes}: {first_line(error)}"
            ) from error
        named = {name: _without_texts(value) for name, value in zip(self.output_names, outputs, strict=True)}
        return leaves(named, self.output_names)

    def nudged(self, seed: int = 0) -> "OnnxRunner":
        """A copy with moved initializers; those that lie in a file stay."""
        from onnx import ModelProto, TensorProto, numpy_helper

        model, generator = ModelProto(), torch.Generator().manual_seed(seed)
        model.CopyFrom(self._model)
        for tensor in model.graph.initializer:
            if _is_weight(tensor) and tensor.data_location != TensorProto.EXTERNAL:
                array = numpy_helper.to_array(tensor)
                noise = _moved(torch.rand(array.shape, generator=generator, dtype=torch.float64), self.stored, exact=False)
                tensor.CopyFrom(numpy_helper.from_array((array * noise.numpy()).astype(array.dtype), tensor.name))
        return OnnxRunner(model)


@contextlib.contextmanager
def _apart(device: torch.device, seed: int) -> Iterator[None]:
    """No gradients, no autocast, and random numbers from this seed; the caller's are as they were afterwards."""
    cuda = [*range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in {"cpu", device.type} & {"cpu", "cuda"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        torch.manual_seed(seed)
        yield


def leaves(value: Any, order: Iterable[str] | None = None) -> Outputs:
    """The tensors, arrays and numbers in a value, by their places; those of a mapping in this order of its keys.

    A dataclass counts as the mapping of its fields.

    >>> leaves({"scores": torch.zeros(2), "more": [True, None]})
    {"['scores']": tensor([0., 0.]), "['more'][0]": tensor(True)}
    """
    if order is not None:
        value = {name: value[name] for name in order}
    found = {}
    for path, leaf in _pytree.tree_flatten_with_path(_without_dataclasses(value))[0]:
        if isinstance(leaf, Tensor):
            found[_pytree.keystr(path)] = leaf.detach().cpu()
        elif isinstance(leaf, np.ndarray | np.generic | int | float | complex) and np.asarray(leaf).dtype.kind in "fiubcV":
            array = np.asarray(leaf)
            wide = array.astype(np.float32) if array.dtype.kind == "V" else array  # V: ml_dtypes
            found[_pytree.keystr(path)] = torch.from_numpy(np.array(wide))
    return found


def _without_dataclasses(value: Any) -> Any:
    """A value in which each dataclass that torch takes for a leaf is a mapping of its fields."""

    def opened(leaf: Any) -> Any:
        if not is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        return _without_dataclasses({field.name: getattr(leaf, field.name) for field in fields(leaf)})

    return _pytree.tree_map(opened, value)


def _without_texts(value: Any) -> Any:
    """An array of texts with a number for each, which is the same for the same text alone; any other value as it is.

    >>> _without_texts(np.array(["cat", "dog", "cat"], object)) == _without_texts(np.array(["cat", "cat", "cat"], object))
    array([ True, False,  True])
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "OSU":
        return value
    digests = (hashlib.blake2b(str(text).encode(), digest_size=8).digest() for text in value.flat)
    return np.array([int.from_bytes(digest, signed=True) for digest in digests], np.int64).reshape(value.shape)


def coarsest(dtypes: Iterable[str]) -> str:
    """The coarsest of the floating dtypes among these; float32 where there is none.

    >>> coarsest(["f64", "f16", "i64"])
    'f16'
    """
    return max((dtype for dtype in dtypes if dtype in EPS), key=EPS.__getitem__, default="f32")


def _copied(module: nn.Module, copied: Callable[[nn.Module], nn.Module] = deep_copy) -> nn.Module:
    try:
        with torch.no_grad():  # parameters of a copied ScriptModule would have a history
            return copied(module)
    except Exception as error:
        raise UnsupportedModelError(f"{type(module).__name__} cannot be copied, and it must not be changed: {error}") from error


def _moved(noise: Tensor, dtype: str, *, exact: bool) -> Tensor:
    """Factors that move a number by its rounding, from noise in 0 … 1; in the dtype itself by a whole step or not at all."""
    factor = 2 * noise - 1
    return 1 + factor * EPS[dtype] / 2 if exact else 1 + factor.round() * EPS[dtype]


def _nudged_graph(graph: Graph, seed: int) -> Graph:
    generator, moved = torch.Generator().manual_seed(seed), dict[Param, Param]()
    for param in graph.param_users:
        if param.dtype in EPS and (param.role != "const" or param.count > _FEW):
            moved[param] = _nudged_param(param, torch.rand(param.shape, generator=generator, dtype=torch.float64))
    nodes = [replace(node, inputs=tuple(moved.get(x, x) if isinstance(x, Param) else x for x in node.inputs)) for node in graph]
    return Graph.of(nodes, graph.outputs, sizes_are_fixed=graph.sizes_are_fixed)


def _nudged_param(param: Param, noise: Tensor) -> Param:
    factors = _moved(noise, param.dtype, exact=True).numpy()
    return replace(param, load=lambda: param.float64() * factors)


def _is_weight(tensor: "TensorProto") -> bool:
    elements: int = math.prod(tensor.dims)
    return elements > _FEW


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
