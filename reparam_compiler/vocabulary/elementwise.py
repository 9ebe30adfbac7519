"""Functions of the elements at the same place: arithmetic, which has readers of its own, and what only pruning understands."""

import operator
from typing import Any

from torch import nn

from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.row import Row, onnx, rows

_PIECEWISE = Facts.PIECEWISE
_STEPS = Facts.PIECEWISE | Facts.DISCONTINUOUS


def _binary(name: str, *aliases: str, types: str = "", facts: Facts = Facts.NONE, operators: tuple[Any, ...] = ()) -> Row:
    """A function of two values, with the operator of Python and the one that writes (`x += y`)."""
    return Row(
        name,
        (name, *aliases),
        functions=operators[:1],
        in_place=operators[1:],
        onnx=onnx(*types.split()),
        facts=facts,
        form="elementwise",
    )


def _unary(name: str, types: str = "", *modules: type, functions: tuple[Any, ...] = (), facts: Facts = Facts.NONE) -> Row:
    return Row(name, functions=functions, modules=modules, onnx=onnx(*types.split()), facts=facts, form="elementwise")


ROWS = (
    _binary("add", types="Add", operators=(operator.add, operator.iadd)),
    _binary("sub", "subtract", types="Sub", operators=(operator.sub, operator.isub)),
    _binary("rsub"),
    _binary("mul", "multiply", types="Mul", facts=Facts.BILINEAR, operators=(operator.mul, operator.imul)),
    _binary(
        "div",
        "divide",
        "true_divide",
        types="Div",
        facts=Facts.BILINEAR | _PIECEWISE,  # of whole numbers it rounds
        operators=(operator.truediv, operator.itruediv),
    ),
    _binary("floor_divide", facts=_STEPS, operators=(operator.floordiv, operator.ifloordiv)),
    _binary("fmod", types="Mod", facts=_STEPS),
    _binary("remainder", facts=_STEPS),
    _binary("pow", types="Pow", operators=(operator.pow, operator.ipow)),
    _binary("maximum", types="Max", facts=_PIECEWISE),
    _binary("minimum", types="Min", facts=_PIECEWISE),
    _binary("eq", types="Equal", facts=_STEPS, operators=(operator.eq,)),
    _binary("ne", facts=_STEPS, operators=(operator.ne,)),
    _binary("lt", types="Less", facts=_STEPS, operators=(operator.lt,)),
    _binary("le", types="LessOrEqual", facts=_STEPS, operators=(operator.le,)),
    _binary("gt", types="Greater", facts=_STEPS, operators=(operator.gt,)),
    _binary("ge", types="GreaterOrEqual", facts=_STEPS, operators=(operator.ge,)),
    _binary("logical_and", types="And", facts=_PIECEWISE),
    _binary("logical_or", types="Or", facts=_PIECEWISE),
    _binary("logical_xor", types="Xor", facts=_PIECEWISE),
    _binary("where", types="Where", facts=Facts.BILINEAR | _PIECEWISE),
    _binary("masked_fill", facts=Facts.BILINEAR),
    _binary("lerp", facts=Facts.BILINEAR),
    _binary("addcmul", facts=Facts.BILINEAR),
    _binary("addcdiv"),
    _unary("logical_not", "Not", facts=_PIECEWISE),
    _unary("neg", "Neg", functions=(operator.neg,), facts=Facts.LINEAR),
    _unary("reciprocal", "Reciprocal"),
    _unary("sign", "Sign", facts=_STEPS),
    _unary("sin", "Sin"),
    _unary("cos", "Cos"),
    _unary("tan", "Tan"),
    _unary("asin", "Asin"),
    _unary("acos", "Acos"),
    _unary("atan", "Atan"),
    _unary("sinh", "Sinh"),
    _unary("cosh", "Cosh"),
    _unary("erf", "Erf"),
    _unary("floor", "Floor", facts=_STEPS),
    _unary("ceil", "Ceil", facts=_STEPS),
    _unary("round", "Round", facts=_STEPS),
    _unary("isnan", "IsNaN"),
    _unary("isinf", "IsInf"),
    _unary("selu", "Selu", nn.SELU),
    _unary("softsign", "Softsign", nn.Softsign),
    _unary("hardshrink", "", nn.Hardshrink),
    _unary("softshrink", "", nn.Softshrink),
    _unary("threshold", "ThresholdedRelu", nn.Threshold),
    Row("log_sigmoid", ("log_sigmoid", "logsigmoid"), modules=(nn.LogSigmoid,), form="elementwise"),
    Row("hardtanh", modules=(nn.Hardtanh,), module_arguments=("min_val", "max_val"), form="elementwise"),
    Row("shrink_both", (), onnx=onnx("Shrink"), form="elementwise"),
    *(
        Row(name, (), functions=(plain,), in_place=(writing,))
        for name, plain, writing in (
            ("mod", operator.mod, operator.imod),
            ("and", operator.and_, operator.iand),
            ("or", operator.or_, operator.ior),
            ("xor", operator.xor, operator.ixor),
            ("lshift", operator.lshift, operator.ilshift),
            ("rshift", operator.rshift, operator.irshift),
        )
    ),
    *rows(
        "exp2 expm1 log2 log10 log1p rsqrt square erfc trunc frac clamp_min clamp_max tanhshrink nan_to_num bitwise_not",
        form="elementwise",
    ),
)
