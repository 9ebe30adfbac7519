"""Quantized models: which layers multiply integers, and that a model gives what it does by definition, on CPUs of any kind."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")
pytest.importorskip("onnx")

from onnx import ModelProto
from tvm import relax

from reparam_compiler import lowering
from reparam_compiler.lowering.cpu.kernels import DOTS
from reparam_compiler.lowering.cpu.machine import vector_unit
from reparam_compiler.lowering.importing.importer import to_relax
from reparam_compiler.lowering.relax.packed import noted
from reparam_compiler.lowering.relax.quantized import as_arithmetic, byte_layers
from reparam_compiler.lowering.target import resolve
from tests.support.lowered import lower
from tests.support.quantized_models import Quantized, by_definition

pytestmark = pytest.mark.tvm
U8, S8 = np.uint8, np.int8
PADS = [1, 1, 1, 1]
WITHOUT_DOTS = {"kind": "llvm", "mcpu": "x86-64-v3"}


def arithmetic(model: ModelProto, *, integers: bool = True) -> Any:
    return as_arithmetic(to_relax(model).module, integers=integers)


def layers() -> Quantized:
    """Layers of every kind beside one another: each quantized again, so that a wrong sum is another byte."""
    net = Quantized((2, 8, 9, 7))
    unsigned, signed = net.again("x", 0.02, 120, U8), net.again("x", 0.03, -5, S8)
    of = Counter[str]()

    def output(y: str, dtype: Any = U8) -> None:
        of[str(np.dtype(dtype))] += 1
        net.output(net.bytes_of(y, 0.0517, 128 if dtype == U8 else 0, dtype))

    bias = net.constant(net.source.standard_normal(12), np.float32)
    each = np.linspace(0.004, 0.02, 12)
    output(net.add("Conv", unsigned, net.weights(12, 8, 3, 3, scale=each, zero=[0] * 12), bias, pads=PADS))
    output(net.add("Relu", net.add("Conv", signed, net.weights(12, 8, 3, 3), bias, pads=[1, 0, 2, 1], strides=[2, 1])))
    output(net.add("Conv", signed, net.weights(20, 8, 1, 1, scale=0.02)), S8)
    output(net.add("Conv", unsigned, net.weights(12, 4, 3, 3, scale=0.02), group=2, dilations=[2, 2], pads=PADS))
    output(net.add("Conv", unsigned, net.weights(12, 8, 3, 3, dtype=U8, zero=128), pads=PADS))
    output(net.add("Conv", signed, net.weights(12, 8, 3, 3, dtype=U8, zero=131), pads=PADS))
    output(net.add("Conv", unsigned, net.weights(8, 1, 3, 3, scale=0.02), pads=PADS, group=8))
    flat = net.again(net.add("Reshape", signed, net.constant([2, -1], np.int64)), 0.03, -5, S8)
    output(net.add("Gemm", flat, net.weights(10, 504, scale=0.002), transB=1))
    output(net.add("MatMul", unsigned, net.weights(7, 5, axis=1, scale=np.linspace(0.01, 0.03, 5), zero=[0] * 5)))
    return net


def feed(net: Quantized) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(3).standard_normal(net.shape).astype(np.float32)}


@pytest.mark.parametrize("target", [None, WITHOUT_DOTS], ids=["this machine", "no dot products"])
def test_layers_give_what_they_do_by_definition(target: Any) -> None:
    net = layers()
    model, feeds = net.model(), feed(net)
    found = lowering.compile(model, target=target).run(**feeds)
    for each, expected in zip(found, by_definition(model, feeds), strict=True):
        assert each.dtype == expected.dtype
        apart = np.abs(each.astype(int) - expected.astype(int))
        assert apart.max() <= 1  # a number between two bytes
        assert (apart > 0).mean() < 1e-3
        assert np.ptp(expected.astype(int)) > 20


def test_all_but_depthwise_layers_are_dot_products_where_there_are_any() -> None:
    module = arithmetic(layers().model())
    assert byte_layers(module) == 9
    with noted() as weights:
        made = lower(module, resolve(None))
    kernels = Counter(
        str(func.attrs["reparam.algorithm"]) for _, func in made.functions_items() if "reparam.algorithm" in (func.attrs or {})
    )
    expected = {DOTS: 9, "depthwise": 1} if vector_unit(resolve(None)).dots else {}
    assert {name: kernels[name] for name in expected} == expected
    stored = Counter(str(weight.stored.dtype) for weight in weights)
    assert stored["int8"] >= 8
    assert set(stored) <= {"int8", "float16"}


def test_a_cpu_without_dot_products_stores_bytes_and_says_that_it_multiplies_floats(caplog: pytest.LogCaptureFixture) -> None:
    net = layers()
    with caplog.at_level(logging.WARNING), noted() as weights:
        lower(to_relax(net.model()).module, resolve(WITHOUT_DOTS))
    assert Counter(str(weight.stored.dtype) for weight in weights) == {"int8": 8, "float16": 1}
    (line,) = [record.getMessage() for record in caplog.records if "dot products" in record.getMessage()]
    assert '"mcpu": "x86-64-v3"' in line
    assert line.endswith("(avx512vnni, avxvnni, dotprod): 9 convs and dense layers of bytes are computed in float32")


def residuals(dtype: Any) -> Quantized:
    """Sums of what a layer gives, as bytes, and of other bytes: the input's, those of another layer, of another sign."""
    net, zero = Quantized((2, 8, 9, 7)), 9 if dtype == U8 else -13
    image, other = net.again("x", 0.02, zero + 100, dtype), net.again("x", 0.03, -5, S8)

    def layer(x: str, *sizes: int, **options: Any) -> str:
        bias = net.constant(net.source.standard_normal(sizes[0]), np.float32)
        return net.again(net.add("Conv", x, net.weights(*sizes), bias, **options), 0.04, zero, dtype)

    def summed(*values: str, relu: bool = True) -> None:
        y = net.add("Add", *values)
        net.output(net.bytes_of(net.add("Relu", y) if relu else y, 0.05, zero, dtype))

    summed(layer(image, 8, 8, 1, 1), image)
    summed(other, layer(image, 8, 8, 3, 3, pads=PADS), relu=False)
    summed(layer(image, 12, 8, 3, 3, pads=PADS), layer(image, 12, 8, 1, 1))
    summed(layer(image, 8, 1, 3, 3, pads=PADS, group=8), image)
    return net


