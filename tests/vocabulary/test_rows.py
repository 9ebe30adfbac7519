"""Every row: all its spellings are one op, and give the same, as functions, methods, modules, exported programs and ONNX.

Whatever a row declares is resolved to it. Where it can be called on tensors alone (`SAMPLES`, and every row with a form), each
spelling is called, traced, read and evaluated in float64, and compared with torch. Rows of functions of elements and of moves
have nothing but their row, so that they go through every frontend, are fused and pruned beside convs, and written back.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import Tensor, fx, nn

import reparam_compiler
from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.frontends.torch.export import ExportFrontend
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.frontends.torch.ops.coupling_models import COUPLING_MODELS
from reparam_compiler.frontends.torch.ops.table import READERS
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph
from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary import resolve
from reparam_compiler.vocabulary.resolve import ROWS, resolve_function, resolve_method, resolve_module
from reparam_compiler.vocabulary.row import OnnxType, Row
from tests.support.onnx_models import model_of
from tests.support.row_samples import CALLABLE, NUMBERS, X, sample
from tests.support.small_models import EXACT, normal, relative_error


class Called(nn.Module):
    """A conv, a call of what it reads, and a conv where that still has images."""

    def __init__(self, call: Callable[..., Any], arguments: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self.call, self.arguments = call, arguments
        self.module = call if isinstance(call, nn.Module) else None
        self.eval()

    def forward(self, x: Tensor) -> Any:
        if self.module is not None:
            return self.module(x)
        given = [getattr(self, f"given{i}", a) for i, a in enumerate(self.arguments)]
        return self.call(x, *given)


def source(row: Row) -> Tensor:
    return X > 0.5 if row.name.startswith("logical") else X


def spellings(row: Row) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function and method that torch has of a row, with a name for reports; those that write are not called."""
    for function, known in resolve._FUNCTIONS.items():
        if known.row is row and not known.writes and not isinstance(function, type(Tensor.add)):
            yield f"{getattr(function, '__module__', None)}.{getattr(function, '__name__', '?')}", function
    for word, known in resolve._METHODS.items():
        if known.row is row and not known.writes and not word.startswith("__"):
            yield f"Tensor.{word}", _method(word)


def _method(word: str) -> Callable[..., Any]:
    def call(x: Tensor, *arguments: Any) -> Any:
        return getattr(x, word)(*arguments)

    return call


def evaluated(graph: Graph, x: Tensor) -> Any:
    (name,) = [node.id for node in graph if isinstance(node.op, ops.Input)]
    return evaluate(graph, {name: x})[graph.outputs[0]]


def same(found: Any, expected: Any) -> bool:
    if expected.dtype == torch.bool or not expected.is_floating_point():
        return torch.equal(torch.as_tensor(found), expected)
    return relative_error(expected, torch.as_tensor(found)) < EXACT


@pytest.mark.parametrize("row", CALLABLE, ids=lambda row: row.name)
def test_every_spelling_gives_the_same_read_and_evaluated(row: Row) -> None:
    arguments, x, tried = sample(row) or (), source(row), 0
    reference: Any = None
    for name, call in spellings(row):
        try:
            expected = call(x, *arguments)
        except (TypeError, NotImplementedError, RuntimeError):
            continue  # a spelling with other parameters (an operator of the same name that takes two values)
        reference = expected if reference is None else reference
        graph = FxFrontend().read(fx.symbolic_trace(Called(call, arguments)), (x,)).graph
        assert same(evaluated(graph, x), expected), name
        assert same(expected, reference) or row.name in ("rsub", "mean", "sum"), name
        tried += 1
    assert tried, f"{row.name} was called in no spelling"
    program = torch.export.export(Called(next(c for _, c in spellings(row) if _runs(c, x, arguments)), arguments), (x,))
    assert same(evaluated(ExportFrontend().read(program).graph, x), program.module()(x))


def _runs(call: Callable[..., Any], x: Tensor, arguments: tuple[Any, ...]) -> bool:
    try:
        call(x, *arguments)
    except (TypeError, NotImplementedError, RuntimeError):
        return False
    return True


EXACT_ROWS = [row for row in ROWS.values() if row.form in ("pointwise", "move") and row.spelled]


def op_of(row: Row) -> ops.Op:
    numbers = NUMBERS.get(row.name, tuple(default for _, default in row.parameters))
    if row.form == "move":
        return ops.Move(row.name, tuple(int(n) for n in numbers if n is not None))
    return ops.Elementwise(row.name, tuple(numbers))


def module_of(row: Row) -> nn.Module | None:
    """The row's module with those arguments."""
    return row.modules[0](*NUMBERS.get(row.name, ())) if row.modules else None


@pytest.mark.parametrize("row", EXACT_ROWS, ids=lambda row: row.name)
def test_a_row_with_a_form_is_one_op_in_torch(row: Row) -> None:
    numbers = NUMBERS.get(row.name, ())
    calls = [Called(call, numbers) for _, call in spellings(row) if _runs(call, X, numbers)]
    calls += [Called(module)] if (module := module_of(row)) else []
    assert calls
    assert row.math is not None
    expected = row.math(X, *numbers)
    for call in calls:
        graph = FxFrontend().read(fx.symbolic_trace(call), (X,)).graph
        assert graph[graph.outputs[0]].op == op_of(row)
        assert same(evaluated(graph, X), expected)
    graph = ExportFrontend().read(torch.export.export(calls[-1], (X,))).graph
    assert graph[graph.outputs[0]].op == op_of(row)
    assert same(evaluated(graph, X), expected)


