"""The interpreter against torch in float64, and what counts as a difference."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reparam_compiler import fuse
from reparam_compiler.errors import RewriteError, UnsupportedModelError
from reparam_compiler.frontends.torch.export import ExportFrontend
from reparam_compiler.frontends.torch.fx import FxFrontend
from reparam_compiler.interpreter import evaluate as evaluator
from reparam_compiler.interpreter.difference import Difference, difference
from reparam_compiler.interpreter.evaluate import evaluate, evaluate_node, evaluate_region, tensor_of
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param
from reparam_compiler.vocabulary.resolve import ROWS
from tests.support.branch_blocks import BLOCKS, block
from tests.support.small_models import EXACT, normal, relative_error, run, traced_as

FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}


def value_of(op: ops.Op, *operands: Any) -> torch.Tensor:
    """The value of one op on tensors (computed values), arrays (parameters) and None."""
    inputs: list[Any] = []
    values: dict[str, torch.Tensor] = {}
    for index, operand in enumerate(operands):
        if isinstance(operand, torch.Tensor):
            values[f"v{index}"] = operand
            inputs.append(f"v{index}")
        else:
            inputs.append(None if operand is None else Param.of(operand, role="const", dtype="f64"))
    result: torch.Tensor = evaluate_node(Node("y", op, tuple(inputs)), values)
    return result


@pytest.mark.parametrize("kind", ["fx", "export"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_graph_gives_what_its_model_gives(name: str, kind: str) -> None:
    model, x = block(name)
    given = traced_as(kind, model, (x,))  # type: ignore[arg-type]
    graph = FxFrontend().read(given, (x,)).graph if kind == "fx" else ExportFrontend().read(given).graph
    (source,) = [node.id for node in graph if isinstance(node.op, ops.Input)]
    assert relative_error(run(model, x), evaluate(graph, {source: x})[graph.outputs[0]]) < EXACT


X = normal(2, 4, 7, 6)


@pytest.mark.parametrize(
    ("op", "operands", "expected"),
    [
        (ops.Identity(), (X,), X),
        (ops.Add((1.0, -2.0)), (X, np.float64(3)), X - 6),
        (ops.Add((-1.0,)), (X,), -X),
        (ops.Add((1.0, 1.0, 1.0)), (X, X, X), 3 * X),
        (ops.Mul(), (X, np.full((4, 1, 1), 2.0)), 2 * X),
        (ops.Div(), (np.float64(1), X), 1 / X),
        (ops.Linear(), (X, np.ones((3, 6)), np.ones(3)), F.linear(X, torch.ones(3, 6).double(), torch.ones(3).double())),
        (ops.BatchNorm(0.1), (X, None, None, np.ones(4), np.ones(4)), (X - 1) / 1.1**0.5),
        (
            ops.BatchNorm(0.1, training=True),
            (X, None, None, np.ones(4), np.ones(4)),
            F.batch_norm(X, None, None, None, None, True, 0.0, 0.1),
        ),
        (ops.Pad(((0, 0), (0, 0), (1, 2), (0, -1)), value=0.5), (X,), F.pad(X, (0, -1, 1, 2), value=0.5)),
        (ops.Pad(((0, 0), (0, 0), (1, 2), (0, 1)), "reflect"), (X,), F.pad(X, (0, 1, 1, 2), "reflect")),
        (ops.AvgPool((3, 2), (2, 1), ((1, 1), (0, 0)), ceil_mode=True), (X,), F.avg_pool2d(X, (3, 2), (2, 1), (1, 0), True)),
        (ops.AvgPool((3, 3), (1, 1), ((1, 1), (1, 1)), False, False), (X,), F.avg_pool2d(X, 3, 1, 1, False, False)),
        (ops.AvgPool((2, 2), (1, 1), ((1, 0), (0, 1))), (X,), F.avg_pool2d(F.pad(X, (0, 1, 1, 0)), 2, 1)),
        (ops.MaxPool((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)), (X,), F.max_pool2d(X, 3, 2, 1)),
        (ops.MaxPool((2, 2), (1, 1), ((1, 0), (0, 1)), (1, 1)), (X,), F.max_pool2d(F.pad(X, (0, 1, 1, 0), value=-1e9), 2, 1)),
        (ops.AdaptiveAvgPool((1, 2)), (X,), F.adaptive_avg_pool2d(X, (1, 2))),
        (ops.Reduce("mean", (2, 3), False), (X,), X.mean((2, 3))),
        (ops.Reduce("sum", (1,), True), (X,), X.sum(1, keepdim=True)),
        (ops.Reduce("max", (1, 2), False), (X,), X.amax((1, 2))),
        (ops.Concat(1), (X, X), torch.cat([X, X], 1)),
        (ops.Flatten(1, 2), (X,), X.flatten(1, 2)),
        (ops.Reshape((0, -1, 3)), (X,), X.reshape(2, -1, 3)),
        (ops.Permute((0, 2, 3, 1)), (X,), X.permute(0, 2, 3, 1)),
        (ops.Slice(2, 1, None, 2), (X,), X[:, :, 1::2]),
        (ops.Slice(1, 0, 3), (X,), X[:, :3]),
    ],
)
def test_each_op_is_torchs(op: ops.Op, operands: tuple[Any, ...], expected: torch.Tensor) -> None:
    torch.testing.assert_close(value_of(op, *operands), expected, **FLOAT64)


@given(
    size=st.integers(1, 3),
    low=st.integers(-1, 2),
    high=st.integers(-1, 2),
    stride=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
)
def test_a_conv_pads_each_side_by_its_own_amount(size: int, low: int, high: int, stride: int, groups: int) -> None:
    weight = normal(2, 4 // groups, size, size)
    op = ops.Conv((stride, 1), ((low, high), (high, low)), (1, 1), groups)
    expected = F.conv2d(F.pad(X, (high, low, low, high)), weight, None, (stride, 1), 0, 1, groups)
    torch.testing.assert_close(value_of(op, X, weight.numpy()), expected, **FLOAT64)


@pytest.mark.parametrize("part", [1, 7, 40, 300])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("op", "size"), [(ops.Linear(), (5, 6)), (ops.Conv((2, 1), ((1, 0), (0, 2)), (1, 1)), (5, 4, 3, 2))])
def test_what_has_a_large_weight_is_run_in_parts_with_the_same_result(
    op: ops.Op, size: tuple[int, ...], biased: bool, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    weight, bias = draw.standard_normal(size), draw.standard_normal(5) if biased else None
    expected = value_of(op, X, weight, bias)
    monkeypatch.setattr(evaluator, "PART", part)
    torch.testing.assert_close(value_of(op, X, weight, bias), expected, **FLOAT64)


def test_every_elementwise_function_runs() -> None:
    for function in (row.name for row in ROWS.values() if row.form == "pointwise"):
        arguments = (0.1, 0.9) if function == "clamp" else ()
        assert value_of(ops.Elementwise(function, arguments), X.abs() + 0.1).shape == X.shape


def test_a_split_is_taken_apart_by_items() -> None:
    pieces = Node("s", ops.Split(1, (1, 3)), ("x",))
    graph = Graph.of([Node("x", ops.Input(), ()), pieces, Node("i", ops.TupleGet(1), ("s",))], ["i"])
    torch.testing.assert_close(evaluate(graph, {"x": X})["i"], X[:, 1:], **FLOAT64)


# errors


def test_a_missing_input_is_named_beside_those_given() -> None:
    graph = Graph.of([Node("x", ops.Input(), ())], ["x"])
    with pytest.raises(UnsupportedModelError, match=r"no value was given for the input x; inputs given: \['y'\]"):
        evaluate(graph, {"y": X})


def test_an_op_that_cannot_run_alone_is_named() -> None:
    graph = Graph.of([Node("x", ops.Input(), ()), Node("y", ops.Opaque("mystery"), ("x",))], ["y"])
    with pytest.raises(UnsupportedModelError, match="mystery cannot be run outside its model"):
        evaluate(graph, {"x": X})


def test_an_op_that_fails_is_named_with_the_shapes_that_it_got() -> None:
    weight = Param.of(np.ones((2, 3, 1, 1)), role="weight", dtype="f32")
    conv = Node("c", ops.Conv((1, 1), ((0, 0), (0, 0)), (1, 1)), ("x", weight, None))
    graph = Graph.of([Node("x", ops.Input(), ()), conv], ["c"])
    with pytest.raises(RewriteError, match=r"c \(conv\).*2, 4, 7, 6"):
        evaluate(graph, {"x": X})


@pytest.mark.parametrize(("op", "raised"), [(ops.Opaque("mystery"), RewriteError), (ops.Identity(), AttributeError)])
def test_a_defect_of_ours_is_no_failure_of_an_op(op: ops.Op, raised: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """What raises AttributeError may be somebody else's code in an opaque node, and nowhere else."""

    def failing(*_: object) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(evaluator, "apply", failing)
    with pytest.raises(raised, match="no such thing"):
        evaluate_node(Node("y", op, ("x",)), {"x": X})