@pytest.mark.parametrize("target", [None, WITHOUT_DOTS], ids=["this machine", "no dot products"])
@pytest.mark.parametrize("dtype", [U8, S8])
def test_a_residual_sum_of_bytes_is_computed_where_the_layer_is(dtype: Any, target: Any) -> None:
    net = residuals(dtype)
    model, feeds = net.model(), feed(net)
    compiled = lowering.compile(model, target=target)
    others = [kernel.name for kernel in compiled.kernels if kernel.algorithm == "general" and "round" in kernel.name]
    assert len(others) == 2, others  # of the input, by each of its scales
    for each, expected in zip(compiled.run(**feeds), by_definition(model, feeds), strict=True):
        apart = np.abs(each.astype(int) - expected.astype(int))
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-3
        assert np.ptp(expected.astype(int)) > 20


def test_bytes_that_are_an_output_too_are_written_and_summed_behind() -> None:
    net = Quantized((1, 8, 9, 7))
    image = net.again("x", 0.02, 120, U8)
    point = net.constant(0.04, np.float32), net.constant(128, U8)
    made = net.output(net.add("QuantizeLinear", net.add("Conv", image, net.weights(8, 8, 1, 1)), *point))
    net.output(net.bytes_of(net.add("Add", net.add("DequantizeLinear", made, *point), image), 0.05, 128, U8))
    model, feeds = net.model(), feed(net)
    compiled = lowering.compile(model)
    assert sum("round" in kernel.name for kernel in compiled.kernels) == 2
    for each, expected in zip(compiled.run(**feeds), by_definition(model, feeds), strict=True):
        assert np.abs(each.astype(int) - expected.astype(int)).max() <= 1


def one_conv(change: Callable[[Quantized], str]) -> ModelProto:
    net = Quantized((1, 8, 6, 5))
    net.output(change(net))
    return net.model()