TYPES = [(row, stated) for row in EXACT_ROWS for stated in row.onnx]
OTHERWISE: dict[str, dict[str, object]] = {"HardSigmoid": {"alpha": 1 / 6, "beta": 0.5}}
"""Attributes with which a type is this op, where a reader of its own looks at them."""
OPSET = {"Mish": 18, "HardSwish": 14, "Gelu": 20, "Swish": 24, "Celu": 12}


@pytest.mark.parametrize(("row", "stated"), TYPES, ids=lambda value: getattr(value, "name", None))
def test_an_onnx_type_computes_what_its_row_does(row: Row, stated: OnnxType) -> None:
    numbers = NUMBERS.get(row.name, ())
    attributes = dict(zip((key for key, _ in stated.arguments), numbers, strict=False))
    attributes |= {key: value for key, _, value in stated.requires} | OTHERWISE.get(stated.name, {})
    constants = {f"n{i}": np.asarray(n, np.float32) for i, n in enumerate(numbers)} if stated.name == "Clip" else {}
    node = helper.make_node(stated.name, ["x", *constants], ["y"], **attributes)
    model = model_of([node], {"x": tuple(X.shape)}, ["y"], constants, opset=OPSET.get(stated.name, 17))
    graph = OnnxFrontend().read(model).graph
    found = graph["y"].op
    assert isinstance(found, ops.Elementwise | ops.Move)
    assert found.function == row.name
    assert row.math is not None
    x = X.float().double()
    expected = row.math(x, *found.arguments)
    assert same(evaluated(graph, x), expected)
    if attributes.keys() - OTHERWISE.get(stated.name, {}).keys():
        assert found.arguments == pytest.approx(op_of(row).arguments)  # type: ignore[union-attr]
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString())
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        return  # this version of ONNX Runtime lacks the type
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
        return  # or the opset
    (own,) = session.run(None, {"x": x.float().numpy()})
    assert relative_error(expected, torch.from_numpy(own).double()) < 1e-5


def test_depth_to_space_in_its_other_order_is_another_op() -> None:
    node = helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2)
    graph = OnnxFrontend().read(model_of([node], {"x": (1, 8, 2, 3)}, ["y"])).graph
    found = graph["y"].op
    assert isinstance(found, ops.Opaque)
    assert Facts.LINEAR in found.facts


class Between(nn.Module):
    """A row between two convs, of which the first one can lose channels."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = {"pixel_shuffle": 4, "pixel_unshuffle": 64}.get(row.name, 16)
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(width, 4, 1)
        self.math, self.numbers = row.math, NUMBERS.get(row.name, ())
        self.double().eval()
        nn.init.constant_(self.a.bias, 9.0)  # roots and logarithms are of positive numbers

    def forward(self, x: Tensor) -> Tensor:
        assert self.math is not None
        return self.b(self.math(self.a(x), *self.numbers))


@pytest.mark.filterwarnings("ignore::reparam_compiler.UnrepairedPruneWarning")
@pytest.mark.parametrize("row", [row for row in EXACT_ROWS if row.name != "log"], ids=lambda row: row.name)
@pytest.mark.parametrize("kind", ["module", "export"])
def test_a_row_with_a_form_is_pruned_through_and_written_back(kind: str, row: Row) -> None:
    """All but the logarithm: that of a channel that is masked with zeros is infinite, and the reference is not."""
    x = normal(2, 3, 8, 8)
    model = Between(row)
    native = torch.export.export(model, (x,)) if kind == "export" else model
    pruned, report = reparam_compiler.prune(native, (x,), ratio=0.5, round_to=1, return_report=True)
    assert (16, 8) in [(family.before, family.after) for family in report.plan.families]
    assert report.plan.relative_error < EXACT
    run = pruned.module() if kind == "export" else pruned
    assert run(x).shape == model(x).shape


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_what_a_row_declares_is_resolved_to_it(row: Row) -> None:
    for function in row.functions:
        assert resolve_function(function).row is row
    for function in row.in_place:
        assert resolve_function(function).row is row
        assert resolve_function(function).writes
    for kind in row.modules:
        assert resolve_module(kind).row is row
        assert resolve_module(type(kind.__name__, (kind,), {})).row is None
    for word in row.spelled:
        for name, writes in ((word, False), (f"{word}_", True)):
            if callable(getattr(Tensor, name, None)):
                assert resolve_method(name).row is row
                assert resolve_method(name).writes == writes
            packet = getattr(torch.ops.aten, name, None)
            if packet is not None:
                found = resolve_function(getattr(packet, packet._overload_names[0] or "default"))
                assert (found.row, found.writes) == (row, writes)
                assert resolve_function(packet).row is row


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.form], ids=lambda row: row.name)
def test_a_form_gives_a_row_what_it_needs(row: Row) -> None:
    assert row in COUPLING_MODELS
    if row.form in ("pointwise", "move"):
        assert row in READERS
        assert row.math is not None


def test_what_stands_in_two_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="relu has a row already"):
        resolve._add_row(Row("relu"))
    try:
        with pytest.raises(ValueError, match="stands in two rows of the vocabulary"):
            resolve._add_row(Row("another relu", ("relu",)))
    finally:
        ROWS.pop("another relu", None)
