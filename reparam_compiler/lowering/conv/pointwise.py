"""The pointwise functions that kernels compute: one row each, for every kind of target.

    Z = f_n(… f_1(sums, operand_1) …, operand_n)           the epilogue of a conv, before its output is written

A row stands under the vocabulary's name of the op. A new activation is one line here: what TVM's importers call it, and the
expression; a function in `elementary` takes the place of TVM's own where the op stands alone, too.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tvm import te, tirx
from tvm.ir import Op

from reparam_compiler.lowering.conv import elementary
from reparam_compiler.lowering.conv.algorithms import ConvShape, Step

READ = ("channels", "pixels", "tensor")  # operands of a step that the kernel takes as arguments


@dataclass(frozen=True, slots=True)
class Pointwise:
    """One function.

    relax: the Relax op, without its prefix.
    takes: beside its first operand nothing, another value, a slope for each channel, or the dtype that it gives.
    expression: of both operands; of a function of one value the second is 0.
    function: the same for a function that would be a call of the C library. Of those one kernel holds at most one.
    fused: whether it is computed in the epilogue of a conv.
    """

    relax: str
    takes: Literal["nothing", "value", "slopes", "dtype"]
    expression: Callable[[Any, Any], Any]
    function: Callable[[Any], Any] | None = None
    fused: bool = True


def _binary(relax: str, expression: Callable[[Any, Any], Any]) -> Pointwise:
    return Pointwise(relax, "value", expression)


def _function(relax: str, function: Callable[[Any], Any], *, fused: bool = True) -> Pointwise:
    return Pointwise(relax, "nothing", lambda value, _: function(value), function, fused)


def _prelu(value: Any, slope: Any) -> Any:
    return elementary.named(value, lambda value: tirx.Select(value > 0, value, value * slope))


POINTWISE: dict[str, Pointwise] = {
    "add": _binary("add", operator.add),
    "sub": _binary("subtract", operator.sub),
    "mul": _binary("multiply", operator.mul),
    "div": _binary("divide", operator.truediv),
    "maximum": _binary("maximum", tirx.max),
    "minimum": _binary("minimum", tirx.min),
    "prelu": Pointwise("nn.prelu", "slopes", _prelu),
    "relu": Pointwise("nn.relu", "nothing", tirx.max),
    "round": Pointwise("round", "nothing", lambda value, _: tirx.round(value)),
    "to": Pointwise("astype", "dtype", lambda value, other: value.astype(str(other.ty.dtype))),
    "sigmoid": _function("sigmoid", elementary.sigmoid),
    "silu": _function("nn.silu", elementary.silu),
    "tanh": _function("tanh", elementary.tanh),
    "gelu": _function("nn.gelu", elementary.gelu),
    "gelu_tanh": _function("nn.gelu_tanh", elementary.gelu_tanh),
    "exp": _function("exp", elementary.exp, fused=False),
    "erf": _function("erf", elementary.erf),
}
"""By the vocabulary's name: `POINTWISE["sub"].expression(a, b)` is `a - b`."""

STEPS = POINTWISE | {
    "read": Pointwise("", "value", lambda _, other: other, fused=False),
    "nearest": Pointwise("", "nothing", lambda value, _: elementary.nearest(value), fused=False),
}
"""Those, and what a pass of ours makes of several: a tensor beside the sums, an integer of 32 bits."""

FUSED = {f"relax.{row.relax}": name for name, row in POINTWISE.items() if row.fused}
"""Of each Relax op that an epilogue can compute, its row: `FUSED["relax.subtract"]` is "sub"."""


def epilogue_operands(shape: ConvShape, epilogue: Sequence[Step], size: tuple[int, ...]) -> list[Any]:
    """What an epilogue reads, in order: tensors `O`, or of the output's `size`, whose last axes are group and channel."""
    sizes = {"channels": (shape.channels_out,), "pixels": size[:-2], "tensor": size}
    return [
        te.placeholder(sizes[step.operand], step.dtype or shape.dtype, f"operand_{index}")
        for index, step in enumerate(epilogue)
        if step.operand in READ
    ]


def epilogue_value(
    total: Any, shape: ConvShape, epilogue: Sequence[Step], operands: Sequence[Any], at: tuple[Any, ...], dtype: str = ""
) -> Any:
    """The output element `at` from its sum, which is of `dtype`, or that of the conv.

    What later steps read again is named, so that its expression stands there once.
    """
    dtype, rest = dtype or shape.dtype, iter(operands)
    again = {step.other for step in epilogue if step.operand == "earlier"} | {step.source for step in epilogue}

    def after(values: tuple[Any, ...]) -> Any:
        if len(values) > len(epilogue):
            return values[-1]
        step = epilogue[len(values) - 1]
        value = values[-1] if step.source is None else values[step.source]
        other = _other(step, values, next(rest) if step.operand in READ else None)
        return following(values, STEPS[step.op].expression(*((other, value) if step.swapped else (value, other))))

    def _other(step: Step, values: tuple[Any, ...], operand: Any) -> Any:
        kind = step.dtype or dtype
        if operand is not None:
            index = {"channels": at[-2] * shape.group_out + at[-1], "pixels": at[:-2], "tensor": at}
            element = operand[index[step.operand]]
            return element if (step.dtype or shape.dtype) == kind else element.astype(kind)
        return values[step.other] if step.operand == "earlier" else tirx.const(step.value, kind)

    def following(values: tuple[Any, ...], value: Any) -> Any:
        if len(values) in again:
            return elementary.named(value, lambda name: after((*values, name)))
        return after((*values, value))

    return following((), total)


def legalizations() -> dict[str, Callable[[Any, Any], Any]]:
    """For `relax.transform.LegalizeOps`: our functions where the tensor is float32, TVM's own elsewhere."""
    return {
        f"relax.{row.relax}": _legalization(f"relax.{row.relax}", row.function)
        for row in POINTWISE.values()
        if row.function is not None
    }


def _legalization(name: str, function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    hint = name.rpartition(".")[2]

    def elementwise(x: Any) -> Any:
        return te.compute(x.shape, lambda *at: function(x[at]), hint)

    def legalize(builder: Any, call: Any) -> Any:
        if call.ty.dtype == "float32":
            return builder.call_te(elementwise, call.args[0], primfunc_name_hint=hint)
        return Op.get(name).get_attr("FLegalize")(builder, call)

    return legalize