def test_wanted_values_inside_the_graph_are_returned() -> None:
    graph = Graph.of(
        [Node("x", ops.Input(), ()), Node("a", ops.Elementwise("relu"), ("x",)), Node("b", ops.Identity(), ("a",))], ["b"]
    )
    assert set(evaluate(graph, {"x": X}, wanted=["a", "x"])) == {"a", "x"}


# parameters


@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
def test_floating_parameters_become_float64_and_others_stay(dtype: str) -> None:
    assert tensor_of(Param.of(np.ones(2, np.float16), role="weight", dtype=dtype)).dtype == torch.float64
    assert tensor_of(Param.of(np.ones(2, np.int64), role="const", dtype="i64")).dtype == torch.int64


def test_a_parameter_that_may_not_be_written_to_is_copied_and_a_scalar_keeps_its_rank() -> None:
    array = np.ones(3)
    array.setflags(write=False)
    tensor_of(Param.of(array, role="weight", dtype="f32")).add_(1)
    assert array.sum() == 3
    assert tensor_of(Param.of(np.float64(2), role="const", dtype="f64")).ndim == 0


# differences


@pytest.mark.parametrize(
    ("a", "b", "max_abs", "relative"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0, 0.0),
        ([1.0, -4.0], [1.0, -3.0], 1.0, 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0, 0.0),
        ([0.0, 0.0], [0.0, 1.0], 1.0, float("inf")),
        ([float("nan"), 1.0], [float("nan"), 1.0], 0.0, 0.0),
        ([float("nan"), 1.0], [0.0, 1.0], float("inf"), float("inf")),
        ([float("inf"), 1.0], [float("inf"), 2.0], 1.0, 1.0),
        ([float("inf"), 1.0], [float("-inf"), 1.0], float("inf"), float("inf")),
        ([1.0], [float("inf")], float("inf"), float("inf")),
        ([], [], 0.0, 0.0),
        ([1.0], [1.0, 1.0], float("inf"), float("inf")),
    ],
)
def test_a_difference_is_absolute_and_relative_to_the_largest_value(
    a: list[float], b: list[float], max_abs: float, relative: float
) -> None:
    found = difference(torch.tensor(a), torch.tensor(b))
    assert (found.max_abs, found.relative) == (max_abs, relative)


