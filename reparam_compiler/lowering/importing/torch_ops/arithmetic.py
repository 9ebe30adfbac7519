"""Arithmetic of two operands: in the dtype that torch computes in, with torch's rounding of quotients.

TVM's importer gives a number the dtype of the tensor beside it (`int64 * 0.5` is zero), divides integers without a fraction,
and leaves `alpha` out. What it reads rightly, arithmetic in one floating dtype, is said in the same Relax ops here.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from tvm import relax, tirx

from reparam_compiler.lowering.importing.torch_ops.table import Call, instead, number, word

PROMOTION = "gives a number the dtype of the tensor beside it, and does not promote"


def operand_dtype(call: Call) -> str:
    """The dtype that both operands are brought to before they are compared."""
    left, right = ((given.meta["val"] if isinstance(given, fx.Node) else given) for given in (call["input"], call["other"]))
    return word(torch.result_type(left, right))


def _counted(how_many: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """A function of two bools from how many of them are set: TVM mixes bits and bytes in one vector of `and`."""

    def function(first: Any, second: Any) -> Any:
        return how_many(relax.op.add(relax.op.astype(first, "int8"), relax.op.astype(second, "int8")))

    return function


_BOTH = _counted(lambda count: relax.op.equal(count, relax.const(2, "int8")))
_EITHER = _counted(lambda count: relax.op.greater(count, relax.const(0, "int8")))
_ONE = _counted(lambda count: relax.op.equal(count, relax.const(1, "int8")))
_OF_BOOLS = {"and": _BOTH, "or": _EITHER, "xor": _ONE}


def _scaled(
    op: Callable[[Any, Any], Any],
    of_bools: Callable[[Any, Any], Any] | None = None,
    order: tuple[str, str] = ("input", "other"),
) -> Callable[[Call], Any]:
    """op(first, alpha second), both in the dtype of the result."""

    def convert(call: Call) -> Any:
        first, second = (call.tensor(name, call.dtype) for name in order)
        if call.dtype == "bool" and of_bools is not None:
            return of_bools(first, second)
        if call["alpha"] not in (None, 1):
            second = call.emit(relax.op.multiply(second, relax.const(call["alpha"], call.dtype)))
        return op(first, second)

    return convert


instead("add.Tensor", "add.Scalar", tvm=f"leaves alpha out; {PROMOTION}")(_scaled(relax.op.add, _EITHER))
instead("sub.Tensor", "sub.Scalar", tvm=f"leaves alpha out; {PROMOTION}")(_scaled(relax.op.subtract))
instead("rsub.Tensor", "rsub.Scalar", tvm=f"leaves alpha out; {PROMOTION}")(
    _scaled(relax.op.subtract, order=("other", "input"))
)
instead("mul.Tensor", "mul.Scalar", tvm=PROMOTION)(_scaled(relax.op.multiply, _BOTH))
instead("div.Tensor", "div.Scalar", tvm="divides integers as integers")(_scaled(relax.op.divide))
instead("maximum.default", "max.other", tvm=PROMOTION)(_scaled(relax.op.maximum, _EITHER))
instead("minimum.default", "min.other", tvm=PROMOTION)(_scaled(relax.op.minimum, _BOTH))
instead("atan2.default", tvm=PROMOTION)(_scaled(relax.op.atan2))
for _name, _logic in _OF_BOOLS.items():
    instead(f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Scalar", f"__{_name}__.Tensor", f"__{_name}__.Scalar", tvm=PROMOTION)(
        _scaled(getattr(relax.op, f"bitwise_{_name}"), _logic)
    )
    instead(f"logical_{_name}.default", tvm="mixes bits and bytes in one vector where one operand alone is computed beside it")(
        lambda call, logic=_logic: logic(call.tensor("input", "bool"), call.tensor("other", "bool"))  # type: ignore[misc]
    )


def _compared(op: Callable[[Any, Any], Any]) -> Callable[[Call], Any]:
    def convert(call: Call) -> Any:
        dtype = operand_dtype(call)
        if call["input"] is call["other"] and is_floating(dtype) and op in (relax.op.equal, relax.op.not_equal):
            nan = call.emit(relax.op.isnan(call.tensor("input")))  # TVM takes x == x for true, of whatever x
            return nan if op is relax.op.not_equal else relax.op.logical_not(nan)
        dtype = "int8" if dtype == "bool" else dtype  # TVM has no order of bools
        return op(call.tensor("input", dtype), call.tensor("other", dtype))

    return convert


for _name, _op in (
    ("eq", relax.op.equal),
    ("ne", relax.op.not_equal),
    ("lt", relax.op.less),
    ("le", relax.op.less_equal),
    ("gt", relax.op.greater),
    ("ge", relax.op.greater_equal),
):
    instead(f"{_name}.Tensor", f"{_name}.Scalar", tvm=PROMOTION)(_compared(_op))


@instead("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar", tvm="refuses two dtypes, and numbers")
def _where(call: Call) -> Any:
    return relax.op.where(call.tensor("condition", "bool"), call.tensor("input", call.dtype), call.tensor("other", call.dtype))


def is_floating(dtype: str) -> bool:
    """Whether a dtype has fractions."""
    return "float" in dtype


def remainder_of(a: Any, b: Any) -> Any:
    """What is left of a / b rounded towards zero, of the sign of a: exact, as in C."""
    if not is_floating(str(a.ty)):
        return tirx.truncmod(a, b)
    wide = a if str(a.ty) in ("float32", "float64") else a.astype("float32")
    name = "fmod" if str(wide.ty) == "float64" else "fmodf"
    return tirx.call_pure_extern(str(wide.ty), name, wide, b.astype(str(wide.ty))).astype(str(a.ty))


def _floor_remainder(a: Any, b: Any) -> Any:
    if not is_floating(str(a.ty)):
        return tirx.floormod(a, b)
    left = remainder_of(a, b)
    return tirx.Select(_opposed(left, b), left + b, left)


def _opposed(a: Any, b: Any) -> Any:
    """Whether one is above zero and the other below."""
    zero = number(0, a)
    return tirx.any(tirx.all(a < zero, b > zero), tirx.all(a > zero, b < zero))


def _floor_quotient(a: Any, b: Any) -> Any:
    if not is_floating(str(a.ty)):
        return tirx.floordiv(a, b)
    zero, one = number(0, a), number(1, a)
    left = remainder_of(a, b)
    quotient = (a - left) / b
    quotient = tirx.Select(_opposed(left, b), quotient - one, quotient)
    whole = tirx.floor(quotient)
    whole = tirx.Select(quotient - whole > number(0.5, a), whole + one, whole)
    return tirx.Select(b == zero, a / b, tirx.Select(quotient == zero, zero * (a / b), whole))


def _whole_quotient(a: Any, b: Any) -> Any:
    return tirx.trunc(a / b) if is_floating(str(a.ty)) else tirx.truncdiv(a, b)


def _elementwise(function: Callable[[Any, Any], Any]) -> Callable[[Call], Any]:
    return lambda call: call.elements(function, call.tensor("input", call.dtype), call.tensor("other", call.dtype))


instead(
    "remainder.Tensor",
    "remainder.Scalar",
    "remainder.Scalar_Tensor",
    tvm="a - floor(a / b) b, which is off by b where a / b rounds",
)(_elementwise(_floor_remainder))
instead("fmod.Tensor", "fmod.Scalar", tvm=PROMOTION)(_elementwise(remainder_of))
instead("floor_divide.default", "floor_divide.Scalar", tvm="floor(a / b), which is off by one where a / b rounds")(
    _elementwise(_floor_quotient)
)


@instead("div.Tensor_mode", "div.Scalar_mode", tvm="gives numbers the dtype int32 or float32")
def _divided(call: Call) -> Any:
    mode = call["rounding_mode"]
    if mode is None:
        return relax.op.divide(call.tensor("input", call.dtype), call.tensor("other", call.dtype))
    return _elementwise(_floor_quotient if mode == "floor" else _whole_quotient)(call)


_SHIFTS = {"left_shift": operator.lshift, "right_shift": operator.rshift}
for _name, _shift in _SHIFTS.items():
    _dunder = "__lshift__" if _name == "left_shift" else "__rshift__"
    _spellings = (f"bitwise_{_name}.{kind}" for kind in ("Tensor", "Tensor_Scalar", "Scalar_Tensor"))
    instead(*_spellings, f"{_dunder}.Tensor", f"{_dunder}.Scalar", tvm="does not know it")(_elementwise(_shift))


def _power_of_integers(base: Any, exponent: Any) -> Any:
    """By squaring, for exponents to 63: beyond, int64 has overflowed. A negative one gives 0, but of 1 and -1."""
    one, zero = number(1, base), number(0, base)
    result, square = one, base
    for bit in range(6):
        odd = (exponent >> number(bit, exponent)) & number(1, exponent)
        result = tirx.Select(odd != number(0, exponent), result * square, result)
        square = square * square
    result = tirx.Select(exponent < number(0, exponent), zero, result)
    even = (exponent & number(1, exponent)) == number(0, exponent)
    result = tirx.Select(base == number(-1, base), tirx.Select(even, one, number(-1, base)), result)
    return tirx.Select(base == one, one, result)


@instead("pow.Tensor_Tensor", "pow.Scalar", tvm="takes floating bases alone")
def _power(call: Call) -> Any:
    base = call.tensor("input", call.dtype)
    exponent = call.tensor("exponent", call.dtype)
    return relax.op.power(base, exponent) if is_floating(call.dtype) else call.elements(_power_of_integers, base, exponent)


@instead("pow.Tensor_Scalar", tvm="gives the exponent the dtype of the base; whole powers by a call of the C library")
def _power_of_number(call: Call) -> Any:
    base, exponent = call.tensor("input", call.dtype), call["exponent"]
    if exponent in (0.5, -0.5) and is_floating(call.dtype):
        return relax.op.sqrt(base) if exponent > 0 else relax.op.rsqrt(base)
    if 0 < abs(exponent) <= 4 and float(exponent).is_integer() and (exponent > 0 or is_floating(call.dtype)):
        product = base
        for _ in range(abs(int(exponent)) - 1):
            product = call.emit(relax.op.multiply(product, base))
        return product if exponent > 0 else relax.op.divide(relax.const(1, call.dtype), product)
    if is_floating(call.dtype):
        return relax.op.power(base, relax.const(exponent, call.dtype))
    return call.elements(_power_of_integers, base, relax.const(exponent, call.dtype))
