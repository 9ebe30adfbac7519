"""Functions of each element by itself. Most need nothing but their row: they are read as `ops.Elementwise`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from reparam_compiler.ir.ops import Facts
from reparam_compiler.vocabulary.row import OnnxType, Row, onnx


def pointwise(
    name: str,
    math: Callable[..., Any],
    *modules: type,
    onnx: tuple[OnnxType, ...] = (),
    parameters: tuple[tuple[str, float | None], ...] = (),
    words: tuple[str, ...] | None = None,
    facts: Facts = Facts.NONE,
) -> Row:
    """The row of a function of each element."""
    return Row(name, words, modules=modules, onnx=onnx, facts=facts, parameters=parameters, form="pointwise", math=math)


ROWS = (
    pointwise("abs", torch.abs, onnx=onnx("Abs"), facts=Facts.PIECEWISE),
    pointwise("celu", F.celu, nn.CELU, onnx=(OnnxType("Celu", (("alpha", 1.0),)),), parameters=(("alpha", 1.0),)),
    pointwise(
        "clamp",
        torch.clamp,
        onnx=onnx("Clip"),
        parameters=(("min", None), ("max", None)),
        words=("clamp", "clip"),
        facts=Facts.PIECEWISE,
    ),
    pointwise("elu", F.elu, nn.ELU, onnx=(OnnxType("Elu", (("alpha", 1.0),)),), parameters=(("alpha", 1.0),)),
    pointwise("exp", torch.exp, onnx=onnx("Exp")),
    Row("gelu", modules=(nn.GELU,), module_arguments=("approximate",), onnx=onnx("Gelu"), form="pointwise", math=F.gelu),
    pointwise("gelu_tanh", partial(F.gelu, approximate="tanh"), words=()),
    pointwise(
        "hardsigmoid",
        F.hardsigmoid,
        nn.Hardsigmoid,
        onnx=(OnnxType("HardSigmoid", requires=(("alpha", 0.2, 1 / 6), ("beta", 0.5, 0.5))),),
    ),
    pointwise("hardswish", F.hardswish, nn.Hardswish, onnx=onnx("HardSwish")),
    pointwise(
        "leaky_relu",
        F.leaky_relu,
        nn.LeakyReLU,
        onnx=(OnnxType("LeakyRelu", (("alpha", 0.01),)),),
        parameters=(("negative_slope", 0.01),),
        facts=Facts.PIECEWISE,
    ),
    pointwise("log", torch.log, onnx=onnx("Log")),
    pointwise("mish", F.mish, nn.Mish, onnx=onnx("Mish")),
    pointwise("relu", F.relu, nn.ReLU, onnx=onnx("Relu"), facts=Facts.PIECEWISE),
    pointwise("relu6", F.relu6, nn.ReLU6),
    pointwise("sigmoid", torch.sigmoid, nn.Sigmoid, onnx=onnx("Sigmoid")),
    pointwise("silu", F.silu, nn.SiLU, onnx=(OnnxType("Swish", requires=(("alpha", 1.0, 1.0),)),)),
    pointwise(
        "softplus",
        F.softplus,
        nn.Softplus,
        onnx=onnx("Softplus"),
        parameters=(("beta", 1.0), ("threshold", 20.0)),
    ),
    pointwise("sqrt", torch.sqrt, onnx=onnx("Sqrt")),
    pointwise("tanh", torch.tanh, nn.Tanh, onnx=onnx("Tanh")),
)
