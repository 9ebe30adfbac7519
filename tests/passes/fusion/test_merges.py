"""Each structural rule after a random conv: one op gives what both give, on sources of several sizes; and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam_compiler.core.kernel import ConvKernel, NotFusable
from reparam_compiler.errors import RewriteError
from reparam_compiler.interpreter.difference import difference
from reparam_compiler.interpreter.evaluate import evaluate
from reparam_compiler.ir import ops
from reparam_compiler.ir.graph import Graph, Node, Operand, Param, TensorType
from reparam_compiler.passes.fusion import merge_rules as merges
from reparam_compiler.passes.fusion.abstract_values import DataIndependent, NoRule, SourceLayout, Stacked
from reparam_compiler.passes.fusion.fuse_branches import Options, PassResult, rewrite_regions
from tests.support.small_models import EXACT, normal

FEW = settings(max_examples=settings.default.max_examples // 4)
SOURCE = SourceLayout(4, 2, axes=4)


def param(*shape: int, seed: int = 0) -> Param:
    return Param.of(np.random.default_rng(seed).standard_normal(shape), role="weight", dtype="f64")


def conv(node_id: str, source: str, size: int = 3, *, stride: int = 1, pad: int = 1, bias: bool = False, seed: int = 0) -> Node:
    op = ops.Conv((stride,) * 2, ((pad, pad),) * 2, (1, 1))
    return Node(node_id, op, (source, param(4, 4, size, size, seed=seed), param(4, seed=seed + 9) if bias else None))


def after(*nodes: Node, fixed: bool = False, size: tuple[int, int] | None = None) -> PassResult:
    """What becomes of a graph of these nodes; where it is one op, it gives the same on several sizes."""
    known = None if size is None else TensorType("f64", (2, 4, *size))
    graph = Graph.of([Node("x", ops.Input(), (), known), *nodes], [nodes[-1].id], sizes_are_fixed=fixed)
    result = rewrite_regions(
        graph,
        wants=lambda region: region.source == "x" and region.sink == nodes[-1].id,
        reports=lambda node: node is nodes[-1],
        options=Options(policy="always"),
    )
    if result.fusions:
        for sizes in [(9, 11), (10, 8), (13, 12)] if size is None else [size]:
            x = normal(2, 4, *sizes)
            try:
                expected, found = (evaluate(g, {"x": x})[g.outputs[0]] for g in (graph, result.graph))
            except RewriteError:  # nothing is left of so small a source
                continue
            assert difference(expected, found).relative < EXACT
    return result


def fuses(*nodes: Node) -> bool:
    return bool(after(*nodes).fusions)


def node(op: ops.Op, *inputs: Operand, name: str = "y") -> Node:
    return Node(name, op, inputs)


@FEW
@given(start=st.integers(0, 3), length=st.integers(1, 4), step=st.integers(1, 2), bias=st.booleans())
def test_a_slice_of_the_channels(start: int, length: int, step: int, bias: bool) -> None:
    stop = min(start + length, 4)
    assert fuses(conv("a", "x", bias=bias), node(ops.Slice(1, start, None if stop == 4 else stop, step), "a"))


@FEW
@given(axis=st.integers(2, 3), start=st.integers(0, 2), stop=st.sampled_from([None, -1, -2]), step=st.integers(1, 3))
def test_a_slice_of_a_spatial_axis(axis: int, start: int, stop: int | None, step: int) -> None:
    assert fuses(conv("a", "x", bias=True), node(ops.Slice(axis, start, stop, step), "a"))


def test_a_slice_of_the_channels_that_counts_from_the_end() -> None:
    assert after(conv("a", "x"), node(ops.Slice(1, -3, -1), "a")).fusions[0].weight == (2, 4, 3, 3)


def test_a_slice_up_to_a_position_is_a_crop_only_where_every_run_has_these_sizes() -> None:
    nodes = conv("a", "x"), node(ops.Slice(2, 0, 7), "a")
    assert after(*nodes, fixed=True, size=(9, 8)).fusions
    (refusal,) = after(*nodes, size=(9, 8)).refusals
    assert refusal.reason == "a slice that ends at a position counted from the start, of a size that may change at y"


@FEW
@given(cut=st.integers(1, 3), index=st.integers(0, 1))
def test_a_piece_of_a_split(cut: int, index: int) -> None:
    split = node(ops.Split(1, (cut, 4 - cut)), "a", name="s")
    assert fuses(conv("a", "x"), split, node(ops.TupleGet(index), "s"))


def test_pieces_that_go_apart_and_come_together() -> None:
    pieces = [node(ops.TupleGet(index), "s", name=f"p{index}") for index in range(2)]
    split = node(ops.Split(1, (2, 2)), "a", name="s")
    result = after(conv("a", "x"), split, *pieces, node(ops.Concat(1), "p1", "p0"))
    assert result.fusions[0].weight == (4, 4, 3, 3)


@FEW
@given(
    cut=st.integers(1, 3),
    sizes=st.tuples(*[st.sampled_from([1, 3, 5])] * 2),
    dense=st.booleans(),
    merge=st.sampled_from(["concat", "swapped", "add", "one"]),
    before=st.booleans(),
)
def test_convs_over_pieces(cut: int, sizes: tuple[int, int], dense: bool, merge: str, before: bool) -> None:
    """What reads its own channels only, one piece after another, stays grouped; the rest is written as one matrix."""
    cut = 2 if merge == "add" else cut
    counts, nodes = (cut, 4 - cut), []
    if before:
        nodes.append(node(ops.Conv((1, 1), ((0, 0),) * 2, (1, 1), 4), "x", param(4, 1, 1, 1), None, name="a"))
    nodes.append(node(ops.Split(1, counts), "a" if before else "x", name="s"))
    for i, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        op = ops.Conv((1, 1), ((size // 2, size // 2),) * 2, (1, 1), 1 if dense else count)
        weight = param(count, count if dense else 1, size, size, seed=i)
        nodes += [node(ops.TupleGet(i), "s", name=f"p{i}"), node(op, f"p{i}", weight, param(count, seed=i + 5), name=f"c{i}")]
    ends = {
        "concat": node(ops.Concat(1), "c0", "c1"),
        "swapped": node(ops.Concat(1), "c1", "c0"),
        "add": node(ops.Add((1.0, -2.0)), "c0", "c1"),
        "one": node(
            ops.BatchNorm(0.0), "c0", *[param(cut, seed=i) for i in range(3)], Param.of(np.ones(cut), role="var", dtype="f64")
        ),
    }
    (fusion,) = after(*nodes, ends[merge]).fusions
    assert (fusion.weight[1] == 1) == (merge == "concat" and not dense)


@FEW
@given(axis=st.integers(0, 4), function=st.sampled_from(["sum", "mean"]), keepdim=st.booleans())
def test_a_stack_that_is_summed(axis: int, function: str, keepdim: bool) -> None:
    stack = node(ops.Stack(axis), "a", "b", "x", name="s")
    total = node(ops.Reduce(function, (axis,), keepdim), "s")  # type: ignore[arg-type]
    found = fuses(conv("a", "x"), conv("b", "x", 1, pad=0, bias=True, seed=1), stack, total)
    assert found is not keepdim  # a value with an axis more is no conv's


@FEW
@given(axis=st.integers(2, 3), ends=st.sampled_from([(0, 1), (1, 0), (2, 1)]), right=st.booleans(), bias=st.booleans())
def test_constants_along_a_spatial_axis_are_padding(axis: int, ends: tuple[int, int], right: bool, bias: bool) -> None:
    """By the inner bias it is exact; by another number only where nothing is added anywhere."""
    inner = conv("a", "x", 1, pad=0, bias=bias)
    value = inner.params[1].float64() if bias else np.zeros(4)
    number = (value if right else value + 1).reshape(1, 4, 1, 1)
    shape = [2, 4, 9, 11]

    def edge(size: int) -> Param:
        shape[axis] = size
        return Param.of(np.broadcast_to(number, shape).copy(), role="const", dtype="f64")

    inputs: list[Operand] = [*([edge(ends[0])] if ends[0] else []), "a", *([edge(ends[1])] if ends[1] else [])]
    result = after(inner, node(ops.Concat(axis), *inputs, name="c"), conv("y", "c", pad=0), fixed=True, size=(9, 11))
    assert bool(result.fusions) is right


@FEW
@given(
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    amounts=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_a_padding_before_a_conv(mode: str, amounts: list[int]) -> None:
    padding = ((0, 0), (0, 0), (amounts[0], amounts[1]), (amounts[2], amounts[3]))
    assert fuses(node(ops.Pad(padding, mode), "x", name="p"), conv("y", "p", pad=0))  # type: ignore[arg-type]


@FEW
@given(size=st.integers(1, 2), wrong=st.sampled_from([None, 0, 1, 2, 3]))
def test_a_border_that_is_written_over(size: int, wrong: int | None) -> None:
    """With the inner bias it is exact, with another number on any one side it is not."""
    inner = conv("a", "x", 1, pad=0, bias=True)
    right = inner.params[1].float64().reshape(1, 4, 1, 1)
    nodes = [inner, node(ops.Pad(((0, 0), (0, 0), (size, size), (size, size))), "a", name="w0")]
    for index, (axis, start, stop) in enumerate([(2, 0, size), (2, -size, None), (3, 0, size), (3, -size, None)]):
        value = Param.of(right + (index == wrong), role="const", dtype="f64")
        nodes.append(node(ops.SliceUpdate(((axis, start, stop),)), f"w{index}", value, name=f"w{index + 1}"))
    assert fuses(*nodes, conv("y", "w4", pad=0)) is (wrong is None)


def test_computed_values_that_are_written_over_are_refused() -> None:
    write = node(ops.SliceUpdate(((2, 0, 2),)), "a", param(1, 4, 1, 1))
    (refusal,) = after(conv("a", "x"), write).refusals
    assert refusal.reason == "writes over computed values at y"


@FEW
@given(low=st.integers(0, 2), high=st.integers(1, 2), zero=st.booleans())
def test_a_conv_that_is_written_into_a_constant(low: int, high: int, zero: bool) -> None:
    """A canvas of the inner bias, which is zero, or of something else."""
    canvas = np.zeros((2, 4, 9 + low + high, 8)) + (not zero)
    inner = conv("a", "x", 1, pad=0)
    write = node(ops.SliceUpdate(((2, low, -high),)), Param.of(canvas, role="const", dtype="f64"), "a")
    assert bool(after(inner, write, fixed=True, size=(9, 8)).fusions) is zero


@FEW
@given(
    size=st.integers(1, 4),
    stride=st.integers(1, 3),
    cut=st.integers(0, 1),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    norm=st.booleans(),
)
def test_transposed_convs(size: int, stride: int, cut: int, dilation: int, groups: int, norm: bool) -> None:
    cut = min(cut, dilation * (size - 1))
    op = ops.ConvTranspose((stride,) * 2, ((cut, cut),) * 2, (0, 0), (dilation,) * 2, groups)
    up = Node("a", op, ("x", param(4, 4 // groups, size, size), param(4, seed=1)))
    twice = node(ops.Add((1.0, -0.5)), "a", "a", name="b")
    scaled = node(ops.Mul(), "b", param(1, 4, 1, 1, seed=2)) if norm else conv("y", "b", 1, pad=0, bias=True)
    result = after(up, twice, scaled)
    assert result.fusions
    grows = dilation * (size - 1) > 2 * cut
    assert result.fusions[0].op.split()[0] == ("conv_transpose" if stride > 1 or grows else "conv")


@pytest.mark.parametrize(
    ("rule", "op", "operands", "reason"),
    [
        (merges.concatenation, ops.Concat(0), ("k", "k"), "a concat of other things than channels"),
        (merges.stack, ops.Stack(0), ("k", "p"), "a stack of other things than values of one source"),
        (merges.reduction, ops.Reduce("sum", (2,), False), ("s",), "sum over other axes than that of a stack"),
        (merges.reduction, ops.Reduce("mean", (2,), False), ("k",), "mean over other axes than that of a stack"),
        (merges.cut, ops.Slice(2, 0, 1), ("s",), "a slice of stacked values"),
        (merges.split, ops.Split(2, (1, 1)), ("k",), "a split of other things than channels"),
        (merges.tuple_get, ops.TupleGet(0), ("k",), "an item of a value that is none of several"),
        (merges.sum_of, ops.Add((1.0, 1.0)), ("s", "k"), "a sum of stacked values and others"),
    ],
)
def test_what_no_rule_covers_may_be_probed(rule: object, op: ops.Op, operands: tuple[str, ...], reason: str) -> None:
    kernel = ConvKernel(np.ones((4, 4, 1, 1)), np.zeros(4), (1, 1), (1, 1), ((0, 0), (0, 0)))
    given = {"k": kernel, "s": Stacked((kernel, kernel), (0,)), "p": param(1, 4, 1, 1), "t": DataIndependent()}
    with pytest.raises(NoRule, match=reason):
        rule(node(op, *operands), [given[name] for name in operands], SOURCE)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("rule", "op", "operands", "reason"),
    [
        (merges.split, ops.Split(1, (4, 0)), ("k",), "a piece of no channels"),
        (merges.cut, ops.Slice(0, 0, 1), ("k",), "a slice of the batch"),
        (merges.product, ops.Mul(), ("k", "k"), "the product of two computed values is not linear"),
        (merges.quotient, ops.Div(), ("p", "k"), "a quotient by a computed value is not linear"),
        (merges.cut, ops.Slice(2, -1, None), ("k",), "a slice that starts at a position counted from the end"),
        (merges.slice_update, ops.SliceUpdate(((2, 0, 1),)), ("k", "k"), "writes computed values over computed ones"),
        (merges.slice_update, ops.SliceUpdate(((1, 0, 1),)), ("p", "k"), "writes some channels of a constant"),
    ],
)
def test_what_is_not_linear_is_refused_for_good(rule: object, op: ops.Op, operands: tuple[str, ...], reason: str) -> None:
    kernel = ConvKernel(np.ones((4, 4, 1, 1)), np.zeros(4), (1, 1), (1, 1), ((0, 0), (0, 0)))
    given = {"k": kernel, "p": param(1, 4, 1, 1)}
    with pytest.raises(NotFusable, match=reason) as caught:
        rule(node(op, *operands), [given[name] for name in operands], SOURCE)  # type: ignore[operator]
    assert not isinstance(caught.value, NoRule)


@pytest.mark.parametrize("shape", [(), (4,), (1, 1, 4)])
def test_a_constant_along_the_last_axis_is_one_number_each(shape: tuple[int, ...]) -> None:
    source = SourceLayout(4, 0, last=True, axes=3)
    constant = param(*shape)
    x = normal(2, 5, 4)
    found = torch.from_numpy(merges.per_channel(constant, 4, 0, source))
    assert torch.equal(x * torch.from_numpy(np.asarray(constant.load())), x * found)


@pytest.mark.parametrize(("shape", "axes"), [((5, 4), 3), ((1, 4), None), ((1, 1, 1, 4), 3)])
def test_a_constant_that_moves_other_axes_than_the_last_is_refused(shape: tuple[int, ...], axes: int | None) -> None:
    with pytest.raises(NotFusable, match="is not one number for each of 4 channels"):
        merges.per_channel(param(*shape), 4, 0, SourceLayout(4, 0, last=True, axes=axes))
