"""Each op of the table means in the graph what ONNX Runtime makes of it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from reparam_compiler.frontends.onnx.frontend import OnnxFrontend
from reparam_compiler.ir import ops
from tests.support.onnx_models import FLOAT32, evaluated, model_of, normal, run

EXAMPLES = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def check(
    kind: str,
    inputs: dict[str, tuple[int, ...]],
    constants: dict[str, np.ndarray] | None = None,
    *,
    reads: list[str] | None = None,
    opset: int = 17,
    positive: bool = False,
    shapes: dict[str, Any] | None = None,
    **attributes: Any,
) -> ops.Op:
    """Runs one node in both; gives the op that it was read as."""
    node = helper.make_node(kind, reads or [*inputs, *(constants or {})], ["y"], **attributes)
    model = model_of([node], shapes or inputs, ["y"], constants, opset=opset)
    feeds = {name: normal(*shape, seed=place) for place, (name, shape) in enumerate(inputs.items())}
    if positive:
        feeds = {name: abs(array) + 0.1 for name, array in feeds.items()}
    graph = OnnxFrontend().read(model).graph
    np.testing.assert_allclose(evaluated(graph, feeds)[0], run(model, feeds)[0], **FLOAT32)
    return graph["y"].op


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    """A window over one to three axes, in ONNX's attributes, and sizes that it fits in."""
    rank = draw(st.integers(1, 3))
    size, stride, dilation = (draw(st.tuples(*[st.integers(1, 3)] * rank)) for _ in range(3))
    pads = draw(st.tuples(*[st.integers(0, 2)] * (2 * rank)))
    spatial = tuple(d * (k - 1) + 1 + draw(st.integers(0, 4)) for k, d in zip(size, dilation, strict=True))
    return {"size": size, "strides": stride, "dilations": dilation, "pads": pads, "spatial": spatial}


@EXAMPLES
@given(window=windows(), groups=st.integers(1, 3), bias=st.booleans())
def test_conv(window: dict[str, Any], groups: int, bias: bool) -> None:
    constants = {"w": normal(2 * groups, 2, *window["size"], seed=5)} | ({"b": normal(2 * groups, seed=6)} if bias else {})
    geometry = {key: window[key] for key in ("strides", "dilations", "pads")}
    op = check("Conv", {"x": (2, 2 * groups, *window["spatial"])}, constants, group=groups, **geometry)
    assert isinstance(op, ops.Conv)


@EXAMPLES
@given(
    auto_pad=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    spatial=st.tuples(st.integers(4, 9), st.integers(4, 9)),
)
def test_conv_with_auto_pad(auto_pad: str, stride: tuple[int, int], size: tuple[int, int], spatial: tuple[int, int]) -> None:
    op = check("Conv", {"x": (1, 2, *spatial)}, {"w": normal(3, 2, *size, seed=5)}, auto_pad=auto_pad, strides=stride)
    assert isinstance(op, ops.Conv)


@pytest.mark.parametrize(("stride", "kind"), [(1, ops.Conv), (2, ops.Opaque)])
def test_same_padding_of_an_unknown_size_is_exact_without_stride_only(stride: int, kind: type[ops.Op]) -> None:
    shapes = {"x": (1, 2, "h", "w")}
    weight = {"w": normal(3, 2, 3, 3, seed=5)}
    op = check("Conv", {"x": (1, 2, 8, 7)}, weight, shapes=shapes, auto_pad="SAME_UPPER", strides=[stride] * 2)
    assert isinstance(op, kind)