def test_whole_numbers_are_compared_exactly_and_no_tolerance_forgives_a_difference() -> None:
    """The neighbours of 2**53 and 2**64 are one number each in float64."""
    large = torch.tensor([2**60 + 1, 5])
    assert difference(large, large) == Difference(0.0, 0.0)
    assert difference(large, torch.tensor([2**60, 5])) == Difference(1.0, 1.0)
    assert difference(torch.tensor([1000]), torch.tensor([998], dtype=torch.int16)) == Difference(2.0, 2.0)
    assert difference(torch.tensor([-(2**63)]), torch.tensor([2**63 - 1])) == Difference(2.0**64, 2.0**64)
    unsigned = torch.tensor([2**64 - 1, 2**64 - 2], dtype=torch.uint64)
    assert difference(unsigned[0], unsigned[1]) == Difference(1.0, 1.0)
    assert difference(unsigned[0], torch.tensor(-1)) == Difference(2.0**64, 2.0**64)
    assert difference(torch.tensor([False]), torch.tensor([True])) == Difference(1.0, 1.0)
    assert difference(torch.tensor([2]), torch.tensor([3.0])) == Difference(1.0, 0.5)


@pytest.mark.parametrize(
    ("a", "b", "max_abs", "relative"),
    [
        (1 + 1j, 1 + 1j, 0.0, 0.0),
        (1 + 1j, 1 + 5j, 4.0, 4.0),
        (4 + 1j, 1 + 1j, 3.0, 0.75),
        (complex(1, math.inf), complex(2, math.inf), 1.0, 1.0),
        (complex(math.nan, 1), complex(math.nan, 1), 0.0, 0.0),
        (complex(math.nan, 1), complex(1, math.nan), math.inf, math.inf),
    ],
)
def test_of_complex_numbers_both_parts_are_compared(a: complex, b: complex, max_abs: float, relative: float) -> None:
    for dtype in (torch.complex64, torch.complex128):
        assert difference(torch.tensor([a], dtype=dtype), torch.tensor([b])) == Difference(max_abs, relative)
    assert difference(torch.tensor([2.0]), torch.tensor([2 + 1j])) == Difference(1.0, 0.5)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_padding_by_elements_extends_every_axis_that_it_names(mode: Any, rank: int) -> None:
    """numpy pads any axes of any rank."""
    x = normal(*(4, 3, 5, 2, 3)[:rank])
    names: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    for padding in ([(1, 0)] * rank, [(0, 0)] * (rank - 1) + [(1, 1)], [(0, 1)] + [(0, 0)] * (rank - 1)):
        expected = torch.from_numpy(np.pad(x.numpy(), padding, names[mode]))
        torch.testing.assert_close(value_of(ops.Pad(tuple(padding), mode), x), expected, **FLOAT64)


