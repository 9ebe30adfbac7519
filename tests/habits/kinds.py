"""A habit in every kind of model that a caller can bring, and how each kind is run."""

import contextlib
import copy
import inspect
import io
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree

from reparam_compiler.errors import class_and_line
from tests.habits.parts import BATCH, Habit

KINDS = (
    "module",
    "module with inputs",
    "fx",
    "export",
    "export, open batch",
    "onnx (TorchScript)",
    "onnx (dynamo)",
    "pt2 file",
    "onnx file",
)
LONGEST = 240
"""Characters of an error that are kept."""


class NotExported(Exception):
    """The exporter itself refuses the habit: the cell does not apply."""


@dataclass(frozen=True)
class Given:
    """A habit in a kind: what is given to a verb.

    model: the model, or the path of its file. inputs: the example inputs that the verb is told; None where it is told none.
    """

    habit: Habit
    kind: str
    model: Any
    inputs: tuple[Any, ...] | None
    known: dict[int, list[Tensor] | None] = field(default_factory=dict)

    def expected(self, batch: int) -> list[Tensor] | None:
        """What the given model gives at a batch; None where it takes no such one."""
        if batch not in self.known:
            model = self.habit.make() if self.kind.startswith("module") else self.model
            try:
                found = run(model, self.habit.args(batch), self.habit.kwargs(batch))
                self.known[batch] = None if any(value.is_meta or isinstance(value, FakeTensor) for value in found) else found
            except Exception:  # noqa: BLE001 - whatever the model's own code raises
                self.known[batch] = None
        return self.known[batch]


def given(habit: Habit, kind: str, folder: Path) -> Given:
    """Raises NotExported."""
    args, kwargs = habit.args(BATCH), habit.kwargs(BATCH)
    if kind in ("module", "module with inputs"):
        return Given(habit, kind, habit.make(), args if kind.endswith("inputs") else None)
    try:
        with quiet(), torch.no_grad():
            model = MAKERS[kind](habit.make(), args, kwargs, folder)
    except Exception as refusal:
        raise NotExported(brief(refusal)) from refusal
    return Given(habit, kind, model, args if kind == "fx" else None)


Maker = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], Path], Any]


def _fx(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], folder: Path) -> Any:
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("torch.fx does not trace a ScriptModule")
    return fx.symbolic_trace(model)


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], folder: Path) -> Any:
    return torch.export.export(model, args, dict(kwargs))


def _open_export(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], folder: Path) -> Any:
    return torch.export.export(model, args, dict(kwargs), dynamic_shapes=_open_batch(model, args, kwargs))


def _open_batch(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    def sizes(leaf: Any) -> Any:
        return {0: torch.export.Dim.DYNAMIC} if isinstance(leaf, Tensor) else None

    given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return {name: _pytree.tree_map(sizes, value, is_leaf=lambda leaf: leaf is None) for name, value in given.items()}


def _torchscript(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], folder: Path) -> Any:
    import onnx

    written = io.BytesIO()
    kept: Any = torch.onnx.TrainingMode.PRESERVE  # in evaluation mode the exporter folds the norms itself
    torch.onnx.export(
        model, (*args, dict(kwargs)), written, dynamo=False, opset_version=17, training=kept, do_constant_folding=False
    )
    return onnx.load_from_string(written.getvalue())


def _dynamo(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], folder: Path) -> Any:
    from tests.support import quick_exports

    quick_exports.install()
    program = torch.onnx.export(model, args, kwargs=dict(kwargs), dynamo=True, optimize=False, verbose=False)
    return program.model_proto


def _pt2(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], folder: Path) -> Any:
    path = folder / "habit.pt2"
    torch.export.save(_export(model, args, kwargs, folder), path)
    return path


def _onnx_file(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], folder: Path) -> Any:
    path = folder / "habit.onnx"
    torch.onnx.export(model, (*args, dict(kwargs)), path, dynamo=False, opset_version=17)
    return path


MAKERS: Mapping[str, Maker] = {
    "fx": _fx,
    "export": _export,
    "export, open batch": _open_export,
    "onnx (TorchScript)": _torchscript,
    "onnx (dynamo)": _dynamo,
    "pt2 file": _pt2,
    "onnx file": _onnx_file,
}


