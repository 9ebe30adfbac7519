"""The printer: one line a node, values numbered, parameters by role, defaults left out."""

import numpy as np
import pytest

from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Param, TensorType
from reparam_compiler.ir.printer import to_text, type_text


def param(role: str, *shape: int) -> Param:
    return Param.of(np.ones(shape), role=role, dtype="f32")


def f32(*shape: int | str | None) -> TensorType:
    return TensorType("f32", shape)


def line(op: ops.Op, *inputs: object, **more: object) -> str:
    x = Node("x", ops.Input(), ())
    return to_text(Graph.of([x, Node("y", op, ("x", *inputs), **more)], ["y"])).splitlines()[1]  # type: ignore[arg-type]


def test_a_graph_prints_as_the_design_shows() -> None:
    norm = tuple(param(role, 16) for role in ("weight", "bias", "mean", "var"))
    shape = f32(2, 16, 9, 7)
    graph = Graph.of(
        [
            Node("x", ops.Input(), (), shape),
            Node("a", ops.Conv((1, 1), ((1, 1), (1, 1)), (1, 1)), ("x", param("weight", 16, 16, 3, 3), None), shape),
            Node("b", ops.BatchNorm(), ("a", *norm), shape),
            Node("c", ops.Add((1.0, 1.0)), ("b", "x"), shape),
            Node("d", ops.Elementwise("relu"), ("c",), shape),
        ],
        ["d"],
    )
    assert to_text(graph) == (
        "%0 = input()                                      # f32 2 16 9 7\n"
        "%1 = conv(%0, weight[16 16 3 3])                  # f32 2 16 9 7   pad=1\n"
        "%2 = batch_norm(%1, weight, bias, mean, var)      # f32 2 16 9 7\n"
        "%3 = add(%2, %0)                                  # f32 2 16 9 7\n"
        "%4 = relu(%3)                                     # f32 2 16 9 7\n"
        "output(%4)\n"
    )


def test_what_was_fused_says_from_how_many_nodes() -> None:
    fused = line(
        ops.Conv((1, 1), ((1, 1), (1, 1)), (1, 1)),
        param("weight", 16, 16, 3, 3),
        param("bias", 16),
        type=f32(2, 16, 9, 7),
        replaces=("a", "b", "y"),
    )
    assert fused == "%1 = conv(%0, weight[16 16 3 3], bias[16])        # f32 2 16 9 7   pad=1   fused from 3 nodes"


@pytest.mark.parametrize(
    ("op", "remark"),
    [
        (ops.Conv((2, 2), ((0, 0), (1, 1)), (1, 1), 4), "stride=2 pad=0,1 groups=4"),
        (ops.Conv((2, 1), ((0, 1), (0, 1)), (2, 2), 1, "reflect"), "stride=2,1 pad=0:1 dilation=2 mode=reflect"),
        (ops.Conv((1,), ((0, 2),), (1,)), "pad=0:2"),
        (ops.Add((1.0, -2.0)), "coefficients=1.0,-2.0"),
        (ops.AvgPool((3, 3), (1, 1), ((1, 1), (1, 1))), "size=3 pad=1"),
        (ops.Reduce("mean", (2, 3), keepdim=True), "axes=2,3 keepdim=True"),
        (ops.BatchNorm(1e-3), "eps=0.001"),
        (ops.BatchNorm(training=True), "training=True"),
    ],
)
def test_attributes_are_shown_where_they_are_not_the_default(op: ops.Op, remark: str) -> None:
    inputs = ("x",) if isinstance(op, ops.Add) else ()
    assert line(op, *inputs).partition("# ")[2] == remark


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (ops.Add((1.0, -1.0)), "sub"),
        (ops.Add((1.0, 1.0)), "add"),
        (ops.Add((-1.0,)), "add"),
        (ops.Elementwise("gelu_tanh"), "gelu_tanh"),
        (ops.Reduce("max", (1,), keepdim=False), "max"),
        (ops.AdaptiveAvgPool((1, 1)), "adaptive_avg_pool"),
        (ops.Opaque("aten.foo"), "aten.foo"),
    ],
)
def test_ops_print_as_people_call_them(op: ops.Op, name: str) -> None:
    assert op.name == name


def test_an_absent_operand_is_none_in_the_middle_and_nothing_at_the_end() -> None:
    assert line(ops.BatchNorm(), None, None, param("mean", 3), param("var", 3)) == "%1 = batch_norm(%0, none, none, mean, var)"
    assert line(ops.Linear(), param("weight", 2, 3), None) == "%1 = linear(%0, weight[2 3])"


def test_sizes_that_are_not_known_are_question_marks_and_symbols_keep_their_names() -> None:
    assert type_text(f32("batch", None, 3)) == "f32 batch ? 3"
    assert type_text(None) == ""