@st.composite
def transposed_windows(draw: st.DrawFn) -> dict[str, Any]:
    """A transposed window, given by pads, by a word or by the shape of its output, which is never empty."""
    rank = draw(st.integers(1, 3))
    size, stride, dilation = (draw(st.tuples(*[st.integers(1, 3)] * rank)) for _ in range(3))
    spatial = draw(st.tuples(*[st.integers(2, 5)] * rank))
    extra = tuple(draw(st.integers(0, s - 1)) for s in stride)  # ONNX Runtime takes no more
    full = [s * (n - 1) + d * (k - 1) + 1 for s, n, d, k in zip(stride, spatial, dilation, size, strict=True)]
    low = [draw(st.integers(0, min(2, (whole - 1) // 2))) for whole in full]
    high = [draw(st.integers(0, min(2, (whole - 1) // 2))) for whole in full]
    ways: list[dict[str, Any]] = [{}, {"pads": [*low, *high]}]
    ways += [{"auto_pad": word} for word in ("VALID", "SAME_UPPER", "SAME_LOWER")]
    shape = [whole + more - a - b for whole, more, a, b in zip(full, extra, low, high, strict=True)]
    ways += [{"output_shape": shape}, {"output_shape": shape, "auto_pad": "SAME_UPPER"}]
    geometry = {"strides": stride, "dilations": dilation} | ({"output_padding": extra} if any(extra) else {})
    return {"size": size, "spatial": spatial, "attributes": geometry | draw(st.sampled_from(ways))}


@EXAMPLES
@given(window=transposed_windows(), groups=st.integers(1, 3), bias=st.booleans())
def test_transposed_conv_is_exact_or_asks_for_more_than_the_kernel_reaches(
    window: dict[str, Any], groups: int, bias: bool
) -> None:
    constants = {"w": normal(2 * groups, 3, *window["size"], seed=5)} | ({"b": normal(3 * groups, seed=6)} if bias else {})
    attributes = window["attributes"] | {"group": groups}
    shape = (2, 2 * groups, *window["spatial"])
    if str(attributes.get("auto_pad", "")).startswith("SAME") and "output_shape" not in attributes:
        node = helper.make_node("ConvTranspose", ["x", *constants], ["y"], **attributes)
        graph = OnnxFrontend().read(model_of([node], {"x": shape}, ["y"], constants)).graph
        if isinstance(graph["y"].op, ops.Opaque):
            reach = [d * (k - 1) + 1 for d, k in zip(attributes["dilations"], window["size"], strict=True)]
            assert any(n < s for n, s in zip(reach, attributes["strides"], strict=True))
            return
    assert isinstance(check("ConvTranspose", {"x": shape}, constants, **attributes), ops.ConvTranspose)


@pytest.mark.parametrize(("spatial", "kind"), [((6, 5), ops.ConvTranspose), (("h", "w"), ops.Opaque)])
def test_the_output_shape_of_a_transposed_conv_needs_a_known_size(spatial: tuple[Any, Any], kind: type[ops.Op]) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], output_shape=[12, 10])
    model = model_of([node], {"x": (1, 2, *spatial)}, ["y"], {"w": normal(2, 3, 3, 3)})
    assert isinstance(OnnxFrontend().read(model).graph["y"].op, kind)


@EXAMPLES
@given(window=windows(), include=st.booleans(), ceil=st.booleans())
def test_average_pool_is_exact_or_opaque(window: dict[str, Any], include: bool, ceil: bool) -> None:
    pads = tuple(min(pad, (k - 1)) for pad, k in zip(window["pads"], window["size"] * 2, strict=True))
    check_pool("AveragePool", window, pads, ceil, count_include_pad=int(include))


@EXAMPLES
@given(window=windows(), ceil=st.booleans())
def test_max_pool_is_exact_or_opaque(window: dict[str, Any], ceil: bool) -> None:
    pads = tuple(min(pad, (k - 1)) for pad, k in zip(window["pads"], window["size"] * 2, strict=True))
    check_pool("MaxPool", window, pads, ceil, dilations=window["dilations"])


def check_pool(kind: str, window: dict[str, Any], pads: tuple[int, ...], ceil: bool, **attributes: Any) -> None:
    """Where runtimes differ (ceil_mode at the border) the node must be opaque; then it is not compared."""
    shape = (2, 3, *window["spatial"])
    node = helper.make_node(
        kind, ["x"], ["y"], kernel_shape=window["size"], strides=window["strides"], pads=pads, ceil_mode=int(ceil), **attributes
    )
    model = model_of([node], {"x": shape}, ["y"], opset=19)
    graph = OnnxFrontend().read(model).graph
    if isinstance(graph["y"].op, ops.Opaque):
        half = len(pads) // 2
        too_wide = any(2 * pad > k for pad, k in zip(pads, window["size"] * 2, strict=True))
        assert ceil or too_wide or pads[:half] != pads[half:]
        return
    feeds = {"x": normal(*shape)}
    np.testing.assert_allclose(evaluated(graph, feeds)[0], run(model, feeds)[0], **FLOAT32)


@pytest.mark.parametrize("kind", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize("opset", [12, 19, 22])
@pytest.mark.parametrize("size", [6, 7])
def test_sizes_that_onnx_infers_wrongly_are_not_believed(kind: str, opset: int, size: int) -> None:
    """Of a pool whose last window starts in the padding."""
    node = helper.make_node(kind, ["x"], ["y"], kernel_shape=[2], strides=[2], pads=[1, 1], ceil_mode=1)
    relus = [helper.make_node("Relu", ["y"], ["y1"]), helper.make_node("Relu", ["y1"], ["y2"])]
    model = model_of([node, *relus], {"x": (2, 3, size)}, ["y2"], opset=opset)
    known = OnnxFrontend().read(model).graph["y1"].type
    assert known is not None
    assert known.dtype == "f32"
    found = run(model, {"x": normal(2, 3, size)})[0].shape
    assert all(n in (None, m) for n, m in zip(known.shape, found, strict=True))


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm(training: bool) -> None:
    constants = {name: normal(3, seed=seed) for seed, name in enumerate(("scale", "bias", "mean"), start=1)}
    constants["var"] = abs(normal(3, seed=4)) + 0.5
    op = check("BatchNormalization", {"x": (4, 3, 5)}, constants, epsilon=1e-3)
    assert op == ops.BatchNorm(1e-3)
    outputs = ["y", "running_mean", "running_var"] if training else ["y"]
    node = helper.make_node("BatchNormalization", ["x", *constants], outputs, training_mode=int(training))
    graph = OnnxFrontend().read(model_of([node], {"x": (4, 3, 5)}, ["y"], constants)).graph
    assert graph["y"].op == ops.BatchNorm(1e-5, training)


@pytest.mark.parametrize(("kind", "op"), [("Add", ops.Add((1.0, 1.0))), ("Sub", ops.Add((1.0, -1.0))), ("Mul", ops.Mul())])
@pytest.mark.parametrize("constant", [False, True])
def test_arithmetic(kind: str, op: ops.Op, constant: bool) -> None:
    small = {"c": normal(3, 1, 1, seed=8)}
    inputs = {"x": (2, 3, 4, 5)}
    assert check(kind, inputs if constant else inputs | {"c": (3, 1, 1)}, small if constant else None) == op
    assert check(kind, inputs, small, reads=["c", "x"]) == op


def test_division_of_floats() -> None:
    assert check("Div", {"x": (2, 3), "z": (2, 3)}, positive=True) == ops.Div()


def test_sum_of_many_and_negation() -> None:
    assert check("Sum", {"x": (2, 3), "y1": (2, 3), "z": (1, 3)}) == ops.Add((1.0, 1.0, 1.0))
    assert check("Neg", {"x": (2, 3)}) == ops.Add((-1.0,))


@pytest.mark.parametrize(
    ("kind", "opset", "attributes", "function"),
    [
        ("Abs", 17, {}, "abs"),
        ("Elu", 17, {"alpha": 0.7}, "elu"),
        ("Exp", 17, {}, "exp"),
        ("Gelu", 20, {"approximate": "tanh"}, "gelu_tanh"),
        ("Gelu", 20, {}, "gelu"),
        ("HardSigmoid", 17, {"alpha": 1 / 6, "beta": 0.5}, "hardsigmoid"),
        ("HardSwish", 17, {}, "hardswish"),
        ("LeakyRelu", 17, {"alpha": 0.2}, "leaky_relu"),
        ("Log", 17, {}, "log"),
        ("Mish", 18, {}, "mish"),
        ("Relu", 17, {}, "relu"),
        ("Sigmoid", 17, {}, "sigmoid"),
        ("Softplus", 17, {}, "softplus"),
        ("Sqrt", 17, {}, "sqrt"),
        ("Tanh", 17, {}, "tanh"),
    ],
)
def test_functions_of_one_element(kind: str, opset: int, attributes: dict[str, Any], function: str) -> None:
    op = check(kind, {"x": (3, 40)}, opset=opset, positive=kind in ("Log", "Sqrt"), **attributes)
    assert isinstance(op, ops.Elementwise)
    assert op.function == function


def test_clip_reads_its_bounds_from_attributes_or_inputs() -> None:
    low, high = np.array(-0.5, np.float32), np.array(6, np.float32)
    assert check("Clip", {"x": (9, 9)}, {"low": low, "high": high}) == ops.Elementwise("clamp", (-0.5, 6.0))
    assert check("Clip", {"x": (9, 9)}, {"low": np.float32(0) * high, "high": high}) == ops.Elementwise("relu6")
    assert check("Clip", {"x": (9, 9)}, {"high": high}, reads=["x", "", "high"]) == ops.Elementwise("clamp", (None, 6.0))
    assert check("Clip", {"x": (9, 9)}, opset=9, min=-0.5, max=0.5) == ops.Elementwise("clamp", (-0.5, 0.5))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("bias", [(4,), (1, 4)])
def test_gemm(transposed: bool, alpha: float, beta: float, bias: tuple[int, ...]) -> None:
    constants = {"w": normal(*((4, 6) if transposed else (6, 4)), seed=3), "b": normal(*bias, seed=4)}
    assert check("Gemm", {"x": (2, 6)}, constants, transB=int(transposed), alpha=alpha, beta=beta) == ops.Linear()


def test_gemm_of_a_transposed_input_is_opaque() -> None:
    assert isinstance(check("Gemm", {"x": (6, 2)}, {"w": normal(6, 4)}, transA=1), ops.Opaque)


def test_matmul_with_a_constant_matrix_is_linear_and_with_a_computed_one_opaque() -> None:
    assert check("MatMul", {"x": (2, 5, 6)}, {"w": normal(6, 4)}) == ops.Linear()
    assert isinstance(check("MatMul", {"x": (2, 5, 6), "z": (6, 4)}), ops.Opaque)


@pytest.mark.parametrize(
    ("kind", "axes", "keepdims", "expected"),
    [
        ("ReduceMean", (2, 3), 1, ops.AdaptiveAvgPool((1, 1))),
        ("ReduceMean", (-1, -2), 0, ops.Reduce("mean", (2, 3), False)),
        ("ReduceSum", (1,), 1, ops.Reduce("sum", (1,), True)),
        ("ReduceMax", (1, 3), 0, ops.Reduce("max", (1, 3), False)),
    ],
)
@pytest.mark.parametrize("opset", [11, 18])
def test_reductions(kind: str, axes: tuple[int, ...], keepdims: int, expected: ops.Op, opset: int) -> None:
    inputs = {"x": (2, 3, 4, 5)}
    if opset == 18:
        assert check(kind, inputs, {"axes": np.array(axes)}, opset=opset, keepdims=keepdims) == expected
    else:
        assert check(kind, inputs, opset=opset, axes=axes, keepdims=keepdims) == expected


def test_global_pools() -> None:
    assert check("GlobalAveragePool", {"x": (2, 3, 4, 5)}) == ops.AdaptiveAvgPool((1, 1))
    assert check("GlobalMaxPool", {"x": (2, 3, 4, 5)}) == ops.Reduce("max", (2, 3), True)


@pytest.mark.parametrize(("mode", "word"), [("constant", "zeros"), ("reflect", "reflect"), ("edge", "replicate")])
@pytest.mark.parametrize("opset", [10, 17])
def test_pad(mode: str, word: str, opset: int) -> None:
    pads = [0, 0, 1, 2, 0, 0, 2, 0]
    if opset == 17:
        op = check("Pad", {"x": (2, 3, 4, 5)}, {"pads": np.array(pads)}, mode=mode)
    else:
        op = check("Pad", {"x": (2, 3, 4, 5)}, opset=opset, mode=mode, pads=pads)
    assert op == ops.Pad(((0, 0), (0, 0), (1, 2), (2, 0)), word)  # type: ignore[arg-type]


def test_pad_with_a_value_axes_and_negative_amounts() -> None:
    constants = {"pads": np.array([1, -1, 0, 2]), "value": np.array(0.5, np.float32), "axes": np.array([3, -2])}
    assert check("Pad", {"x": (2, 3, 4, 5)}, constants, opset=18) == ops.Pad(((0, 0), (0, 0), (-1, 2), (1, 0)), "zeros", 0.5)


@EXAMPLES
@given(axis=st.integers(-3, 2), start=st.integers(-7, 7), stop=st.integers(-7, 7), step=st.integers(1, 3))
def test_slice(axis: int, start: int, stop: int, step: int) -> None:
    bounds = {name: np.array([n]) for name, n in (("starts", start), ("ends", stop), ("axes", axis), ("steps", step))}
    assert isinstance(check("Slice", {"x": (4, 5, 6)}, bounds), ops.Slice | ops.Identity)


@EXAMPLES
@given(bounds=st.lists(st.tuples(st.integers(-7, 7), st.integers(-7, 9)), min_size=2, max_size=3))
def test_a_slice_along_several_axes_is_a_crop(bounds: list[tuple[int, int]]) -> None:
    constants = {"starts": np.array([a for a, _ in bounds]), "ends": np.array([b for _, b in bounds])}
    shape = (4, 5, 6)
    op = check("Slice", {"x": shape}, constants)
    left = [len(range(size)[a:b]) for size, (a, b) in zip(shape, bounds, strict=False)]
    assert isinstance(op, ops.Pad | ops.Slice | ops.Identity) or min(left) == 0


def test_a_crop_of_open_sizes_is_counted_from_both_ends() -> None:
    constants = {"starts": np.array([1, 2]), "ends": np.array([-1, 2**62]), "axes": np.array([2, 3])}
    shapes = {"x": (1, 2, "h", "w")}
    op = check("Slice", {"x": (1, 2, 8, 7)}, constants, shapes=shapes)
    assert op == ops.Pad(((0, 0), (0, 0), (-1, -1), (-2, 0)))
    one = {"starts": np.array([0]), "ends": np.array([-2]), "axes": np.array([3])}
    assert check("Slice", {"x": (1, 2, 8, 7)}, one, shapes=shapes) == ops.Pad(((0, 0), (0, 0), (0, 0), (0, -2)))
    near = constants | {"ends": np.array([5, 6])}
    assert isinstance(check("Slice", {"x": (1, 2, 8, 7)}, near, shapes=shapes), ops.Opaque)


def test_a_slice_backwards_or_with_steps_along_two_axes_is_opaque() -> None:
    back = {"starts": np.array([-1]), "ends": np.array([-(2**62)]), "axes": np.array([0]), "steps": np.array([-1])}
    assert isinstance(check("Slice", {"x": (4, 5, 6)}, back), ops.Opaque)
    two = {"starts": np.array([0, 0]), "ends": np.array([9, 9]), "axes": np.array([1, 2]), "steps": np.array([2, 2])}
    assert isinstance(check("Slice", {"x": (4, 5, 6)}, two), ops.Opaque)


def test_movements_of_elements() -> None:
    x = {"x": (2, 3, 4, 1)}
    assert check("Transpose", x, perm=[0, 2, 1, 3]) == ops.Permute((0, 2, 1, 3))
    assert check("Transpose", x) == ops.Permute((3, 2, 1, 0))
    assert check("Flatten", x) == ops.Flatten(1, 3)
    assert check("Flatten", x, axis=0) == ops.Reshape((1, -1))
    assert check("Flatten", x, axis=-2) == ops.Reshape((6, -1))
    assert check("Squeeze", x, {"axes": np.array([-1])}) == ops.Reshape((0, 0, 0))
    assert check("Squeeze", x) == ops.Reshape((0, 0, 0))
    assert check("Unsqueeze", x, {"axes": np.array([1, -1])}) == ops.Reshape((0, 1, 3, 4, 1, 1))
    assert check("Concat", {"x": (2, 3), "z": (2, 4)}, axis=-1) == ops.Concat(1)
    assert check("Identity", x) == ops.Identity()
    assert check("Dropout", x) == ops.Identity()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ([2, 12], ops.Flatten(1, 3)),
        ([-1, 12], ops.Flatten(1, 3)),
        ([0, -1], ops.Flatten(1, 3)),
        ([2, 6, 2], ops.Reshape((2, 6, 2))),
        ([4, 6], ops.Reshape((4, 6))),
    ],
)
def test_reshape_that_keeps_the_batch_alone_is_a_flatten(shape: list[int], expected: ops.Op) -> None:
    assert check("Reshape", {"x": (2, 3, 4, 1)}, {"shape": np.array(shape)}) == expected


@pytest.mark.parametrize(("opset", "sizes"), [(11, True), (11, False), (17, True), (17, False), (18, False)])
def test_split_is_taken_apart_by_items(opset: int, sizes: bool) -> None:
    attributes: dict[str, Any] = {"axis": 1}
    constants = {}
    if sizes and opset < 13:
        attributes["split"] = [2, 4]
    elif sizes:
        constants = {"sizes": np.array([2, 4])}
    elif opset >= 18:
        attributes["num_outputs"] = 2
    node = helper.make_node("Split", ["x", *constants], ["a", "b"], name="halves", **attributes)
    model = model_of([node], {"x": (2, 6)}, ["b", "a"], constants, opset=opset)
    graph = OnnxFrontend().read(model).graph
    assert graph["halves:outputs"].op == ops.Split(1, (2, 4) if sizes else (3, 3))
    assert (graph["a"].op, graph["b"].op) == (ops.TupleGet(0), ops.TupleGet(1))
    feeds = {"x": normal(2, 6)}
    for found, expected in zip(evaluated(graph, feeds), run(model, feeds), strict=True):
        np.testing.assert_allclose(found, expected, **FLOAT32)


@pytest.mark.parametrize(
    ("kind", "shape", "attributes", "opset"),
    [
        ("Softmax", (2, 5), {"axis": 1}, 17),
        ("Erf", (2, 5), {}, 17),
        ("DepthToSpace", (1, 8, 2, 3), {"blocksize": 2}, 17),
        ("LpNormalization", (1, 8, 2), {"axis": 1, "p": 2}, 17),
        ("HardSigmoid", (2, 5), {"alpha": 0.2}, 17),
    ],
)
def test_what_is_not_in_the_table_is_opaque_and_still_runs(
    kind: str, shape: tuple[int, ...], attributes: dict[str, Any], opset: int
) -> None:
    assert isinstance(check(kind, {"x": shape}, opset=opset, **attributes), ops.Opaque)


@pytest.mark.parametrize(("kind", "second"), [("Div", "x"), ("MatMul", "w"), ("Gemm", "w")])
def test_integers_are_opaque_because_they_divide_and_wrap_in_another_way(kind: str, second: str) -> None:
    weight = {"w": np.arange(6).reshape(2, 3)}
    model = model_of([helper.make_node(kind, ["x", second], ["y"])], {"x": (2, 2)}, ["y"], weight, dtype=7)
    assert isinstance(OnnxFrontend().read(model).graph["y"].op, ops.Opaque)


@EXAMPLES
@given(data=st.data(), rank=st.integers(1, 3), constant=st.booleans())
def test_a_scatter_to_a_box_is_an_assignment(data: st.DataObject, rank: int, constant: bool) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
    starts = [data.draw(st.integers(0, size - 1)) for size in shape[:rank]]
    counts = [data.draw(st.integers(1, size - start)) for size, start in zip(shape, starts, strict=False)]
    places = [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    if data.draw(st.booleans()):  # counted from the end
        places = [place - size for place, size in zip(places, shape, strict=False)]
    index = np.stack(np.meshgrid(*places, indexing="ij"), -1)
    updates = (*counts, *shape[rank:])
    given = {"x": shape} | ({} if constant else {"v": updates})
    constants = {"index": index} | ({"v": normal(*updates, seed=9)} if constant else {})
    assert isinstance(check("ScatterND", given, constants, reads=["x", "index", "v"]), ops.SliceUpdate)


@pytest.mark.parametrize("index", [[[0], [2]], [[2], [1]], [[[0, 0], [1, 1]]], [[0, 1], [1, 2]]])
def test_a_scatter_to_scattered_places_is_opaque(index: list[Any]) -> None:
    places = np.array(index)
    updates = (*places.shape[:-1], *(5, 4, 3)[places.shape[-1] :])
    constants = {"index": places, "v": normal(*updates)}
    assert isinstance(check("ScatterND", {"x": (5, 4, 3)}, constants), ops.Opaque)


def test_a_scatter_that_adds_is_opaque() -> None:
    constants = {"index": np.array([[0]]), "v": normal(1, 4)}
    assert isinstance(check("ScatterND", {"x": (5, 4)}, constants, opset=18, reduction="add"), ops.Opaque)


def test_an_assigned_constant_is_as_small_as_it_can_be() -> None:
    value = np.broadcast_to(normal(1, 3, 1), (2, 3, 4)).copy()
    node = helper.make_node("ScatterND", ["x", "index", "v"], ["y"])
    model = model_of([node], {"x": (5, 3, 4)}, ["y"], {"index": np.array([[0], [1]]), "v": value})
    graph = OnnxFrontend().read(model).graph
    assert [param.shape for param in graph["y"].params] == [(1, 3, 1)]


def test_an_expansion_to_the_shape_of_its_input_is_an_identity() -> None:
    assert check("Expand", {"x": (2, 3, 1)}, {"shape": np.array([3, 1])}) == ops.Identity()
    assert isinstance(check("Expand", {"x": (2, 3, 1)}, {"shape": np.array([3, 4])}), ops.Opaque)
    assert isinstance(check("Expand", {"x": (3, 1)}, {"shape": np.array([1, 3, 1])}), ops.Opaque)