def _by_input(net: Quantized) -> str:
    scales = np.linspace(0.01, 0.02, 8)
    return net.add("Conv", net.again("x", 0.02, 0, S8), net.weights(4, 8, 1, 1, scale=scales, zero=[0] * 8, axis=1))


def _by_channel_of_the_data(net: Quantized) -> str:
    scale, zero = net.constant(np.linspace(0.01, 0.02, 8), np.float32), net.constant([0] * 8, S8)
    data = net.add("DequantizeLinear", net.add("QuantizeLinear", "x", scale, zero, axis=1), scale, zero, axis=1)
    return net.add("Conv", data, net.weights(4, 8, 1, 1))


def _of_floats(net: Quantized) -> str:
    return net.add("Conv", "x", net.weights(4, 8, 1, 1))


def _by_computed_weights(net: Quantized) -> str:
    image = net.again("x", 0.02, 0, S8)
    return net.add("MatMul", image, net.add("Transpose", image, perm=[0, 1, 3, 2]))


def _beyond_32_bits(net: Quantized) -> str:
    flat = net.add("Reshape", net.again("x", 0.02, 0, U8), net.constant([1, 240], np.int64))
    tiled = net.again(net.add("Tile", flat, net.constant([1, 275], np.int64)), 0.02, 0, U8)
    weight = net.constant(np.full((66_000, 2), -128), S8)
    return net.add("MatMul", tiled, net.add("DequantizeLinear", weight, net.constant(0.01, np.float32), net.constant(0, S8)))


FLOATS: dict[str, Callable[[Quantized], str]] = {
    "a scale an input": _by_input,
    "a scale a channel of the data": _by_channel_of_the_data,
    "data in float32": _of_floats,
    "weights that are computed": _by_computed_weights,
    "sums beyond 32 bits": _beyond_32_bits,
}