def test_channels_that_are_padded_by_copies_of_themselves_are_written_back() -> None:
    """torch counts the axes of a padding from the last: this one repeats the channels at the border."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """`N 3 H W` to `N 6 H W`."""
            return F.pad(self.a(x) + self.c(x), (0, 0, 0, 0, 1, 1), mode="replicate")

    torch.manual_seed(0)
    model, x = Padded().eval(), torch.randn(2, 3, 5, 4)
    assert relative_error(run(model, x), run(fuse(model, verify=False), x)) < 1e-6
    assert relative_error(run(model, x), run(fuse(model, (x,)), x)) < 1e-6


def test_a_region_that_differs_at_the_border_alone_is_found() -> None:
    """Two padded 3x3 convs are not a padded 5x5."""
    random = np.random.default_rng(0)
    weights = [Param.of(random.standard_normal((2, 2, 3)), role="weight", dtype="f64") for _ in range(2)]
    first, second = (
        Node(name, ops.Conv((1,), ((1, 1),), (1,)), (source, weight, None))
        for name, source, weight in (("a", "x", weights[0]), ("b", "a", weights[1]))
    )
    outer, inner = (torch.from_numpy(weight.load()) for weight in (weights[1], weights[0]))
    both = F.conv1d(inner.transpose(0, 1), outer.flip(2), padding=2).transpose(0, 1)
    wide = Node("b", ops.Conv((1,), ((2, 2),), (1,)), ("x", Param.of(both.numpy(), role="weight", dtype="f64"), None))
    x = torch.randn(1, 2, 9, dtype=torch.float64)
    assert difference(*(evaluate_region(nodes, "x", x) for nodes in ((first, second), (wide,)))).relative > 1e-3
    bare = [Node(n.id, ops.Conv((1,), ((0, 0),), (1,)), n.inputs) for n in (first, second)]
    valid = Node("b", ops.Conv((1,), ((0, 0),), (1,)), wide.inputs)
    assert difference(*(evaluate_region(nodes, "x", x) for nodes in (bare, (valid,)))).relative < EXACT
