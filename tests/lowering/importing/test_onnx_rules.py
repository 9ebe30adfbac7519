"""What stands for an op that TVM misreads computes what the op does: both run in ONNX Runtime."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from reparam_compiler.errors import LoweringError
from tests.support.one_op_models import Inputs, one_op, ops_of, rewritten, run_rewritten
from tests.support.onnx_models import normal, run

pytestmark = pytest.mark.tvm
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}


def floats(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def check(op: str, inputs: Inputs, constants: Inputs | None = None, **options: Any) -> list[str]:
    """The ops that stand for it, once they are seen to compute the same."""
    model = one_op(op, inputs, constants, **options)
    made, feeds = rewritten(model, inputs)
    for found, expected in zip(run(made, feeds), run(model, inputs), strict=True):
        np.testing.assert_allclose(found, expected, **FLOAT32)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
    return ops_of(made)


X = {"x": normal(1, 3, 7, 6)}
COORDINATES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric")
EXPONENTS = (np.asarray(2.0, np.float32), np.asarray(3, np.int64), floats(-2.0), floats(0.5), floats(1, 2, -1))
CROP = {"order": "x r - s", "coordinate_transformation_mode": "tf_crop_and_resize"}


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    "coordinates", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric"]
)
@pytest.mark.parametrize("sizes", [(14, 12), (9, 4), (1, 13)])
def test_resize_by_sizes(mode: str, coordinates: str, sizes: tuple[int, int]) -> None:
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates}
    check("Resize", X, {"s": ints(1, 3, *sizes)}, order="x - - s", opset=19, **attrs)


@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("scales", [(1.6, 2.3), (0.6, 2.5), (2.0, 2.0)])
def test_resize_by_scales_rounds_as_it_is_told(rounding: str, scales: tuple[float, float]) -> None:
    check("Resize", X, {"s": floats(1, 1, *scales)}, order="x - s", nearest_mode=rounding)


@pytest.mark.parametrize(
    ("constants", "attrs"),
    [
        ({"s": ints(1, 3, 3, 4)}, {"mode": "linear", "antialias": 1}),
        ({"s": ints(1, 3, 3, 4)}, {"mode": "cubic", "antialias": 1}),
        ({"s": ints(1, 3, 3, 4)}, {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}),
        ({"s": ints(10, 9)}, {"axes": [3, 2]}),
        ({"s": ints(10, 9)}, {"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}),
        ({"s": ints(10, 9)}, {"axes": [2, 3], "keep_aspect_ratio_policy": "not_smaller"}),
    ],
)
def test_resize_of_opset_18(constants: Inputs, attrs: dict[str, Any]) -> None:
    check("Resize", X, constants, order="x - - s", **attrs)


def test_resize_by_whole_numbers_is_tvm_s_own() -> None:
    assert check("Resize", X, {"s": floats(1, 1, 2, 3)}, order="x - s", mode="linear") == ["Resize", "Identity"]


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_recurrent_layers_are_unrolled(op: str, started: bool) -> None:
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    inputs = {"x": normal(4, 2, 3), "h": normal(2, 2, 5, seed=4)}
    constants = {"w": normal(2, gates * 5, 3), "r": normal(2, gates * 5, 5, seed=2), "b": normal(2, gates * 10, seed=3)}
    constants["n"] = np.asarray([4, 2], np.int32)
    attrs = {"hidden_size": 5, "direction": "bidirectional", "outputs": 3 if op == "LSTM" else 2, "opset": 14}
    found = check(op, inputs, constants, order="x w r b n h" if started else "x w r b", **attrs)
    assert op not in found
    if not started:  # the product of a start of zeros is known
        assert found.count("MatMul") == 2 * (8 if op == "GRU" else 4)


@pytest.mark.parametrize("attrs", [{"linear_before_reset": 1}, {"clip": 0.4}, {"activations": ["HardSigmoid", "Relu"]}])
def test_gru_by_its_attributes(attrs: dict[str, Any]) -> None:
    constants = {"w": normal(1, 12, 3), "r": normal(1, 12, 4, seed=2), "b": normal(1, 24, seed=3)}
    check("GRU", {"x": normal(4, 2, 3)}, constants, order="x w r b", opset=14, hidden_size=4, outputs=2, **attrs)


@pytest.mark.parametrize("attrs", [{}, {"input_forget": 1}])
def test_lstm_with_peepholes(attrs: dict[str, Any]) -> None:
    constants = {"w": normal(1, 16, 3), "r": normal(1, 16, 4, seed=2), "p": normal(1, 12, seed=3)}
    check("LSTM", {"x": normal(4, 2, 3)}, constants, order="x w r - - - - p", opset=14, hidden_size=4, outputs=3, **attrs)


@pytest.mark.parametrize(
    "attrs",
    [
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
        {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1, "dilations": [2, 1]},
        {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"kernel_shape": [3, 4], "strides": [2, 3], "auto_pad": "SAME_UPPER"},
    ],
)
def test_pools_by_explicit_pads(attrs: dict[str, Any]) -> None:
    for op in ("MaxPool", "LpPool"):
        check(op, X, opset=19, **attrs)
    check("MaxPool", X, opset=19, outputs=2, **attrs)


def test_max_pool_counts_columns_first_where_told() -> None:
    check("MaxPool", X, outputs=2, kernel_shape=[2, 3], storage_order=1)
    check("MaxPool", {"x": normal(2, 3, 9)}, outputs=2, kernel_shape=[3], strides=[2], pads=[1, 0])


@pytest.mark.parametrize(
    "attrs",
    [
        {"strides": [2, 2], "output_shape": [10, 12]},
        {"strides": [3, 2], "output_shape": [16, 12], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ],
)
def test_transposed_conv_to_a_size(attrs: dict[str, Any]) -> None:
    check("ConvTranspose", {"x": normal(1, 4, 5, 6)}, {"w": normal(4, 3, 3, 3)}, **attrs)


@pytest.mark.parametrize(("strides", "pads"), [([1, 1], [0] * 4), ([2, 1], [1, 0, 1, 2])])
def test_columns_become_an_image(strides: list[int], pads: list[int]) -> None:
    sizes = {"image": ints(8, 7), "block": ints(2, 3)}
    check("Col2Im", {"x": normal(1, 18, 35)}, sizes, strides=strides, pads=pads)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_powers(exponent: np.ndarray) -> None:
    check("Pow", {"x": floats(-2, 0.5, 3)}, {"e": exponent})
    check("Pow", {"x": ints(-2, 0, 3)}, {"e": np.abs(exponent).astype(np.int64)})
    check("Pow", {"x": floats(-2, 0.5, 3), "e": exponent})


@pytest.mark.parametrize("exponent", [0.5, 1.5, 2.0])
def test_a_power_of_integers_loses_its_fraction(exponent: float) -> None:
    check("Pow", {"x": ints(3, 5, 8, 10), "e": np.full(4, exponent, np.float32)})


@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_mean_and_variance_of_values_of_any_size(size: float) -> None:
    check("MeanVarianceNormalization", {"x": size * normal(2, 3, 5, 4)}, opset=13)


@pytest.mark.parametrize("op", ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"])
@pytest.mark.parametrize("axes", [{}, {"axes": ints()}, {"axes": ints(-1)}])
def test_a_reduction_along_no_axes_keeps_what_it_does_to_each_element(op: str, axes: Inputs) -> None:
    made = check(f"Reduce{op}", {"x": normal(2, 3)}, axes, noop_with_empty_axes=1)
    assert (op in ("L1", "L2", "LogSum", "SumSquare") and axes.get("axes", ints()).size == 0) == (f"Reduce{op}" not in made)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_the_mean_of_integers_loses_its_fraction(keepdims: int) -> None:
    x = np.array([[3, -5, -3], [7, 0, 1]], np.int32)
    assert check("ReduceMean", {"x": x}, {"axes": ints(1)}, keepdims=keepdims) == ["ReduceSum", "Div", "Identity"]
    check("ReduceMean", {"x": x}, keepdims=keepdims)


def test_whether_a_dropout_trains_must_be_known() -> None:
    model = one_op(
        "Dropout", {"x": normal(2, 3), "training": np.zeros((), bool)}, {"ratio": np.float32(0.5)}, order="x ratio training"
    )
    with pytest.raises(LoweringError, match="its training_mode is computed by the model"):
        rewritten(model, {"x": normal(2, 3), "training": np.zeros((), bool)})


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
def test_operands_two_at_a_time(op: str) -> None:
    found = check(op, {"a": normal(2, 3, 4), "b": normal(3, 1, seed=1)}, {"c": floats(0.5)}, order="a b c a")
    assert op not in found


def test_an_operand_and_a_number_are_a_clip() -> None:
    assert check("Max", {"x": floats(1, -2)}, {"z": np.zeros((), np.float32)}) == ["Clip", "Identity"]


def test_nan_is_the_largest_and_the_least() -> None:
    for op in ("Max", "Min"):
        check(op, {"a": floats(np.nan, 1, 2), "b": floats(0, np.nan, 3)})


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("Elu", {"alpha": -0.5}),
        ("Selu", {"alpha": -1.5, "gamma": 2.0}),
        ("Celu", {"alpha": 2.0}),
        ("Sinh", {}),
        ("Cosh", {}),
        ("ThresholdedRelu", {"alpha": 0.3}),
        ("IsInf", {"detect_negative": 0}),
        ("IsInf", {"detect_positive": 0}),
        ("LpNormalization", {"axis": 0, "p": 1}),
        ("LpNormalization", {}),
    ],
)
def test_functions_of_elements(op: str, attrs: dict[str, Any]) -> None:
    check(op, {"x": np.asarray([[-3, -0.5, 0.2], [90, 1, -np.inf if op == "IsInf" else -80]], np.float32)}, **attrs)


@pytest.mark.parametrize("op", ["Elu", "Selu", "Celu", "ThresholdedRelu", "Sinh"])
def test_functions_of_float64(op: str) -> None:
    x = {"x": normal(3, 4).astype(np.float64)}
    made, feeds = rewritten(one_op(op, x), x)
    for found, expected in zip(
        ReferenceEvaluator(made).run(None, feeds), ReferenceEvaluator(one_op(op, x)).run(None, x), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-7)
        assert found.dtype == expected.dtype == np.float64


def test_topk_in_any_order_is_sorted() -> None:
    made, feeds = rewritten(one_op("TopK", {"x": normal(3, 7)}, {"k": ints(3)}, outputs=2, sorted=0), {"x": normal(3, 7)})
    np.testing.assert_array_equal(run(made, feeds)[0], -np.sort(-normal(3, 7))[:, :3])
    assert {attribute.name for node in made.graph.node for attribute in node.attribute} <= {"axis", "largest"}


def test_quantized_ops_by_their_definition() -> None:
    u8, i8 = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, (np.arange(20, dtype=np.int8) * 5 - 50).reshape(4, 5)
    scale, zero = np.asarray(0.05, np.float32), np.asarray(100, np.uint8)
    made = {"out_scale": np.asarray(0.3, np.float32), "out_zero": np.asarray(7, np.uint8)}
    weight = {"w": i8, "w_scale": np.asarray(0.02, np.float32), "w_zero": np.asarray(2, np.int8)}
    check("QLinearMatMul", {"a": u8}, {"s": scale, "z": zero, **weight, **made})
    check("MatMulInteger", {"a": u8}, {"w": i8, "z": zero, "w_zero": weight["w_zero"]})
    each = {"s": floats(0.05, 0.1, 0.2), "z": np.asarray([0, 3, 200], np.uint8)}
    check("QuantizeLinear", {"x": normal(3, 4) * 9}, each, axis=0)
    check("EyeLike", {"x": normal(3, 4)}, dtype=TensorProto.INT64, k=1)
    check("ReverseSequence", {"x": normal(4, 3, 2)}, {"n": ints(4, 2, 1)})
    check("ReverseSequence", {"x": normal(3, 4, 2), "n": ints(1, 2, 4)}, batch_axis=0, time_axis=1)
    check("Compress", {"x": normal(4, 3)}, {"c": np.asarray([1, 0, 1], bool)}, axis=0)
    check("CumProd", {"x": normal(3, 4)}, {"axis": np.asarray(1, np.int64)}, opset=26, reverse=1, exclusive=1)
    check("Det", {"x": normal(2, 3, 3)})
    check("CenterCropPad", {"x": normal(4, 5)}, {"s": ints(2, 9)})
    check("Shape", {"x": normal(4, 5)}, start=1)


def test_norms_in_terms_of_means() -> None:
    scale = {"s": normal(4), "b": normal(4, seed=2)}
    check("LayerNormalization", {"x": normal(2, 3, 4)}, scale, outputs=3)
    check("GroupNormalization", {"x": normal(2, 4, 3)}, {"s": normal(2), "b": normal(2, seed=2)}, num_groups=2)
    check("GroupNormalization", {"x": normal(2, 4, 3)}, scale, opset=21, num_groups=2)
    check("LRN", {"x": normal(2, 5, 3, 3)}, size=3, alpha=0.5)
    check("MeanVarianceNormalization", {"x": normal(2, 5, 3, 3)})


def test_fourier_transforms_are_products() -> None:
    axis = {"axis": np.asarray(1, np.int64)}
    check("DFT", {"x": normal(2, 8, 1)}, axis, order="x - axis", opset=20, onesided=1)
    check("DFT", {"x": normal(2, 8, 2)}, axis, order="x - axis", opset=20, inverse=1)
    check("STFT", {"x": normal(1, 16, 1)}, {"step": np.asarray(4, np.int64), "window": normal(8)})


@pytest.mark.parametrize("op", ["Gelu", "QuickGelu", "FastGelu", "BiasGelu"])
def test_functions_of_microsoft(op: str) -> None:
    check(op, {"x": normal(3, 4)}, {"b": normal(4)} if op in ("FastGelu", "BiasGelu") else None, domain="com.microsoft")


def test_layers_of_microsoft() -> None:
    image = {"x": normal(1, 3, 5, 5)}
    conv = {"w": normal(4, 3, 3, 3), "b": normal(4), "z": normal(1, 4, 3, 3)}
    check("FusedConv", image, conv, domain="com.microsoft", activation="Relu")
    check("FusedMatMul", {"x": normal(4, 3)}, {"w": normal(4, 5)}, domain="com.microsoft", transA=1, alpha=0.5)
    tokens = {"x": normal(2, 3, 8), "y": normal(2, 3, 8, seed=1)}
    check("SkipLayerNormalization", tokens, {"s": normal(8), "b": normal(8, seed=2)}, domain="com.microsoft")


def test_attention_of_microsoft() -> None:
    tokens, mask = {"x": normal(1, 5, 8)}, {"m": np.asarray([[1, 1, 1, 0, 0]], np.int32)}
    weights = {"w": normal(8, 24), "b": normal(24)}
    attrs: dict[str, Any] = {"domain": "com.microsoft", "num_heads": 2}
    check("Attention", tokens, weights | mask, **attrs)
    check("Attention", tokens, weights, unidirectional=1, **attrs)
    flat = {"q": normal(1, 3, 8), "k": normal(1, 5, 8), "v": normal(1, 5, 8, seed=2)}
    check("MultiHeadAttention", flat, {"b": normal(24)}, **attrs)
    tables = {"words": normal(9, 8), "places": normal(6, 8), "kinds": normal(2, 8), "s": normal(8), "b": normal(8, seed=1)}
    ids = {"ids": np.asarray([[1, 5, 8]], np.int32), "segments": np.asarray([[0, 1, 1]], np.int32)}
    check("EmbedLayerNormalization", ids, tables, domain="com.microsoft", outputs=2)


def test_a_conv_whose_taps_are_moved() -> None:
    inputs = {"x": normal(1, 4, 9, 8), "offsets": normal(1, 18, 9, 8, seed=1)}
    held = {"w": normal(6, 4, 3, 3), "b": normal(6), "mask": normal(1, 9, 9, 8)}
    check("DeformConv", inputs, held, order="x w offsets b mask", opset=22, pads=[1] * 4)


def test_an_lstm_that_quantizes_its_states() -> None:
    quantized = {"w": np.arange(48, dtype=np.int8).reshape(1, 3, 16), "r": np.arange(64, dtype=np.int8).reshape(1, 4, 16) - 30}
    scales = {"ws": floats(0.02), "wz": np.asarray([2], np.int8), "rs": floats(0.03), "rz": np.zeros(1, np.int8)}
    order = "x w r - - - - - ws wz rs rz"
    check("DynamicQuantizeLSTM", {"x": normal(3, 1, 3)}, quantized | scales, order=order, domain="com.microsoft", hidden_size=4)


def test_attention_of_onnx_is_its_own_body() -> None:
    inputs = {"q": normal(1, 2, 3, 4), "k": normal(1, 2, 5, 4), "v": normal(1, 2, 5, 6)}
    assert "Attention" not in check("Attention", inputs, {"mask": normal(3, 5)}, opset=23)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (one_op("Relu", X, domain="mine"), r"node \(mine::Relu\): an op of that package has no rule here"),
        (one_op("NonZero", X), r"node \(NonZero\): the size of its result depends on values"),
        (one_op("Dropout", X, {"r": floats(0.3)[0], "t": np.asarray(True)}), r"node \(Dropout\): training_mode=True"),
        (one_op("Compress", X | {"c": np.ones(3, bool)}), r"node \(Compress\): its condition is computed by the model"),
        (one_op("Det", {"x": normal(9, 9)}), r"node \(Det\): the determinant of 9 x 9"),
        (one_op("RNN", {"x": normal(600, 1, 2)}, {"w": normal(1, 2, 2), "r": normal(1, 2, 2)}), "a sequence of 600 steps"),
        (one_op("Resize", X, {"r": floats(*range(8)), "s": ints(1, 3, 9, 9)}, **CROP), r"node \(Resize\): a crop"),
    ],
)  # fmt: skip
def test_what_has_no_rule_is_refused_by_name(model: Any, message: str) -> None:
    shapes = {value.name: np.zeros([dim.dim_value for dim in value.type.tensor_type.shape.dim]) for value in model.graph.input}
    with pytest.raises(LoweringError, match=message):
        rewritten(model, {name: shapes[name] for name in shapes if name not in {t.name for t in model.graph.initializer}})


def test_caller_s_model_and_large_weights_are_left_where_they_are() -> None:
    weight = normal(64, 32)
    model = one_op("FusedMatMul", {"x": normal(2, 64)}, {"w": weight}, domain="com.microsoft")
    before = model.SerializeToString()
    made, feeds = rewritten(model, {"x": normal(2, 64)})
    assert model.SerializeToString() == before
    assert not made.graph.initializer
    assert [value.shape for value in feeds.values()] == [(2, 64), (64, 32)]


def branches(known: bool) -> Any:
    """An If that adds or subtracts, on a constant or on an input."""
    x, y = helper.make_tensor_value_info("x", 1, (3,)), helper.make_empty_tensor_value_info("y")
    two = [helper.make_graph([helper.make_node(op, ["x", "x"], ["y"])], op, [], [y]) for op in ("Add", "Mul")]
    node = helper.make_node("If", ["c"], ["out"], "node", then_branch=two[0], else_branch=two[1])
    flag = helper.make_tensor_value_info("c", TensorProto.BOOL, ())
    held = [helper.make_tensor("c", TensorProto.BOOL, (), [False])] if known else []
    graph = helper.make_graph([node], "graph", [x] if known else [x, flag], [helper.make_empty_tensor_value_info("out")], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_branches() -> None:
    x = {"x": floats(1, 2, 3)}
    assert ops_of(rewritten(branches(True), x)[0]) == ["Mul", "Identity"]
    for flag in (True, False):
        inputs = x | {"c": np.asarray(flag)}
        np.testing.assert_array_equal(run_rewritten(branches(False), inputs)[0], run(branches(False), inputs)[0])