@pytest.mark.parametrize("name", FLOATS)
def test_what_is_no_layer_of_bytes_is_computed_in_float32(name: str) -> None:
    model = one_conv(FLOATS[name])
    module = arithmetic(model)
    assert byte_layers(module) == 0
    feeds = {"x": np.random.default_rng(4).standard_normal((1, 8, 6, 5)).astype(np.float32)}
    for found, expected in zip(lowering.compile(model).run(**feeds), by_definition(model, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_what_is_pooled_or_moved_between_scales_that_are_one_is_of_bytes() -> None:
    net = Quantized((1, 8, 6, 5))
    bytes_of = net.again("x", 0.02, 7, U8)
    pooled = net.bytes_of(net.add("MaxPool", bytes_of, kernel_shape=[2, 2], pads=PADS), 0.02, 7, U8)
    net.output(pooled)
    net.output(net.bytes_of(net.add("Transpose", bytes_of, perm=[0, 2, 3, 1]), 0.02, 7, U8))
    net.output(net.bytes_of(net.add("MaxPool", bytes_of, kernel_shape=[2, 2]), 0.03, 7, U8))
    module = arithmetic(net.model())
    pools = {str(binding.value.ty.dtype) for binding in bindings(module) if "max_pool2d" in str(binding.value)}
    assert pools == {"uint8", "float32"}
    feeds = feed(net)
    for found, expected in zip(lowering.compile(net.model()).run(**feeds), by_definition(net.model(), feeds), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("target", [None, WITHOUT_DOTS], ids=["this machine", "no dot products"])
@pytest.mark.parametrize("scale", [0.0, np.zeros(8)], ids=["of the tensor", "of each channel"])
@pytest.mark.parametrize("group", [1, 8])
def test_weights_of_scale_zero_leave_the_bias(group: int, scale: Any, target: Any) -> None:
    net = Quantized((1, 8, 6, 5))
    weight = net.weights(8, 8 // group, 3, 3, scale=scale, zero=np.zeros(np.shape(scale)))
    bias = net.constant(np.arange(8) - 3.5, np.float32)
    net.output(net.add("Conv", net.again("x", 0.02, 7, U8), weight, bias, group=group))
    (found,) = lowering.compile(net.model(), target=target).run(**feed(net))
    np.testing.assert_array_equal(found, np.broadcast_to((np.arange(8) - 3.5).reshape(1, 8, 1, 1), (1, 8, 4, 3)))


def test_a_part_of_a_weight_is_of_bytes() -> None:
    """As an LSTM of two directions takes them, each with a scale of its own."""
    net = Quantized((3, 6))
    image = net.again("x", 0.0213, 7, U8)
    both = net.add("Transpose", net.weights(2, 5, 6, scale=[0.01, 0.03], zero=[0, 4]), perm=[0, 2, 1])
    for direction in (0, 1, -1):
        part = net.add("Gather", both, net.constant(direction, np.int64), axis=0)
        net.output(net.add("MatMul", image, part))
    model, feeds = net.model(), feed(net)
    assert byte_layers(arithmetic(model)) == 3
    for found, expected in zip(lowering.compile(model).run(**feeds), by_definition(model, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_module_that_quantizes_nothing_is_left_as_it_is() -> None:
    net = Quantized((3, 6))
    net.output(net.add("Relu", "x"))
    module = to_relax(net.model()).module
    assert as_arithmetic(module, integers=True) is module


def bindings(module: Any) -> list[Any]:
    return [
        binding for block in module["main"].body.blocks for binding in block.bindings if isinstance(binding, relax.VarBinding)
    ]


def integer_ops() -> Quantized:
    """Ops of integers, whose zero points are known or computed."""
    net = Quantized((3, 8, 6, 5))
    data = net.bytes_of("x", 0.02, 120, U8)
    weight = net.constant(net.source.integers(-128, 128, (12, 8, 3, 3)), S8)
    wide = net.constant(net.source.integers(0, 256, (12, 8, 3, 3)), U8)
    zero, of_wide = net.constant(120, U8), net.constant(117, U8)
    net.output(net.add("ConvInteger", data, weight, zero, pads=PADS))
    net.output(net.add("ConvInteger", data, wide, zero, of_wide, strides=[2, 2]))
    matrix = net.constant(net.source.integers(-128, 128, (5, 7)), S8)
    net.output(net.add("MatMulInteger", data, matrix, zero))
    net.nodes.append(_dynamic())
    net.output(net.add("ConvInteger", "bytes", weight, "zero", pads=PADS))
    net.output(net.add("MatMulInteger", "bytes", matrix, "zero", net.constant(np.arange(7), S8)))
    scales = net.constant(0.02, np.float32), net.constant(np.linspace(0.004, 0.01, 12), np.float32)
    result = net.constant(0.05, np.float32), net.constant(9, U8)
    bias = net.constant(net.source.integers(-900, 900, 12), np.int32)
    zeros = net.constant([0] * 12, S8)
    net.output(net.add("QLinearConv", data, scales[0], zero, weight, scales[1], zeros, *result, bias, pads=PADS))
    net.output(net.add("QLinearMatMul", data, scales[0], zero, matrix, result[0], net.constant(3, S8), *result))
    return net


def _dynamic() -> Any:
    from onnx import helper

    return helper.make_node("DynamicQuantizeLinear", ["x"], ["bytes", "scale", "zero"], "dynamic")


@pytest.mark.parametrize("target", [None, WITHOUT_DOTS], ids=["this machine", "no dot products"])
def test_ops_of_integers_give_the_integers(target: Any) -> None:
    net = integer_ops()
    model, feeds = net.model(), feed(net)
    found, expected = lowering.compile(model, target=target).run(**feeds), by_definition(model, feeds)
    for each, wanted in list(zip(found, expected, strict=True))[:-2]:
        np.testing.assert_array_equal(each, wanted)
    for each, wanted in list(zip(found, expected, strict=True))[-2:]:
        assert np.abs(each.astype(int) - wanted.astype(int)).max() <= 1


def test_for_a_gpu_layers_are_of_floats() -> None:
    assert byte_layers(arithmetic(integer_ops().model(), integers=False)) == 0
    module = arithmetic(layers().model(), integers=False)
    layers_of = [binding.value for binding in bindings(module) if "relax.nn.conv2d" in str(getattr(binding.value, "op", ""))]
    assert {str(layer.ty.dtype) for layer in layers_of} == {"float32"}