def run(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[Tensor]:
    """What a model of any kind gives: its tensors and numbers, in order."""
    if isinstance(model, Path):
        model = loaded(model)
    args, kwargs = copy.deepcopy((tuple(args), dict(kwargs or {})))
    with torch.no_grad(), quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if hasattr(model, "SerializeToString"):
            return _run_onnx(model, [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
        module = model.module() if isinstance(model, torch.export.ExportedProgram) else model
        return flat(module(*args, **kwargs))


def loaded(path: Path) -> Any:
    if path.suffix == ".pt2":
        return torch.export.load(path)
    import onnx

    return onnx.load(path)


def _run_onnx(model: Any, tensors: Sequence[Tensor]) -> list[Tensor]:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1

    def session(model: Any) -> Any:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    try:
        runs = session(model)
    except (errors.NotImplemented, errors.InvalidGraph):  # it has no convs of these dtypes
        runs = session(_in_float32(model))
    dtypes = {"tensor(float16)": torch.float16, "tensor(float)": torch.float32, "tensor(double)": torch.float64}
    given = {}
    for place, value in enumerate(runs.get_inputs()):
        tensor = tensors[place] if place < len(tensors) else torch.tensor(1)  # the exporter makes inputs of numbers
        given[value.name] = tensor.to(dtypes.get(value.type, tensor.dtype)).numpy()
    return [torch.from_numpy(array) for array in runs.run(None, given)]


def _in_float32(model: Any) -> Any:
    """An ONNX model in which float32 stands for bfloat16 and for float64."""
    import onnx

    model, others = copy.deepcopy(model), (onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))]
    for tensor in tensors:
        if tensor.data_type in others:
            array = onnx.numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in others:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for attribute in (a for node in model.graph.node for a in node.attribute if node.op_type == "Cast"):
        if attribute.i in others:
            attribute.i = onnx.TensorProto.FLOAT
    del model.graph.value_info[:]
    return model


def flat(value: Any) -> list[Tensor]:
    """The tensors and numbers in what a model gives, in order; those of dataclasses too."""
    if is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, each.name) for each in fields(value)]
    leaves = _pytree.tree_leaves(value)
    return [
        leaf if isinstance(leaf, Tensor) else torch.tensor(leaf) for leaf in leaves if isinstance(leaf, Tensor | int | float)
    ]


def norms(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many batch norms a model of any kind calls on these inputs; of one that does not run, how many it has."""
    if isinstance(model, Path):
        model = loaded(model)
    if hasattr(model, "SerializeToString"):
        return sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    module = model.graph_module if isinstance(model, torch.export.ExportedProgram) else model
    graphs = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    calls = [node for graph in graphs for node in graph.graph.nodes if node.op in ("call_function", "call_module")]
    found = sum(node.op == "call_function" and "batch_norm" in str(node.target) for node in calls)
    held = {id(part) for graph in graphs for part in graph.modules()}
    called = {id(graph.get_submodule(node.target)) for graph in graphs for node in graph.graph.find_nodes(op="call_module")}
    own = {name for name, part in module.named_modules() if isinstance(part, _BatchNorm) and id(part) not in held}
    return (
        found
        + sum(isinstance(part, _BatchNorm) for part in module.modules() if id(part) in called)
        + len(own and _called(module, own, args, kwargs))
    )


def _called(module: nn.Module, names: set[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[str]:
    """Which parts of a module are called; all of them where it does not run. It is a copy that runs."""
    seen: set[str] = set()
    try:
        copied = copy.deepcopy(module)
        for name in names:
            copied.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: seen.add(name))
        run(copied, args, kwargs)
    except Exception:  # noqa: BLE001 - whatever the model's own code raises
        return names
    return seen


def brief(error: BaseException) -> str:
    """The class of an error and the first line of its text, without colours and what differs by run or machine."""
    text = re.sub(r"0x[0-9a-f]+|(/[\w.+-]+){3,}", "…", re.sub(r"\x1b\[\d+m", "", class_and_line(error)))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, and without what exporters and fx print."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@cache
def a_folder() -> Path:
    """A folder for files, that is removed when the process ends."""
    return Path(_folder.name)


_folder = tempfile.TemporaryDirectory(prefix="habits-")
