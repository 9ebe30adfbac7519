"""Sizes, random values, constants, quantized numbers and checks: what gives a value that is not computed from elements."""

from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.row import Row, onnx, rows

_SIZES = Facts.SIZE_QUERY
_RANDOM = Facts.RANDOM

ROWS = (
    Row("shape", (), attributes=("shape",), onnx=onnx("Shape"), facts=_SIZES),
    Row("ndim", (), attributes=("ndim",), facts=_SIZES),
    Row("numel", onnx=onnx("Size"), facts=_SIZES),
    *rows("size dim ndimension sym_size sym_numel", facts=_SIZES),
    *(Row(word, (), attributes=(word,)) for word in ("dtype", "device")),
    *rows("zeros_like ones_like full_like", facts=Facts.SIZES_ALONE, form="recast"),
    *rows("new_zeros new_ones new_full", facts=Facts.SIZES_ALONE),
    *rows("empty empty_like new_empty", facts=Facts.SIZES_ALONE),  # whatever they hold is overwritten, or any value is right
    *rows("zeros ones eye linspace scalar_tensor", facts=Facts.FACTORY),
    Row("full", onnx=onnx("ConstantOfShape"), facts=Facts.FACTORY | Facts.SIZED_BY_VALUE),
    Row("arange", onnx=onnx("Range"), facts=Facts.FACTORY | Facts.SIZED_BY_VALUE),
    Row("eye_like", (), onnx=onnx("EyeLike"), facts=Facts.SIZED_BY_VALUE),
    Row("one_hot", onnx=onnx("OneHot"), facts=Facts.SIZED_BY_VALUE),
    Row("nonzero", onnx=onnx("NonZero"), facts=Facts.SIZED_BY_VALUE),
    Row("bernoulli", onnx=onnx("Bernoulli"), facts=_RANDOM),
    Row("multinomial", onnx=onnx("Multinomial"), facts=_RANDOM),
    Row("rand", onnx=onnx("RandomUniform"), facts=_RANDOM),
    Row("randn", onnx=onnx("RandomNormal"), facts=_RANDOM),
    Row("rand_like", onnx=onnx("RandomUniformLike"), facts=_RANDOM),
    Row("randn_like", onnx=onnx("RandomNormalLike"), facts=_RANDOM),
    *rows("uniform normal random randint randperm randint_like exponential cauchy log_normal geometric", facts=_RANDOM),
    *rows("poisson rrelu", facts=_RANDOM),
    Row("quantize", (), onnx=onnx("QuantizeLinear", "DynamicQuantizeLinear"), facts=Facts.QUANTIZED | Facts.DISCONTINUOUS),
    Row("dequantize", (), onnx=onnx("DequantizeLinear"), facts=Facts.QUANTIZED),
    *rows("_assert _assert_async _assert_scalar _assert_tensor_metadata", facts=Facts.CHECK),
)
